#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Optimiser steps of HF PEFT and of `lorikeet bench train` on the same work, in turns: tokens a second and peak memory.

The work: a random model of the given shape, rank-16 LoRA on all linears, --tokens a step in samples of --sample-tokens, a loss on every
token, AdamW. PEFT runs it as users do: the base in bf16 with autocast (or f32), one process, all cores; with --processes, that many
processes of one job each at once, each with its share of the tokens, against as many jobs in one lorikeet.

  python3 -m venv venv && venv/bin/pip install torch transformers peft
  venv/bin/python tools/peers/train_peft.py --config tools/reliability/tinyllama.json --tokens 2048 --rounds 3
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def worker(args: argparse.Namespace) -> None:
    """One PEFT process: prints tokens/s and its peak memory as JSON."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    raw = json.loads(pathlib.Path(args.config).read_text(encoding="utf-8"))
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    for module in model.modules():  # to_empty() leaves buffers undefined
        if hasattr(module, "inv_freq"):
            inv_freq, _ = module.rope_init_fn(config, "cpu") if hasattr(module, "rope_init_fn") else (None, None)
            if inv_freq is None:
                half = torch.arange(0, config.hidden_size // config.num_attention_heads, 2).float()
                inv_freq = 1.0 / (10000.0 ** (half / (config.hidden_size // config.num_attention_heads)))
            module.inv_freq = inv_freq
    model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    length = min(args.sample_tokens, args.tokens)
    ids = torch.randint(0, config.vocab_size, (args.tokens // length, length))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    step()
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens_s": args.tokens / statistics.median(seconds),
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run_peft(args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--worker", "--config", args.config, "--tokens", str(args.tokens // args.processes),
               "--sample-tokens", str(args.sample_tokens), "--dtype", args.dtype, "--rank", str(args.rank),
               "--threads", str(args.threads), "--steps", str(args.steps)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(args.processes)]
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    return {"tokens_s": sum(r["tokens_s"] for r in results), "peak_bytes": sum(r["peak_bytes"] for r in results)}


def run_lorikeet(args: argparse.Namespace) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([args.lorikeet, "bench", "train", "--dummy", args.config, "--tokens", str(args.tokens), "--sample-tokens",
                        str(args.sample_tokens), "--dtype", args.dtype, "--rank", str(args.rank), "--jobs", str(args.processes),
                        "--threads", str(args.threads), "--repeat", str(args.steps), "--checkpointing", args.checkpointing,
                        "--json", out.name], check=True, stdout=subprocess.DEVNULL)
        result = json.load(open(out.name, encoding="utf-8"))
    return {"tokens_s": result["sides"][0]["tokens_s"], "peak_bytes": result["peak_rss_bytes"], "gflop_s": result["gflop_s"],
            "of_limit": statistics.median(result["sides"][0]["fractions"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--sample-tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", default="none")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    rows = []
    for number in range(args.rounds):
        sides = [("peft", run_peft), ("lorikeet", run_lorikeet)]
        row = {name: run(args) for name, run in (sides if number % 2 == 0 else sides[::-1])}
        rows.append(row)
        print(json.dumps(row), flush=True)

    def figures(pick) -> str:
        values = [pick(row) for row in rows]
        return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"

    print(f"{args.tokens} tokens a step in samples of {args.sample_tokens}, {args.dtype}, {args.processes} process(es) of PEFT")
    print("PEFT      tok/s", figures(lambda r: r["peft"]["tokens_s"]), " GiB", figures(lambda r: r["peft"]["peak_bytes"] / 2**30))
    print("lorikeet  tok/s", figures(lambda r: r["lorikeet"]["tokens_s"]), " GiB",
          figures(lambda r: r["lorikeet"]["peak_bytes"] / 2**30), " of the limit", figures(lambda r: r["lorikeet"]["of_limit"]))
    print("ratio     speed", figures(lambda r: r["lorikeet"]["tokens_s"] / r["peft"]["tokens_s"]), " memory",
          figures(lambda r: r["lorikeet"]["peak_bytes"] / r["peft"]["peak_bytes"]))


if __name__ == "__main__":
    main()
