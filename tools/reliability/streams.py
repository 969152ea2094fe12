#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The server's own cost, without a model in the way. With a small dummy model on one thread, so that the other
core is free for the io thread and the client: --streams event streams at once, all in every step; delay from the end of a step until its last event was sent to its socket (lorikeet_event_delay_seconds), memory of an idle
stream (requests that wait in the queue with their stream's connection open). With weights of TinyLlama's shape: what the step loop and
the io threads spend beside the model at 256 streams. Overhead = (wall time of the engine thread outside of Engine::execute + CPU time of
io and worker threads) / time in Engine::execute, over --seconds of steady decoding; waiting does not occur since every step has work."""
import asyncio
import multiprocessing
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from common import Connection, Server, arguments, raise_file_limit, run

HERE = pathlib.Path(__file__).resolve().parent


class Reader(asyncio.Protocol):
    """Counts bytes of an answer; parses nothing, so that a thousand of them do not starve the server of its cores."""

    def __init__(self, request: bytes):
        self.request, self.bytes, self.lost = request, 0, False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.bytes += len(data)

    def connection_lost(self, _):
        self.lost = True


def request(tokens: int, index: int, prompt: int = 4) -> bytes:
    return Connection.encode("POST", "/v1/completions", {"model": "base", "prompt": [3 + (index * 7 + k) % 100 for k in range(prompt)], "max_tokens": tokens, "stream": True,
                                                         "ignore_eos": True, "temperature": 0})


async def open_streams(server, count: int, tokens: int, prompt: int = 4) -> list[Reader]:
    loop, readers = asyncio.get_running_loop(), []
    for index in range(count):
        readers.append((await loop.create_connection(lambda: Reader(request(tokens, index, prompt)), server.host, server.port))[1])
    return readers


async def null_model(options, report) -> None:
    flags = ("--dummy", HERE / "tiny.json", "--memory", "256MiB", "--max-running", str(options.streams), "--step-tokens", str(max(512, options.streams)), "--max-queue", "20000",
             "--max-queue-tokens", "1000000000", "--max-wait", "86400", "--log-level", "error")
    delays = []
    with Server(options.binary, *flags, "--threads", 1, model=None) as server:
        for _ in range(options.rounds):
            began = time.monotonic()
            client = await asyncio.create_subprocess_exec(
                options.binary, "bench", "serve", f"http://{server.host}:{server.port}", "--endpoint", "completions", "--input-tokens", "4", "--output-tokens", "3000",
                "--vocab-size", "100", "--concurrency", str(options.streams), "--num-requests", str(options.streams), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while (await server.status())["requests"]["running"] < options.streams:
                if client.returncode is not None or time.monotonic() - began > 60:
                    raise RuntimeError("the client never held all streams")
                await asyncio.sleep(0.05)
            await asyncio.sleep(2)  # a thousand connections and prompts just came
            before, began, cpu = await server.metrics(), time.monotonic(), server.cpu_seconds()
            await asyncio.sleep(options.seconds)
            after, wall, used = await server.metrics(), time.monotonic() - began, server.cpu_seconds()
            status = await server.status()
            steps = after["lorikeet_steps_total"] - before["lorikeet_steps_total"]
            delays.append({"p50": after.quantile("lorikeet_event_delay_seconds", 50, before), "p99": after.quantile("lorikeet_event_delay_seconds", 99, before),
                           "held": status["requests"]["running"], "events/s": steps * options.streams / wall, "io": (used.get("lk-http", 0) - cpu.get("lk-http", 0)) / wall,
                           "step": (after["lorikeet_step_seconds_total"] - before["lorikeet_step_seconds_total"]) / max(steps, 1)})
            client.kill()
            await client.wait()
            await server.wait_idle()
    p99 = statistics.median(delay["p99"] for delay in delays)
    report.check("streams held", min(delay["held"] for delay in delays) >= options.streams, options.streams)
    report.check("event delay", p99 <= 0.02, f"p50 <= {statistics.median(delay['p50'] for delay in delays) * 1e3:g} ms, p99 <= {p99 * 1e3:g} ms at "
                 f"{statistics.median(delay['events/s'] for delay in delays) / 1e3:.1f} thousand events/s, steps of {statistics.median(delay['step'] for delay in delays) * 1e3:.1f} ms, "
                 f"io thread {statistics.median(delay['io'] for delay in delays):.2f} cores", delays)

    # Idle streams: one request runs, the others wait behind it with their streams open.
    flags = flags[:4] + ("--max-running", "1", *flags[6:])
    with Server(options.binary, *flags, model=None) as server:
        readers = await open_streams(server, 200, 50)  # touches what is allocated once
        while (await server.status())["http"]["open_streams"]:
            await asyncio.sleep(0.1)
        for reader in readers:
            reader.transport.abort()
        await server.wait_idle()
        rss = server.process_stats()["rss"]
        count = 4 * options.streams
        readers = await open_streams(server, count, 4000)
        await asyncio.sleep(0.5)
        held = (await server.status())["http"]["open_streams"]  # some have ended meanwhile
        each = (server.process_stats()["rss"] - rss) / held
        report.check("memory of an idle stream", each <= 32 << 10 and held >= options.streams, f"{each / 1024:.1f} KiB, {held} streams", [each, held])
        for reader in readers:
            reader.transport.abort()
        await server.wait_idle()


async def overhead(options, report) -> None:
    with Server(options.binary, "--dummy", HERE / "tinyllama.json", "--memory", "1GiB", "--max-running", "256", "--max-queue", "20000", "--max-queue-tokens", "1000000000", "--max-wait", "86400",
                "--log-level", "error", model=None) as server:
        readers = await open_streams(server, 256, 300)
        while True:
            status = await server.status()
            if status["requests"]["running"] == 256 and status["tokens"]["output"] > 256 * 2:
                break
            await asyncio.sleep(0.2)
        before, cpu, began = await server.metrics(), server.cpu_seconds(), time.monotonic()
        await asyncio.sleep(options.overhead_seconds)
        after, used, wall = await server.metrics(), server.cpu_seconds(), time.monotonic() - began
        for reader in readers:
            reader.transport.abort()
        # The counters are published after a step, so they stand for whole steps; the wall time of those steps is what lies between.
        steps = after["lorikeet_steps_total"] - before["lorikeet_steps_total"]
        in_model = after["lorikeet_execute_seconds_total"] - before["lorikeet_execute_seconds_total"]
        in_steps = after["lorikeet_step_seconds_total"] - before["lorikeet_step_seconds_total"]
        uptime = after["lorikeet_busy_seconds_total"] - before["lorikeet_busy_seconds_total"]
        threads = {name: used.get(name, 0) - cpu.get(name, 0) for name in ("lk-http", "lk-worker")}
        scheduling, between = in_steps - in_model, uptime - in_steps
        share = (scheduling + between + sum(threads.values())) / in_model
        report.check("overhead at 256 streams", share <= 0.02,
                     f"{share:.2%} of step time: scheduling and text {scheduling / steps * 1e3:.2f} ms, between steps {between / steps * 1e3:.2f} ms, io threads "
                     f"{threads['lk-http'] / steps * 1e3:.2f} ms, workers {threads['lk-worker'] / steps * 1e3:.2f} ms of CPU, beside {in_model / steps * 1e3:.0f} ms in the model; {steps:.0f} steps",
                     {"share": share, "scheduling": scheduling, "between": between, "threads": threads, "model": in_model, "steps": steps})


async def main(options, report) -> None:
    if "null" in options.parts:
        await null_model(options, report)
    if "overhead" in options.parts:
        await overhead(options, report)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--overhead-seconds", type=float, default=45)
    parser.add_argument("--parts", nargs="+", default=["null", "overhead"], choices=["null", "overhead"])
    run("streams", parser.parse_args(), main)
