#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R4: overload costs throughput nothing. `lorikeet bench serve` finds the saturation rate (closed loop), then offers multiples of it, open
loop, interleaved in rounds. Goodput = requests per second that finished within the objective. At 2x and 5x it must stay within 90 % of
its peak, refusals must answer in 10 ms (p99, seen by the client), and memory must not grow. The client runs on the same machine; its
share of the CPU is reported."""
import asyncio
import itertools
import json
import os
import resource
import statistics
import time

from common import DEMO, TASKS, Server, arguments, run


seeds = itertools.count(1)  # new prompts in each run: what one run left in the prefix cache must not help another


async def bench(options, server, *flags) -> tuple[dict, float]:
    path = os.path.join(server.dir, "bench.json")
    usual = {"--input-tokens": ["16:96"], "--output-tokens": ["16:64"], "--adapter-mix": ["zipf", "--adapters", *TASKS]}
    usual = [text for flag, values in usual.items() if flag not in flags for text in (flag, *values)]
    process = await asyncio.create_subprocess_exec(
        options.binary, "bench", "serve", f"http://{server.host}:{server.port}", "--endpoint", "completions", *usual,
        "--slo", options.slo, "--json", path, "--timeout", "60", "--warmup", "2", "--seed", str(next(seeds)), *map(str, flags),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, errors = await process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(errors.decode()[-2000:])
    with open(path) as file:
        figures = json.load(file)
    return figures, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def main(options, report) -> None:
    with Server(options.binary, "--lora-dir", str(DEMO / "adapters"), "--memory", "64MiB", "--max-running", "32", "--max-queue", "64", "--max-wait", "2",
                "--log-level", "error") as server:
        peak = []
        for _ in range(3):
            figures, _ = await bench(options, server, "--concurrency", "48", "--duration", options.duration)
            peak.append(figures["report"]["requests_per_s"] if "report" in figures else figures["requests_per_s"])
        saturation = max(peak)
        report.note("saturation", f"{saturation:.1f} req/s (closed loop, 48 at once)", peak)
        rows: dict[float, list[dict]] = {}
        rss = []
        for _ in range(options.rounds):
            for factor in options.factors:
                began, cpu_before = time.monotonic(), sum(server.cpu_seconds().values())
                figures, client_cpu = await bench(options, server, "--rate", f"{factor * saturation:.3f}", "--duration", options.duration)
                wall = time.monotonic() - began
                figures = figures.get("report", figures)
                figures["client_cpu"] = client_cpu / wall
                figures["server_cpu"] = (sum(server.cpu_seconds().values()) - cpu_before) / wall
                rows.setdefault(factor, []).append(figures)
                await server.wait_idle()
                rss.append(server.process_stats()["rss"])
        median = {factor: statistics.median(figures["goodput"] or 0 for figures in runs) for factor, runs in rows.items()}
        best = max(median.values())
        for factor, runs in rows.items():
            refused = [figures["refused_ms"]["p99"] for figures in runs if figures.get("refused_ms")]
            share = statistics.median(sum(error["count"] for error in figures["errors"].values()) / figures["requests"] for figures in runs)
            cpu = statistics.median(figures["client_cpu"] for figures in runs)
            ttft = statistics.median(figures["ttft_ms"]["p99"] for figures in runs)
            report.check(f"goodput at {factor:g}x", factor < 2 or median[factor] >= 0.9 * best,
                         f"{median[factor]:.1f} req/s ({median[factor] / best:.2f} of peak), refused {share:.0%}, TTFT p99 {ttft:.0f} ms, client {cpu:.2f} cores",
                         [figures["goodput"] for figures in runs])
            if factor >= 2 and refused:
                report.check(f"refusal p99 at {factor:g}x", statistics.median(refused) <= 10, f"{statistics.median(refused):.1f} ms [{min(refused):.1f}..{max(refused):.1f}]", refused)
        other = {name: error["count"] for runs in rows.values() for figures in runs for name, error in figures["errors"].items() if name not in ("503", "429")}
        report.check("failures other than 429 and 503", not other, other or "none")
        warm = rss[len(options.factors) - 1]
        report.check("memory", max(rss) <= warm * 1.05 + (8 << 20), f"{warm >> 20} MiB after the first round, {max(rss) >> 20} MiB at most")
        status = await server.wait_idle()
        pool = status["pool"]
        report.check("pages", pool["kv"] == 0 and pool["free"] + pool["cached"] + pool["adapter"] == pool["pages"], "back")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--duration", type=float, default=4, help="seconds of each run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.7, 1, 2, 5])
    parser.add_argument("--slo", default="ttft=3000,e2e=10000")
    run("R4 overload", parser.parse_args(), main)
