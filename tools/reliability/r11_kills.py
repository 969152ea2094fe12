#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R11: streams outlive their replica. Three replicas behind `lorikeet route`, 64 clients that stream answers one after the other; every few
seconds a replica is killed (kill -9, and started again), stopped (SIGSTOP, for a while) or told to drain (SIGTERM, and started again). Each
answer is compared, event by event, with the one that the same request got in a quiet fleet: no stream may be lost, no token may be lost,
doubled or altered, and no new request may fail. The longest pause that a client saw at a kill and at a stop is reported."""
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import time

from common import DEMO, ROOT, TASKS, Closed, Connection, arguments, percentile, run

FLAGS = ("--lora-dir", str(DEMO / "adapters"), "--served-model-name", "demo", "--no-state", "--threads", "1", "--memory", "64MiB", "--drain-grace", "0.3",
         "--kernel-nice", "5")


class Replica:
    def __init__(self, binary: str, log: str):
        self.binary, self.log, self.port = binary, log, 0
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen([self.binary, "serve", str(DEMO / "model"), *FLAGS, "--port", str(self.port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self.port == 0 and time.monotonic() < end:
            with open(self.log, errors="replace") as log:
                log.seek(begin)
                if found := re.search(r" serves .* on https?://127\.0\.0\.1:(\d+)\n", log.read()):
                    self.port = int(found[1])
            time.sleep(0.02)
        assert self.port, f"the replica did not start, see {self.log}"

    def kill(self):
        self.process.kill()
        self.process.wait()


class Router:
    key = None

    def __init__(self, binary: str, replicas, log: str, policy: str):
        command = [binary, "route", "--port", "0", "--policy", policy]
        for replica in replicas:
            command += ["--replica", f"http://127.0.0.1:{replica.port}"]
        self.host, self.port = "127.0.0.1", 0
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(log, "wb"))
        end = time.monotonic() + 60
        while self.port == 0 and time.monotonic() < end:
            with open(log, errors="replace") as text:
                if found := re.search(r"http://127\.0\.0\.1:(\d+)\n", text.read()):
                    self.port = int(found[1])
            time.sleep(0.02)

    async def status(self):
        async with Connection(self) as connection:
            return (await connection.request("GET", "/v1/fleet/status")).json()

    async def ready(self, count: int, seconds: float = 60):
        end = time.monotonic() + seconds
        while sum(replica["state"] == "ready" for replica in (await self.status())["replicas"]) < count:
            assert time.monotonic() < end, await self.status()
            await asyncio.sleep(0.05)


def make_requests(count: int, rng) -> list[dict]:
    requests = []
    for i in range(count):
        body = {"model": rng.choice((*TASKS, "demo")), "stream": True, "seed": i, "temperature": rng.choice((0, 0.8, 1.3)), "max_tokens": rng.randrange(50, 400),
                "ignore_eos": True, "messages": [{"role": "user", "content": f"Question {i}: which customers live in Riga?"}]}
        if i % 4 == 0:
            body |= {"logprobs": True, "top_logprobs": 2}
        if i % 5 == 0:
            body |= {"frequency_penalty": 0.6, "presence_penalty": 0.4}
        if i % 7 == 0:
            body |= {"stream_options": {"include_usage": True}}
        requests.append(body)
    return requests


def shown(event: bytes):
    """What counts of an event: all but the answer's name and time."""
    data = event[6:]
    if data == b"[DONE]":
        return "[DONE]"
    value = json.loads(data)
    value.pop("id", None)
    value.pop("created", None)
    if usage := value.get("usage"):
        usage.pop("prompt_tokens_details", None)  # what a cache held is no part of the answer
    return value


async def stream(router, body: dict):
    """(events, longest pause behind the first event and when it began)."""
    async with Connection(router) as connection:
        await connection.send("POST", "/v1/chat/completions", body)
        response = await connection.read_head()
        if response.status != 200:
            text = b"".join([piece async for piece in connection.chunks(response)])
            raise RuntimeError(f"{response.status} {text[:300]}")
        events, rest, pause, last = [], b"", (0.0, 0.0), None
        async for piece in connection.chunks(response):
            now = time.monotonic()
            if last is not None and now - last > pause[0]:
                pause = (now - last, last)
            last = now
            rest += piece
            while (end := rest.find(b"\n\n")) >= 0:
                event, rest = rest[:end], rest[end + 2:]
                events.append(shown(event))
        return events, pause


