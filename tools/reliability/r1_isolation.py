#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R1: no request is answered with another adapter's weights, whatever comes and goes meanwhile.

A quiet run (one request at a time, nothing loaded or unloaded, room for all) writes down the greedy tokens of every adapter on every
prompt. Then another server with room for less than a third of the adapters serves the same prompts to many clients while, every
--interval, an adapter is loaded, replaced by other weights under the same name, unloaded, or an alias is turned. Each answer says in
x-adapter which version it had; what that version held is known from the answer to its load. Every token must be that adapter's."""
import asyncio
import os
import random
import shutil
import tempfile
import time

from common import Closed, Connection, Report, Server, arguments, make_adapters, run, task_prompts


async def quiet_run(options, contents: dict[str, str], prompts: list[str], lora_root: str) -> dict:
    expected = {}
    with Server(options.binary, "--lora-root", lora_root, "--memory", "256MiB") as server:
        async with Connection(server) as connection:
            for content in [*contents, "base"]:
                if content != "base":
                    loaded = await connection.request("POST", "/v1/adapters", {"name": content, "path": contents[content]})
                    assert loaded.status == 201, loaded.body
                for index, prompt in enumerate(prompts):
                    answer = await connection.request("POST", "/v1/completions", {
                        "model": content, "prompt": prompt, "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True})
                    assert answer.status == 200, answer.body
                    expected[content, index] = answer.json()["choices"][0]["token_ids"]
    return expected


class Churn:
    """One change every interval; remembers what each version holds."""

    def __init__(self, server, options, contents, names, held):
        self.server, self.options, self.contents, self.names, self.held = server, options, list(contents), names, held
        self.paths = contents
        self.present: set[str] = set()
        self.busy: set[str] = set()
        self.counts = {"load": 0, "replace": 0, "unload": 0, "alias": 0, "refused": 0}
        self.random = random.Random(options.seed + 1)

    async def change(self) -> None:
        name = self.random.choice([name for name in self.names if name not in self.busy])
        kind = "load" if name not in self.present else self.random.choice(["replace", "replace", "unload", "alias"])
        if kind == "unload" and len(self.present) <= len(self.names) // 2:
            kind = "replace"
        self.busy.add(name)
        try:
            if kind == "alias":
                answer = await self.server.call("PATCH", f"/v1/adapters/{name}", {"alias": f"alias-{self.random.randrange(4)}"})
            elif kind == "unload":
                self.present.discard(name)
                if self.random.random() < 0.5:
                    answer = await self.server.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
                else:
                    answer = await self.server.call("DELETE", f"/v1/adapters/{name}?wait=0")
            else:
                content = self.random.choice(self.contents)
                answer = await self.server.call("POST", "/v1/adapters", {"name": name, "path": self.paths[content]})
                if answer.status == 201:
                    self.held[answer.json()["id"]] = content
                    self.present.add(name)
            if answer.status in (200, 201, 202):
                self.counts[kind] += 1
            else:
                self.counts["refused"] += 1
        finally:
            self.busy.discard(name)

    async def run(self) -> None:
        tasks: set[asyncio.Task] = set()
        following = time.monotonic()
        while True:
            following = max(following + self.options.interval, time.monotonic() - 1)
            await asyncio.sleep(max(0, following - time.monotonic()))
            if len(tasks) < 40:
                task = asyncio.create_task(self.change())
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def client(server, options, names, prompts, number, results, goal) -> None:
    choose = random.Random(options.seed * 1000 + number)
    async with Connection(server) as connection:
        while goal["tokens"] < options.total:
            index = choose.randrange(len(prompts))
            model = "base" if choose.random() < 0.05 else f"alias-{choose.randrange(4)}" if choose.random() < 0.1 else choose.choice(names)
            stream = choose.random() < 0.25
            body = {"model": model, "prompt": prompts[index], "max_tokens": choose.randint(options.tokens // 4, options.tokens), "temperature": 0,
                    "ignore_eos": True, "return_token_ids": True, "stream": stream}
            await connection.send("POST", "/v1/completions", body)
            answer = await connection.read_head()
            if answer.status != 200:
                answer.body = b"".join([piece async for piece in connection.chunks(answer)])
                goal["statuses"][answer.status] = goal["statuses"].get(answer.status, 0) + 1
                if answer.status != 404:
                    goal["unexpected"].append(answer.body[:200])
                    await asyncio.sleep(0.1)
                continue
            if stream and choose.random() < 0.1:  # some leave early; the tokens they saw count too
                body["leave_after"] = choose.randint(1, 20)
            tokens: list[int] = []
            if stream:
                async for event in connection.events(answer):
                    if event is None:
                        continue
                    if "error" in event:
                        goal["unexpected"].append(str(event)[:200])
                        break
                    for choice in event["choices"]:
                        tokens += choice.get("token_ids") or []
                    if len(tokens) >= body.get("leave_after", 1 << 30):
                        connection.close()
                        break
            else:
                answer.body = b"".join([piece async for piece in connection.chunks(answer)])
                tokens = answer.json()["choices"][0]["token_ids"]
            complete = "leave_after" in body or len(tokens) == body["max_tokens"]
            results.append((model, answer.headers.get("x-adapter", "base"), index, tokens, complete))
            goal["tokens"] += len(tokens)


async def main(options, report: Report) -> None:
    directory = tempfile.mkdtemp(prefix="lorikeet-r1-")
    try:
        contents = make_adapters(directory, [0.3 + 0.1 * step for step in range(options.variants)])
        prompts = task_prompts(options.prompts_per_task)
        began = time.monotonic()
        expected = await quiet_run(options, contents, prompts, directory)
        report.note("quiet run", f"{len(expected)} answers in {time.monotonic() - began:.0f} s")
        distinct = {tuple(tokens) for tokens in expected.values()}
        report.note("distinct answers", f"{len(distinct)} of {len(expected)}", len(distinct) / len(expected))

        names = [f"tenant-{index}" for index in range(options.names)]
        held: dict[str, str] = {}
        goal = {"tokens": 0, "statuses": {}, "unexpected": []}
        results: list = []
        with Server(options.binary, "--lora-root", directory, "--memory", options.memory, "--log-level", "warning", "--max-running", "64") as server:
            churn = Churn(server, options, contents, names, held)
            for name in names:
                answer = await server.call("POST", "/v1/adapters", {"name": name, "path": contents[churn.random.choice(churn.contents)]})
                held[answer.json()["id"]] = os.path.basename(answer.json()["path"])
                churn.present.add(name)
            status = await server.wait_idle()
            sizes = {adapter["path"]: adapter["device_bytes"] for adapter in (await server.call("GET", "/v1/adapters")).json()["data"]}
            registered = sum(adapter["host_bytes"] for adapter in (await server.call("GET", "/v1/adapters")).json()["data"])
            pool = status["pool"]["pages"] * status["pool"]["page_bytes"]
            report.check("adapters' bytes to pool's", registered >= 3 * pool, f"{len(names)} adapters, {registered / pool:.1f}x the whole pool")
            began = time.monotonic()
            churning = asyncio.create_task(churn.run())
            await asyncio.gather(*[client(server, options, names, prompts, number, results, goal) for number in range(options.concurrency)])
            seconds = time.monotonic() - began
            churning.cancel()
            status = await server.wait_idle()
            pool = status["pool"]
            report.check("pages at the end", pool["kv"] == 0 and pool["free"] + pool["cached"] + pool["adapter"] == pool["pages"],
                         f"{pool['free']}+{pool['cached']}+{pool['adapter']} of {pool['pages']}")
            loads, evictions, preemptions = status["adapters"]["loads"], status["adapters"]["evictions"], status["requests"]["preemptions"]

        mismatched = unknown = incomplete = compared = wrong_name = 0
        for model, version, index, tokens, complete in results:
            content = "base" if version == "base" else held.get(version)
            if content is None:
                unknown += 1
                continue
            if model.startswith("tenant") and version.split("@")[0] != model or (model == "base") != (version == "base"):
                wrong_name += 1
            incomplete += not complete
            compared += len(tokens)
            right = expected[content, index]
            mismatched += sum(a != b for a, b in zip(tokens, right)) + max(0, len(tokens) - len(right))
        changes = sum(churn.counts[kind] for kind in ("load", "replace", "unload", "alias"))
        report.check("tokens compared", compared >= options.total * 0.99, f"{compared} in {seconds:.0f} s ({compared / seconds:.0f}/s), {len(results)} answers", compared)
        report.check("mismatching tokens", mismatched == 0, mismatched)
        report.check("answers of an unknown version or another name", unknown + wrong_name + incomplete == 0, f"{unknown}, {wrong_name}; incomplete {incomplete}")
        report.check("unexpected errors", not goal["unexpected"], len(goal["unexpected"]), goal["unexpected"][:5])
        report.note("changes", f"{changes}, one per {seconds / max(changes, 1) * 1e3:.0f} ms {churn.counts}", churn.counts)
        report.note("device loads, evictions, preemptions", f"{loads}, {evictions}, {preemptions}")
        report.note("404 for names that were away", goal["statuses"].get(404, 0))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--total", type=int, default=1_000_000, help="tokens to compare")
    parser.add_argument("--interval", type=float, default=0.03, help="seconds between changes")
    parser.add_argument("--variants", type=int, default=12, help="strengths of each of the six adapters")
    parser.add_argument("--names", type=int, default=75, help="names that adapters have in turn")
    parser.add_argument("--prompts-per-task", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--concurrency", type=int, default=48)
    parser.add_argument("--memory", default="8MiB", help="page pool of the loaded server")
    options = parser.parse_args()
    run("R1 adapter isolation", options, main)
