# SPDX-License-Identifier: Apache-2.0
"""Answers that go on at another replica, and the router that sees to it."""
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading

from harness import BINARY, PATIENCE, Directory, Server, ServerTest, wait_for

QUESTION = [{"role": "user", "content": "Which customers live in Riga?"}]
TOOLS = [{"type": "function", "function": {"name": "save", "parameters": {"type": "object", "properties": {"age": {"type": "integer"}},
                                                                          "required": ["age"], "additionalProperties": False}}}]
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
# Each way of sampling and of showing what was sampled.
REQUESTS = {
    "greedy": (CHAT, {"messages": QUESTION, "model": "sql", "temperature": 0, "max_tokens": 16}),
    "sampled, logprobs": (CHAT, {"messages": QUESTION, "model": "sql", "temperature": 1.3, "max_tokens": 16, "ignore_eos": True, "logprobs": True, "top_logprobs": 3,
                                 **USAGE}),
    "penalties": (TEXT, {"prompt": "Once upon a time", "temperature": 1.4, "presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.2,
                         "logprobs": 2, "echo": True, "max_tokens": 16, "ignore_eos": True, **USAGE}),
    "stop string": (TEXT, {"prompt": "Once upon a time", "temperature": 1.1, "seed": 9, "stop": ["zz", "e "], "max_tokens": 24, "return_token_ids": True,
                           "include_stop_str_in_output": True}),
    "wild bytes": (TEXT, {"prompt": "Once upon a time", "temperature": 50, "max_tokens": 16, "ignore_eos": True, "logprobs": 0}),
    "schema": (CHAT, {"messages": QUESTION, "model": "json", "temperature": 1.2, "max_tokens": 40, "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
                                                                       "required": ["a", "b"], "additionalProperties": False}}}}),
    "forced call": (CHAT, {"messages": QUESTION, "model": "json", "temperature": 1, "max_tokens": 30, "tools": TOOLS, "tool_choice": "required", "logprobs": True}),
    "choices": (CHAT, {"messages": QUESTION, "model": "tag", "temperature": 1.3, "n": 3, "max_tokens": 6, "ignore_eos": True, "logprobs": True, **USAGE}),
    "prompts": (TEXT, {"prompt": ["Once", "upon a time"], "model": "base", "temperature": 1.3, "n": 2, "max_tokens": 4, "ignore_eos": True, "echo": True, **USAGE}),
    "items": (RESPONSES, {"input": QUESTION, "model": "sql", "temperature": 1.3, "max_output_tokens": 16, "ignore_eos": True, "metadata": {"a": "b"}}),
    "items, schema": (RESPONSES, {"input": QUESTION, "model": "json", "temperature": 1.2, "max_output_tokens": 40, "text": {"format": {"type": "json_object"}}}),
    "items, forced call": (RESPONSES, {"input": QUESTION, "model": "json", "temperature": 1, "max_output_tokens": 30, "tool_choice": "required",
                                       "tools": [{"type": "function", **TOOLS[0]["function"]}]}),
    "blocks": (MESSAGES, {"messages": QUESTION, "model": "sql", "temperature": 1.3, "max_tokens": 16, "ignore_eos": True}),
    "blocks, forced call": (MESSAGES, {"messages": QUESTION, "model": "json", "temperature": 1, "max_tokens": 30, "tool_choice": {"type": "any"},
                                       "tools": [{"name": "save", "input_schema": TOOLS[0]["function"]["parameters"]}]}),
    "blocks, stop string": (MESSAGES, {"messages": QUESTION, "model": "sql", "temperature": 1.1, "seed": 9, "max_tokens": 24, "stop_sequences": ["zz", "e "]}),
    "sum of adapters": (CHAT, {"messages": QUESTION, "model": "sql*0.5+json*0.5", "temperature": 0, "max_tokens": 8}),
}


def groups_of(server: Server, path: str, body: dict, choices: list, key=None, more: dict | None = None) -> list:
    """(events, commit) of a stream whose client has `choices` already."""
    connection = server.connect()
    headers = {"Content-Type": "application/json", **(more or {})}
    resume = {"id": "same", "created": 7, "seed": 42, "choices": choices}
    connection.request("POST", path, json.dumps({**body, "stream": True, "lorikeet_resume": resume}), headers)
    response = connection.getresponse()
    data = response.read().decode()
    assert response.status == 200, data
    groups, events = [], ""
    for event in data.split("\n\n"):
        if event.startswith(": lk "):
            groups.append((events, json.loads(event[5:])))
            events = ""
        elif event and not event.startswith(":"):
            events += event + "\n\n"
    assert not events, events
    connection.close()
    return groups


