#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Long answers and slow readers. First, --clients ask for the longest answers that are allowed, over and over: /health is asked every few milliseconds
beside them, and no io thread may work on one thing for longer than 5 ms (time worked, not time that it waited for a core). Then --readers ask for such
an answer each and take a few bytes in ten seconds: what they hold is bounded, all of them together, they are cut, and other tenants get theirs."""
import asyncio
import time

from common import Connection, DEMO, Server, arguments, percentile, run


def longest(prompts: int) -> dict:
    """Log-probabilities of a prompt that is cached after the first time: much to write, little to compute."""
    return {"model": "base", "prompt": ["The quick brown fox jumps over the lazy dog. " * 12] * prompts, "max_tokens": 1, "echo": True, "logprobs": 20, "temperature": 0}


async def io_turns(server) -> tuple[dict, str]:
    text = (await server.call("GET", "/metrics")).body.decode()
    turns = {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) * 1e3 for line in text.splitlines() if line.startswith("lorikeet_io_longest_turn_seconds")}
    return turns, text


async def main(options, report) -> None:
    with Server(options.binary, "--lora-dir", str(DEMO / "adapters"), "--memory", "128MiB", "--log-level", "error", "--io-threads", "1") as server:
        body = longest(options.prompts)
        first = await server.call("POST", "/v1/completions", body)
        size = len(first.body)
        assert first.status == 200, first.body[:300]
        before = server.process_stats()["rss"]
        stop = time.monotonic() + options.seconds
        counts = []

        async def ask() -> None:
            async with Connection(server) as connection:
                while time.monotonic() < stop:
                    answer = await connection.request("POST", "/v1/completions", body)
                    counts.append(answer.status)

        async def health() -> list[float]:
            times = []
            async with Connection(server) as connection:
                while time.monotonic() < stop:
                    begin = time.perf_counter()
                    await connection.request("GET", "/health")
                    times.append((time.perf_counter() - begin) * 1e3)
                    await asyncio.sleep(0.002)
            return times

        times, *_ = await asyncio.gather(health(), *(ask() for _ in range(options.clients)))
        turns, _ = await io_turns(server)
        report.check("long answers", counts.count(200) > 0, f"{counts.count(200)} of {size / 1e6:.1f} MB, {len(counts) - counts.count(200)} refused")
        report.check("/health beside them", percentile(times, 99) <= 50, f"p50 {percentile(times, 50):.2f} ms, p99 {percentile(times, 99):.2f}, longest {max(times):.1f} ms, {len(times)} times", times)
        report.check("an io thread's longest turn", turns["cpu"] <= 5, f"{turns['cpu']:.2f} ms worked, {turns['clock']:.2f} ms by the clock")
        report.check("memory", server.process_stats()["rss"] - before <= 256 << 20, f"{(server.process_stats()['rss'] - before) / 2**20:.0f} MiB more")

        await server.wait_idle()
        before = server.process_stats()["rss"]
        readers = [Connection(server, receive_buffer=4096) for _ in range(options.readers)]
        statuses = []
        for connection in readers:  # one after the other: it is about what is made, not about the queue
            await connection.send("POST", "/v1/completions", body)
            statuses.append((await connection.read_head()).status)
            connection.writer.transport.pause_reading()
        most, held, cut = 0, 0, 0
        began = time.monotonic()
        while time.monotonic() - began < options.slow_seconds:
            await asyncio.sleep(2)
            _, text = await io_turns(server)
            values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("lorikeet_")}
            held = max(held, values["lorikeet_output_bytes"])
            cut = values['lorikeet_cut_connections_total{reason="slow_reader"}'] + values["lorikeet_refused_outputs_total"]
            most = max(most, server.process_stats()["rss"] - before)
            for connection in readers:  # a few bytes now and then
                sock = connection.writer.get_extra_info("socket")
                if int(time.monotonic() - began) % 10 < 2 and sock.fileno() >= 0:
                    connection.writer.transport.resume_reading()
                    await asyncio.sleep(0)
                    connection.writer.transport.pause_reading()
        report.check("slow readers hold", held <= 32 << 20, f"{options.readers} of them: {held / 2**20:.1f} MiB waited at most; memory {most / 2**20:.0f} MiB more at most")
        refused = statuses.count(503)
        report.check("cut or refused", cut >= options.readers and statuses.count(200) + refused == options.readers,
                     f"{refused} refused, {cut - refused:.0f} cut of {options.readers} within {options.slow_seconds:.0f} s")
        for connection in readers:
            connection.close()
        answer = await server.call("POST", "/v1/completions", body)
        report.check("others afterwards", answer.status == 200, f"{answer.status}")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=90, help="of each answer")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--slow-seconds", type=float, default=50)
    run("Answers", parser.parse_args(), main)
