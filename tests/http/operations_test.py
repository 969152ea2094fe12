# SPDX-License-Identifier: Apache-2.0
"""Health, metrics, the API description, the console, drain, timeouts, cancellation, configuration."""
import pathlib
import re
import signal
import socket
import subprocess
import unittest

from harness import BINARY, Directory, MODEL, PATIENCE, Server, ServerTest, wait_for

SLOW = {"model": "sql", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "temperature": 0}


class Endpoints(ServerTest):
    ADAPTERS = ("sql", "dates")
    OPTIONS = ("--served-model-name", "demo")

    def test_health(self):
        for path in ("/health", "/healthz", "/ping"):
            answer = self.server.get(path)
            self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(self.server.get("/ready").json, {"ready": True, "draining": False})
        self.assertTrue(self.server.get("/live").json["live"])
        self.assertRegex(self.server.get("/version").json["version"], r"^\d+\.\d+\.\d+")
        head = self.server.call("HEAD", "/health")
        self.assertEqual((head.status, head.body), (200, b""))
        self.refused(self.server.get("/nothing"), 404)
        self.refused(self.server.get("/v1/chat/completions"), 405)
        self.refused(self.server.call("DELETE", "/v1/models"), 405)
        self.assertEqual(self.good(self.server.get("/v1/models"))["data"][0]["id"], "demo")

    def test_openapi(self):
        text = self.good(self.server.get("/openapi.json"))
        self.assertRegex(text["openapi"], r"^3\.")
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings", "/tokenize", "/v1/load_lora_adapter", "/v1/adapters", "/metrics"):
            self.assertIn(path, text["paths"])
        for path, methods in text["paths"].items():  # what it describes exists
            for method, described in methods.items():
                if method not in ("get", "post", "patch", "delete"):
                    continue
                if list(described["responses"].get("200", {}).get("content", {})) == ["text/event-stream"]:  # it has no end
                    with self.server.open_get(path) as response:
                        self.assertEqual(response.status, 200, path)
                else:
                    answer = self.server.call(method.upper(), path, None if method == "get" else {})
                    self.assertNotEqual(answer.status, 405, (method, path))
                    if answer.status == 404:
                        self.assertNotEqual(answer.json["error"]["message"], "no such endpoint", (method, path))

    def test_console(self):
        page = self.server.get("/")
        self.assertEqual(page.status, 200)
        self.assertTrue(page.headers["content-type"].startswith("text/html"))
        self.assertIn("default-src", page.headers["content-security-policy"])
        self.assertEqual(self.server.get("/", headers={"If-None-Match": page.headers["etag"]}).status, 304)
        for name in re.findall(r'(?:src|href)="(/?console/[^"]+)"', page.text):
            self.assertEqual(self.server.get("/" + name.lstrip("/")).status, 200, name)
        self.assertNotIn("http://", page.text.replace("http://www.w3.org", ""))
        self.assertNotIn("https://", page.text)
        for path in ("/console/nothing", "/console/../etc/passwd", "/console/%2e%2e/x"):
            self.assertIn(self.server.get(path).status, (400, 404), path)

    def test_metrics(self):
        def values() -> dict:
            answer = self.server.get("/metrics")
            self.assertEqual(answer.status, 200)
            return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in answer.text.splitlines() if line and line[0] != "#"}
        before = values()
        for _ in range(3):
            self.good(self.server.chat(max_tokens=5, temperature=0))
        self.refused(self.server.chat(model="nothing"), 404)
        after = values()

        def grown(prefix: str, *labels: str) -> float:
            return sum(value - before.get(key, 0) for key, value in after.items() if key.startswith(prefix + "{") and all(label in key for label in labels))
        self.assertEqual(grown("vllm:request_success_total"), 3)
        self.assertEqual(grown("vllm:generation_tokens_total"), 15)
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
            self.assertEqual(grown(f"vllm:{name}_count"), 3, name)
        self.assertEqual(grown("vllm:inter_token_latency_seconds_count"), 12)
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            self.assertTrue([key for key in after if key.startswith(name + "{")], name)
        self.assertTrue([key for key in after if key.startswith("lorikeet") and 'adapter="sql"' in key])
        self.assertTrue([key for key in after if 'reason="not_found"' in key])
        status = self.server.status()
        self.assertEqual((status["ready"], status["requests"]["running"], status["adapters"]["total"]), (True, 0, 2))
        self.assertGreater(status["process"]["resident_bytes"], 0)

    def test_what_is_kept_is_counted(self):
        before = self.server.status()["memory"]
        self.assertGreater(before["adapters"], 0)
        self.assertEqual(self.server.complete("x", model="sql*0.25", max_tokens=1).status, 200)
        answer = self.server.call("POST", "/v1/completions", {"model": "sql", "prompt": "x", "max_tokens": 1, "guided_regex": "a{1,40}|counted"})
        self.assertEqual(answer.status, 200, answer.text)
        after = self.server.status()["memory"]
        self.assertEqual(after["num_sums"], before["num_sums"] + 1)
        self.assertEqual(after["adapters"] - before["adapters"], after["sums"] - before["sums"])
        self.assertGreater(after["grammars"], before["grammars"])
        self.assertGreater(after["max_grammars"], after["grammars"])
        text = self.server.get("/metrics").text
        for line in (f'lorikeet_cache_bytes{{cache="sums"}} {after["sums"]}', 'lorikeet_cache_bytes{cache="grammars"}', 'lorikeet_heap_bytes{state="used"}'):
            self.assertIn(line, text)

    def test_memory_plan_is_shown(self):
        memory = self.server.status()["memory"]
        plan = memory["plan"]
        parts = {name: plan[name] for name in ("weights", "activations", "pages", "adapters", "grammars", "reserve")}
        self.assertTrue(all(bytes > 0 for bytes in parts.values()), parts)
        self.assertEqual(sum(parts.values()), plan["total"])
        self.assertLessEqual(plan["total"], plan["limit"])
        self.assertEqual((plan["adapters"], plan["grammars"]), (memory["max_adapters"], memory["max_grammars"]))
        self.assertEqual(plan["pages"], 256 << 20)  # --memory
        pool = self.server.status()["pool"]
        self.assertEqual(pool["pages"], plan["pages"] // pool["page_bytes"])
        self.assertRegex(self.server.log, r"(?m)^memory: .*\n  weights .*\n  activations .*\n  pages .*\(--memory\)\n  adapters .*\(--host-memory\)$")

    def test_adapter_in_use_is_named(self):
        def line() -> str | None:
            lines = self.server.get("/metrics").text.splitlines()
            return next((line for line in lines if line.startswith("vllm:lora_requests_info") and 'running_lora_adapters="sql"' in line), None)

        with self.server.kept_busy(SLOW | {"n": 16}):
            shown = wait_for(line, "a snapshot with it")
        self.assertGreater(float(shown.rsplit(" ", 1)[1]), 1.6e9)

    def test_timeout(self):
        answer = self.server.post("/v1/completions", SLOW | {"n": 16, "seed": 1}, headers={"x-request-timeout": "0.02"})
        self.assertIn(answer.status, (408, 503))
        self.refused(answer, answer.status)
        for bad in ("x", "-1", "0", "nan", "inf", "1e9", "1 s"):
            self.refused(self.server.post("/v1/completions", SLOW, headers={"x-request-timeout": bad}), 400, param="x-request-timeout")
        self.assertEqual(self.server.chat(headers={"x-request-timeout": "30.5"}, max_tokens=1).status, 200)
        wait_for(lambda: self.server.status()["requests"]["running"] == 0, "nothing goes on")

    def test_cancellation(self):
        for read in (False, True):
            for _ in range(5):
                stream = self.server.open_stream("/v1/completions", SLOW | {"n": 4})
                if read:
                    stream.next()
                stream.response.close()
                stream.connection.close()

        def at_rest() -> bool:
            status = self.server.status()
            pool = status["pool"]
            return (status["requests"]["running"] == status["requests"]["waiting"] == status["http"]["open_streams"] == 0
                    and pool["kv"] == 0 and pool["free"] + pool["cached"] + pool["adapter"] == pool["pages"])
        wait_for(at_rest, "everything is given back")

    def test_keep_alive_and_pipelining(self):
        connection = self.server.connect()
        for _ in range(3):
            connection.request("GET", "/version")
            self.assertEqual(connection.getresponse().read()[:11], b'{"version":')
        connection.close()
        two = self.server.raw(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        self.assertTrue(two.startswith(b"HTTP/1.1 200 OK\r\n"))


class Drain(Directory):
    def test_grace_is_not_ready_but_serves(self):
        server = self.start("--drain-grace", "3600", adapters=("sql",), quick=False)
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.get("/ready").status == 503, "not ready")
        self.assertTrue(server.get("/ready").json["draining"])
        self.assertEqual((server.get("/live").status, server.get("/health").status), (200, 200))
        self.assertEqual(server.chat(max_tokens=1).status, 200)
        server.signal(signal.SIGTERM)
        self.assertNotEqual(server.process.wait(PATIENCE), 0)
        server.stop()

    def test_streams_finish(self):
        server = self.start("--max-running", "1", adapters=("sql",))  # one after the other: still running when the drain begins
        with server.open_stream("/v1/completions", SLOW | {"n": 8}) as stream:
            stream.next()
            server.signal(signal.SIGTERM)
            wait_for(lambda: server.event("drain"), "drain began")
            events = stream.rest()
        ends = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
        self.assertEqual(ends, ["length"] * 8)
        self.assertEqual(server.process.wait(PATIENCE), 0)
        server.stop(0)
        self.assertTrue(server.event("stopped")["clean"])

    def test_what_does_not_finish_is_told(self):
        server = self.start("--drain-grace", "0", "--drain-timeout", "0", "--max-running", "1", adapters=("sql",), quick=False)
        with server.open_stream("/v1/completions", SLOW | {"n": 16}) as stream:
            stream.next()
            server.signal(signal.SIGTERM)
            events = stream.rest()
        self.assertIn("error", events[-1])
        self.assertEqual(server.process.wait(PATIENCE), 0)
        server.stop(0)
        self.assertFalse(server.event("stopped")["clean"])

    def test_second_signal_is_immediate(self):
        server = self.start("--drain-grace", "3600", adapters=("sql",), quick=False)
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.event("drain"), "drain began")
        server.signal(signal.SIGTERM)
        self.assertNotEqual(server.process.wait(PATIENCE), 0)
        server.stop()

    def test_interrupt_waits_for_nobody(self):
        server = self.start("--drain-grace", "3600", adapters=("sql",), quick=False)
        server.signal(signal.SIGINT)
        self.assertEqual(server.process.wait(PATIENCE), 0)
        server.stop(0)


