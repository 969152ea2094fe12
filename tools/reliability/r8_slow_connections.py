#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R8: thousands of idle and slow connections. A third sends its header a byte at a time, a third its body, a third nothing after a first
request; those that the server cuts come back. Others' time to first token (p99 of `lorikeet bench serve`) is compared, in interleaved
rounds, with what it is while the same crowd knocks at another server on the machine (--control other), or without a crowd (none): the
slow clients share the machine's cores, and their CPU is reported."""
import asyncio
import os
import resource
import statistics
import time

from common import DEMO, Sandwich, Server, arguments, run
from r4_overload import bench


class Slow(asyncio.Protocol):
    """As cheap as possible: one timer for all of them."""

    def __init__(self, kind: int, crowd):
        self.kind, self.crowd, self.sent, self.transport = kind, crowd, 0, None

    def connection_made(self, transport):
        self.transport = transport
        self.crowd.open.add(self)
        if self.kind == 1:
            transport.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
        if self.kind == 2:
            transport.write(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")

    def nudge(self):
        if self.kind == 0:
            self.transport.write(b"GET / HTTP/1.1\r\nhost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"[self.sent:self.sent + 1] or b"x")
            self.sent += 1
        elif self.kind == 1:
            self.transport.write(b" ")

    def connection_lost(self, _):
        self.crowd.open.discard(self)
        self.crowd.cut[self.kind] += 1


class Crowd:
    """Does little at a time: a burst of work here would hold up the measured client and the server on the same cores, which is not what
    slow clients elsewhere do."""

    def __init__(self, server, count: int):
        self.server, self.count, self.open, self.cut, self.made = server, count, set(), [0, 0, 0], 0

    async def run(self):
        loop = asyncio.get_running_loop()
        while True:
            began = time.monotonic()
            for index, slow in enumerate(list(self.open)):
                slow.nudge()
                if index % 10 == 9:
                    await asyncio.sleep(0.004)
            while len(self.open) < self.count:
                missing = min(4, self.count - len(self.open))
                await asyncio.gather(*[loop.create_connection(lambda: Slow(self.made % 3, self), self.server.host, self.server.port) for _ in range(missing)])
                self.made += missing
                await asyncio.sleep(0.001)
            await asyncio.sleep(max(0, 4 - (time.monotonic() - began)))

    def close(self):
        for slow in list(self.open):
            slow.transport.abort()


async def main(options, report) -> None:
    flags = ("--lora-dir", str(DEMO / "adapters"), "--memory", "64MiB", "--log-level", "error")
    with Server(options.binary, *flags) as server, Server(options.binary, *flags) as other:
        rss_each, held, cut, shares = [], [], [0, 0, 0], []

        async def others() -> float:
            result, _ = await bench(options, server, "--rate", options.rate, "--duration", options.duration)
            return result.get("report", result)["ttft_ms"]["p99"]

        async def beside(target) -> float:
            """The others' latency at `server` while the crowd bothers `target`."""
            rss = target.process_stats()["rss"]
            crowd = Crowd(target, options.connections)
            running = asyncio.create_task(crowd.run())
            while (await target.status())["http"]["connections"] < options.connections:
                await asyncio.sleep(0.1)
            await asyncio.sleep(options.settle)
            connections = (await target.status())["http"]["connections"]
            usage, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            value = await others()
            used = resource.getrusage(resource.RUSAGE_SELF)
            shares.append((used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime) / (time.monotonic() - began))
            running.cancel()
            if target is server:
                held.append(connections)
                rss_each.append((target.process_stats()["rss"] - rss) / connections)
                cut[:] = [a + b for a, b in zip(cut, crowd.cut)]
            crowd.close()
            while (await target.status())["http"]["connections"] > 10:
                await asyncio.sleep(0.1)
            return value

        await bench(options, server, "--concurrency", "2", "--num-requests", "20")
        # What the crowd costs the machine is the same wherever it knocks; what it costs the others at the same server is the difference.
        control = (lambda: beside(other)) if options.control == "other" else others
        rounds = Sandwich()
        before = await control()
        for _ in range(options.rounds):
            value = await beside(server)
            after = await control()
            rounds.add(before, value, after)
            before = after
        report.check("connections held", min(held) >= options.connections * 0.9, min(held), held)
        rounds.report(report, "others' TTFT p99, the same crowd at another server" if options.control == "other" else "others' TTFT p99", 1.05)
        report.check("slow headers cut", cut[0] > 0, f"{cut[0]}; slow bodies {cut[1]}, idle {cut[2]}")
        report.note("memory", f"{max(rss_each) / 1024:.1f} KiB a connection", rss_each)
        report.note("slow clients' CPU", f"{statistics.median(shares):.2f} cores, {max(shares):.2f} at most", shares)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--control", choices=("none", "other"), default="other", help="what the disturbed runs are compared with: no crowd, or the same crowd at another server")
    parser.add_argument("--rate", type=float, default=40, help="requests per second of the others")
    parser.add_argument("--duration", type=float, default=6, help="seconds of each run")
    parser.add_argument("--settle", type=float, default=12, help="seconds before measuring: past the header timeout, so that cutting and coming back go on meanwhile")
    parser.set_defaults(slo="ttft=3000,e2e=10000")
    run("R8 idle and slow connections", parser.parse_args(), main)