async def main(options, report):
    rng = random.Random(options.seed)
    directory = ROOT / "build/fleet"
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.log"):
        old.unlink()
    replicas = [Replica(options.binary, str(directory / f"replica{i}.log")) for i in range(3)]
    router = Router(options.binary, replicas, str(directory / "router.log"), options.policy)
    try:
        await router.ready(3)
        requests = make_requests(options.requests, rng)
        quiet: list = [None] * len(requests)
        numbers = iter(range(len(requests)))

        async def ask_quietly():
            for i in numbers:
                quiet[i], _ = await stream(router, requests[i])

        await asyncio.gather(*(ask_quietly() for _ in range(16)))
        assert all(events[-1] == "[DONE]" for events in quiet)

        state = {"tokens": 0, "answers": 0, "lost": 0, "altered": 0, "refused": 0}
        pauses, faults, examples = [], [], []
        over = False

        async def client():
            while not over:
                i = rng.randrange(len(requests))
                try:
                    events, pause = await stream(router, requests[i])
                except (Closed, OSError) as error:
                    state["lost"] += 1
                    examples.append(f"request {i}: {error!r}")
                    continue
                except RuntimeError as error:
                    state["refused"] += 1
                    examples.append(f"request {i}: {error}")
                    continue
                state["answers"] += 1
                state["tokens"] += requests[i]["max_tokens"]
                if events != quiet[i]:
                    state["altered"] += 1
                    at = next((k for k, (a, b) in enumerate(itertools.zip_longest(events, quiet[i])) if a != b), None)
                    examples.append(f"request {i}, event {at} of {len(quiet[i])}: {events[at:at + 1]} instead of {quiet[i][at:at + 1]}")
                pauses.append(pause)

        clients = [asyncio.create_task(client()) for _ in range(options.streams)]
        end = time.monotonic() + options.minutes * 60
        kinds = itertools.cycle(("kill", "stop", "kill", "drain"))
        while time.monotonic() < end:
            await router.ready(3)
            await asyncio.sleep(rng.uniform(0, 1))
            victim, kind = rng.choice(replicas), next(kinds)
            began = time.monotonic()
            if kind == "kill":
                victim.kill()
                victim.start()
            elif kind == "stop":
                victim.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(3)
                victim.process.send_signal(signal.SIGCONT)
            else:
                victim.process.send_signal(signal.SIGTERM)
                while victim.process.poll() is None:
                    await asyncio.sleep(0.02)
                report_drain = time.monotonic() - began
                faults.append(("drained", began, report_drain))
                victim.start()
            faults.append((kind, began, 0))
            await asyncio.sleep(max(0.0, options.every - (time.monotonic() - began)))
        over = True
        await asyncio.gather(*clients)
        status = await router.status()
        counts = {kind: sum(fault[0] == kind for fault in faults) for kind in ("kill", "stop", "drain")}
        report.note("faults", ", ".join(f"{count} {kind}" for kind, count in counts.items()), counts)
        report.note("continued by the router", {name: status[name] for name in ("continued", "hedged", "moved", "retried", "inexact", "mismatches", "broken", "refused")})
        report.check("streams lost", state["lost"] == 0, f"{state['lost']} of {state['answers'] + state['lost']}", state)
        report.check("answers altered", state["altered"] == 0, f"{state['altered']} of {state['answers']}, {state['tokens']} tokens")
        report.check("requests refused", state["refused"] == 0, state["refused"])
        for kind, limit in (("kill", 0.5), ("stop", 2.0), ("drain", 0.5)):
            seen = []
            for name, began, _ in faults:
                if name == kind:
                    seen += [length for length, at in pauses if began - 0.2 <= at <= began + 3.5]
            if seen:
                report.note(f"longest pause of a stream around a {kind}, p50, p99, max; goal {limit} s + prefill",
                            f"{percentile(seen, 50):.2f}, {percentile(seen, 99):.2f}, {max(seen):.2f} s of {len(seen)}", seen)
        drains = [seconds for name, _, seconds in faults if name == "drained"]
        if drains:
            report.note("a drained replica ends after", f"{percentile(drains, 50):.2f} s p50, {max(drains):.2f} s at most", drains)
        for example in examples[:10]:
            print(example)
    finally:
        for replica in replicas:
            with contextlib.suppress(ProcessLookupError):
                os.kill(replica.process.pid, signal.SIGCONT)
            replica.kill()
        router.process.kill()
        router.process.wait()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=5, help="seconds between faults")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=200, help="different ones")
    parser.add_argument("--policy", default="cost")
    run("R11 kills", parser.parse_args(), main)