def take(choices: list, commit: dict):
    if commit.get("end"):
        return
    while len(choices) <= commit["choice"]:
        choices.append({"tokens": []})
    choice = choices[commit["choice"]]
    assert commit["first"] == len(choice["tokens"]), (commit, choice)
    choice["tokens"] = choice["tokens"] + commit["tokens"]
    choice.update({name: commit[name] for name in ("prompt_tokens", "cached_tokens", "done", "events") if name in commit})


class Resume(ServerTest):
    """Two replicas: what one began the other ends with the same bytes, wherever it is cut."""
    other: Server

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.other = Server("--step-tokens", "7")  # other chunks of the prompt

    @classmethod
    def tearDownClass(cls):
        cls.other.stop(expected=0)
        super().tearDownClass()

    def test_same_bytes_wherever_it_is_cut(self):
        for name, (path, body) in REQUESTS.items():
            with self.subTest(name):
                whole = groups_of(self.server, path, body, [])
                self.assertGreater(len(whole), 2)
                self.assertEqual(whole[-1][1], {"end": True})
                everything = "".join(events for events, _ in whole)
                choices = []
                for cut, (_, commit) in enumerate(whole):
                    rest = groups_of(self.other, path, body, choices)
                    if body.get("n", 1) == 1 and not isinstance(body.get("prompt"), list):
                        self.assertEqual("".join(events for events, _ in whole[:cut] + rest), everything, f"cut behind group {cut}")
                    else:  # choices come in any order
                        split = lambda text: sorted(event for event in text.split("\n\n") if event)  # noqa: E731
                        self.assertEqual(split("".join(events for events, _ in whole[:cut] + rest)), split(everything), f"cut behind group {cut}")
                    take(choices, commit)

    def test_refusals(self):
        fields = {"temperature": 0, "max_tokens": 4, "stream": True, "ignore_eos": True}
        whole = {"id": "a", "created": 1, "seed": 1}
        self.refused(self.server.complete(**fields, lorikeet_resume={**whole, "choices": [{"tokens": [1, 2, 3, 4]}]}), 400, "fewer than max_tokens", param="lorikeet_resume")
        self.refused(self.server.chat(**fields, lorikeet_resume={**whole, "digest": "other"}), 409, "other weights", code="adapter_differs")
        self.refused(self.server.chat(max_tokens=4, lorikeet_resume=whole), 400, "stream", param="lorikeet_resume")
        # The end of an answer repeats its log-probabilities: those of its beginning are not known here.
        for include, status in ((["message.output_text.logprobs"], 400), ([], 200)):
            body = {"model": "sql", "input": QUESTION, "stream": True, "include": include, "temperature": 0, "lorikeet_resume": {**whole, "choices": [{"tokens": [40]}]}}
            self.assertEqual(self.server.post(RESPONSES, body).status, status)
        for ask in (self.server.chat, self.server.complete):
            self.refused(ask(max_tokens=4, headers={"x-lorikeet-goes-on": "1"}), 400, "have begun", param="lorikeet_resume")
        self.refused(self.server.post("/v1/embeddings", {"model": "base", "input": "x"}, headers={"x-lorikeet-goes-on": "1"}), 400, "have begun")

    def test_state(self):
        with contextlib.closing(self.server.connect()) as connection:
            connection.request("GET", "/v1/fleet/state")
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            reports = []
            while len(reports) < 3:
                line = response.readline()
                if line.startswith(b"data: "):
                    reports.append(json.loads(line[6:]))
        self.assertTrue(reports[0]["all"] and reports[0]["ready"])
        self.assertEqual(set(reports[0]["adapters"]), {"dates", "json", "math", "sort", "sql", "tag"})
        self.assertTrue(all(re.fullmatch("[0-9a-f]{64}", a["digest"]) for a in reports[0]["adapters"].values()))
        self.assertEqual(reports[-1]["adapters"], {}, "only what changed")
        with contextlib.closing(self.other.connect()) as connection:
            connection.request("GET", "/v1/fleet/state")
            response = connection.getresponse()
            other = json.loads(response.readline()[6:])
        self.assertEqual(other["numerics"], reports[0]["numerics"])
        self.assertNotEqual(other["id"], reports[0]["id"])


