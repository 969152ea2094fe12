# SPDX-License-Identifier: Apache-2.0
"""What a request costs before it is admitted belongs to its tenant: limits at the head, choices, the queue's shares, grammars, the drain."""
import json
import signal
import socket
import threading
import time
import unittest

from harness import Directory, PATIENCE, Server, ServerTest, wait_for

SLOW = {"model": "sql", "prompt": "x", "ignore_eos": True, "max_tokens": 400, "temperature": 0}


def costly(number: int) -> str:
    """A short pattern that takes as long to compile as anything may."""
    return f"(a|b)*a(a|b){{18}}c{number}"


class Choices(ServerTest):
    OPTIONS = ("--max-choices", "32", "--max-queue", "24")
    ADAPTERS = ("sql",)

    def test_of_one_request_are_bounded(self):
        body = {"model": "sql", "max_tokens": 1}
        for path, fields, param in (("/v1/completions", {"prompt": ["a"] * 3, "n": 11}, "n"), ("/v1/completions", {"prompt": ["a"] * 3, "n": 11, "best_of": 11}, "n"),
                                    ("/v1/completions", {"prompt": ["a"] * 33}, "prompt"), ("/v1/embeddings", {"input": ["a"] * 33}, "input")):
            self.refused(self.server.post(path, body | fields), 400, "at most 32 are allowed", param=param)
        # The queue's bound holds also when nothing else is there.
        for path, fields in (("/v1/completions", {"prompt": ["a"] * 5, "n": 5}), ("/v1/embeddings", {"input": ["a"] * 25})):
            self.refused(self.server.post(path, body | fields), 400, "25 answers", "24", code="request_too_large")
        self.assertEqual(len(self.good(self.server.post("/v1/completions", body | {"prompt": ["a"] * 6, "n": 4, "temperature": 1}))["choices"]), 24)
        self.assertEqual(len(self.good(self.server.post("/v1/embeddings", {"model": "sql", "input": ["a"] * 24}))["data"]), 24)
        self.assertEqual(self.server.status()["requests"]["queued_tokens"], 0)