class Configuration(Directory):
    def test_file_check_and_print(self):
        path = self.path("c.toml")
        pathlib.Path(path).write_text(f'model = "{MODEL}"\n[network]\nport = 0\nmax-body = "1KiB"\n[overload]\nmax-queue = 7\n')
        run = lambda *args: subprocess.run([BINARY, "serve", "--state", self.path("state.db"), *args], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(run("--config", path, "--check-config").stdout, "configuration OK\n")
        printed = run("--config", path, "--print-config").stdout
        self.assertIn("\nmax-queue = 7\n", printed)
        server = self.start("--max-body", "1KiB", adapters=("sql",))
        self.assertEqual(server.complete("x" * 2000).status, 413)
        server.stop(0)
        for bad, words in (("prot = 1\n", "prot"), ('port = "x"\n', "integer"), ("port = 70000\n", "65535")):
            pathlib.Path(path).write_text(f'model = "{MODEL}"\n{bad}')
            done = run("--config", path, "--check-config")
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(words, done.stderr)

    def test_more_memory_than_there_is(self):
        for flag in ("--memory", "--host-memory"):
            with self.assertRaisesRegex(RuntimeError, rf"{flag} [0-9.]+ [GT]iB is too much.*: {flag} [0-9]+MiB fits"):
                Server(flag, "524288GiB", adapters=())

    def test_start_failures(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            for args in (("--port", str(taken.getsockname()[1])), ("--lora", f"x={self.path('nothing')}"), ("--admin", "nonsense"), ("--max-body", "x"),
                         ("--tool-call-parser", "x"), ("--host", "not an address"), ("--unix-socket", "/nothing/x.sock")):
                with self.subTest(args=args), self.assertRaises(RuntimeError):
                    Server(*args, adapters=())


if __name__ == "__main__":
    unittest.main()
