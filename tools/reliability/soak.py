#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mixed soak: for --minutes everything at once. Correct answers are asked of stable adapters all the time and compared with those of a quiet
start; meanwhile adapters come, change and go, clients leave, bursts overload the queue, bad input arrives on every route, readers and
writers stall, keys are created, revoked and reloaded by SIGHUP, and a limited tenant abuses the server in R21's six ways. At the end the server must be where it began: pages, connections, files,
threads, tenants' accounts, memory. Works on any build: --binary build/cpu-asan/bin/lorikeet --slow 10 (a sanitizer's report fails it)."""
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time

import r21_hostile_tenant
from common import DEMO, TASKS, Closed, Connection, Server, arguments, make_adapters, percentile, run, task_prompts

ROUTES = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"), ("POST", "/tokenize"), ("POST", "/detokenize"),
          ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("POST", "/v1/adapters"), ("PATCH", "/v1/adapters/sql"),
          ("DELETE", "/v1/adapters/nobody"), ("GET", "/v1/models/nobody"), ("GET", "/v1/adapters/%00%ff"), ("PUT", "/v1/models"), ("GET", "/nowhere")]

BAD_BODIES = [b"", b"{", b"[]", b"null", b'"x"', b"{\"model\": \"sql\"}", b"\xff\xfe", b'{"model": "sql", "prompt": "\\ud800"}', b"[" * 5000, b'{"a":' * 500,
              b'{"model":"sql","prompt":"x","max_tokens":-1}', b'{"model":"sql","prompt":"x","max_tokens":1e999}', b'{"model":"sql","prompt":"x","temperature":NaN}',
              b'{"model":"sql","prompt":"x","n":1000000}', b'{"model":"sql","prompt":[999999999]}', b'{"model":"sql","prompt":[-1]}', b'{"model":"nobody","prompt":"x"}',
              b'{"model":"../../etc/passwd","prompt":"x"}', b'{"model":"sql*1e308+sql*nan","prompt":"x"}', b'{"model":"sql","model":"json","prompt":"x","max_tokens":1}',
              b'{"model":"sql","prompt":"x","logit_bias":{"99999999":5}}', b'{"model":"sql","prompt":"x","stop":["","",""]}', b'{"model":"sql","prompt":"x","seed":1e300}',
              b'{"model":"sql","messages":[{"role":"user","content":[{"type":"image_url"}]}]}', b'{"model":"sql","messages":[]}',
              b'{"model":"sql","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"$ref":"#"}}}}',
              b'{"model":"sql","prompt":"x","guided_regex":"((((a*)*)*)*)*b{1,100000}"}', b'{"name":"x","path":"/etc"}', b'{"name":"../x","path":"."}',
              b'{"lora_name":"x","lora_path":"/proc/self/fd"}', b'{"tokens":[1,2,99999999]}', b'{"model":"sql","input":[]}', b'{"pinned":"yes"}', b'{"alias":"base"}']

RAW = [b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
       b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
       b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
       b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
       b"GET /" + b"a" * 30000 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", bytes(range(256)), b"GET / HTTP/1.1\r\nhost: localhost\r\nx: \x00\r\n\r\n"]


class Soak:
    def __init__(self, options, server, directory):
        self.options, self.server, self.directory = options, server, directory
        self.random = random.Random(options.seed)
        self.end = time.monotonic() + options.minutes * 60
        self.counts: dict[str, int] = {}
        self.statuses: dict[int, int] = {}
        self.hostile_statuses: dict[str, int] = {}
        self.wrong: list = []
        self.server_errors: list = []
        self.expected: dict = {}
        self.reload_waits: list[float] = []
        self.keys: list[str] = []
        self.admin_key = ""
        self.prompts = task_prompts(1)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def saw(self, response) -> None:
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        if response.status >= 500 and response.status != 503 or response.status == 503 and "retry-after" not in response.headers:
            self.server_errors.append((response.status, response.body[:300]))

    def going(self) -> bool:
        return time.monotonic() < self.end

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(self.random.expovariate(1 / (seconds * self.options.slow)))

    # --- What is checked for being right.
    def question(self, task: str, index: int) -> dict:
        return {"model": task, "prompt": self.prompts[index], "max_tokens": 40, "temperature": 0, "ignore_eos": True, "return_token_ids": True}

    async def learn(self) -> None:
        for task in [*TASKS, "base"]:
            for index in range(len(self.prompts)):
                answer = await self.server.call("POST", "/v1/completions", self.question(task, index))
                assert answer.status == 200, answer.body
                self.expected[task, index] = answer.json()["choices"][0]["token_ids"]

    async def steady(self) -> None:
        async with Connection(self.server) as connection:
            while self.going():
                task, index = self.random.choice([*TASKS, "base"]), self.random.randrange(len(self.prompts))
                try:
                    answer = await connection.request("POST", "/v1/completions", self.question(task, index))
                except (Closed, OSError) as error:
                    connection.close()
                    self.wrong.append(f"steady client lost: {error}")
                    continue
                self.saw(answer)
                if answer.status == 200:
                    self.count("checked answers")
                    if answer.json()["choices"][0]["token_ids"] != self.expected[task, index]:
                        self.wrong.append((task, index))
                else:
                    self.count(f"steady refused {answer.status}")
                    await self.pause(0.2)

    # --- What disturbs.
    async def churn(self, contents: dict[str, str]) -> None:
        while self.going():
            await self.pause(0.1)
            name = f"guest-{self.random.randrange(12)}"
            choice = self.random.randrange(8)
            if choice < 4:
                answer = await self.server.call("POST", "/v1/adapters", {"name": name, "path": self.random.choice(list(contents.values())),
                                                                         "keep_previous": choice == 0, "pinned": choice == 1})
            elif choice == 4:
                answer = await self.server.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": self.random.choice(list(contents.values())), "load_inplace": True})
            elif choice == 5:
                answer = await self.server.call("PATCH", f"/v1/adapters/{name}", {"alias": f"alias-{self.random.randrange(3)}", "pinned": False})
            else:
                answer = await self.server.call("DELETE", f"/v1/adapters/{name}" + self.random.choice(["", "?wait=0"]))
            self.saw(answer)
            self.count("adapter changes")

    async def guest(self) -> None:
        """Asks adapters that come and go, in all forms, and leaves when it likes."""
        while self.going():
            connection = Connection(self.server)
            name = f"guest-{self.random.randrange(12)}"
            model = self.random.choice([name, name, f"{name}@{self.random.randint(1, 20)}", f"base:{name}", f"{name}*0.7+sql*0.3", f"alias-{self.random.randrange(3)}"])
            body = {"model": model, "max_tokens": self.random.choice([1, 20, 100, 300]), "stream": self.random.random() < 0.6, "temperature": self.random.choice([0, 1]),
                    "ignore_eos": True, "n": self.random.choice([1, 1, 1, 3])}
            if self.random.random() < 0.5:
                path, body["prompt"] = "/v1/completions", self.random.choice(self.prompts)
                body["logprobs"] = self.random.choice([None, 5])
            else:
                path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": self.random.choice(self.prompts)}]
                if self.random.random() < 0.3:
                    body["response_format"] = {"type": "json_object"}
            try:
                await connection.send("POST", path, body, headers={"x-request-timeout": self.random.choice(["30", "0.5", "0.05"])})
                if self.random.random() < 0.3:
                    await asyncio.sleep(self.random.random() * self.options.slow)
                    self.count("left")
                else:
                    answer = await connection.read_head()
                    answer.body = b"".join([piece async for piece in connection.chunks(answer)])
                    if answer.status != 504:  # its own timeout
                        self.saw(answer)
                    self.count("guests")
            except (Closed, OSError):
                self.count("guests cut")
            connection.close(reset=self.random.random() < 0.5)
            await self.pause(0.1)

    async def burst(self) -> None:
        while self.going():
            await self.pause(8)
            async def one():
                with contextlib.suppress(Closed, OSError):
                    answer = await self.server.call("POST", "/v1/completions", {"model": self.random.choice(TASKS), "prompt": "burst", "max_tokens": 30})
                    self.saw(answer)
            await asyncio.gather(*[one() for _ in range(150)])
            self.count("bursts")

    async def bad(self) -> None:
        while self.going():
            method, path = self.random.choice(ROUTES)
            body = self.random.choice(BAD_BODIES)
            if self.random.random() < 0.3:  # damaged somewhere
                body = bytearray(body or b"{}")
                body[self.random.randrange(len(body))] = self.random.randrange(256)
                body = bytes(body)
            try:
                if self.random.random() < 0.2:
                    async with Connection(self.server) as connection:
                        await connection.open()
                        connection.writer.write(self.random.choice(RAW))
                        with contextlib.suppress(asyncio.TimeoutError):
                            await asyncio.wait_for(connection.reader.read(100), 0.2)
                else:
                    answer = await asyncio.wait_for(self.server.call(method, path, body if method != "GET" else None), 60 * self.options.slow)
                    self.saw(answer)
                    if answer.status == 500:
                        self.wrong.append(("500", method, path, body[:100], answer.body[:200]))
            except (Closed, OSError):
                pass
            except asyncio.TimeoutError:
                self.wrong.append(("no answer", method, path, body[:100]))
            self.count("bad requests")
            await self.pause(0.05)

    async def stalled(self) -> None:
        """A reader that stops reading, or a writer that stops writing; long enough to be cut."""
        while self.going():
            connection = Connection(self.server, receive_buffer=4096)
            try:
                await connection.open()
                if self.random.random() < 0.5:
                    await connection.send("POST", "/v1/completions", {"model": "sql", "prompt": "x", "max_tokens": 400, "stream": True, "logprobs": 5, "n": 4, "ignore_eos": True})
                else:
                    raw = Connection.encode("POST", "/v1/completions", {"model": "sql", "prompt": "x" * 1000})
                    connection.writer.write(raw[:self.random.randrange(len(raw))])
                await asyncio.sleep(min(35, max(0, self.end - time.monotonic())) * self.random.random())
                self.count("stalled")
            except OSError:
                pass
            connection.close()

    async def hostile(self, key: str) -> None:
        """R21's abuses in turn, each in a process of its own, by an eighth of its connections."""
        names = list(r21_hostile_tenant.ABUSES)
        while self.going():
            name = names[self.counts.get("abuses", 0) % len(names)]
            seconds = min(20 * self.options.slow, max(1.0, self.end - time.monotonic()))
            process = await asyncio.create_subprocess_exec(sys.executable, r21_hostile_tenant.__file__, "--abuse", name, "--port", str(self.server.port), "--seconds", str(seconds), "--parts", "8",
                                                           stdout=asyncio.subprocess.PIPE, env={**os.environ, "R21_KEY": key})
            out, _ = await process.communicate()
            if process.returncode:
                self.wrong.append((f"the abuse {name} failed", process.returncode))
            for status, count in json.loads(out.splitlines()[-1]).items() if process.returncode == 0 else ():
                self.hostile_statuses[status] = self.hostile_statuses.get(status, 0) + count
            self.count("abuses")

    async def keys_change(self, state: str) -> None:
        while self.going():
            await self.pause(5)
            name = f"tenant-{self.random.randrange(1000000)}"
            secret = (await keys(self.options.binary, state, "create", "--tenant", name, "--scope", "infer")).split()[-1]
            self.server.signal(signal.SIGHUP)
            # The signal is taken when its thread gets a core: asked until it works, for longer than any queue for a core takes.
            sent = time.monotonic()
            while True:
                answer = await self.server.call("GET", "/v1/models", key=secret)  # waits for no queue
                waited = time.monotonic() - sent
                if answer.status not in (401, 403) or waited > 10 * self.options.slow:
                    break
                await asyncio.sleep(0.05)
            self.reload_waits.append(waited)
            if answer.status == 200:
                answer = await self.server.call("POST", "/v1/completions", {"model": "base", "prompt": "key", "max_tokens": 1}, key=secret)
            self.saw(answer)
            if answer.status in (401, 403):
                self.wrong.append(("a new key does not work", answer.status, answer.body[:100]))
            answer = await self.server.call("GET", "/v1/adapters", key=secret)
            if answer.status not in (401, 403):
                self.wrong.append(("an infer key manages adapters", answer.status))
            self.count("keys reloaded")

    async def watch(self) -> None:
        while self.going():
            await asyncio.sleep(1)
            for path in ("/metrics", "/v1/status", "/health", "/live", "/v1/models", "/v1/adapters"):
                answer = await self.server.call("GET", path)
                self.saw(answer)
                if answer.status != 200:
                    self.wrong.append((path, answer.status))


