#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ten thousand adapters in one --lora-dir: how long the start takes, what one that nobody asked for costs in memory, how long the first answer of a
cold one takes, what a name that does not exist costs, and whether those who stream meanwhile notice that others' adapters are loaded. The
directories are made in a second: their own config and a hard link to one weights file for each."""
import asyncio
import itertools
import json
import os
import shutil
import time

from common import DEMO, Connection, Sandwich, Server, arguments, percentile, run
from loads import Requests
from r4_overload import bench


def make(directory: str, count: int) -> None:
    """Adapters that all differ in their config's alpha, by hard links to one copy of the weights."""
    if os.path.isdir(directory) and len(os.listdir(directory)) == count:
        return
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    weights = directory.rstrip("/") + "-weights"
    shutil.copyfile(DEMO / "adapters/tag/adapter_model.safetensors", weights)
    config = json.loads((DEMO / "adapters/tag/adapter_config.json").read_text())
    for index in range(count):
        target = os.path.join(directory, f"a{index:05}")
        os.mkdir(target)
        # A file has so many links at most, on some file systems.
        if index % 10_000 == 0 and index:
            shutil.copyfile(DEMO / "adapters/tag/adapter_model.safetensors", weights + "~")
            os.replace(weights + "~", weights)
        os.link(weights, os.path.join(target, "adapter_model.safetensors"))
        with open(os.path.join(target, "adapter_config.json"), "w") as file:
            json.dump({**config, "lora_alpha": config["lora_alpha"] * (1 + index / 1e6)}, file)
    os.sync()  # a start is not timed beside the writing of what it reads


async def first_answers(server, names) -> list[float]:
    """Milliseconds until each answered one token."""
    taken = []
    async with Connection(server) as connection:
        for name in names:
            began = time.monotonic()
            answer = await connection.request("POST", "/v1/completions", {"model": name, "prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0})
            if answer.status != 200:
                raise RuntimeError(f"{name}: {answer.status} {answer.body[:200]}")
            taken.append((time.monotonic() - began) * 1e3)
    return taken


async def refusals(server, count: int) -> list[float]:
    taken = []
    async with Connection(server) as connection:
        for index in range(count):
            began = time.monotonic()
            answer = await connection.request("POST", "/v1/completions", {"model": f"nobody-{index}", "prompt": [1], "max_tokens": 1})
            if answer.status != 404 or answer.json()["error"]["code"] != "model_not_found":
                raise RuntimeError(f"{answer.status} {answer.body[:200]}")
            taken.append((time.monotonic() - began) * 1e3)
    return taken


def spread(values) -> str:
    return f"p50 {percentile(values, 50):.1f} ms, p99 {percentile(values, 99):.1f} ms"


async def main(options, report) -> None:
    many = os.path.join(options.work, f"many-{options.adapters}")
    few = os.path.join(options.work, "few")
    make(many, options.adapters)
    make(few, 1)
    model = str(DEMO / "model")
    flags = ["--memory", options.memory, "--host-memory", options.host_memory, "--log-level", "warning"]

    def start(directory) -> tuple[Server, float]:
        began = time.monotonic()
        server = Server(options.binary, "--lora-dir", directory, "--lora-eager", "0", *flags, model=model)
        return server, time.monotonic() - began

    async def measure(directory) -> tuple[float, int, float]:
        """Seconds until it was ready, its heap, and CPU seconds until then."""
        server, seconds = start(directory)
        with server:
            used = sum(server.cpu_seconds().values())
            return seconds, (await server.status())["memory"]["heap_used"], used

    starts, rest = [], []
    for _ in range(options.starts):
        rest.append(await measure(few))
        starts.append(await measure(many))
    seconds = [row[0] for row in starts]
    cpu = percentile([row[2] for row in starts], 50) - percentile([row[2] for row in rest], 50)
    report.check(f"ready with {options.adapters} adapters in", max(seconds) <= 2, f"{min(seconds):.2f} to {max(seconds):.2f} s; with one {min(row[0] for row in rest):.2f} to {max(row[0] for row in rest):.2f} s; {cpu:.2f} s of CPU for them", starts)
    bytes_each = (percentile([row[1] for row in starts], 50) - percentile([row[1] for row in rest], 50)) / options.adapters
    report.check("memory of one that is known and not loaded", bytes_each <= 1024, f"{bytes_each:.0f} bytes", bytes_each)

    server, _ = start(many)
    with server:
        names = iter(f"a{index:05}" for index in range(options.adapters))
        cold = list(itertools.islice(names, 100))
        first = await first_answers(server, cold)
        again = await first_answers(server, cold[-10:])
        loads = await server.metrics()
        mean = loads.get("lorikeet_adapter_load_seconds_sum") / max(loads.get("lorikeet_adapter_load_seconds_count"), 1) * 1e3
        report.note("first answer of a cold one", f"{spread(first)}; of a loaded one {spread(again)}; load with probe {mean:.1f} ms", first)
        missing = await refusals(server, 2000)
        base = [value for _ in range(20) for value in await first_answers(server, ["base"] * 10)]
        report.check("a name that does not exist", percentile(missing, 50) <= percentile(base, 50), f"404 in {spread(missing)}; a token of the base in {spread(base)}", missing)

        async def others(which) -> float:
            requests = Requests(server, which, options.rate)
            await asyncio.sleep(1)
            figures, _ = await bench(options, server, "--concurrency", options.streams, "--duration", options.duration, "--adapter-mix", "none", "--output-tokens", "200")
            await requests.stop()
            if requests.failed:
                raise RuntimeError(f"{requests.failed} requests failed")
            return figures.get("report", figures)["itl_ms"]["p99"]

        rounds = Sandwich()
        before = await others(cold[:1])
        for _ in range(options.rounds):
            beside = await others(names)
            after = await others(cold[:1])
            rounds.add(before, beside, after)
            before = after
        rounds.report(report, f"others' gap between tokens, p99, beside {options.rate:g} cold ones a second", 1.05)
        status = (await server.status())["adapters"]
        report.note("registered at the end", f"{status['total']} of {status['names']}", status)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--work", default="/tmp/lorikeet-many", help="directory for the adapters")
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--memory", default="8MiB", help="of the page pool")
    parser.add_argument("--host-memory", default="16MiB", help="for copies of adapters: less than all that are asked for need")
    parser.add_argument("--rate", type=float, default=10, help="cold ones a second")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=6, help="seconds of each run")
    parser.set_defaults(slo="ttft=3000,e2e=100000")
    run("ten thousand adapters", parser.parse_args(), main)
