#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R7: readers that stall cost the others nothing. --readers clients open a stream whose answer is larger than their socket takes, and read
nothing: the server buffers at most 256 KiB for each and cuts it after 30 s without progress. Others' gaps between tokens (p99 at
`lorikeet bench serve`) are compared, in many short rounds (idle, stalled, idle), between clients that stall and as many connections that do
nothing, after the stalled answers have been computed: computing them is their share of the machine, not what is measured."""
import asyncio
import math
import statistics
import time

from common import Connection, DEMO, Sandwich, Server, arguments, run
from r4_overload import bench


async def stall(server, wide: bool) -> Connection:
    """Wide: outgrows the socket's and the server's buffers together. Else some 180 KB: more than a socket takes (128 KiB unsent), less
    than both; every field that makes events longer is there, so that little has to be computed for it."""
    connection = Connection(server, receive_buffer=4096)
    body = {"model": "sql", "prompt": "stall", "max_tokens": 480 if wide else 176, "stream": True, "ignore_eos": True, "logprobs": 20, "temperature": 0, "n": 4 if wide else 1,
            "return_tokens_as_token_ids": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    await connection.send("POST", "/v1/completions", body, headers={"x-request-id": "r" * 128})
    connection.writer.transport.pause_reading()
    return connection


async def main(options, report) -> None:
    with Server(options.binary, "--lora-dir", str(DEMO / "adapters"), "--memory", "128MiB", "--max-queue", "20000", "--max-queue-tokens", "100000000", "--max-wait", "3600",
                "--log-level", "error") as server:
        # Cut by size: four choices with log-probabilities are more than the socket's and the server's buffers together.
        before = server.process_stats()["rss"]
        began = time.monotonic()
        wide = [await stall(server, True) for _ in range(options.wide)]
        await server.wait_idle(options.patience)
        status = await server.status()
        report.check("beyond 256 KiB waiting", status["http"]["connections"] <= options.wide // 10 + 2, f"{options.wide} streams, {options.wide - status['http']['connections'] + 1} cut, {time.monotonic() - began:.0f} s")
        for connection in wide:
            connection.close()

        async def others() -> float:
            """Mean of two runs; together they end before the first stalled readers are cut."""
            values = []
            for _ in range(2):
                result, _ = await bench(options, server, "--concurrency", "4", "--duration", options.duration)
                values.append(result.get("report", result)["itl_ms"]["p99"])
            return statistics.mean(values)

        async def beside_idle() -> float:
            held = [Connection(server) for _ in range(options.readers)]
            for connection in held:
                await connection.open()
            value = await others()
            for connection in held:
                connection.close()
            return value

        rounds = Sandwich()
        grown, held, cut_after = [], [], math.nan
        before = await beside_idle()
        for number in range(options.rounds):
            rss = server.process_stats()["rss"]
            stalled = [await stall(server, False) for _ in range(options.readers)]
            while True:  # until all are computed
                status = await server.status()
                if status["requests"]["running"] + status["requests"]["waiting"] == 0:
                    break
                await asyncio.sleep(0.1)
            computed = time.monotonic()
            await asyncio.sleep(2)  # the kernel's first probes of a thousand full windows come all at once
            grown.append(server.process_stats()["rss"] - rss)
            beside = await others()
            held.append((await server.status())["http"]["connections"] - 1)
            if number == options.rounds - 1:
                while (await server.status())["http"]["connections"] > options.readers // 10 and time.monotonic() - computed < 90:
                    await asyncio.sleep(0.25)
                cut_after = time.monotonic() - computed
            for connection in stalled:
                connection.close()
            while (await server.status())["http"]["connections"] > 10:
                await asyncio.sleep(0.1)
            after = await beside_idle()
            rounds.add(before, beside, after)
            before = after
        rounds.report(report, "others' ITL p99", 1.05)
        report.check("stalled while measured", min(held) >= options.readers, min(held), held)
        report.check("cut after", cut_after <= 45, f"{cut_after:.0f} s, stall timeout 30 s")
        report.check("memory", max(grown) <= options.readers * (256 << 10), f"{max(grown) / options.readers / 1024:.0f} KiB a stalled reader", grown)
        await server.wait_idle()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--wide", type=int, default=40, help="streams that outgrow the buffers")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--duration", type=float, default=4, help="seconds of each run")
    parser.add_argument("--patience", type=float, default=300)
    parser.set_defaults(slo="ttft=3000,e2e=10000")
    run("R7 slow readers", parser.parse_args(), main)
