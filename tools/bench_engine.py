#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs `lorikeet bench engine` configurations in turn, several rounds, and prints a table of medians and spread.

Machines are shared and their bandwidth drifts, so the sides of a comparison are interleaved: every round runs each
configuration once, and ratios are taken inside a round. Usage:
    tools/bench_engine.py --lorikeet build/cpu-release/bin/lorikeet --dummy CONFIG.json --rounds 3 [NAME ...]
"""
import argparse
import json
import statistics
import subprocess
import tempfile

# name -> (arguments, name of the configuration its decode rate is compared with)
CONFIGS = {
    "b1": ("--batch 1 --prompt-tokens 512 --output-tokens 32", None),
    "b8": ("--batch 8 --prompt-tokens 64 --output-tokens 32", None),
    "b32": ("--batch 32 --prompt-tokens 64 --output-tokens 24", None),
    "b32-unused": ("--batch 32 --prompt-tokens 64 --output-tokens 24 --adapters 32 --rank 16 --assign none", "b32"),
    "b32-same": ("--batch 32 --prompt-tokens 64 --output-tokens 24 --adapters 1 --rank 16 --assign same", "b32"),
    "b32-distinct": ("--batch 32 --prompt-tokens 64 --output-tokens 24 --adapters 32 --rank 16 --assign distinct", "b32"),
    "b1-same": ("--batch 1 --prompt-tokens 512 --output-tokens 32 --adapters 1 --rank 16 --assign same", "b1"),
    "zipf-5": ("--batch 32 --requests 96 --prompt-tokens 32 --output-tokens 16 --adapters 5 --rank 8 --targets q_proj,v_proj"
               " --assign zipf:1.0", None),
    "zipf-2000": ("--batch 32 --requests 96 --prompt-tokens 32 --output-tokens 16 --adapters 2000 --rank 8 --targets q_proj,v_proj"
                  " --assign zipf:1.0", "zipf-5"),
}


def run(args: argparse.Namespace, name: str) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [args.lorikeet, "bench", "engine", "--dummy", args.dummy, "--memory", args.memory, *CONFIGS[name][0].split(),
                   "--json", out.name]
        subprocess.run(command, check=True, capture_output=True)
        return json.load(open(out.name, encoding="utf-8"))


def spread(values: list, digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorikeet", default="build/cpu-release/bin/lorikeet")
    parser.add_argument("--dummy", required=True)
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONFIGS))
    args = parser.parse_args()
    names = args.names or list(CONFIGS)
    results = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            results[name].append(run(args, name))
            print(f"round {number + 1}: {name} decode {results[name][-1]['decode_tokens_s']:.1f} tok/s", flush=True)
    print("\n| configuration | read GB/s | prefill tok/s | of limit | decode tok/s | of limit | end to end, against |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        rows = results[name]
        against = ""
        other = CONFIGS[name][1]
        if other in results:
            ratios = [a["output_tokens_s"] / b["output_tokens_s"] for a, b in zip(rows, results[other])]
            decode = [a["decode_tokens_s"] / b["decode_tokens_s"] for a, b in zip(rows, results[other])]
            against = f"{spread(ratios, 3)}; decode {spread(decode, 3)} of {other}"
        cells = [name, spread([r["machine"]["read_gb_s"] for r in rows], 0), spread([r["prefill_tokens_s"] for r in rows], 0),
                 spread([r["prefill_fraction_of_limit"] for r in rows], 2), spread([r["decode_tokens_s"] for r in rows], 1),
                 spread([r["fraction_of_limit"] for r in rows], 2), against]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
