#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R21: nothing that one tenant sends costs another anything before it is let in. A steady tenant asks for short streams at a fixed rate;
beside it a limited tenant does one kind of abuse at full speed, from processes of their own, at a lower priority (elsewhere they would have
a machine of their own). For each kind a server is started, the steady tenant is measured alone, beside the abuse, and alone again. Its time
to first token (p99) may grow to 1.5 times what it was alone, plus 50 ms; it gets no error; the server's memory grows by 256 MiB at most.
choices   n times prompts, lists of inputs, beyond and within the limits
patterns  small requests whose grammars take as long to compile as they may
bodies    8 MiB on every route that takes a body, and bodies that never end
answers   small requests for answers as large as they may be
readers   long streams whose readers take a few bytes now and then
floods    ordinary requests, more than the server can serve"""
import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from common import DEMO, Closed, Connection, Server, arguments, percentile, raise_file_limit, run

MIB = 1 << 20
numbers = itertools.count(random.SystemRandom().randrange(1 << 40))  # no two requests are alike: no cache helps


def prompt() -> str:
    return f"No. {next(numbers)}: what is the sum of these?"


# --- The abuses. Each sends one request on its connection and returns the status.

async def ask(connection, path: str, body) -> int:
    await connection.send("POST", path, body)
    response = await connection.read_head()
    async for _ in connection.chunks(response):
        pass
    return response.status


async def choices(connection) -> int:
    """In turn: far too many, as many as a request may have, as many as the tenant may have, lists to embed."""
    completion = {"model": "sql", "max_tokens": 32, "temperature": 1, "ignore_eos": True}
    kind = next(numbers) % 5
    if kind == 0:
        return await ask(connection, "/v1/completions", completion | {"prompt": [prompt() for _ in range(256)], "n": 16})
    if kind == 1:
        return await ask(connection, "/v1/completions", completion | {"prompt": [prompt() for _ in range(8)], "n": 16, "best_of": 16})
    if kind == 2:
        return await ask(connection, "/v1/completions", completion | {"prompt": prompt(), "n": 16})
    return await ask(connection, "/v1/embeddings", {"model": "sql", "input": [prompt() for _ in range(2048 if kind == 3 else 16)]})


async def patterns(connection) -> int:
    number = next(numbers)
    if number % 2:
        return await ask(connection, "/v1/completions", {"model": "sql", "prompt": "x", "max_tokens": 1, "guided_regex": f"(a|b)*a(a|b){{{14 + number % 5}}}c{number}"})
    schema = {"type": "array", "minItems": 300, "maxItems": 900, "items": {"type": "string", "pattern": f"^[a-z]{{1,{200 + number % 50}}}{number}$"}}
    return await ask(connection, "/v1/chat/completions", {"model": "sql", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "guided_json": schema})


def make_bodies() -> list[tuple[str, bytes]]:
    size = 8 * MIB - 1024
    words = "".join(random.choices("abcdefghijklmnopqrstuvwxyz     ", k=1 << 16)) * (size >> 16)
    tokens = [random.randrange(3, 300) for _ in range(1_000_000)]
    bodies = [("/tokenize", {"model": "sql", "prompt": words}), ("/detokenize", {"model": "sql", "tokens": tokens}),
              ("/v1/completions", {"model": "sql", "prompt": words, "max_tokens": 1}), ("/v1/completions", {"model": "sql", "prompt": tokens, "max_tokens": 1}),
              ("/v1/chat/completions", {"model": "sql", "messages": [{"role": "user", "content": words[:size // 64]}] * 63, "max_tokens": 1}),
              ("/v1/embeddings", {"model": "sql", "input": [words[:60_000]] * 128}), ("/tokenize", {"model": "sql", "prompt": "a" * (size - 100)})]
    return [(path, json.dumps(body).encode()) for path, body in bodies]


async def bodies(connection) -> int:
    kind = next(numbers) % 10
    if kind < 2:  # chunked, without an end
        await connection.send("POST", "/tokenize", None, headers={"transfer-encoding": "chunked", "content-type": "application/json"})
        for _ in range(7):
            connection.writer.write(b"100000\r\n" + b" " * MIB + b"\r\n")
            await asyncio.wait_for(connection.writer.drain(), 5)
        await asyncio.sleep(2)
        raise ConnectionError("given up")
    return await ask(connection, *made[kind % len(made)])


async def answers(connection) -> int:
    kind = next(numbers) % 3
    everything = {"model": "sql", "prompt_logprobs": 20, "logprobs": 20, "echo": True, "return_token_ids": True}
    if kind == 0:
        return await ask(connection, "/v1/completions", everything | {"prompt": [[random.randrange(3, 300) for _ in range(480)] for _ in range(8)], "n": 16, "max_tokens": 1, "temperature": 1})
    if kind == 1:
        return await ask(connection, "/tokenize", {"model": "sql", "prompt": "a b c " * 60_000, "return_token_strs": True})
    return await ask(connection, "/v1/completions", everything | {"prompt": [random.randrange(3, 300) for _ in range(480)], "n": 4, "max_tokens": 16, "temperature": 1})


async def readers(connection) -> int:
    body = {"model": "sql", "prompt": prompt(), "max_tokens": 400, "stream": True, "ignore_eos": True, "logprobs": 20, "temperature": 0, "n": 4,
            "return_tokens_as_token_ids": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    await connection.send("POST", "/v1/completions", body, headers={"x-request-id": "r" * 128})
    response = await connection.read_head()
    if response.status != 200:
        async for _ in connection.chunks(response):
            pass
        return response.status
    connection.writer.transport.pause_reading()
    for _ in range(5):
        await asyncio.sleep(8)
        connection.writer.transport.resume_reading()
        await asyncio.sleep(0)
        connection.writer.transport.pause_reading()
    raise ConnectionError("given up")


async def floods(connection) -> int:
    return await ask(connection, "/v1/completions", {"model": "sql", "prompt": prompt(), "max_tokens": 48, "ignore_eos": True, "temperature": 0})


# Connections, and the limits of the tenant that has them.
ABUSES = {"choices": (choices, 32, ("--max-in-flight", "16")), "patterns": (patterns, 32, ("--max-in-flight", "64", "--tokens-per-minute", "60000")),
          "bodies": (bodies, 48, ("--max-in-flight", "64", "--tokens-per-minute", "60000")), "answers": (answers, 16, ("--max-in-flight", "256", "--tokens-per-minute", "2000000")),
          "readers": (readers, 400, ("--max-in-flight", "2000")), "floods": (floods, 1500, ("--max-in-flight", "4000"))}
made: list[tuple[str, bytes]] = []


class Port:
    """What a Connection needs to know of a server in another process."""

    def __init__(self, port: int, key: str):
        self.host, self.port, self.key = "127.0.0.1", port, key


async def abuse(options) -> None:
    """In a process of its own, until told to end: prints how many answers it got of each status."""
    os.nice(5)
    raise_file_limit()
    send, connections, _ = ABUSES[options.abuse]
    server = Port(options.port, os.environ["R21_KEY"])
    made.extend(make_bodies() if send is bodies else [])
    counts: dict[str, int] = {}

    async def work() -> None:
        while True:
            connection = Connection(server, receive_buffer=4096 if send is readers else 0)
            try:
                while True:  # at full speed: Retry-After is for others
                    name = str(await send(connection))
                    counts[name] = counts.get(name, 0) + 1
            except (OSError, Closed, asyncio.IncompleteReadError, TimeoutError):
                counts["lost"] = counts.get("lost", 0) + 1
                await asyncio.sleep(0.01)
            finally:
                connection.close()

    print("ready", flush=True)
    tasks = [asyncio.create_task(work()) for _ in range(connections // options.parts)]
    done, _ = await asyncio.wait(tasks, timeout=options.seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()  # of one that failed: a fault of this script
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)
    print(json.dumps(counts), flush=True)


# --- The steady tenant

class Steady:
    """Short streams at a fixed rate on connections that stay open: seconds to the first token, and what went wrong."""

    def __init__(self, server, key: str, rate: float):
        self.server, self.key, self.rate = server, key, rate
        self.idle: list[Connection] = []

    async def one(self, seconds: list[float], errors: dict[str, int]) -> None:
        connection = self.idle.pop() if self.idle else Connection(self.server)
        body = {"model": "sql", "prompt": f"Which of {next(numbers)} customers live in Riga?", "max_tokens": 16, "temperature": 0, "ignore_eos": True, "stream": True}
        began, first, wrong = time.monotonic(), 0.0, ""
        try:
            await connection.send("POST", "/v1/completions", body, self.key)
            response = await connection.read_head()
            if response.status == 200:
                async for event in connection.events(response):
                    first = first or time.monotonic() - began
                    wrong = wrong or (event or {}).get("error", {}).get("code", "")
                seconds.append(first)
            else:
                wrong = str(response.status)
                async for _ in connection.chunks(response):
                    pass
            self.idle.append(connection)
        except (OSError, Closed) as error:
            wrong = type(error).__name__
            connection.close()
        if wrong:
            errors[wrong] = errors.get(wrong, 0) + 1

    async def run(self, duration: float) -> tuple[list[float], dict[str, int]]:
        seconds: list[float] = []
        errors: dict[str, int] = {}
        began = time.monotonic()
        tasks = []
        for number in range(int(duration * self.rate)):
            await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
            tasks.append(asyncio.create_task(self.one(seconds, errors)))
        await asyncio.gather(*tasks)
        return seconds, errors


@contextlib.asynccontextmanager
async def memory_of(server, seen: list[int]):
    """The server's resident bytes, every fifth of a second."""
    async def watch() -> None:
        while True:
            seen.append(server.process_stats()["rss"])
            await asyncio.sleep(0.2)
    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def measure(options, report, name: str, directory: str) -> None:
    state = os.path.join(directory, f"{name}.db")

    def keys(*flags: str) -> str:
        return subprocess.run([options.binary, "keys", *flags, "--state", state], capture_output=True, text=True, check=True).stdout.strip()

    steady_key, hostile_key = (keys("create", "--tenant", tenant, "--scope", "infer") for tenant in ("steady", "hostile"))
    keys("tenant", "set", "hostile", *ABUSES[name][2])
    with Server(options.binary, "--lora-dir", DEMO / "adapters", "--memory", "64MiB", "--max-running", options.max_running, "--step-tokens", options.step_tokens, "--preempt-gap", options.preempt_gap, "--log-level", "error", state=state) as server:
        steady = Steady(server, steady_key, options.rate)
        await steady.run(3)  # connections, rates of starts
        before: list[int] = []
        async with memory_of(server, before):
            alone, errors = await steady.run(options.quiet / 2)
        report.check(f"{name}: errors of the steady tenant alone", not errors, errors or "none")
        parts = 2 if ABUSES[name][1] >= 100 else 1
        hostile = [await asyncio.create_subprocess_exec(sys.executable, os.path.abspath(__file__), "--abuse", name, "--port", str(server.port), "--seconds", str(options.seconds), "--parts", str(parts),
                                                        stdout=asyncio.subprocess.PIPE, env={**os.environ, "R21_KEY": hostile_key}) for _ in range(parts)]
        for process in hostile:
            await process.stdout.readline()
        during: list[int] = []
        async with memory_of(server, during):
            beside, errors = await steady.run(options.seconds)
        counts: dict[str, int] = {}
        for process in hostile:
            printed, _ = await process.communicate()
            for status, count in json.loads(printed or b'{"the process failed": 1}').items():
                counts[status] = counts.get(status, 0) + count
        await asyncio.sleep(2)
        alone += (await steady.run(options.quiet / 2))[0]
        quiet, worst = percentile(alone, 99) * 1e3, percentile(beside, 99) * 1e3
        grown = (max(during) - max(before)) / MIB
        report.note(f"{name}: the hostile tenant got", ", ".join(f"{count} x {status}" for status, count in sorted(counts.items())), counts)
        report.check(f"{name}: first token p99", worst <= 1.5 * quiet + 50,
                     f"{quiet:.1f} ms alone, {worst:.1f} ms beside (p50 {percentile(alone, 50) * 1e3:.1f}, {percentile(beside, 50) * 1e3:.1f}; {len(beside)} requests)",
                     {"alone": [x * 1e3 for x in alone], "beside": [x * 1e3 for x in beside]})
        report.check(f"{name}: errors", not errors, errors or "none")
        report.check(f"{name}: memory", grown <= 256, f"{max(before) / MIB:.0f} + {grown:.0f} MiB", {"before": max(before), "during": max(during)})


async def main(options, report) -> None:
    with tempfile.TemporaryDirectory(prefix="lorikeet-r21-") as directory:
        for name in options.only or ABUSES:
            await measure(options, report, name, directory)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each abuse")
    parser.add_argument("--quiet", type=float, default=30, help="seconds of the steady tenant alone, half before and half after")
    parser.add_argument("--rate", type=float, default=5, help="requests a second of the steady tenant")
    parser.add_argument("--max-running", default="32", help="of the server: with the next one, how long a step may take beside the steady tenant")
    parser.add_argument("--step-tokens", default="128", help="of the server")
    parser.add_argument("--preempt-gap", default="0.001", help="of the server: how long long streams may keep all places of the batch from the steady tenant")
    parser.add_argument("--only", nargs="+", choices=ABUSES)
    for flag, kind in (("--abuse", str), ("--port", int), ("--parts", int)):  # of the processes that it starts
        parser.add_argument(flag, type=kind, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.abuse:
        asyncio.run(abuse(parsed))
    else:
        run("R21 hostile tenant", parsed, main)