async def keys(binary: str, state: str, *arguments_: str) -> str:
    process = await asyncio.create_subprocess_exec(binary, "keys", *arguments_, "--state", state, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"keys {arguments_}: {errors.decode()}")
    return out.decode()


async def main(options, report) -> None:
    directory = tempfile.mkdtemp(prefix="lorikeet-soak-")
    try:
        state = os.path.join(directory, "state.db")
        admin = (await keys(options.binary, state, "create", "--tenant", "admin", "--scope", "infer,adapters,admin")).split()[-1]
        hostile = (await keys(options.binary, state, "create", "--tenant", "hostile", "--scope", "infer")).split()[-1]
        await keys(options.binary, state, "tenant", "set", "hostile", "--max-in-flight", "64", "--tokens-per-minute", "2000000")
        contents = make_adapters(os.path.join(directory, "adapters"), [0.5, 1.5])
        env = {"ASAN_OPTIONS": "halt_on_error=1:exitcode=99:detect_leaks=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=0:exitcode=98"}
        with Server(options.binary, "--lora-dir", DEMO / "adapters", "--lora-root", directory, "--memory", options.memory, "--max-running", "24", "--max-queue", "100",
                    "--log-level", "info", state=state, env=env) as server:
            server.key = admin
            soak = Soak(options, server, directory)
            await soak.learn()
            # One of each disturbance first, so that what is allocated once is allocated.
            soak.end = time.monotonic() + options.warmup
            clients = {"steady": (4, soak.steady), "churn": (2, lambda: soak.churn(contents)), "guest": (12, soak.guest), "burst": (1, soak.burst), "bad": (2, soak.bad),
                       "stalled": (8, soak.stalled), "keys": (1, lambda: soak.keys_change(state)), "watch": (1, soak.watch), "hostile": (1, lambda: soak.hostile(hostile))}
            parts = lambda: [part() for name, (count, part) in clients.items() if not options.only or name in options.only.split(",") for _ in range(count)]
            await asyncio.gather(*parts())
            await clear(server)
            await server.wait_idle(60 * options.slow)
            before, process_before = await server.status(), server.process_stats()
            soak.counts.clear(), soak.statuses.clear(), soak.hostile_statuses.clear()
            soak.end = time.monotonic() + options.minutes * 60
            rss = []

            async def sample():
                while soak.going():
                    rss.append(server.process_stats()["rss"])
                    await asyncio.sleep(5)
            await asyncio.gather(*parts(), sample())
            await clear(server)
            after = await server.wait_idle(60 * options.slow)
            await asyncio.sleep(2)
            after, process_after = await server.status(), server.process_stats()

            report.note("soak", f"{options.minutes:g} min, {after['tokens']['output'] - before['tokens']['output']} tokens, {soak.counts}", soak.counts)
            report.note("statuses", soak.statuses)
            report.note("the hostile tenant got", ", ".join(f"{count} x {status}" for status, count in sorted(soak.hostile_statuses.items())), soak.hostile_statuses)
            report.note("a new key worked after", f"p50 {percentile(soak.reload_waits, 50):.2f} s, {max(soak.reload_waits, default=0):.2f} at most", soak.reload_waits)
            report.check("wrong answers", not soak.wrong, len(soak.wrong), [str(wrong) for wrong in soak.wrong[:10]])
            report.check("5xx that are not 503 with Retry-After", not soak.server_errors, len(soak.server_errors), [str(error) for error in soak.server_errors[:10]])
            pool = after["pool"]
            report.check("pages", pool["kv"] == 0 and pool["free"] + pool["cached"] + pool["adapter"] == pool["pages"],
                         f"{pool['free']} free + {pool['cached']} cached + {pool['adapter']} adapters of {pool['pages']}")
            report.check("adapters", after["adapters"]["total"] == before["adapters"]["total"] and after["adapters"]["active"] == [], f"{before['adapters']['total']} -> {after['adapters']['total']}")
            report.check("tenants in flight", all(tenant["in_flight"] == 0 for tenant in after["tenants"]), sum(tenant["in_flight"] for tenant in after["tenants"]))
            report.check("open streams, queued tokens", after["http"]["open_streams"] == 0 and after["requests"]["queued_tokens"] == 0, f"{after['http']['open_streams']}, {after['requests']['queued_tokens']}")
            report.check("files", process_after["fds"] <= process_before["fds"], f"{process_before['fds']} -> {process_after['fds']}")
            report.check("threads", process_after["threads"] == process_before["threads"], f"{process_before['threads']} -> {process_after['threads']}")
            # Caches that have a bound of their own, as the server reports them, are no growth; nothing else is forgiven.
            caches = [status["memory"]["sums"] + status["memory"]["grammars"] for status in (before, after)]
            growth = process_after["rss"] - process_before["rss"] - (caches[1] - caches[0])
            sanitized = any(word in options.binary for word in ("asan", "tsan"))
            mib = lambda count: f"{count / (1 << 20):.1f}"
            report.check("memory", sanitized or growth <= options.rss_growth * (1 << 20),
                         f"{mib(process_before['rss'])} -> {mib(process_after['rss'])} MiB, {mib(max(rss))} at most; of it cached sums and grammars {mib(caches[0])} -> {mib(caches[1])}",
                         [process_before["rss"], process_after["rss"], caches, rss, before["memory"], after["memory"]])
            report.check("caches within their bounds", after["memory"]["adapters"] <= after["memory"]["max_adapters"] and after["memory"]["grammars"] <= after["memory"]["max_grammars"], "yes")
            if soak.wrong or soak.server_errors:
                print(*soak.wrong[:10], *soak.server_errors[:10], sep="\n")
            log = server.log_text()
            report.check("prompts or keys in the log", admin not in log and soak.prompts[0] not in log, "none")
            status = server.stop(keep=True)
            log = server.log_text()
            report.check("exit status", status == 0, status)
            found = [word for word in ("ERROR: AddressSanitizer", "runtime error", "WARNING: ThreadSanitizer", "LeakSanitizer", "exception in") if word in log]
            report.check("sanitizer reports", not found, found or "none")
            if found:
                print(log[max(0, log.find(found[0]) - 500):][:6000])
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def clear(server) -> None:
    """Unloads all guests."""
    for adapter in (await server.call("GET", "/v1/adapters")).json()["data"]:
        if adapter["name"].startswith("guest-"):
            await server.call("DELETE", f"/v1/adapters/{adapter['name']}")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--warmup", type=float, default=20, help="seconds of the same before the baseline is taken")
    parser.add_argument("--memory", default="6MiB")
    parser.add_argument("--slow", type=float, default=1, help="stretches pauses and patience, for instrumented builds")
    parser.add_argument("--only", default="", help="only these ingredients, to find the one that does harm: steady,churn,guest,burst,bad,stalled,keys,watch,hostile")
    parser.add_argument("--rss-growth", type=float, default=32, help="MiB of growth allowed after the warm-up, without the caches that the server reports")
    run("soak", parser.parse_args(), main)
