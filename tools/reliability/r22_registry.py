#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R22: a fleet without its registry. Three etcd processes, three replicas and a router that find each other there; clients ask for answers all
the time. First etcd is stopped altogether for --away seconds, then its leader is killed every --period seconds (and started again) for --kills
seconds, while adapters are published and asked for at another replica. No request may fail and no member may be removed. Reported: failed
requests, members removed, and the time from a publication to the first answer elsewhere. Needs etcd (apt-get install etcd-server)."""
import asyncio
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from common import DEMO, ROOT, TASKS, Connection, arguments, percentile, run

sys.path.insert(0, str(ROOT / "tests/http"))
os.environ.setdefault("LORIKEET", str(ROOT / "build/cpu-release/bin/lorikeet"))
from etcd import PROGRAM, Etcd  # noqa: E402  (the tests' etcd)

QUESTION = [{"role": "user", "content": "Which customers live in Riga?"}]


class Process:
    """A replica or a router, and where it listens."""
    key = None

    def __init__(self, command: list, log: pathlib.Path, pattern: str):
        self.host, self.port = "127.0.0.1", 0
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        end = time.monotonic() + 120
        while not self.port and time.monotonic() < end:
            if found := re.search(pattern, log.read_text(errors="replace")):
                self.port = int(found[1])
            time.sleep(0.02)
        assert self.port, f"it did not start, see {log}"

    async def ask(self, method: str, path: str, body=None):
        async with Connection(self) as connection:
            answer = await connection.request(method, path, body)
            return answer.status, answer.json()


class Clients:
    def __init__(self, router):
        self.router, self.done, self.failures, self.stop = router, 0, [], False

    async def go_on(self, number: int):
        while not self.stop:
            body = {"model": TASKS[(number + self.done) % len(TASKS)], "messages": QUESTION, "max_tokens": 8, "temperature": 0}
            try:
                status, answer = await asyncio.wait_for(self.router.ask("POST", "/v1/chat/completions", body), 60)
                if status != 200:
                    self.failures.append((status, answer))
            except Exception as error:  # noqa: BLE001  whatever it is, the client has no answer
                self.failures.append(repr(error))
            self.done += 1


async def members(router) -> set:
    return {replica["url"] for replica in (await router.ask("GET", "/v1/fleet/status"))[1]["replicas"]}


async def publish(replicas, number: int, directory: pathlib.Path):
    """Seconds from the request to publish until another replica has answered with it; nothing while etcd takes no changes."""
    name, path = f"published-{number}", directory / "adapters" / f"published-{number}"
    shutil.copytree(DEMO / "adapters" / TASKS[number % len(TASKS)], path)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "revision": str(number)}))
    begin = time.monotonic()
    status, answer = await replicas[number % 3].ask("POST", "/v1/adapters", {"name": name, "path": str(path)})
    if status != 201:
        return None
    published = time.monotonic()
    while True:
        status, answer = await replicas[(number + 1) % 3].ask("POST", "/v1/chat/completions", {"model": name, "messages": QUESTION, "max_tokens": 1})
        if status == 200:
            return published - begin, time.monotonic() - published
        assert status in (404, 503), answer
        assert time.monotonic() - published < 60, answer
        await asyncio.sleep(0.01)


async def main(args, report):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="lorikeet-r22-"))
    (directory / "adapters").mkdir()
    etcd = Etcd(3)
    processes: list[Process] = []
    try:
        for i in range(3):
            command = [args.binary, "serve", str(DEMO / "model"), "--lora-dir", str(DEMO / "adapters"), "--lora-root", str(directory / "adapters"), "--served-model-name",
                       "demo", "--no-state", "--threads", "1", "--memory", "64MiB", "--port", "0", "--fleet", etcd.url(), "--fleet-dir", str(directory / f"fleet{i}")]
            processes.append(Process(command, directory / f"replica{i}.log", r" serves .* on http://127\.0\.0\.1:(\d+)\n"))
        replicas = list(processes)
        router = Process([args.binary, "route", "--port", "0", "--fleet", etcd.url()], directory / "router.log", r"policy \w+, http://127\.0\.0\.1:(\d+)")
        processes.append(router)
        end = time.monotonic() + 60
        while sum(r["state"] == "ready" for r in (await router.ask("GET", "/v1/fleet/status"))[1]["replicas"]) < 3:
            assert time.monotonic() < end, "three replicas"
            await asyncio.sleep(0.05)
        everybody, removed = await members(router), 0
        clients = Clients(router)
        tasks = [asyncio.create_task(clients.go_on(i)) for i in range(args.clients)]
        times = [await publish(replicas, number, directory) for number in range(6)]

        print(f"etcd is stopped for {args.away:.0f} s", flush=True)
        for i in range(3):
            etcd.kill(i)
        end = time.monotonic() + args.away
        while time.monotonic() < end:
            await asyncio.sleep(1)
            removed += len(everybody - await members(router))
        refused = await publish(replicas, 6, directory)
        for i in range(3):
            etcd.start(i)
        while etcd.leader() is None:
            await asyncio.sleep(0.2)
        while (during := await publish(replicas, number := len(times) + 10, directory)) is None:
            times.append(None)
            await asyncio.sleep(0.5)
        times.append(during)

        print(f"its leader is killed every {args.period:.0f} s, for {args.kills:.0f} s", flush=True)
        end, number, killed = time.monotonic() + args.kills, 100, 0
        while time.monotonic() < end:
            victim = etcd.leader()
            if victim is not None:
                etcd.kill(victim)
                killed += 1
            next_kill = time.monotonic() + args.period
            while time.monotonic() < min(next_kill, end):
                times.append(await publish(replicas, number, directory))
                number += 1
                removed += len(everybody - await members(router))
                await asyncio.sleep(1)
                if victim is not None and time.monotonic() > next_kill - args.period / 2:
                    etcd.start(victim)
                    victim = None
            if victim is not None:
                etcd.start(victim)
        clients.stop = True
        await asyncio.gather(*tasks)
        made = [t for t in times if t]
        report.note("leaders killed", killed)
        report.check("requests failed", not clients.failures, f"{len(clients.failures)} of {clients.done}")
        report.check("members removed", removed == 0, removed)
        report.check("a publication without etcd is refused", refused is None, "yes" if refused is None else "no")
        report.note("published while its leaders were killed", f"{len(made)} of {len(times)}")
        for what, index in (("until it is published", 0), ("until another replica answered with it", 1)):
            seconds = [t[index] for t in made]
            report.note(f"{what}, p50, max", f"{percentile(seconds, 50):.2f}, {max(seconds):.2f} s", seconds)
        for failure in clients.failures[:5]:
            print(failure)
    finally:
        for process in processes:
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
        etcd.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--away", type=float, default=120, help="seconds without etcd")
    parser.add_argument("--kills", type=float, default=120, help="seconds of killing its leader")
    parser.add_argument("--period", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4)
    if not PROGRAM:
        sys.exit("etcd is not installed: apt-get install etcd-server")
    run("R22 registry", parser.parse_args(), main)
