#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks `lorikeet bench serve` against SGLang's benchmark client: both drive the same server in turn with equal settings.

  python3 -m venv venv && venv/bin/pip install aiohttp jinja2 msgspec numpy orjson pybase64 Pillow requests tqdm transformers
  venv/bin/pip download sglang --no-deps -d wheel && python3 -m zipfile -e wheel/sglang-*.whl sglang-client
  tools/compare_bench.py http://127.0.0.1:8000 --sglang sglang-client --python venv/bin/python --tokenizer examples/demo/model --rate 8

SGLang's engine is not needed: of the package only sglang/benchmark runs, with its imports of the engine replaced by what the client uses
of them. Every run has its own random prompts, of the same number of words, so that no prefix cache favours the second. Prints the median
of the rounds of both and the ratio ours / theirs. Where the server has vLLM's histograms, the means of both clients are also divided by the
server's own of the same run, so that a server that is faster in one run than in the other cancels out; then these ratios are judged
instead, and the throughputs are not. Exits with 1 if a judged ratio is further than --tolerance from 1. Not judged are p99
(one late answer moves it); throughput of an open loop (it is that of the arrivals drawn, and they differ); TTFT of a closed loop (SGLang's
client opens a session and a connection for each request on one thread, and in a closed loop those of one moment queue behind each other).
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = "time year people way day man thing woman life child world school state family student group country problem".split()

# Run by the other Python: sys.argv[1] is the unpacked wheel.
LAUNCHER = """
import sys, types
root = sys.argv.pop(1)
def module(name, **names):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(names)
for name in ("sglang", "sglang.srt", "sglang.srt.disaggregation", "sglang.srt.utils"):
    module(name, __path__=[])
sys.modules["sglang"].__path__ = [root + "/sglang"]
url = lambda base_url, host, port: base_url or f"http://{host}:{port}"
module("sglang.srt.disaggregation.utils", FAKE_BOOTSTRAP_HOST="")
module("sglang.srt.utils.network", resolve_base_url=url, resolve_host_port=url)
module("datasets", load_dataset=None)
from sglang.benchmark.serving import cli_main
cli_main()
"""

# name, where ours reports it, SGLang's key, in which loops it is judged
FIGURES = [
    ("requests ok", ("ok",), "completed", ""),
    ("duration s", ("duration_s",), "duration", ""),
    ("req/s", ("requests_per_s",), "request_throughput", "closed"),
    ("output tok/s", ("output_tokens_per_s",), "output_throughput", "closed"),
    ("TTFT mean ms", ("ttft_ms", "mean"), "mean_ttft_ms", "open"),
    ("TTFT p50 ms", ("ttft_ms", "p50"), "median_ttft_ms", "open"),
    ("TTFT p99 ms", ("ttft_ms", "p99"), "p99_ttft_ms", ""),
    ("TPOT mean ms", ("tpot_ms", "mean"), "mean_tpot_ms", "open closed"),
    ("TPOT p50 ms", ("tpot_ms", "p50"), "median_tpot_ms", "open closed"),
    ("TPOT p99 ms", ("tpot_ms", "p99"), "p99_tpot_ms", ""),
    ("ITL mean ms", ("itl_ms", "mean"), "mean_itl_ms", "open closed"),
    ("ITL p50 ms", ("itl_ms", "p50"), "median_itl_ms", "open closed"),
    ("ITL p99 ms", ("itl_ms", "p99"), "p99_itl_ms", ""),
    ("E2E mean ms", ("e2e_ms", "mean"), "mean_e2e_latency_ms", "open closed"),
    ("E2E p50 ms", ("e2e_ms", "p50"), "median_e2e_latency_ms", "open closed"),
]


