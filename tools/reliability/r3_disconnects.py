#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R3: a client that leaves frees everything within one step and 100 ms.

Connections are reset or closed at random moments: while the request is being sent, while it waits in the queue (three times more
clients than run at once), while its answer streams, while it is computed without a stream. The server measures each from the loss of
the connection until the engine had freed what the request held (lorikeet_abandoned_seconds). Then lone requests are dropped one at a
time and watched from outside, so that noticing the loss counts too. At the end everything is back where it began, and no token is
computed any more."""
import asyncio
import random
import time

from common import Closed, Connection, Server, arguments, percentile, run, task_prompts


async def leave(server, choose, prompts, counts) -> None:
    connection = Connection(server)
    kind = choose.choice(["stream", "stream", "stream", "whole", "several", "half", "chat"])
    body = {"model": choose.choice(["sql", "json", "math", "sort", "dates", "tag", "base"]), "prompt": choose.choice(prompts), "max_tokens": 300,
            "ignore_eos": True, "stream": kind != "whole", "temperature": 0.8}
    path = "/v1/completions"
    if kind == "several":
        body["n"] = choose.randint(2, 4)
    if kind == "chat":
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    try:
        if kind == "half":  # leaves within its own request
            await connection.open()
            raw = Connection.encode("POST", path, body)
            connection.writer.write(raw[:choose.randrange(1, len(raw))])
            await asyncio.sleep(choose.random() * 0.05)
        else:
            await connection.send("POST", path, body)
            # From at once to long after the first tokens; most leave while they wait or stream.
            await asyncio.sleep(choose.expovariate(1 / 0.3) if choose.random() < 0.8 else 0)
        counts[kind] = counts.get(kind, 0) + 1
    except (ConnectionError, OSError):
        counts["refused"] = counts.get("refused", 0) + 1
    connection.close(reset=choose.random() < 0.5)


async def lone(server, choose, prompt) -> float:
    """Seconds from closing until the server shows that nothing runs; polled, so a little too long."""
    async with Connection(server) as watcher:
        connection = Connection(server)
        await connection.send("POST", "/v1/completions", {"model": "sql", "prompt": prompt, "max_tokens": 400, "ignore_eos": True, "stream": True})
        await connection.read_head()
        await asyncio.sleep(choose.random() * 0.05)
        began = time.perf_counter()
        connection.close(reset=choose.random() < 0.5)
        while True:
            status = (await watcher.request("GET", "/v1/status")).json()
            if status["requests"]["running"] == 0 and status["http"]["open_streams"] == 0:
                return time.perf_counter() - began


async def main(options, report) -> None:
    choose = random.Random(options.seed)
    prompts = task_prompts(20)
    with Server(options.binary, "--lora-dir", str(options.adapters), "--memory", "32MiB", "--max-running", "32", "--log-level", "error") as server:
        await lone(server, choose, prompts[0])
        await server.wait_idle()
        before, process_before, metrics_before = await server.status(), server.process_stats(), await server.metrics()
        counts: dict[str, int] = {}
        left = [options.disconnects]
        clients = random.Random(options.seed + 1)

        async def client():
            while left[0] > 0:
                left[0] -= 1
                await leave(server, clients, prompts, counts)

        deepest = [0]

        async def watch():
            while True:
                deepest[0] = max(deepest[0], (await server.status())["requests"]["waiting"])
                await asyncio.sleep(0.2)

        began = time.monotonic()
        watching = asyncio.create_task(watch())
        await asyncio.gather(*[client() for _ in range(options.concurrency)])
        seconds = time.monotonic() - began
        watching.cancel()
        ended = time.monotonic()
        after = await server.wait_idle(10)
        to_idle = time.monotonic() - ended
        metrics = await server.metrics()
        lone_seconds = [await lone(server, choose, choose.choice(prompts)) for _ in range(options.lone)]
        final = await server.wait_idle(10)
        await asyncio.sleep(1)
        later = await server.status()
        process_after = server.process_stats()

        steps = metrics.quantile("lorikeet_step_seconds", 99, metrics_before)
        abandoned = metrics.count("lorikeet_abandoned_seconds") - metrics_before.count("lorikeet_abandoned_seconds")
        p50, p99 = (metrics.quantile("lorikeet_abandoned_seconds", q, metrics_before) for q in (50, 99))
        mean = metrics.get("lorikeet_abandoned_seconds_sum") / max(abandoned, 1)
        report.check("disconnects", sum(counts.values()) >= options.disconnects and counts.get("refused", 0) == 0,
                     f"{sum(counts.values())} in {seconds:.0f} s {counts}, deepest queue {deepest[0]}", counts)
        report.check("requests that the engine held when their client left", abandoned > options.disconnects / 2, int(abandoned))
        report.check("loss to freed", p99 <= steps + 0.1,
                     f"mean {mean * 1e3:.1f} ms, p50 <= {p50 * 1e3:g} ms, p99 <= {p99 * 1e3:g} ms; a step's p99 <= {steps * 1e3:g} ms", [mean, p50, p99, steps])
        report.check("lone requests, from outside", percentile(lone_seconds, 99) <= 0.1 + steps,
                     f"p50 {percentile(lone_seconds, 50) * 1e3:.1f} ms, p99 {percentile(lone_seconds, 99) * 1e3:.1f} ms of {len(lone_seconds)}", lone_seconds)
        report.check("last disconnect to idle", to_idle <= 2, f"{to_idle * 1e3:.0f} ms", to_idle)
        pool = final["pool"]
        report.check("pages", pool["kv"] == 0 and pool["free"] + pool["cached"] + pool["adapter"] == pool["pages"],
                     f"{pool['free']} free + {pool['cached']} cached + {pool['adapter']} adapters = {pool['pages']}")
        report.check("tokens computed afterwards", later["tokens"]["computed"] == final["tokens"]["computed"], later["tokens"]["computed"] - final["tokens"]["computed"])
        report.check("files, threads", process_after["fds"] <= process_before["fds"] + 1 and process_after["threads"] == process_before["threads"],
                     f"{process_before['fds']} -> {process_after['fds']}, {process_before['threads']} -> {process_after['threads']}")


if __name__ == "__main__":
    from common import DEMO
    parser = arguments(__doc__)
    parser.add_argument("--disconnects", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=96)
    parser.add_argument("--lone", type=int, default=300)
    parser.set_defaults(adapters=DEMO / "adapters")
    run("R3 disconnects", parser.parse_args(), main)
