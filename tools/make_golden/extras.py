# SPDX-License-Identifier: Apache-2.0
"""Expected values beyond the cases of manifest.json: weighted sums of adapters and mean-pooled embeddings.

Written to extras.json and extras.safetensors. The sums are PEFT's add_weighted_adapter(combination_type="cat").
"""
from __future__ import annotations

import dataclasses
import json
import pathlib

import torch
from bases import generator, load_base
from peft import PeftModel
from safetensors.torch import save_file

LENGTHS = (1, 9, 37)


@dataclasses.dataclass(frozen=True)
class Sum:
    """A weighted sum of adapters of one base."""

    name: str
    base: str
    parts: tuple[tuple[str, float], ...]


SUMS = (
    Sum("two_targets", "llama_mha", (("r8_attention", 0.7), ("r64_linear", 0.3))),
    # PEFT gives the sum the rsLoRA flag and the patterns of the first part, which is wrong for sums: a plain one comes first.
    Sum("patterns_minus", "llama_mha", (("bf16_r16", 2.0), ("rslora_r3", 1.0), ("patterns", -0.5))),
    Sum("embeddings", "llama_mha", (("embed_head", 0.8), ("embed_rslora", -0.6), ("r1", 1.5))),
    Sum("grouped", "llama_gqa_llama3", (("r8_linear", 0.4), ("layers_to_transform", 0.6), ("head", -1.0))),
)
# (base, adapter or None)
POOLED = (
    ("llama_mha", None),
    ("llama_mha", "r64_linear"),
    ("llama_mha", "dora_r4"),
    ("llama_mha", "final_norm"),
    ("mistral_window7", "r8_attention"),
    ("qwen3", None),
)


def _tokens(name: str, vocab: int) -> list[list[int]]:
    gen = generator(name)
    return [torch.randint(3, vocab, (length,), generator=gen).tolist() for length in LENGTHS]


def _load(base: str, adapters: list[str], root: pathlib.Path) -> torch.nn.Module:
    model: torch.nn.Module = load_base(base, root)
    for index, adapter in enumerate(adapters):
        path = root / "adapters" / f"{base}__{adapter}"
        if index == 0:
            model = PeftModel.from_pretrained(model, path, adapter_name=adapter)
        else:
            model.load_adapter(path, adapter_name=adapter)
    return model.eval()


@torch.no_grad()
def _sum_case(case: Sum, root: pathlib.Path, arrays: dict[str, torch.Tensor]) -> dict:
    names = [name for name, _ in case.parts]
    model = _load(case.base, names, root)
    model.add_weighted_adapter(names, [weight for _, weight in case.parts], "sum", combination_type="cat")
    model.set_adapter("sum")
    prompts = []
    for index, tokens in enumerate(_tokens(case.name, model.config.vocab_size)):
        key = f"sum/{case.name}/{index}"
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        arrays[key] = logits[-1].clone()
        prompts.append({"token_ids": tokens, "last_logits_key": key})
    parts = [{"adapter": f"adapters/{case.base}__{name}", "weight": weight} for name, weight in case.parts]
    return {"name": case.name, "model": f"models/{case.base}", "parts": parts, "prompts": prompts}


@torch.no_grad()
def _pooled_case(base: str, adapter: str | None, root: pathlib.Path, arrays: dict[str, torch.Tensor]) -> dict:
    model = _load(base, [adapter] if adapter else [], root)
    name = f"{base}__{adapter}" if adapter else base
    inner = model.get_base_model().model if adapter else model.model
    prompts = []
    for index, tokens in enumerate(_tokens("pooled " + name, model.config.vocab_size)):
        key = f"pooled/{name}/{index}"
        hidden = inner(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
        arrays[key] = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
        prompts.append({"token_ids": tokens, "embedding_key": key})
    return {
        "name": name,
        "model": f"models/{base}",
        "adapter": f"adapters/{name}" if adapter else None,
        "prompts": prompts,
    }


def write_extras(root: pathlib.Path) -> None:
    """Writes both files; the checkpoints and adapters must exist."""
    arrays: dict[str, torch.Tensor] = {}
    sums = [_sum_case(case, root, arrays) for case in SUMS]
    pooled = [_pooled_case(base, adapter, root, arrays) for base, adapter in POOLED]
    save_file({key: value.float().contiguous() for key, value in arrays.items()}, root / "extras.safetensors")
    lines = [f' "{key}": [\n  ' + ",\n  ".join(json.dumps(case) for case in cases) + "\n ]" for key, cases in (("sums", sums), ("pooled", pooled))]
    (root / "extras.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
