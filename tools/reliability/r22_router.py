#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R22: what a router costs, and what two of them promise. First router_bench (tests/cluster/router_bench.cpp; build the target) is replica and
client around one `lorikeet route`: how much later a first token comes, asked for directly and through the router in turns; how many events a second
of one core's time forwards; what a stream takes of memory. Then two routers that judge keys stand before two replicas, streams run through both, a
tenant asks both for more than it may have, and one router is killed: streams of the other one go on bit for bit, and the tenant gets what its limits
say, before and after."""
import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
import time

from common import DEMO, ROOT, Closed, Connection, arguments, percentile, run
from r11_kills import make_requests, stream

REPLICA = ("--lora-dir", str(DEMO / "adapters"), "--served-model-name", "demo", "--threads", "1", "--memory", "64MiB", "--kernel-nice", "5")


class Program:
    """A `lorikeet route` or `lorikeet serve` whose standard error says where it listens."""

    def __init__(self, directory: str, name: str, command, pattern: str, env=None):
        self.log = os.path.join(directory, name + ".log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})})
        self.host, self.key = "127.0.0.1", None
        end = time.monotonic() + 60
        while not (found := re.search(pattern, pathlib.Path(self.log).read_text(errors="replace"))):
            assert time.monotonic() < end and self.process.poll() is None, pathlib.Path(self.log).read_text(errors="replace")[-2000:]
            time.sleep(0.02)
        self.port = int(found[1])

    def kill(self):
        self.process.kill()
        self.process.wait()


def route(directory, name, binary, urls, *flags, env=None) -> Program:
    replicas = [word for url in urls for word in ("--replica", url)]
    return Program(directory, name, [binary, "route", "--port", "0", *replicas, *flags], r"policy \w+, http://127\.0\.0\.1:(\d+)\n", env)


def measure_cost(options, report, directory):
    """The router alone, between stand-ins that cost little."""
    bench = subprocess.Popen([options.bench, str(options.rounds), str(options.seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    router = None
    try:
        url = bench.stdout.readline().split()[1]
        router = route(directory, "router", options.binary, [url])
        end = time.monotonic() + 30
        while True:
            with contextlib.closing(http.client.HTTPConnection(router.host, router.port)) as connection:
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            assert time.monotonic() < end
        bench.stdin.write(f"{router.host}:{router.port} {router.process.pid}\n")
        bench.stdin.close()
        figures = json.loads(bench.stdout.readline())
        assert bench.wait() == 0
    finally:
        bench.kill()
        if router:
            router.kill()
    direct, routed = zip(*figures["first_token"])
    added = {q: (percentile(routed, q) - percentile(direct, q)) * 1e3 for q in (50, 99)}
    shown = ", ".join(f"p{q} {added[q]:.2f} ms ({percentile(direct, q) * 1e3:.2f} direct)" for q in (50, 99))
    report.check("first token later by", added[50] <= 0.5 and added[99] <= 2, f"{shown}; goals 0.5 and 2 ms", added)
    rates = {load["streams"]: load["events"] / load["cpu_seconds"] for load in figures["throughput"]}
    report.check("events forwarded in a second of one core", max(rates.values()) >= 25000,
                 ", ".join(f"{rate:.0f} at {streams} streams" for streams, rate in rates.items()) + "; goal 25000", figures["throughput"])
    memory = figures["memory"]
    each = (memory["during"] - memory["before"]) / memory["streams"] / 1024
    report.check("memory of a stream", each <= 64, f"{each:.1f} KiB; goal 64", memory)


def keys(binary, state, *args) -> str:
    return subprocess.run([binary, "keys", *args, "--state", state], capture_output=True, text=True, check=True).stdout.strip()


async def count_tokens(routers, key, seconds, until_refused=False) -> int:
    """Tokens that a tenant which always wants more gets of all routers: prompts and outputs of whole answers. `until_refused`: each has refused it once."""
    end, used, refused = time.monotonic() + seconds, 0, set()

    async def client(router):
        nonlocal used
        body = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
        while time.monotonic() < end and not (until_refused and len(refused) == len(routers)):
            try:
                async with Connection(router) as connection:
                    response = await connection.request("POST", "/v1/completions", body, key=key)
            except (Closed, OSError):
                return  # the one that was killed
            if response.status == 200:
                used += response.json()["usage"]["total_tokens"]
            else:
                assert response.status == 429, response.body
                refused.add(router)
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client(router) for router in routers for _ in range(4)))
    return used


async def routers_know(router, fleet, count):
    end = time.monotonic() + 30
    while True:
        async with Connection(router) as connection:
            if (await connection.request("GET", "/v1/status", key=fleet)).json()["routers"] == count:
                return
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def measure_two(options, report, directory):
    binary = options.binary
    state = os.path.join(directory, "state.db")
    fleet = keys(binary, state, "create", "--tenant", "ops", "--scope", "fleet")
    streamer = keys(binary, state, "create", "--tenant", "streams", "--scope", "infer")
    keys(binary, state, "tenant", "set", "greedy", "--tokens-per-minute", str(options.tokens_per_minute))
    greedy = keys(binary, state, "create", "--tenant", "greedy", "--scope", "infer")
    programs = []
    try:
        for i in range(2):
            own = os.path.join(directory, f"replica{i}.db")
            shutil.copy(state, own)
            programs.append(Program(directory, f"replica{i}", [binary, "serve", DEMO / "model", *REPLICA, "--port", "0", "--state", own],
                                    r" serves .* on https?://127\.0\.0\.1:(\d+)\n"))
        urls = [f"http://127.0.0.1:{replica.port}" for replica in programs]
        routers = [route(directory, f"router{i}", binary, urls, "--state", state, env={"LORIKEET_FLEET_KEY": fleet}) for i in range(2)]
        programs += routers
        for router in routers:
            router.key = streamer
            await routers_know(router, fleet, 2)
        requests = make_requests(40, random.Random(options.seed))
        quiet = [(await stream(routers[i % 2], body))[0] for i, body in enumerate(requests)]

        # The first minute's tokens are a full bucket: what comes after it is the rate.
        await count_tokens(routers, greedy, 120, until_refused=True)
        begin = time.monotonic()
        used = await count_tokens(routers, greedy, options.limit_seconds)
        allowed = options.tokens_per_minute / 60 * (time.monotonic() - begin)
        report.check("tokens that a tenant got of two routers", abs(used / allowed - 1) <= 0.1, f"{used} of {allowed:.0f}", [used, allowed])

        lost, altered, over = [], 0, False

        async def client(router):
            nonlocal altered
            i = 0
            while not over:
                i = (i + 7) % len(requests)
                try:
                    events, _ = await stream(router, requests[i])
                    altered += events != quiet[i]
                except (Closed, OSError, RuntimeError) as error:
                    lost.append(repr(error))
                    if router is routers[0]:
                        return

        clients = [asyncio.create_task(client(router)) for router in routers for _ in range(8)]
        await asyncio.sleep(2)
        at_kill = len(lost)
        routers[0].kill()
        await count_tokens(routers[1:], greedy, 120, until_refused=True)
        begin = time.monotonic()
        used = await count_tokens(routers[1:], greedy, options.limit_seconds)
        allowed = options.tokens_per_minute / 60 * (time.monotonic() - begin)
        over = True
        await asyncio.gather(*clients)
        await routers_know(routers[1], fleet, 1)
        report.check("streams that the other router lost", len(lost) == 8 and at_kill == 0, f"{len(lost) - 8}; altered {altered}", lost)
        report.check("answers altered", altered == 0, altered)
        report.check("tokens that the tenant got of the other one alone", abs(used / allowed - 1) <= 0.1, f"{used} of {allowed:.0f}", [used, allowed])
    finally:
        for program in programs:
            program.kill()


async def main(options, report):
    with tempfile.TemporaryDirectory(prefix="lorikeet-router-") as directory:
        if not options.only_two:
            measure_cost(options, report, directory)
        await measure_two(options, report, directory)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--bench", default=str(ROOT / "build/cpu-release/bin/router_bench"))
    parser.add_argument("--rounds", type=int, default=2000, help="pairs of first tokens")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--tokens-per-minute", type=int, default=12000)
    parser.add_argument("--limit-seconds", type=float, default=20)
    parser.add_argument("--only-two", action="store_true", help="leave the cost out")
    run("R22 router", parser.parse_args(), main)
