#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R7: readers that stall cost the others nothing. --readers clients open a stream whose answer is larger than their socket takes, and read
nothing: the server buffers at most 256 KiB for each and cuts it after 30 s without progress. Others' gaps between tokens (p99 at
`lorikeet bench serve`) are compared, in interleaved rounds, between clients that stall and as many connections that do nothing, after the
stalled answers have been computed: computing them is their share of the machine, not what is measured."""
import asyncio
import os
import statistics
import time

from common import Closed, Connection, DEMO, Server, arguments, run
from r4_overload import bench


async def stall(server, wide: bool) -> Connection:
    connection = Connection(server, receive_buffer=4096)
    body = {"model": "sql", "prompt": "stall", "max_tokens": 480 if wide else 64, "stream": True, "ignore_eos": True, "logprobs": 5 if wide else 1, "temperature": 0,
            "n": 4 if wide else 1}
    await connection.send("POST", "/v1/completions", body)
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

        figures: dict[str, list[float]] = {"quiet": [], "stalled": []}
        cut_after, grown = [], []
        for _ in range(options.rounds):
            held = [Connection(server) for _ in range(options.readers)]
            for connection in held:
                await connection.open()
            result, _ = await bench(options, server, "--concurrency", "4", "--duration", options.duration)
            figures["quiet"].append(result.get("report", result)["itl_ms"]["p99"])
            for connection in held:
                connection.close()
            rss = server.process_stats()["rss"]
            stalled = []
            for _ in range(options.readers):
                stalled.append(await stall(server, False))
            last = time.monotonic()
            while True:  # until all are computed
                status = await server.status()
                if status["requests"]["running"] + status["requests"]["waiting"] == 0:
                    break
                await asyncio.sleep(0.1)
            grown.append(server.process_stats()["rss"] - rss)
            open_during = status["http"]["connections"]
            result, _ = await bench(options, server, "--concurrency", "4", "--duration", options.duration)
            figures["stalled"].append(result.get("report", result)["itl_ms"]["p99"])
            while (await server.status())["http"]["connections"] > 20 and time.monotonic() - last < 90:
                await asyncio.sleep(0.25)
            cut_after.append(time.monotonic() - last)
            report.note("connections held while measured", open_during)
            for connection in stalled:
                connection.close()
        quiet, stalled_ = statistics.median(figures["quiet"]), statistics.median(figures["stalled"])
        report.check("others' ITL p99", stalled_ <= 1.05 * quiet, f"{quiet:.2f} ms beside idle, {stalled_:.2f} ms beside {options.readers} stalled readers ({stalled_ / quiet - 1:+.1%})", figures)
        report.check("cut after", max(cut_after) <= 45, f"{max(cut_after):.0f} s at most, stall timeout 30 s", cut_after)
        report.check("memory", max(grown) <= options.readers * (256 << 10), f"{max(grown) / options.readers / 1024:.0f} KiB a stalled reader", grown)
        await server.wait_idle()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--wide", type=int, default=40, help="streams that outgrow the buffers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=8)
    parser.add_argument("--patience", type=float, default=300)
    parser.set_defaults(slo="ttft=3000,e2e=10000")
    run("R7 slow readers", parser.parse_args(), main)
