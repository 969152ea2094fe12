#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loads cost the others nothing: --rate requests per second, each for an adapter that has to be loaded into pages (and, with --host-memory, read
from disk), beside streams of the base model. Their gaps between tokens (p99 at `lorikeet bench serve`) are compared, in interleaved
rounds, with the same requests for adapters that are resident: the requests' own share of the steps is not what is measured."""
import asyncio
import itertools
import math
import os
import shutil
import subprocess
import sys

from common import DEMO, Connection, Sandwich, Server, arguments, run
from r4_overload import bench


class Requests:
    """One-token requests at a fixed rate, for adapters in turn; late ones are counted, not sent together."""

    def __init__(self, server, names, rate: float):
        self.server, self.names, self.rate = server, itertools.cycle(names), rate
        self.sent, self.failed = 0, 0
        self.task = asyncio.create_task(self.run())

    async def one(self, name: str) -> None:
        async with Connection(self.server) as connection:
            answer = await connection.request("POST", "/v1/completions", {"model": name, "prompt": [1, 2, 3, 4 + self.sent % 50], "max_tokens": 1, "temperature": 0})
            self.failed += answer.status != 200

    async def run(self) -> None:
        pending = set()
        due = asyncio.get_running_loop().time()
        try:
            while True:
                pending.add(asyncio.create_task(self.one(next(self.names))))
                pending = {task for task in pending if not task.done()}
                self.sent += 1
                due += 1 / self.rate
                await asyncio.sleep(max(0, due - asyncio.get_running_loop().time()))
        finally:
            await asyncio.gather(*pending, return_exceptions=True)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def main(options, report) -> None:
    if options.dummy:
        directory = os.path.join(options.work, "adapter")
        if not os.path.isdir(directory):
            subprocess.run([options.binary, "adapter", "init", directory, "--config", options.dummy, "--rank", str(options.rank), *options.init], check=True, stdout=sys.stderr)
        model = ["--dummy", options.dummy]
    else:
        directory, model = str(DEMO / "adapters/sql"), [str(DEMO / "model")]
    names = [f"a{index}" for index in range(options.adapters)]
    # Directories of their own: the host tier knows an adapter by its files.
    root = os.path.join(options.work, "copies")
    for name in names:
        shutil.copytree(directory, os.path.join(root, name), dirs_exist_ok=True)
    flags = ["--host-memory", options.host_memory] if options.host_memory else []
    with Server(options.binary, *model, "--lora-dir", root, "--watch-interval", "3600", "--memory", options.memory, "--log-level", "error", *flags, model=None) as server:
        async def others(which) -> tuple[float, float, float]:
            before = (await server.status())["adapters"]
            requests = Requests(server, which, options.rate)
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            figures, _ = await bench(options, server, "--concurrency", options.streams, "--duration", options.duration, "--adapter-mix", "none", "--output-tokens", options.output_tokens)
            await requests.stop()
            seconds = asyncio.get_running_loop().time() - began
            after = (await server.status())["adapters"]
            if requests.failed:
                raise RuntimeError(f"{requests.failed} requests failed")
            return figures.get("report", figures)["itl_ms"]["p99"], (after["loads"] - before["loads"]) / seconds, (after["disk_reads"] - before["disk_reads"]) / seconds

        hot = names[:1]
        rounds, loads, reads, idle = Sandwich(), [], [], []
        before, loaded, _ = await others(hot)
        for _ in range(options.rounds):
            beside, cold_loads, cold_reads = await others(names)
            loads.append(cold_loads)
            reads.append(cold_reads)
            after, loaded, _ = await others(hot)
            idle.append(loaded)
            rounds.add(before, beside, after)
            before = after
        rounds.report(report, "others' gap between tokens, p99", 1.05)
        report.check("loads per second", min(loads) >= 0.9 * options.rate, f"{min(loads):.1f} to {max(loads):.1f}, of them {max(reads):.1f} from disk; with resident adapters {max(idle):.1f}", loads)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--dummy", help="config.json of a model with random weights, instead of the demo model")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter made for --dummy")
    parser.add_argument("--init", nargs="*", default=[], help="more flags of `lorikeet adapter init`")
    parser.add_argument("--work", default="/tmp/lorikeet-loads", help="directory for adapters")
    parser.add_argument("--adapters", type=int, default=40)
    parser.add_argument("--memory", default="8MiB", help="of the page pool: less than the adapters need")
    parser.add_argument("--host-memory", default="", help="less than the adapters need: they come from disk")
    parser.add_argument("--rate", type=float, default=10, help="loads per second")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--output-tokens", default="200", help="of the streams")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--duration", type=float, default=6, help="seconds of each run")
    parser.set_defaults(slo="ttft=3000,e2e=100000")
    run("loads beside others' streams", parser.parse_args(), main)