class Admission(Directory):
    refused = ServerTest.refused

    def key(self, tenant: str, *limits: str, scope: str = "infer") -> str:
        if limits:
            self.keys("tenant", "set", tenant, *limits)
        return self.keys("create", "--tenant", tenant, "--scope", scope)

    def serve(self, *args: str, **kwargs) -> Server:
        return self.start(*args, state=self.path("state.db"), adapters=("sql",), **kwargs)

    def head(self, server: Server, path: str, key: str, length: int, headers: str = "") -> socket.socket:
        """A connection that sent the head of a request and nothing of its body."""
        host, port = server.address.rsplit(":", 1)
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        framing = f"content-length: {length}\r\n" if length >= 0 else "transfer-encoding: chunked\r\n"
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n{framing}{headers}\r\n".encode())
        return connection

    def ask_costly(self, server: Server, key: str, number: int) -> socket.socket:
        body = json.dumps({"model": "sql", "prompt": "x", "max_tokens": 1, "guided_regex": costly(number)}).encode()
        connection = self.head(server, "/v1/completions", key, len(body))
        connection.sendall(body)
        return connection

    def in_flight(self, server: Server, key: str, tenant: str) -> int:
        return sum(t["in_flight"] for t in server.get("/v1/status", key=key).json["tenants"] if t["name"] == tenant)

    def test_choices_count_against_requests_in_flight(self):
        key = self.key("acme", "--max-in-flight", "4")
        server = self.serve()
        for body in ({"n": 5}, {"prompt": ["a"] * 3, "n": 2}):
            self.refused(server.post("/v1/completions", SLOW | body, key=key), 400, "at most 4", code="too_many_choices")
        self.refused(server.post("/v1/embeddings", {"model": "sql", "input": ["a"] * 5}, key=key), 400, "at most 4", code="too_many_choices")
        with server.open_stream("/v1/completions", SLOW | {"n": 3}, key=key) as stream:
            stream.next()
            self.refused(server.complete(key=key, model="sql", n=2, max_tokens=1), 429, "3 of 4", code="rate_limit_exceeded")
            self.assertEqual(server.complete(key=key, model="sql", max_tokens=1).status, 200)
        server.stop(0)

    def test_limits_hold_from_the_head_on(self):
        key, admin, poor = self.key("acme", "--max-in-flight", "1"), self.key("root", scope="admin"), self.key("poor", "--tokens-per-minute", "60")
        server = self.serve()
        waiting = self.head(server, "/v1/completions", key, 100)
        wait_for(lambda: self.in_flight(server, admin, "acme") == 1, "the head")
        # Every route that costs something, before its body is read: the answer comes although no body does.
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"):
            with self.head(server, path, key, 5_000_000) as connection:
                self.assertIn(b" 429 ", connection.recv(4096), path)
            self.refused(server.post(path, {}, key=key), 429, "1 of 1", code="rate_limit_exceeded")
        waiting.close()
        wait_for(lambda: server.post("/tokenize", {"prompt": "x"}, key=key).status == 200, "the place of a client that left")
        # A tenant without a token left.
        self.assertEqual(server.complete(key=poor, model="sql", max_tokens=100, ignore_eos=True).status, 200)
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"):
            with self.head(server, path, poor, 5_000_000) as connection:
                self.assertIn(b" 429 ", connection.recv(4096), path)
        self.assertEqual(server.get("/v1/models", key=poor).status, 200)
        server.stop(0)

    def test_bodies_are_bounded_in_all_and_a_light_tenant_gets_its_share(self):
        flood, light = self.key("flood"), self.key("light")
        server = self.serve("--max-body", "8MiB")
        held = [self.head(server, "/tokenize", flood, 8 << 20) for _ in range(8)]  # all that is ever held, announced
        for connection in held:
            connection.sendall(b"{")
        admin = self.key("root", scope="admin")
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.get("/v1/status", key=admin).status == 200 and self.in_flight(server, admin, "flood") == 8, "the heads")
        with self.head(server, "/tokenize", flood, 1000) as connection:
            self.assertIn(b" 503 ", connection.recv(4096))
        with self.head(server, "/tokenize", flood, -1) as connection:  # of unknown length: as it comes
            connection.sendall(b"5\r\nhello\r\n")
            self.assertIn(b" 503 ", connection.recv(4096))
        self.assertEqual(server.post("/tokenize", {"prompt": "x" * (1 << 20)}, key=light).status, 200)
        for connection in held:
            connection.close()
        wait_for(lambda: server.post("/tokenize", {"prompt": "x" * (1 << 20)}, key=flood).status == 200, "what was held is free")
        answer = server.post("/v1/adapters", b'{"name": "' + b"x" * (1 << 20) + b'"}', key=admin)
        self.refused(answer, 413, "65536")  # such requests are small
        server.stop(0)

    def test_a_light_tenant_beside_a_flood_is_never_refused(self):
        flood, light = self.key("flood"), self.key("light", "--weight", "100")
        server = self.serve("--max-queue", "16", "--max-running", "2", "--max-wait", "3600")
        ending, statuses = threading.Event(), []

        def one():
            while not ending.is_set():
                statuses.append(server.complete(key=flood, **{**SLOW, "max_tokens": 60}).status)

        threads = [threading.Thread(target=one) for _ in range(24)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: 503 in statuses, "a full queue")
            answers = [server.complete(key=light, model="sql", max_tokens=4, n=3, temperature=1) for _ in range(10)]
            self.assertEqual([a.status for a in answers], [200] * 10, answers)
        finally:
            ending.set()
            for thread in threads:
                thread.join(PATIENCE)
        self.assertEqual(set(statuses), {200, 503})
        server.stop(0)

    def test_costly_patterns_hold_up_nobody(self):
        greedy, other, admin = self.key("greedy"), self.key("other"), self.key("root", scope="admin")
        server = self.serve()
        self.assertEqual(server.complete(key=other, model="sql", max_tokens=1).status, 200)
        connections = [self.ask_costly(server, greedy, number) for number in range(4)]
        wait_for(lambda: self.in_flight(server, admin, "greedy") == 4, "all of them")
        # Others, with small patterns or none, while all these wait or are compiled.
        self.assertEqual(server.complete(key=other, model="sql", max_tokens=1).status, 200)
        self.assertEqual(server.complete(key=other, model="sql", max_tokens=4, guided_regex="[0-9]+").status, 200)
        self.assertGreaterEqual(self.in_flight(server, admin, "greedy"), 2, "the others had to wait for them")
        for connection in connections[1:]:
            connection.close()
        answer = connections[0].recv(65536)
        self.assertIn(b" 400 ", answer)
        self.assertIn(b"too large", answer)
        connections[0].close()
        self.refused(server.complete(key=other, model="sql", max_tokens=1, guided_regex=costly(0)), 400, "too large", param="guided_regex")  # is known to fail
        server.stop(0)

    def test_work_of_clients_that_left_is_dropped(self):
        key, admin = self.key("acme"), self.key("root", scope="admin")
        server = self.serve()
        connections = [self.ask_costly(server, key, number) for number in range(30)]
        wait_for(lambda: self.in_flight(server, admin, "acme") == 30, "all of them")
        for connection in connections:
            connection.close()
        # One is being compiled; all others are gone with their clients.
        wait_for(lambda: self.in_flight(server, admin, "acme") <= 1, "the places of clients that left", 10)
        server.stop(0)

    def test_the_drain_does_not_wait_for_work_that_waits(self):
        key = self.key("acme")
        server = self.serve("--drain-timeout", "1")
        answers = []
        threads = [threading.Thread(target=lambda n=n: answers.append(server.complete(key=key, model="sql", max_tokens=1, guided_regex=costly(n)))) for n in range(20)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server.stop(0)
        for thread in threads:
            thread.join(PATIENCE)
        self.assertIn(503, {answer.status for answer in answers})  # nobody compiled them all: that would take 40 s


if __name__ == "__main__":
    unittest.main()
