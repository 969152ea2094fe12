#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists with many adapters: --adapters directories, then the times of /v1/models and its pages, of /v1/adapters,
/v1/status and /metrics, from the request to the last byte of the answer, on one connection after the other; and what the longest of an io thread's
turns was meanwhile. A page of /v1/models must come within 5 ms (p99)."""
import os
import tempfile
import time

from common import Connection, Server, arguments, percentile, run
from many_adapters import make

PATHS = ("/v1/models", "/v1/models?limit=100", "/v1/models?limit=10000", "/v1/models/{last}", "/v1/adapters", "/v1/adapters?limit=100", "/v1/status", "/metrics", "/health")


async def main(options, report) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = os.path.join(directory, "adapters")
        make(root, options.adapters)
        began = time.monotonic()
        with Server(options.binary, "--lora-dir", root, "--memory", "128MiB", "--no-probe", "--watch-interval", "3600", "--log-level", "error") as server:
            report.check("start", True, f"{options.adapters} adapters, ready after {time.monotonic() - began:.1f} s")
            listed, after = 0, ""
            while True:
                page = (await server.call("GET", f"/v1/models?after={after}")).json()
                listed, after = listed + len(page["data"]), page["last_id"]
                if not page["has_more"]:
                    break
            report.check("all are listed", listed == options.adapters + 1, f"{listed} models on the pages of /v1/models")
            for path in PATHS:
                async with Connection(server) as connection:
                    times, size = [], 0
                    for _ in range(options.requests):
                        begin = time.perf_counter()
                        answer = await connection.request("GET", path.format(last=after))
                        times.append((time.perf_counter() - begin) * 1e3)
                        assert answer.status == 200, (path, answer.status)
                        size = len(answer.body)
                p99 = percentile(times, 99)
                limit = 5 if path in ("/v1/models", "/v1/models?limit=100", "/v1/models/{last}", "/health") else float("inf")
                report.check(path, p99 <= limit, f"{size / 1e3:.1f} kB, median {percentile(times, 50):.2f} ms, p99 {p99:.2f} ms", times)
            metrics = (await server.call("GET", "/metrics")).body.decode()
            turns = [line for line in metrics.splitlines() if line.startswith("lorikeet_io_longest_turn_seconds")]
            worked = float(next(line for line in turns if "cpu" in line).rsplit(" ", 1)[1])
            report.check("io threads", worked <= 0.005, f"longest turn {worked * 1e3:.2f} ms of work; {turns}")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=300, help="of each kind")
    run("Lists", parser.parse_args(), main)
