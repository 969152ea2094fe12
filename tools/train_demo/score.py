# SPDX-License-Identifier: Apache-2.0
"""Scores the base model and every adapter on the held-out task files by exact match.

    python score.py [--limit N] [--dry]

Writes examples/demo/scores.json and the tables of examples/demo/README.md.
"""

from __future__ import annotations

import argparse
import json
import re

import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM

import tasks
from paths import ADAPTERS, DEMO, METRICS, MODEL, TASK_FILES


def load_tasks(limit: int) -> dict[str, list[dict]]:
    """Read the task files."""
    return {p.stem: [json.loads(x) for x in p.read_text().splitlines()][:limit]
            for p in sorted(TASK_FILES.glob("*.jsonl"))}


@torch.inference_mode()
def answers(model, tok, rows: list[dict]) -> list[str]:
    """Generate greedily for all rows at once; an answer without an end mark gets a '...' tail."""
    enc = tok([r["prompt"] for r in rows], return_tensors="pt", padding=True, padding_side="left",
              return_token_type_ids=False)
    out = model.generate(**enc, max_new_tokens=rows[0]["max_tokens"], do_sample=False)
    texts = []
    for row in out[:, enc["input_ids"].shape[1]:].tolist():
        end = row.index(tok.eos_token_id) if tok.eos_token_id in row else -1
        texts.append(tok.decode(row[:end]) if end >= 0 else tok.decode(row) + " ...")
    return texts


def table(header: list[str], rows: list[list[object]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def settings(name: str) -> str:
    """Describe an adapter from its settings."""
    c = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    kind = "DoRA" if c["use_dora"] else "rsLoRA" if c["use_rslora"] else "LoRA"
    ranks = "/".join(str(r) for r in sorted({c["r"], *c["rank_pattern"].values()}))
    where = ", ".join(t.removesuffix("_proj") for t in c["target_modules"])
    return f"{kind} rank {ranks}: {where}" + (f" + {c['modules_to_save']}" if c["modules_to_save"] else "")


def report(match: dict[str, dict[str, float]], names: list[str]) -> None:
    """Put the tables between the markers of the README."""
    rows, training = [], []
    log = METRICS.read_text().splitlines() if METRICS.exists() else []
    trained = {m["job"]: m for m in map(json.loads, log) if "grad_norm" in m}  # the last step of each job
    for t in match:
        others = {n: match[t][n] for n in names if n != t}
        worst = max(others, key=others.get)
        rows.append([t, f"{match[t]['base']:.1f}", f"**{match[t][t]:.1f}**",
                     f"{others[worst]:.1f} ({worst})"])
        last = trained.get(t, {})
        size = (ADAPTERS / t / "adapter_model.safetensors").stat().st_size / 1024
        training.append([t, settings(t), last.get("step", ""), f"{last['loss']:.4f}" if last else "", f"{size:.0f} KiB"])
    text = (table(["task", "base %", "own adapter %", "best other adapter %"], rows) + "\n\n"
            + table(["adapter", "settings", "steps", "last loss", "size"], training))
    readme = DEMO / "README.md"
    if readme.exists():
        begin, end = "<!-- scores -->", "<!-- end of scores -->"
        new = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", readme.read_text(), flags=re.S)
        readme.write_text(new)


def main() -> None:
    """Score everything."""
    ap = argparse.ArgumentParser()
    ap.add_argument("--limit", type=int, default=1000)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--dry", action="store_true", help="print only; own adapters and the base only")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    tok = AutoTokenizer.from_pretrained(MODEL)
    held = load_tasks(args.limit)
    names = [t for t in held if (ADAPTERS / t / "adapter_config.json").exists()]
    match: dict[str, dict[str, float]] = {t: {} for t in held}
    for name in ["base", *names]:
        model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, ADAPTERS / name)
        model.eval()
        for t, rows in held.items():
            if args.dry and name not in ("base", t):
                continue
            got = answers(model, tok, rows)
            right = sum(g == r["expected"] for g, r in zip(got, rows))
            match[t][name] = round(100 * right / len(rows), 1)
            print(f"{t} with {name}: {match[t][name]} %", flush=True)
            if name in ("base", t):
                for g, r in [(g, r) for g, r in zip(got, rows) if g != r["expected"]][:3]:
                    print(f"    {tasks.bare(r['prompt'])!r} -> {g!r}, not {r['expected']!r}")
    if not args.dry:
        (DEMO / "scores.json").write_text(json.dumps(
            dict(metric="exact match, %", examples={t: len(r) for t, r in held.items()}, match=match),
            indent=2) + "\n")
        report(match, names)


if __name__ == "__main__":
    main()
