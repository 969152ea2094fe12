#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""dLoRA's experiment on migration (OSDI '24, figures 11a and 13) in the simulated fleet: eight replicas of Llama-2-7B, 32 adapters of rank 16, at most 16
requests in a batch. For each policy the rate at which requests wait 0.4 s for each token of their answers.

Known of the original: replicas, adapters, batch, lengths (ShareGPT, prompt <= 1024), Poisson arrivals, its constants for an iteration (15 ms merged, 27 ms
unmerged), 32 GB/s to the device, an interval of ten seconds, its rates at 0.4 s: 5.1, 13.3 and 17.9 requests/s. Not known: the popularity of adapters, for which
it takes a day of Azure's functions. Here it is Zipf's with the exponent --skew; the larger it is, the more one replica has to do where homes know nothing of it.
Nothing is merged here: each iteration takes the unmerged time. Lengths are lognormal.
Usage: dlora_migration.py [--binary lorikeet] [--skew 1.8] [--seconds 200] [--seeds 2] [--json FILE]"""
import argparse
import json
import os
import subprocess
import tempfile

MODEL = {
    "name": "dlora-7b", "description": "an A800 as dLoRA measured it", "weight_bytes": 13.0e9, "head_bytes": 0.26e9, "flops_per_token": 13.0e9,
    "head_flops_per_token": 0.26e9, "memory_bytes_s": 1.5e12, "flops_s": 2.0e14, "step_us": 6000, "token_us": 0, "sequence_us": 0,
    "kv_bytes_per_token": 524288, "attention_bytes_s": 1.5e12, "attention_flops_per_pair": 524288, "adapter_bytes_per_rank": 6307840,
    "adapter_flops_per_rank": 6307840, "adapter_flops_s": 1e14, "adapter_step_us": 12000, "segment_us": 0, "merged_bytes": 0, "load_us": 1000,
    "load_bytes_s": 32e9, "disk_bytes_s": 2e9, "pool_bytes": 50e9, "max_step_tokens": 4096, "max_running": 16,
}
# Name: routing, planner.
POLICIES = {
    "dLoRA's round robin": ("dlora-rr", "off"),
    "dLoRA's proactive alone": ("dlora-proactive", "off"),
    "dLoRA whole (moves every 10 s)": ("dlora-rr", "dlora"),
    "cost, without moves": ("cost", "off"),
    "cost, moves (default)": ("cost", "greedy"),
}
WAIT = 0.4


def queueing(options, model, policy, rate, seed) -> float:
    routing, planner = POLICIES[policy]
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "out.json")
        subprocess.run([options.binary, "simulate", "--model", model, "--adapters", "32", "--ranks", "16", "--popularity", f"zipf:{options.skew}", "--replicas", "8",
                        "--routing", routing, "--planner", planner, "--rate", f"{rate:.4f}", "--duration", str(options.seconds), "--seed", str(seed),
                        "--input", "lognormal:180:1:1024", "--output", "lognormal:200:0.8:1024", "--out", out], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        with open(out) as file:
            return json.load(file)["runs"][0]["queueing_s_per_token"]["mean"]


def rate_at_wait(options, model, policy) -> float:
    def waits_less(rate):
        return sum(queueing(options, model, policy, rate, seed) for seed in range(1, options.seeds + 1)) / options.seeds < WAIT

    low, high = 0.0, 4.0
    while waits_less(high):
        low, high = high, high * 2
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if waits_less(middle) else (low, middle)
    return low


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/cpu-release/bin/lorikeet")
    parser.add_argument("--skew", type=float, default=1.8)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--policy", choices=list(POLICIES), action="append")
    parser.add_argument("--json")
    options = parser.parse_args()
    found = {}
    print(f"| requests/s at {WAIT} s of waiting a token, Zipf {options.skew} | |\n|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        model = os.path.join(directory, "dlora.json")
        with open(model, "w") as file:
            json.dump(MODEL, file)
        for policy in options.policy or POLICIES:
            found[policy] = rate_at_wait(options, model, policy)
            print(f"| {policy} | {found[policy]:.1f} |", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "requests_per_s": found}, file, indent=1)


if __name__ == "__main__":
    main()
