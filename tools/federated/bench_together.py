#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Is a round of clients in one joint batch ever slower than the same clients one after the other? Measures
`lorikeet federate simulate` with `clients.together` as it is against 1, by turns, at the demo's shape and at that of TinyLlama-1.1B
(random weights, made once below --work: 2.2 GB). What counts is the time of training in a round, from the ledger: from the last
"sampled" to the first answer; evaluation, saving and loading are the same in both. The adapters must be the same bytes.

    python3 tools/federated/bench_together.py --lorikeet build/cpu-release/bin/lorikeet            about 4 minutes on 2 quiet cores
"""
from __future__ import annotations

import argparse
import json
import pathlib
import random
import shutil
import statistics
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "examples" / "demo" / "model"
sys.path.insert(0, str(ROOT / "tools" / "train_demo"))
import tasks  # noqa: E402

# Rounds are short, so that pairs are near one another in time.
SHAPES = {"demo": {"rounds": 2, "steps": 6, "batch_samples": 16, "clients": 4, "records": 120, "dtype": "f32", "block_tokens": 2048},
          "demo, small batches": {"rounds": 2, "steps": 6, "batch_samples": 2, "clients": 8, "records": 12, "dtype": "f32", "block_tokens": 2048},
          "reference": {"rounds": 1, "steps": 2, "batch_samples": 1, "clients": 4, "records": 4, "dtype": "bf16", "block_tokens": 512}}


def reference_model(directory: pathlib.Path) -> pathlib.Path:
    """TinyLlama's shape with the demo's tokenizer. One block of normal values, repeated: products take the same time."""
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((ROOT / "tools" / "reliability" / "tinyllama.json").read_text())
    hidden, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = config.get("head_dim", hidden // config["num_attention_heads"]) * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "lm_head.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        shapes |= {name + "self_attn.q_proj.weight": [hidden, hidden], name + "self_attn.k_proj.weight": [kv, hidden],
                   name + "self_attn.v_proj.weight": [kv, hidden], name + "self_attn.o_proj.weight": [hidden, hidden],
                   name + "mlp.gate_proj.weight": [ffn, hidden], name + "mlp.up_proj.weight": [ffn, hidden],
                   name + "mlp.down_proj.weight": [hidden, ffn], name + "input_layernorm.weight": [hidden],
                   name + "post_attention_layernorm.weight": [hidden]}
    rng = random.Random(1)
    block = b"".join(struct.pack("<f", rng.gauss(0, 0.02))[2:] for _ in range(1 << 19))
    one = struct.pack("<f", 1)[2:]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            source = one * shape[0] if len(shape) == 1 else block * (size // len(block) + 1)
            out.write(source[:size])
    for name in DEMO.iterdir():
        if "token" in name.name or name.suffix == ".jinja":
            shutil.copy(name, directory)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_run(work: pathlib.Path, name: str, base: pathlib.Path, shape: dict, threads: int, together: int) -> pathlib.Path:
    data = work / f"{name} data"
    data.mkdir(parents=True, exist_ok=True)
    for client in range(shape["clients"]):
        rng = random.Random(client)
        examples = [tasks.draw(("dates", "json", "sql", "tag")[client % 4], rng) for _ in range(shape["records"])]
        (data / f"c{client}.jsonl").write_text("".join(json.dumps({"messages": [{"role": "user", "content": each.user}, {"role": "assistant", "content": each.answer}]}) + "\n"
                                                      for each in examples))
    run = {"base": str(base), "dtype": shape["dtype"], "block_tokens": shape["block_tokens"], "threads": threads, "rounds": shape["rounds"], "seed": 1,
           "adapter": {"rank": 8, "alpha": 16}, "clients": {"data": str(data / "*.jsonl")},
           "train": {"steps": shape["steps"], "batch_samples": shape["batch_samples"], "lr": 3e-3}}
    if together:
        run["clients"]["together"] = together
    path = work / f"{name} {together}.yaml"
    path.write_text(json.dumps(run))
    return path


def training_seconds(directory: pathlib.Path) -> list[float]:
    begins, ends = {}, {}
    for line in map(json.loads, (directory / "ledger.jsonl").read_text().splitlines()):
        if line["event"] == "sampled":
            begins[line["round"]] = line["time"]
        elif line["event"] in ("received", "failed"):
            ends.setdefault(line["round"], line["time"])
    return [ends[round_] - begins[round_] for round_ in sorted(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorikeet", default="build/cpu-release/bin/lorikeet")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "federated-bench")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    print("| shape | clients x steps x samples | all in one batch, s a round | one after the other | ratio |")
    print("| --- | --- | --- | --- | --- |")
    slower = []
    for name in args.shapes:
        shape = SHAPES[name]
        base = DEMO if name.startswith("demo") else reference_model(args.work / "tinyllama")
        took: dict[int, list[float]] = {0: [], 1: []}
        ratios = []
        for pair in range(args.pairs):
            adapters = {}
            for together in (0, 1) if pair % 2 == 0 else (1, 0):
                run, out = write_run(args.work, name, base, shape, args.threads, together), args.work / f"{name} out"
                shutil.rmtree(out, ignore_errors=True)
                began = time.time()
                subprocess.run([args.lorikeet, "federate", "simulate", str(run), "--out", str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                took[together].append(statistics.mean(training_seconds(out)))
                adapters[together] = (out / "latest" / "adapter_model.safetensors").read_bytes()
                print(f"{name}, pair {pair + 1}, together {together or 'all'}: {took[together][-1]:.2f} s a round, {time.time() - began:.0f} s in all", file=sys.stderr)
            if adapters[0] != adapters[1]:
                sys.exit(f"{name}: the adapters differ")
            ratios.append(took[0][-1] / took[1][-1])
        middle = statistics.median(ratios)
        print(f"| {name} | {shape['clients']} x {shape['steps']} x {shape['batch_samples']} | " +
              " | ".join(f"{statistics.median(each):.2f} [{min(each):.2f}..{max(each):.2f}]" for each in took.values()) +
              f" | {middle:.3f} [{min(ratios):.3f}..{max(ratios):.3f}] |", flush=True)
        if middle > 1.02:
            slower.append(name)
    sys.exit(f"slower together: {', '.join(slower)}" if slower else 0)


if __name__ == "__main__":
    main()
