#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `lorikeet train` says it will take, before it starts, beside what it took: the forecast of memory and the peak of resident memory
(VmHWM) of whole runs over a base of random weights, from reading its file to the saved adapter. Fails when one is off by more than 5 %; of a
run that is evaluated by generation, when it took more: all pages of its engine count, whether answers need them or not.

  tools/reliability/train_memory.py --base build/large-base        # makes the base (1.6 GB) if it is not there
"""
import argparse
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples/demo/model"
LIMIT = 0.05
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def shapes(config: dict):
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    wide, vocab = config["intermediate_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for name, shape in (("self_attn.q_proj", (heads, hidden)), ("self_attn.k_proj", (kv, hidden)), ("self_attn.v_proj", (kv, hidden)),
                            ("self_attn.o_proj", (hidden, heads)), ("mlp.gate_proj", (wide, hidden)), ("mlp.up_proj", (wide, hidden)),
                            ("mlp.down_proj", (hidden, wide))):
            yield f"{prefix}{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def random_bf16(rng: random.Random, count: int):
    """Pieces of `count` numbers of 1/64 to 1/32, of either sign: sign and mantissa are random, the exponent is not."""
    while count > 0:
        now = min(count, 1 << 22)
        keep, exponent = int.from_bytes(b"\x7f\x80" * now, "little"), int.from_bytes(b"\x80\x3c" * now, "little")
        yield ((rng.getrandbits(16 * now) & keep) | exponent).to_bytes(2 * now, "little")
        count -= now


def make_base(directory: pathlib.Path, layers: int) -> None:
    config = json.loads((ROOT / "tools/reliability/tinyllama.json").read_text()) | {"num_hidden_layers": layers, "torch_dtype": "bfloat16"}
    for key in ("bos_token_id", "eos_token_id"):
        config[key] = json.loads((DEMO / "config.json").read_text())[key]
    temporary = directory.with_name(directory.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, temporary)
    (temporary / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, shape in shapes(config):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(1)
    with (temporary / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            for piece in random_bf16(rng, (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2):
                out.write(piece)
    temporary.rename(directory)


def cases(data: pathlib.Path):
    """Name, what of the run differs, its jobs."""
    def job(name, adapter=None, train=None, **sections):
        return {"name": name, "adapter": {"rank": 16, **(adapter or {})}, "data": {"path": str(data)},
                "train": {"steps": 1, "batch_tokens": 512, **(train or {})}, **sections}

    yield "one job, blocks of 512", {"block_tokens": 512}, [job("a")]
    yield "one job, blocks of 1,024", {"block_tokens": 1024}, [job("a", train={"batch_tokens": 1024})]
    yield "the same, checkpointing full", {"block_tokens": 1024, "checkpointing": "full"}, [job("a", train={"batch_tokens": 1024})]
    yield "4 jobs", {"block_tokens": 512}, [job(name, train={"batch_tokens": 128}) for name in "abcd"]
    yield "DoRA, and norms as a whole", {"block_tokens": 512}, [job("a", {"kind": "dora", "modules_to_save": ["input_layernorm", "norm"]})]
    yield "OLoRA", {"block_tokens": 512}, [job("a", {"init": "olora"})]
    yield "EVA", {"block_tokens": 512}, [job("a", {"init": "eva", "target_modules": ["q_proj", "v_proj", "down_proj"]})]
    yield "lm_head as a whole", {"block_tokens": 512}, [job("a", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]})]
    yield "evaluated by generation", {"block_tokens": 512}, [job("a", eval={"exact_match": True}) | {
        "data": {"path": str(data), "eval_split": 0.05}}]


def measure(binary: str, base: pathlib.Path, work: pathlib.Path, run: dict, jobs: list):
    (work / "jobs.yaml").write_text(json.dumps({"base": str(base), "output": str(work / "out"), "jobs": jobs, **run}))
    log = work / "log"
    with log.open("w") as out:
        process = subprocess.Popen([binary, "train", str(work / "jobs.yaml")], stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(work / "out", ignore_errors=True)
    text = log.read_text()
    if process.returncode != 0:
        sys.exit(f"{binary} ended with {process.returncode}:\n{text}")
    line = re.search(r"^memory: .*$", text, re.M).group()
    number, unit = re.search(r"([\d.]+) (\w+) in all", line).groups()
    return float(number) * UNITS[unit], usage.ru_maxrss * 1024, line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / "build/large-base", help="made when it is not there")
    parser.add_argument("--layers", type=int, default=16, help="of the base that is made; TinyLlama's shape otherwise")
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--only", help="cases whose name holds this")
    args = parser.parse_args()
    if not args.base.exists():
        make_base(args.base, args.layers)
    worst = 0.0
    print("| run | forecast GiB | peak GiB | peak / forecast |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        data = work / "data.jsonl"
        data.write_text("".join(json.dumps({"prompt": f"Count from {n}:", "completion": " " + " ".join(str(n + k) for k in range(30))}) + "\n"
                                for n in range(200)))
        for name, run, jobs in cases(data):
            if args.only and args.only not in name:
                continue
            forecast, peak, line = measure(args.lorikeet, args.base, work, run, jobs)
            generates = any(job.get("eval", {}).get("exact_match") for job in jobs)
            worst = max(worst, peak / forecast - 1 if generates else abs(peak / forecast - 1))
            print(f"| {name} | {forecast / 2**30:.2f} | {peak / 2**30:.2f} | {peak / forecast:.3f} |", flush=True)
            print(line, file=sys.stderr)
    print(f"largest difference {100 * worst:.1f} %, allowed {100 * LIMIT:.0f} %")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