class Scope(Directory):
    def test_only_routers_say_how_an_answer_began(self):
        state = self.path("state.db")

        def key(scope):
            out = subprocess.run([BINARY, "keys", "create", "--state", state, "--tenant", "acme", "--scope", scope], capture_output=True, text=True, check=True)
            return out.stdout.strip()

        infer, fleet = key("infer"), key("fleet")
        server = Server(state=state)
        self.addCleanup(server.stop)
        body = {"model": "sql", "messages": QUESTION, "max_tokens": 3, "stream": True, "temperature": 0,
                "lorikeet_resume": {"id": "a", "created": 1, "seed": 1, "choices": [{"tokens": [40]}]}}
        for headers in ({}, {"x-lorikeet-fleet": infer}, {"x-lorikeet-fleet": "lk-wrong"}):
            answer = server.post(CHAT, body, key=infer, headers=headers)
            self.assertEqual((answer.status, answer.json["error"]["code"]), (403, "insufficient_scope"), answer)
        self.assertEqual(server.post(CHAT, body, key=infer, headers={"x-lorikeet-fleet": fleet}).status, 200)
        self.assertEqual(server.post(CHAT, body, key=fleet, headers={"x-lorikeet-fleet": fleet}).status, 403, "a router is no client")
        self.assertEqual(server.get("/v1/fleet/state", key=infer).status, 403)
        self.assertEqual(server.get("/v1/fleet/state").status, 401)


