#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A cold load costs what reading its bytes costs: a request for an adapter that lies on disk only (registered, dropped from pages and from host
memory, its file not in the kernel's cache) against the same request right after, when the adapter is resident; the difference is the load (read,
digest, checks, conversion into pages). Beside it, in turns, reading the same bytes once from the same disk."""
import os
import shutil
import statistics
import subprocess
import sys
import time

from common import Server, arguments, percentile, quartiles, run


def forget(path: str) -> None:
    """Drops the file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read(path: str, buffer: bytearray) -> float:
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


async def main(options, report) -> None:
    os.makedirs(options.work, exist_ok=True)
    first = os.path.join(options.work, "a0")
    shutil.rmtree(options.work)
    os.makedirs(options.work)
    subprocess.run([options.binary, "adapter", "init", first, "--config", options.dummy, "--rank", str(options.rank)], check=True, stdout=sys.stderr)
    names = [f"a{index}" for index in range(2 * options.rounds)]
    for name in names[1:]:
        shutil.copytree(first, os.path.join(options.work, name))
    os.sync()
    files = {name: os.path.join(options.work, name, "adapter_model.safetensors") for name in names}
    size = os.path.getsize(files["a0"])
    buffer = bytearray(1 << 20)
    reads, loads = [], []
    flags = ["--lora-dir", options.work, "--memory", options.memory, "--host-memory", options.host_memory, "--no-prefix-cache", "--log-level", "error"]
    with Server(options.binary, "--dummy", options.dummy, *flags, model=None) as server:
        async def ask(name: str) -> float:
            began = time.perf_counter()
            answer = await server.call("POST", "/v1/completions", {"model": name, "prompt": [1, 2, 3], "max_tokens": 1})
            if answer.status != 200:
                raise RuntimeError(f"answer: {answer.status} {answer.body[:300]}")
            return time.perf_counter() - began

        async def disk_reads() -> int:
            return (await server.status())["adapters"]["disk_reads"]

        for index in range(options.rounds):
            cold, other = names[2 * index], names[2 * index + 1]
            for name in names[2 * index - 6 : 2 * index]:  # what was loaded at the start, or a round ago, makes room
                await ask(name)
            forget(files[other])
            bytes_read = read(files[other], buffer)
            forget(files[cold])
            before = await disk_reads()
            first = await ask(cold)
            if await disk_reads() == before:
                continue  # it was still in host memory
            again = [await ask(cold) for _ in range(3)]
            reads.append(bytes_read)
            loads.append(first - statistics.median(again))
    ratios = [load / read for load, read in zip(loads, reads)]
    report.note("adapter", f"{size / 1e6:.1f} MB, rank {options.rank}")
    report.note("reading its bytes", f"{statistics.median(reads) * 1e3:.1f} ms {quartiles([r * 1e3 for r in reads])}, {size / statistics.median(reads) / 1e6:.0f} MB/s")
    report.check("loads from disk", len(loads) >= options.rounds / 2, f"{len(loads)} in {options.rounds} rounds")
    report.check("load against reading", statistics.median(ratios) <= 1.2, f"x {statistics.median(ratios):.2f} {quartiles(ratios)}, {statistics.median(loads) * 1e3:.1f} ms, slowest {percentile(loads, 100) * 1e3:.1f}", ratios)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--dummy", default=str(os.path.join(os.path.dirname(__file__), "tinyllama.json")), help="config.json of a model with random weights")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--memory", default="256MiB", help="of the page pool: less than the adapters need")
    parser.add_argument("--host-memory", default="128MiB", help="of copies of adapters: less than they need")
    parser.add_argument("--work", default="/tmp/lorikeet-cold-load", help="directory for adapters, on the disk to measure")
    parser.add_argument("--rounds", type=int, default=9)
    run("cold loads", parser.parse_args(), main)
