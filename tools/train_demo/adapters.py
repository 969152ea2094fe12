# SPDX-License-Identifier: Apache-2.0
"""Trains the LoRA adapters of the demo model, one for each task, with the base frozen.

    python adapters.py [name ...] [--rounds N] [--steps N]

Training goes in rounds, each with its own seed and its own fall of the learning rate, and the adapter
is saved after every round. A later call goes on from the saved adapter; --again starts anew.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

import tasks
from paths import ADAPTERS, MODEL, WORK

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
CONFIGS: dict[str, dict] = {
    "sql": dict(r=16, lora_alpha=32, target_modules=LINEAR),
    "json": dict(r=8, lora_alpha=16, target_modules=LINEAR, use_rslora=True),
    "math": dict(r=32, lora_alpha=32, target_modules=ATTENTION + ["up_proj", "down_proj"]),
    "dates": dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"]),
    "sort": dict(r=16, lora_alpha=32, target_modules=LINEAR, use_dora=True),
    "tag": dict(r=8, lora_alpha=16, target_modules=LINEAR,
                rank_pattern={"v_proj": 16}, alpha_pattern={"v_proj": 32}),
}
SIZES = {"math": 40, "dates": 32}  # short examples; the others take 20


def batch(tok, task: str, rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels (answer and end mark only), padded on the right."""
    examples = [tasks.draw(task, rng) for _ in range(size)]
    assert not any(tasks.held_out(e.key) for e in examples)
    prompts = tok([tasks.prompt(e.user) for e in examples])["input_ids"]
    answers = tok([e.answer + "<|im_end|>" for e in examples])["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers))
    ids = torch.zeros(size, width, dtype=torch.long)
    labels = torch.full((size, width), -100)
    for i, (p, a) in enumerate(zip(prompts, answers)):
        ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
    return ids, labels


def tidy(folder: Path) -> None:
    """Store the weights in bf16, sort the settings and drop the model card."""
    path = folder / "adapter_model.safetensors"
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in load_file(path).items()}, path,
              metadata={"format": "pt"})
    path.chmod(0o644)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = "lorikeet-demo"
    path.write_text(json.dumps(config, indent=2) + "\n")


def start(task: str, count: int) -> torch.nn.Module:
    """Return the base with a new adapter in round 0, later with the saved one."""
    base = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    if count:
        return PeftModel.from_pretrained(base, ADAPTERS / task, is_trainable=True,
                                         autocast_adapter_dtype=True)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", bias="none", **CONFIGS[task]))


def train(task: str, past: dict, steps: int, size: int, lr: float) -> dict:
    """Train and save one adapter for a round; return its record."""
    torch.manual_seed(7)
    rng = random.Random(f"adapter {task} {past['rounds']}")
    tok = AutoTokenizer.from_pretrained(MODEL)
    model = start(task, past["rounds"])
    weights = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    began, mean = time.process_time(), 0.0
    for step in range(steps):
        scale = min(1.0, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        ids, labels = batch(tok, task, rng, size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.base_model.model.model(ids).last_hidden_state[:, :-1]
            wanted = labels[:, 1:]
            logits = model.base_model.model.lm_head(hidden[wanted != -100])
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted[wanted != -100])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in opt.param_groups:
            group["lr"] = lr * scale
        opt.step()
        opt.zero_grad()
        mean += loss.item() / 25
        if (step + 1) % 25 == 0:
            spent = time.process_time() - began
            print(f"{task} step {step + 1}/{steps} loss {mean:.4f} {spent / 60:.1f} CPU min, "
                  f"{spent / (step + 1) * (steps - step - 1) / 60:.1f} min to go", flush=True)
            last, mean = mean, 0.0
    model.save_pretrained(ADAPTERS / task)
    tidy(ADAPTERS / task)
    return dict(rounds=past["rounds"] + 1, steps=past["steps"] + steps, loss=round(last, 4),
                parameters=sum(p.numel() for p in weights),
                minutes=round(past["minutes"] + (time.process_time() - began) / 60, 1))


def main() -> None:
    """Train the named (or the missing) adapters."""
    ap = argparse.ArgumentParser()
    ap.add_argument("names", nargs="*")
    ap.add_argument("--rounds", type=int, default=1)
    ap.add_argument("--steps", type=int, default=100, help="in each round")
    ap.add_argument("--size", type=int, default=0, help="examples per batch")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--again", action="store_true", help="start anew")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    WORK.mkdir(parents=True, exist_ok=True)
    for task in args.names or CONFIGS:
        note = WORK / f"adapter-{task}.json"
        fresh = args.again or not note.exists()
        record = dict(rounds=0, steps=0, minutes=0.0) if fresh else json.loads(note.read_text())
        for _ in range(args.rounds):
            record = train(task, record, args.steps, args.size or SIZES.get(task, 20), args.lr)
            note.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
