# SPDX-License-Identifier: Apache-2.0
"""Trains the demo base model on the generated text.

    python train.py [--steps N] [--out DIR]

Checkpoints go to build/train_demo/; a second call with the same arguments goes on from the last.
Every batch is drawn from its own seed, so a run that was stopped ends as one that was not.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import data
import tokenizer as tok_mod
from paths import MODEL, WORK

SHAPE = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
             head_dim=32, intermediate_size=640)


def build(vocab: int) -> LlamaForCausalLM:
    """Return a freshly initialised model."""
    config = LlamaConfig(vocab_size=vocab, max_position_embeddings=512, tie_word_embeddings=True,
                         rope_theta=10000.0, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=2,
                         pad_token_id=0, initializer_range=0.02, **SHAPE)
    return LlamaForCausalLM(config)


LATER = 1000  # from this step on: the later mixture


def copying(step: int) -> float:
    """Weight of the copied lists: they are mixed in once the model knows the sentences."""
    return 0.0 if step < 400 else 25.0 if step < 800 else 8.0


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: warm-up, a cosine, a constant part, a last linear fall."""
    if step < LATER:
        return min(1.0, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / 1500)))
    return 0.5 * min(1.0, (steps - step) / 150)


def batch(tok, step: int, rows: int, length: int) -> torch.Tensor:
    """Return rows x (length + 1) tokens of documents packed one behind the other."""
    need, ids = rows * (length + 1), []
    docs = data.documents(f"base {step}", copying(step), step >= LATER)
    while len(ids) < need:
        for one in tok([next(docs) for _ in range(64)])["input_ids"]:
            ids += [0, *one]
    return torch.tensor(ids[:need]).view(rows, length + 1)


def optimizers(model: LlamaForCausalLM, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the rest, or AdamW for all."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    if not muon:
        return [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)]
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


def main() -> None:
    """Train, checkpoint, save."""
    ap = argparse.ArgumentParser()
    ap.add_argument("--steps", type=int, default=1400)
    ap.add_argument("--rows", type=int, default=16)
    ap.add_argument("--length", type=int, default=256)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--vocab", type=int, default=1536)
    ap.add_argument("--adamw", action="store_true", help="AdamW for all weights")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--out", type=Path, default=MODEL)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    WORK.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)

    if not (args.out / "tokenizer.json").exists():
        tok_mod.save(tok_mod.train(args.vocab, 30000), args.out)
    tok = AutoTokenizer.from_pretrained(args.out)
    model = build(len(tok))
    opts = optimizers(model, args.lr, not args.adamw)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, vocabulary {len(tok)}", flush=True)

    start, spent, record = 0, 0.0, []
    ckpt = WORK / f"{args.out.name}.pt"
    if ckpt.exists():
        state = torch.load(ckpt)
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["opts"]):
            o.load_state_dict(s)
        start, spent, record = state["step"], state["spent"], state["record"]
        print(f"resumed at step {start}", flush=True)

    began, mean = time.process_time() - spent, 0.0
    for step in range(start, args.steps):
        scale = rate(step, args.steps)
        ids = batch(tok, step, args.rows, args.length)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            for group in o.param_groups:
                group["lr"] = args.lr * scale
            o.step()
            o.zero_grad()
        mean += loss.item() / 25
        if (step + 1) % 25 == 0:
            spent = time.process_time() - began
            eta = spent / (step + 1) * (args.steps - step - 1)
            print(f"step {step + 1}/{args.steps} loss {mean:.3f} {spent / 60:.1f} CPU min, "
                  f"{eta / 60:.1f} min to go", flush=True)
            record.append([step + 1, round(mean, 4)])
            mean = 0.0
        if (step + 1) % 100 == 0:
            torch.save(dict(model=model.state_dict(), opts=[o.state_dict() for o in opts],
                            step=step + 1, spent=time.process_time() - began, record=record), ckpt)

    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=0, eos_token_id=[2, 0], pad_token_id=0, max_new_tokens=128)
    model.to(torch.bfloat16).save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)
    tokens = args.steps * args.rows * args.length
    summary = dict(parameters=count, steps=args.steps, tokens=tokens, loss=record[-1][1],
                   minutes=round((time.process_time() - began) / 60, 1), record=record)
    (WORK / f"{args.out.name}.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
