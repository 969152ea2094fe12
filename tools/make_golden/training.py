# SPDX-License-Identifier: Apache-2.0
"""Expected losses and gradients of training: the adapters of the fixtures, trained on with PEFT and torch's AdamW.

Writes training.json and training.safetensors. A step sees two samples whose first targets carry no loss;
the loss is the mean over the weighted tokens of both. `gradients` are those of the first step, before any clipping;
`losses` are those of each step, before its update. All parameters share one rate; nothing decays.
"""
from __future__ import annotations

import json
import pathlib
import re

import torch
from bases import EOS_TOKEN, generator, load_base
from expected import _reset_rope
from peft import PeftModel
from safetensors.torch import save_file

STEPS = 20
DISTINCT = 2  # steps take turns, so that what was learnt shows
RATE = 5e-3
LENGTHS = (13, 8)
CASES = [
    "llama_mha__r8_attention", "llama_mha__r64_linear", "llama_mha__rslora_r3", "llama_mha__patterns",
    "llama_mha__lora_bias", "llama_mha__dora_r4", "llama_mha__embed_head", "llama_mha__modules_to_save",
    "llama_mha__final_norm", "llama_mha__tokens", "llama_mha__pissa_r4", "llama_mha__olora_r4",
    "llama_bias__dora_rslora", "llama_bias__lora_bias", "llama_gqa_llama3__r8_linear", "llama_gqa_llama3__tokens",
    "llama_gqa_llama3__embed", "llama_gqa_llama3__head", "llama_gqa_llama3__layers_to_transform",
    "llama_yarn__r4", "llama_dynamic__r4", "mistral_window7__r5_all_linear", "qwen2_tied__r8_linear", "qwen2_window__r4",
    "qwen2_tied__dora_r2", "qwen3__all_norms", "qwen3__r6_linear",
]
PARTS = {
    "lora_A.default.weight": "lora_A", "lora_B.default.weight": "lora_B", "lora_B.default.bias": "lora_B_bias",
    "lora_embedding_A.default": "lora_A", "lora_embedding_B.default": "lora_B",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector", "modules_to_save.default.weight": "weight",
    "token_adapter.trainable_tokens_delta.default": "trainable_tokens",
}


def _name(parameter: str) -> str:
    """PEFT's name of a parameter in Lorikeet's terms."""
    path = parameter.removeprefix("base_model.model.")
    for part, ours in PARTS.items():
        if path.endswith("." + part):
            return f"{path.removesuffix('.' + part)}.{ours}"
    raise ValueError(parameter)


def _samples(case: str, vocab: int) -> list[list[dict]]:
    gen = generator("training " + case)
    steps = []
    for _ in range(DISTINCT):
        samples = []
        for length in LENGTHS:
            ids = torch.randint(EOS_TOKEN + 1, vocab, (length,), generator=gen).tolist()
            weights = [0.0, 0.0, 0.0] + [1.0] * (length - 4) + [0.5]
            samples.append({"ids": ids, "weights": weights})
        steps.append(samples)
    return steps


def _loss(model: torch.nn.Module, samples: list[dict]) -> torch.Tensor:
    total, weight = torch.zeros(()), 0.0
    for sample in samples:
        _reset_rope(model)
        ids = torch.tensor([sample["ids"]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        weights = torch.tensor(sample["weights"][1:])
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + (weights * nll).sum()
        weight += float(weights.sum())
    return total / weight


def _case(case: str, root: pathlib.Path, arrays: dict[str, torch.Tensor]) -> dict:
    base = load_base(case.split("__")[0], root).float()
    model = PeftModel.from_pretrained(base, str(root / "adapters" / case), is_trainable=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    steps = _samples(case, base.config.vocab_size)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    losses = []
    for number in range(STEPS):
        samples = steps[number % DISTINCT]
        optimizer.zero_grad()
        loss = _loss(model, samples)
        loss.backward()
        losses.append(float(loss))
        if number == 0:
            for name, parameter in trained.items():
                arrays[f"{case}/{_name(name)}"] = parameter.grad.float().contiguous().clone()
        optimizer.step()
    return {"name": case, "rate": RATE, "steps": steps, "losses": losses}


def write_training(root: pathlib.Path) -> None:
    """Writes training.json and training.safetensors."""
    arrays: dict[str, torch.Tensor] = {}
    cases = []
    for case in CASES:
        cases.append(_case(case, root, arrays))
        print("training", case, cases[-1]["losses"][0], cases[-1]["losses"][-1], flush=True)
    save_file(arrays, root / "training.safetensors")
    text = json.dumps({"cases": cases}, indent=1)
    text = re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    (root / "training.json").write_text(text + "\n", encoding="utf-8")
