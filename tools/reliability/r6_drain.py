#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R6: SIGTERM drains. /ready says 503 within 100 ms while /live stays 200; within the grace new requests are still served, afterwards
refused; what is in flight finishes whole, or, beyond --drain-timeout, ends with an error event; exit status 0. A second SIGTERM ends
the process at once."""
import asyncio
import signal
import time

from common import Closed, Connection, DEMO, Server, arguments, run

FLAGS = ("--lora-dir", str(DEMO / "adapters"), "--memory", "64MiB")


async def stream(server, tokens: int, outcome: dict, started: asyncio.Event | None = None) -> None:
    async with Connection(server) as connection:
        await connection.send("POST", "/v1/completions", {"model": "sql", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True, "stream": True,
                                                          "temperature": 0, "return_token_ids": True})
        answer = await connection.read_head()
        outcome["status"] = answer.status
        outcome["tokens"] = 0
        if started:
            started.set()
        try:
            async for event in connection.events(answer):
                if event is None:
                    outcome["done"] = True
                elif "error" in event:
                    outcome["error"] = event["error"]
                else:
                    outcome["tokens"] += sum(len(choice.get("token_ids") or []) for choice in event["choices"])
            outcome["clean"] = True
        except Closed:
            outcome["clean"] = False


async def begin(server, streams: int, tokens: int):
    outcomes = [{} for _ in range(streams)]
    started = [asyncio.Event() for _ in range(streams)]
    tasks = [asyncio.create_task(stream(server, tokens, outcome, event)) for outcome, event in zip(outcomes, started)]
    await asyncio.wait_for(asyncio.gather(*[event.wait() for event in started]), 60)
    return outcomes, tasks


async def refused(server) -> bool:
    try:
        answer = await server.call("POST", "/v1/completions", {"model": "sql", "prompt": "late", "max_tokens": 2})
        return answer.status == 503 and "retry-after" in answer.headers
    except (Closed, OSError):
        return True


async def exited(server, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        await asyncio.sleep(0.005)
    return server.process.poll()


async def main(options, report) -> None:
    # In flight finishes; new ones are served during the grace and refused after it.
    delays, live_failures, whole = [], 0, True
    for _ in range(options.rounds):
        with Server(options.binary, *FLAGS, "--drain-grace", "0.3", "--drain-timeout", "60", "--max-running", "8") as server:
            outcomes, tasks = await begin(server, 8, 400)
            async with Connection(server) as watcher, Connection(server) as waiting:
                assert (await watcher.request("GET", "/ready")).status == 200
                queued: dict = {}
                late = asyncio.create_task(stream(server, 50, queued))
                began = time.perf_counter()
                server.signal(signal.SIGTERM)
                while (await watcher.request("GET", "/ready")).status == 200:
                    await asyncio.sleep(0.001)
                delays.append(time.perf_counter() - began)
                live_failures += (await watcher.request("GET", "/live")).status != 200
                served = await waiting.request("POST", "/v1/completions", {"model": "sql", "prompt": "grace", "max_tokens": 1})
                whole &= served.status == 200
            await asyncio.sleep(0.5)
            late_refused = await refused(server) if server.process.poll() is None else True
            await asyncio.gather(*tasks, late)
            status = await exited(server, 30)
            whole &= all(outcome.get("done") and outcome["tokens"] == 400 for outcome in outcomes) and queued.get("done", False)
            whole &= status == 0 and late_refused
    report.check("SIGTERM to /ready 503", max(delays) <= 0.1, f"{max(delays) * 1e3:.1f} ms at most, {len(delays)} rounds", delays)
    report.check("/live stays 200", live_failures == 0, f"{live_failures} failures")
    report.check("in flight and in the grace served whole, later refused, exit 0", whole, whole)

    # Beyond the drain timeout every stream gets an error event and a clean end.
    with Server(options.binary, *FLAGS, "--drain-grace", "0", "--drain-timeout", "0.2", "--threads", "1") as server:
        outcomes, tasks = await begin(server, 64, 500)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        await asyncio.gather(*tasks)
        status = await exited(server, 30)
        cut = [outcome for outcome in outcomes if not outcome.get("tokens") == 500]
        ok = status == 0 and all(outcome.get("error") and outcome["clean"] for outcome in cut)
        report.check("streams past the timeout get an error event", ok and cut, f"{len(cut)} of {len(outcomes)}, exit {status} after {time.monotonic() - began:.1f} s")

    # A second SIGTERM.
    with Server(options.binary, *FLAGS, "--drain-grace", "30", "--drain-timeout", "60") as server:
        outcomes, tasks = await begin(server, 4, 450)
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        status = await exited(server, 10)
        seconds = time.monotonic() - began
        await asyncio.gather(*tasks, return_exceptions=True)
        report.check("second SIGTERM", status is not None and seconds <= 0.5, f"exit {status} after {seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    run("R6 drain", parser.parse_args(), main)