# name, our figure, SGLang's key, vLLM's histogram, loops in which it is judged
AGAINST_SERVER = [
    ("TTFT", ("ttft_ms", "mean"), "mean_ttft_ms", "time_to_first_token", "open"),
    ("TPOT", ("tpot_ms", "mean"), "mean_tpot_ms", "request_decode_time", "open closed"),
    ("E2E", ("e2e_ms", "mean"), "mean_e2e_latency_ms", "e2e_request_latency", "open closed"),
]


def server_histograms(args):
    """(sum in ms, count) of each histogram of the server, or None where it has none."""
    try:
        with urllib.request.urlopen(args.url + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    found = {}
    for _, _, _, name, _ in AGAINST_SERVER:
        values = {line.split("{")[0].split(" ")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}_seconds_")}
        if f"vllm:{name}_seconds_count" not in values:
            return None
        found[name] = (values[f"vllm:{name}_seconds_sum"] * 1e3, values[f"vllm:{name}_seconds_count"])
    return found


def server_means(args, before, after):
    means = {name: (after[name][0] - before[name][0]) / max(after[name][1] - before[name][1], 1) for name in after}
    means["request_decode_time"] /= args.output_tokens - 1  # as TPOT
    return means


def prompt_texts(args, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(args.words)) for _ in range(args.num_requests)]


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode != 0:
        raise SystemExit(f"{command[0]} failed ({result.returncode}):\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout


def run_ours(args, seed, folder):
    prompts = folder / "ours.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompt_texts(args, seed)))
    report = folder / "ours.json"
    command = [args.lorikeet, "bench", "serve", args.url, "--endpoint", args.endpoint, "--prompts", str(prompts), "--num-requests", str(args.num_requests),
               "--output-tokens", str(args.output_tokens), "--seed", str(seed), "--warmup", str(args.warmup), "--json", str(report)]
    if args.model:
        command += ["--model", args.model]
    command += ["--rate", str(args.rate)] if args.rate else ["--concurrency", str(args.concurrency)]
    if args.adapters:
        command += ["--adapter-mix", args.adapter_mix, "--adapters", ",".join(args.adapters), "--zipf-alpha", str(args.zipf_alpha)]
    table = run(command)
    figures = json.loads(report.read_text())
    if not args.model:
        args.model = figures["settings"]["model"]
    return table, figures


def run_theirs(args, seed, folder):
    prompts = folder / "theirs.jsonl"
    if args.endpoint == "chat":
        lines = [{"messages": [{"role": "user", "content": text}], "max_tokens": args.output_tokens} for text in prompt_texts(args, seed)]
    else:
        lines = [{"conversations": [{"value": text}, {"value": ""}]} for text in prompt_texts(args, seed)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = folder / "theirs.jsonl.out"
    report.unlink(missing_ok=True)
    command = [args.python, "-c", LAUNCHER, str(pathlib.Path(args.sglang).resolve()), "--base-url", args.url, "--model", args.model, "--tokenizer", args.tokenizer,
               "--backend", "sglang-oai-chat" if args.endpoint == "chat" else "sglang-oai", "--dataset-name", "openai" if args.endpoint == "chat" else "custom",
               "--dataset-path", str(prompts), "--sharegpt-output-len", str(args.output_tokens), "--num-prompts", str(args.num_requests),
               "--seed", str(seed), "--warmup-requests", str(args.warmup), "--disable-tqdm", "--output-file", str(report)]
    command += ["--request-rate", str(args.rate)] if args.rate else ["--request-rate", "inf", "--max-concurrency", str(args.concurrency)]
    if args.adapters:
        # Their "distinct" draws each name once, so it cannot repeat; ours in turn over n requests compares with uniform.
        command += ["--lora-name", *args.adapters, "--lora-request-distribution", "skewed" if args.adapter_mix == "zipf" else "uniform",
                    "--lora-zipf-alpha", str(args.zipf_alpha)]
    table = run(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    return table, json.loads(report.read_text().splitlines()[-1])


def our_value(figures, path):
    for name in path:
        figures = figures[name] if figures is not None else None
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--sglang", required=True, help="the unpacked wheel")
    parser.add_argument("--python", default=sys.executable, help="Python that has the client's dependencies")
    parser.add_argument("--tokenizer", required=True, help="a local model directory")
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--endpoint", choices=["completions", "chat"], default="completions")
    parser.add_argument("--num-requests", type=int, default=100)
    parser.add_argument("--words", type=int, default=64, help="of each prompt")
    parser.add_argument("--output-tokens", type=int, default=64)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=float, help="open loop, Poisson: requests per second")
    load.add_argument("--concurrency", type=int, help="closed loop")
    parser.add_argument("--adapters", type=lambda text: text.split(","), help="names")
    parser.add_argument("--adapter-mix", choices=["same", "distinct", "zipf"], default="distinct")
    parser.add_argument("--zipf-alpha", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.adapter_mix == "same" and args.adapters:
        args.adapters = args.adapters[:1]

    ours, theirs, own = [], [], {"ours": [], "theirs": []}
    # Warm-up requests would be in the server's figures: an uncounted round takes their place.
    has_histograms = server_histograms(args) is not None
    args.warmup = 0 if has_histograms else 1
    with tempfile.TemporaryDirectory() as name:
        if has_histograms:
            run_ours(args, args.seed + 1_000_000, pathlib.Path(name))
        for index in range(args.rounds):
            before = server_histograms(args)
            seeds = [args.seed + 2 * index, args.seed + 2 * index + 1]
            table, figures = run_ours(args, seeds[0], pathlib.Path(name))
            ours.append(figures)
            middle = server_histograms(args)
            print(f"--- round {index + 1}, ours\n{table}")
            table, figures = run_theirs(args, seeds[1], pathlib.Path(name))
            theirs.append(figures)
            if has_histograms:
                own["ours"].append(server_means(args, before, middle))
                own["theirs"].append(server_means(args, middle, server_histograms(args)))
            print(f"--- round {index + 1}, SGLang's client\n{table[table.rfind('====== Serving') if '====== Serving' in table else -3000:]}")

    print(f"{'median of ' + str(args.rounds):<14} {'ours':>12} {'theirs':>12} {'ratio':>8} {'difference':>11}")
    bad = 0
    for label, path, key, loops in FIGURES:
        judged = ("open" if args.rate else "closed") in loops.split() and not has_histograms
        mine, others = [our_value(f, path) for f in ours], [f.get(key) for f in theirs]
        if None in mine or None in others:
            print(f"{label:<14} {'-':>12} {'-':>12}")
            continue
        a, b = statistics.median(mine), statistics.median(others)
        ratio = a / b if b else float("nan")
        outside = judged and not abs(ratio - 1) <= args.tolerance
        bad += outside
        print(f"{label:<14} {a:>12.3f} {b:>12.3f} {ratio:>8.4f} {a - b:>11.3f}{'' if judged else '  (not judged)'}{'  OUTSIDE' if outside else ''}")
    for label, path, key, name, loops in AGAINST_SERVER if has_histograms else []:
        judged = ("open" if args.rate else "closed") in loops.split()
        a = [our_value(figures, path) / server[name] for figures, server in zip(ours, own["ours"])]
        b = [figures[key] / server[name] for figures, server in zip(theirs, own["theirs"])]
        ratio = statistics.median(a) / statistics.median(b)
        outside = judged and not abs(ratio - 1) <= args.tolerance
        bad += outside
        print(f"mean {label} / the server's own of the same run: ours {statistics.median(a):.4f} [{min(a):.3f}..{max(a):.3f}], theirs {statistics.median(b):.4f} "
              f"[{min(b):.3f}..{max(b):.3f}], ratio {ratio:.4f}{'' if judged else '  (not judged)'}{'  OUTSIDE' if outside else ''}")
    print(f"{bad} figures differ by more than {args.tolerance:.1%}" if bad else f"every judged figure agrees within {args.tolerance:.1%}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
