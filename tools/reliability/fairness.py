#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fair service on the real engine, as clients see it; docs/guide/scheduling.md has the figures. Parts:
light     one tenant keeps --heavy streams open, another sends one request at a time: its time to first token with fcfs and with vtc, and the tokens/s of all
slots     --tenants tenants, each with an adapter of its own and more requests than it can be served, --max-loras 4: smallest share, tokens/s
adapters  the same load over 5 and over 2,000 registered adapters, in a pool that holds a few dozen: tokens/s
The sides alternate round by round; medians and quartiles are printed."""
import asyncio
import itertools
import os
import subprocess
import tempfile
import time

from common import DEMO, TASKS, Connection, Server, arguments, make_adapters, percentile, quartiles, raise_file_limit, task_prompts


def make_key(binary: str, state: str, tenant: str, scope: str = "infer") -> str:
    done = subprocess.run([binary, "keys", "create", "--tenant", tenant, "--scope", scope, "--state", state], check=True, capture_output=True, text=True)
    return done.stdout.strip()


async def stream(connection: Connection, model: str, prompt: str, tokens: int, key: str) -> tuple[float, float]:
    """Seconds to the first token and to the end."""
    begin, first = time.monotonic(), 0.0
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    await connection.send("POST", "/v1/completions", body, key)
    response = await connection.read_head()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {[piece async for piece in connection.chunks(response)]}")
    async for _ in connection.events(response):
        first = first or time.monotonic() - begin
    return first, time.monotonic() - begin


class Load:
    """Closed loops until stop()."""

    def __init__(self, server):
        self.server, self.tasks = server, []

    def loop(self, model: str, prompts, tokens: int, key: str) -> None:
        async def work():
            async with Connection(self.server) as connection:
                for prompt in itertools.cycle(prompts):
                    await stream(connection, model() if callable(model) else model, prompt, tokens, key)
        self.tasks.append(asyncio.create_task(work()))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        for result in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, asyncio.CancelledError):
                raise result


class Rates:
    """Output tokens per second of a server by the clock, and per second of processor time that it used (what others on the machine take away
    changes the first; where the engine is always busy the second is what it would come to alone)."""

    def __init__(self):
        self.clock: list[float] = []
        self.processor: list[float] = []

    async def measure(self, server, seconds: float, key) -> None:
        async def now():
            return (await server.call("GET", "/v1/status", key=key)).json()["tokens"]["output"], time.monotonic(), sum(server.cpu_seconds().values())
        before = await now()
        await asyncio.sleep(seconds)
        tokens, clock, processor = (b - a for a, b in zip(before, await now()))
        self.clock.append(tokens / clock)
        self.processor.append(tokens / processor)

    def __str__(self) -> str:
        return f"{percentile(self.clock, 50):.0f} tokens/s {quartiles(self.clock)}, {percentile(self.processor, 50):.0f} a processor second {quartiles(self.processor)}"

    def over(self, other: "Rates") -> str:
        def ratio(mine, others):
            ratios = [a / b for a, b in zip(mine, others)]
            return f"x {percentile(ratios, 50):.3f} {quartiles(ratios)}"
        return f"tokens/s {ratio(self.clock, other.clock)}, a processor second {ratio(self.processor, other.processor)}"


async def light(options, directory: str) -> None:
    state = os.path.join(directory, "state.db")
    heavy, small, admin = (make_key(options.binary, state, name, scope) for name, scope in (("heavy", "infer"), ("light", "infer"), ("ops", "admin")))
    prompts = task_prompts(4)
    first: dict[str, list] = {"fcfs": [], "vtc": []}
    rates = {policy: Rates() for policy in first}
    for _ in range(options.rounds):
        for policy in first:
            with Server(options.binary, "--lora-dir", DEMO / "adapters", "--memory", "64MiB", "--max-running", "16", "--max-queue", "4096", "--max-wait", "3600",
                        "--no-prefix-cache", "--scheduling-policy", policy, state=state) as server:
                load = Load(server)
                for _ in range(options.heavy):
                    load.loop("sql", prompts, 64, heavy)
                await asyncio.sleep(1.5)
                measured = asyncio.create_task(rates[policy].measure(server, options.seconds, admin))
                times = []
                async with Connection(server) as connection:
                    end = time.monotonic() + options.seconds
                    while time.monotonic() < end:
                        times.append((await stream(connection, "tag", prompts[0], 16, small))[0])
                        await asyncio.sleep(options.pause)
                await measured
                first[policy].append(percentile(times, 50))
                await load.stop()
    for policy in first:
        print(f"light: {policy:4} first token of the light tenant, median {percentile(first[policy], 50) * 1e3:.1f} ms {quartiles([t * 1e3 for t in first[policy]])}, "
              f"all together {rates[policy]}")
    ratios = [a / b for a, b in zip(first["vtc"], first["fcfs"])]
    print(f"light: vtc / fcfs first token x {percentile(ratios, 50):.3f} {quartiles(ratios)}, {rates['vtc'].over(rates['fcfs'])}")


async def slots(options, directory: str) -> None:
    state = os.path.join(directory, "slots.db")
    admin = make_key(options.binary, state, "ops", "admin")
    keys = [make_key(options.binary, state, f"t{i}") for i in range(options.tenants)]
    made = await asyncio.to_thread(make_adapters, directory, [1, 0.9, 0.8])
    adapters = dict(list(made.items())[:options.tenants])
    names = list(adapters)
    prompts = task_prompts(4)
    sides = {"vtc, all slots": ("vtc", 0), "vtc, 4 slots": ("vtc", 4), "fcfs, 4 slots": ("fcfs", 4)}
    rates = {side: Rates() for side in sides}
    shares: dict[str, list] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, (policy, most) in sides.items():
            flags = [item for name, path in adapters.items() for item in ("--lora", f"{name}={path}")]
            # A gap of a few answers: the batch is small here.
            slot_flags = ["--max-loras", most, "--drain-gap", "1000"] if most else []
            with Server(options.binary, *flags, "--memory", "128MiB", "--max-running", "16", "--max-queue", "4096", "--max-wait", "3600", "--no-prefix-cache",
                        "--scheduling-policy", policy, *slot_flags, state=state) as server:
                load = Load(server)
                for tenant, key in enumerate(keys):
                    for _ in range(12):
                        load.loop(names[tenant], prompts, 24 + 8 * (tenant % 4), key)
                await asyncio.sleep(1.5)

                async def services():
                    return {t["name"]: t["service"] for t in (await server.call("GET", "/v1/status", key=admin)).json()["tenants"] if t["name"].startswith("t")}
                before = await services()
                await rates[side].measure(server, options.seconds, admin)
                got = {name: service - before.get(name, 0) for name, service in (await services()).items()}
                shares[side].append(min(got.get(f"t{i}", 0) for i in range(options.tenants)) / sum(got.values()) * options.tenants)
                await load.stop()
    for side in sides:
        print(f"slots: {options.tenants} tenants, {side:14} {rates[side]}, smallest share x tenants "
              f"{percentile(shares[side], 50):.3f} {quartiles(shares[side])}")
    print(f"slots: vtc, 4 slots / all slots {rates['vtc, 4 slots'].over(rates['vtc, all slots'])}")


async def adapters(options, directory: str) -> None:
    prompts = task_prompts(4)
    counts = (5, 2000)
    servers = {}
    try:
        for count in counts:
            server = servers[count] = Server(options.binary, "--lora-root", DEMO / "adapters", "--memory", "24MiB", "--max-running", "32", "--no-prefix-cache", "--no-probe", "--log-level", "error")
            async with Connection(server) as connection:
                for i in range(count):
                    loaded = await connection.request("POST", "/v1/adapters", {"name": f"a{i}", "path": TASKS[i % len(TASKS)]})
                    assert loaded.status == 201, loaded.body
        rates = {count: Rates() for count in counts}
        for _ in range(options.rounds * 2):
            for count, server in servers.items():
                load = Load(server)
                turn = itertools.count()
                for _ in range(48):
                    load.loop(lambda: f"a{next(turn) * 7919 % count}", prompts, 64, None)
                await asyncio.sleep(1)
                await rates[count].measure(server, options.seconds, None)
                await load.stop()
                await server.wait_idle()
        for count, server in servers.items():
            status = await server.status()
            print(f"adapters: {count:5} registered, {status['adapters']['device']} on the device, {status['adapters']['loads']} loads: "
                  f"{rates[count]}")
        print(f"adapters: 2000 / 5 {rates[2000].over(rates[5])}")
    finally:
        for server in servers.values():
            server.stop()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", default="light,slots,adapters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--pause", type=float, default=1, help="of the light tenant between its requests")
    parser.add_argument("--heavy", type=int, default=256, help="streams of the heavy tenant")
    parser.add_argument("--tenants", type=int, default=16)
    options = parser.parse_args()
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="lorikeet-fairness-") as directory:
        for part in options.parts.split(","):
            asyncio.run({"light": light, "slots": slots, "adapters": adapters}[part](options, directory))


if __name__ == "__main__":
    main()