class Router:
    def __init__(self, *replicas: str, options: tuple = (), environment: dict | None = None):
        self.fleet_key = (environment or {}).get("LORIKEET_FLEET_KEY")
        command = [BINARY, "route", "--port", "0", *options]
        for replica in replicas:
            command += ["--replica", f"http://{replica}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **(environment or {})})
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        found = wait_for(lambda: re.search(r"policy \w+, http://(\S+)", "".join(self.lines)) or self.process.poll() is not None, "the router")
        if found is True:
            raise RuntimeError("".join(self.lines))
        self.address = found[1]

    def call(self, method, path, body=None, key=None):
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    def json(self, method, path, body=None, key=None):
        status, data = self.call(method, path, body, key)
        return status, json.loads(data)

    def status(self):
        return self.json("GET", "/v1/fleet/status", key=self.fleet_key)[1]

    def ready(self, count):
        wait_for(lambda: sum(r["state"] == "ready" for r in self.status()["replicas"]) == count, f"{count} replicas")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        self.process.stderr.close()
        return code


def events_of(router, path, body, at=None, then=None):
    """All events, without what names the request; `then()` is called behind event number `at`."""
    connection = http.client.HTTPConnection(router.address, timeout=PATIENCE)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    events = []
    while line := response.readline():
        assert not line.startswith(b":"), line
        if line == b"\n":
            continue
        assert line.startswith(b"data: "), line
        data = line[6:].decode().strip()
        event = data if data == "[DONE]" else {k: v for k, v in json.loads(data).items() if k not in ("id", "created")}
        events.append(event)
        if len(events) == at:
            then()
    connection.close()
    return events


class Failover(Directory):
    LONG = {"model": "sql", "messages": QUESTION, "seed": 5, "temperature": 1.2, "max_tokens": 300, "ignore_eos": True, "logprobs": True, "n": 2,
            "stream_options": {"include_usage": True}}

    def setUp(self):
        super().setUp()
        self.replicas = [Server() for _ in range(3)]
        for replica in self.replicas:
            self.addCleanup(self.end, replica)
        self.router = Router(*(replica.address for replica in self.replicas))
        self.addCleanup(self.router.stop)
        self.router.ready(3)

    @staticmethod
    def end(replica):
        if replica.process.poll() is None:
            replica.signal(signal.SIGCONT)
            replica.process.kill()
        replica.process.wait(PATIENCE)
        replica.stop()

    def serving(self):
        for shown, replica in zip(self.router.status()["replicas"], self.replicas):
            if shown["routed"]:
                return replica
        raise AssertionError("nobody serves it")

    def by_choice(self, events):
        """Choices come in any order; of each, and of the end, the order counts."""
        split = {}
        for event in events:
            index = event["choices"][0]["index"] if isinstance(event, dict) and event["choices"] else "end"
            split.setdefault(index, []).append(event)
        return split

    def test_kill_hang_and_drain(self):
        quiet = self.by_choice(events_of(self.router, CHAT, self.LONG))
        killed = self.by_choice(events_of(self.router, CHAT, self.LONG, 60, lambda: self.serving().process.kill()))
        self.assertEqual(killed, quiet)
        self.router.ready(2)
        self.assertEqual(self.router.status()["continued"], 1)
        hung = []

        def hang():
            hung.append(self.serving())
            hung[0].signal(signal.SIGSTOP)

        self.assertEqual(self.by_choice(events_of(self.router, CHAT, self.LONG, 60, hang)), quiet)
        hung[0].signal(signal.SIGCONT)
        self.router.ready(2)
        self.assertEqual(self.router.status()["hedged"], 1)
        drained = []

        def drain():
            drained.append(self.serving())
            drained[0].signal(signal.SIGTERM)

        # So much that it cannot end before a router hears of the drain.
        longer = {**self.LONG, "n": 16, "logprobs": False}
        whole = self.by_choice(events_of(self.router, CHAT, longer))
        self.assertEqual(self.by_choice(events_of(self.router, CHAT, longer, 60, drain)), whole)
        self.assertEqual(drained[0].process.wait(PATIENCE), 0)
        self.router.ready(1)
        status = self.router.status()
        self.assertEqual((status["moved"], status["broken"], status["mismatches"], status["inexact"]), (1, 0, 0, 0))
        # The last one: nobody is left to go on with the answer, until somebody is.
        events = []
        thread = threading.Thread(target=lambda: events.extend(events_of(self.router, CHAT, self.LONG, 60, lambda: self.serving().process.kill())))
        port = self.serving_address()
        thread.start()
        wait_for(lambda: self.router.status()["replicas"] and not any(r["state"] == "ready" for r in self.router.status()["replicas"]), "all gone")
        self.assertEqual(self.router.call("POST", CHAT, {"model": "sql", "messages": QUESTION})[0], 503)
        self.assertEqual(self.router.call("GET", "/ready")[0], 503)
        again = Server("--port", port)
        self.addCleanup(self.end, again)
        thread.join(PATIENCE)
        self.assertEqual(self.by_choice(events), quiet)

    def serving_address(self):
        for shown in self.router.status()["replicas"]:
            if shown["state"] == "ready":
                return shown["url"].rsplit(":", 1)[1]
        raise AssertionError("nobody is ready")

    def test_whole_answers_and_lists(self):
        body = {"model": "sql", "messages": QUESTION, "temperature": 0, "max_tokens": 8}
        status, answer = self.router.json("POST", CHAT, body)
        self.assertEqual(status, 200)
        direct = self.replicas[0].post(CHAT, body).json
        self.assertEqual(answer["choices"], direct["choices"])
        self.assertEqual(self.router.json("POST", "/tokenize", {"model": "base", "prompt": "Once"})[0], 200)
        self.assertEqual(self.router.json("POST", "/v1/embeddings", {"model": "base", "input": "Once"})[0], 200)
        status, models = self.router.json("GET", "/v1/models")
        self.assertEqual([m["id"] for m in models["data"]], [m["id"] for m in self.replicas[0].get("/v1/models").json["data"]])
        self.assertEqual(self.router.json("GET", "/v1/models/sql")[0], 200)
        self.assertEqual(self.router.json("GET", "/v1/models/none")[0], 404)
        self.assertEqual(self.router.json("POST", CHAT, {**body, "model": "none"})[0], 404)
        for bad in ({"model": 7}, {"stream": True}, []):
            self.assertEqual(self.router.json("POST", CHAT, bad)[0], 400, bad)
        for stream in (False, True):
            forged = {"model": "sql", "messages": QUESTION, "stream": stream, "lorikeet_resume": {"id": "x"}}
            self.assertEqual(self.router.json("POST", CHAT, forged)[0], 403)
        self.assertEqual(self.router.json("GET", "/v1/status")[1]["object"], "fleet")
        self.assertIn(b"lorikeet_route_requests_total", self.router.call("GET", "/metrics")[1])
        for path in ("/health", "/live", "/ready", "/version"):
            self.assertEqual(self.router.call("GET", path)[0], 200)

    def test_changes_reach_everybody(self):
        self.assertEqual(self.router.json("DELETE", "/v1/adapters/tag")[0], 200)
        for replica in self.replicas:
            self.assertEqual(replica.get("/v1/models/tag").status, 404)
        self.assertEqual(self.router.json("DELETE", "/v1/adapters/tag")[0], 404)


class Door(Directory):
    """What a client sends costs a router nothing before it is let in."""

    def send(self, router, head: bytes) -> bytes:
        host, port = router.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(head)
            connection.settimeout(PATIENCE)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
            return received

    def test_pages_of_others_and_odd_targets(self):
        server = Server(adapters=("sql", "tag"))
        self.addCleanup(server.stop)
        router = Router(server.address)
        self.addCleanup(router.stop)
        router.ready(1)
        body = json.dumps({"lora_name": "tag"}).encode()
        for header in (b"Host: localhost\r\nOrigin: http://evil.example", b"Host: evil.example"):
            answer = self.send(router, b"POST /v1/unload_lora_adapter HTTP/1.1\r\n" + header + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            self.assertIn(b" 403 ", answer.split(b"\r\n")[0], answer)
        self.assertEqual(server.get("/v1/models/tag").status, 200)
        answer = self.send(router, b"POST http://127.0.0.1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        self.assertIn(b" 400 ", answer.split(b"\r\n")[0])
        answer = self.send(router, b"GET /v1/models/sql HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a b\x85\r\n\r\n")
        self.assertNotIn(b"a b", answer)
        router.stop()
        self.assertNotIn("replica_lost", "".join(router.lines))

    def test_bodies_without_a_key_are_not_read(self):
        state = self.path("state.db")

        def key(scope):
            return subprocess.run([BINARY, "keys", "create", "--state", state, "--tenant", "acme", "--scope", scope], capture_output=True, text=True,
                                  check=True).stdout.strip()

        infer, fleet = key("infer"), key("fleet")
        server = Server(state=state)
        self.addCleanup(server.stop)
        router = Router(server.address, environment={"LORIKEET_FLEET_KEY": fleet})
        self.addCleanup(router.stop)
        router.ready(1)
        answer = self.send(router, b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n")
        self.assertIn(b" 401 ", answer.split(b"\r\n")[0])
        # With one, whatever it is: an address holds no more than its share while others are there.
        host, port = router.address.rsplit(":", 1)
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer lk-x\r\nContent-Length: 8000000\r\n\r\n"
        connections = []
        self.addCleanup(lambda: [connection.close() for connection in connections])
        for _ in range(33):
            connections.append(socket.create_connection((host, int(port)), timeout=PATIENCE))
            connections[-1].sendall(head)
        wait_for(lambda: b" 503 " in self.send(router, head).split(b"\r\n")[0], "a refusal")
        for connection in connections:
            connection.close()
        wait_for(lambda: router.call("POST", "/tokenize", {"model": "base", "prompt": "x"}, key=infer)[0] == 200, "room again")


class Refusals(Directory):
    def test_command_line(self):
        def refused(*args, words):
            out = subprocess.run([BINARY, "route", "--port", "0", *args], capture_output=True, text=True, timeout=PATIENCE)
            self.assertNotEqual(out.returncode, 0)
            for word in words:
                self.assertIn(word, out.stderr)

        refused(words=("--replica",))
        refused("--replica", "localhost:8000", words=("http://HOST:PORT",))
        refused("--replica", "http://a/v1", words=("without a path",))
        refused("--replica", "http://a", "--replica", "http://a/", words=("named twice",))
        refused("--replica", "http://a", "--policy", "best", words=("cost",))
        refused("--replica", "http://a", "--host", "0.0.0.0", words=("--insecure",))

    def test_who_is_no_replica_and_who_needs_a_key(self):
        state = self.path("state.db")

        def key(scope):
            return subprocess.run([BINARY, "keys", "create", "--state", state, "--tenant", "acme", "--scope", scope], capture_output=True, text=True,
                                  check=True).stdout.strip()

        infer, fleet = key("infer"), key("fleet")
        server = Server(state=state)
        self.addCleanup(server.stop)
        router = Router(server.address)
        self.addCleanup(router.stop)
        wait_for(lambda: "fleet key" in router.status()["replicas"][0]["reason"], "the reason")
        status, error = router.json("POST", CHAT, {"model": "sql", "messages": QUESTION}, key=infer)
        self.assertEqual((status, error["error"]["code"]), (503, "no_replica"))
        keyed = Router(server.address, server.address.replace("127.0.0.1", "localhost"), environment={"LORIKEET_FLEET_KEY": fleet})
        self.addCleanup(keyed.stop)
        keyed.ready(1)
        wait_for(lambda: any("the same replica" in r["reason"] for r in keyed.status()["replicas"]), "one replica, two names")
        body = {"model": "sql", "messages": QUESTION, "max_tokens": 4}
        self.assertEqual(keyed.json("POST", CHAT, body, key=infer)[0], 200)
        self.assertEqual(keyed.json("POST", CHAT, body)[0], 401)
        for path in ("/v1/fleet/status", "/metrics"):
            for key, expected in ((None, 401), (infer, 401), (fleet, 200)):
                self.assertEqual(keyed.call("GET", path, key=key)[0], expected, path)
        self.assertEqual(keyed.call("POST", CHAT, {**body, "stream": True}, key=infer)[0], 200)
