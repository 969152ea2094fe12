# SPDX-License-Identifier: Apache-2.0
"""The router's door: keys, tenants and limits that hold for the fleet, and every route of the API through it."""
import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess

from fleet_test import CHAT, QUESTION, Router
from harness import BINARY, PATIENCE, Directory, Server, ServerTest, wait_for

TEXT = "/v1/completions"


class Behind(Directory):
    """Replicas that know one key, the fleet's; tenants and their keys are the router's."""

    def setUp(self):
        super().setUp()
        self.fleet = self.make("replica.db", "keys", "create", "--tenant", "ops", "--scope", "fleet")
        self.replicas = [self.start(state=self.copy_state(i)) for i in range(2)]
        self.make("router.db", "keys", "tenant", "set", "acme", "--max-in-flight", "4", "--adapters", "sql,base", "--weight", "3")
        self.infer = self.make("router.db", "keys", "create", "--tenant", "acme", "--scope", "infer")
        self.other = self.make("router.db", "keys", "create", "--tenant", "other", "--scope", "infer")
        self.admin = self.make("router.db", "keys", "create", "--tenant", "ops", "--scope", "admin")

    def make(self, state, *args):
        done = subprocess.run([BINARY, *args, "--state", self.path(state)], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def copy_state(self, number):
        """As each machine has it."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(self.path("replica.db") + suffix, self.path(f"replica{number}.db") + suffix)
        return self.path(f"replica{number}.db")

    def route(self, *options):
        router = Router(*(replica.address for replica in self.replicas), options=("--state", self.path("router.db"), *options),
                        environment={"LORIKEET_FLEET_KEY": self.fleet})
        self.addCleanup(router.stop)
        router.ready(len(self.replicas))
        return router

    def requests_seen(self):
        return [event for replica in self.replicas for name in ("request", "refused") for event in replica.events(name) if event["route"] != "/v1/fleet/state"]

    @contextlib.contextmanager
    def heads(self, router, count):
        """Requests of acme whose body does not come."""
        host, port = router.address.rsplit(":", 1)
        head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.infer}\r\nContent-Length: 100\r\n\r\n".encode()
        connections = []
        try:
            for _ in range(count):
                connections.append(socket.create_connection((host, int(port)), timeout=PATIENCE))
                connections[-1].sendall(head)
            yield connections
        finally:
            for connection in connections:
                connection.close()

    def in_flight(self, router):
        found = re.search(r'lorikeet_route_tenant_in_flight{tenant="acme"} (\d+)', router.call("GET", "/metrics", key=self.fleet)[1].decode())
        return int(found[1]) if found else 0


class Keys(Behind):
    BODY = {"model": "sql", "messages": QUESTION, "max_tokens": 4, "temperature": 0}

    def test_keys_are_judged_before_a_replica_hears_of_them(self):
        router = self.route()
        for key in (None, "lk-wrong", "sk-something-else", self.infer[:-1] + ("y" if self.infer[-1] == "x" else "x"), self.fleet):
            status, error = router.json("POST", CHAT, self.BODY, key=key)
            self.assertEqual((status, error["error"]["code"]), (401, "invalid_api_key"), key)
        self.assertEqual(self.requests_seen(), [])
        for stream in (False, True):
            self.assertEqual(router.call("POST", CHAT, {**self.BODY, "stream": stream}, key=self.infer)[0], 200)
        seen = wait_for(lambda: len(self.requests_seen()) == 2 and self.requests_seen(), "two requests")
        for event in seen:
            self.assertEqual((event["tenant"], event["key"]), ("acme", self.infer.split("-")[1]), "replicas know whose they are")
        # Its adapters are the tenant's.
        self.assertEqual(router.call("POST", CHAT, {**self.BODY, "model": "tag"}, key=self.infer)[0], 404)
        self.assertEqual(router.call("POST", CHAT, {**self.BODY, "model": "tag"}, key=self.other)[0], 200)
        models = [m["id"] for m in router.json("GET", "/v1/models", key=self.infer)[1]["data"]]
        self.assertEqual(models, ["model", "sql"])
        self.assertEqual(router.call("GET", "/v1/status", key=self.infer)[0], 403)
        self.assertEqual(router.json("GET", "/v1/status", key=self.admin)[1]["object"], "fleet")
        # What was used is summed over replicas.
        usage = router.json("GET", "/v1/usage", key=self.admin)[1]["data"]
        self.assertEqual({e["tenant"]: e["requests"] for e in usage}, {"acme": 2, "other": 1})
        own = router.json("GET", "/v1/usage", key=self.infer)[1]["data"]
        self.assertEqual([(e["requests"], e["output_tokens"]) for e in own], [(2, 8)])

    def test_what_clients_forge_goes_no_further(self):
        router = self.route()
        principal = json.dumps({"tenant": "other", "key": "x", "scopes": 31, "salt": "1", "adapters": []})
        forged = {"x-lorikeet-principal": principal, "x-lorikeet-fleet": self.fleet, "x-lorikeet-goes-on": "1", "x-forwarded-for": "1.2.3.4", "Content-Type": "application/json",
                  "Authorization": f"Bearer {self.infer}"}
        with contextlib.closing(http.client.HTTPConnection(router.address, timeout=PATIENCE)) as connection:
            connection.request("POST", CHAT, json.dumps(self.BODY), forged)
            response = connection.getresponse()
            self.assertEqual(response.status, 200, response.read())
            self.assertFalse([name for name, _ in response.getheaders() if name.lower().startswith("x-lorikeet-")])
        seen = wait_for(self.requests_seen, "the request")
        self.assertEqual([event["tenant"] for event in seen], ["acme"])
        for stream in (False, True):
            status, error = router.json("POST", CHAT, {**self.BODY, "stream": stream, "lorikeet_resume": {"id": "a", "created": 1, "seed": 1, "choices": []}}, key=self.infer)
            self.assertEqual((status, error["error"]["param"]), (403, "lorikeet_resume"))
        # At a replica itself nobody is anybody without the fleet's key.
        replica = self.replicas[0]
        for more in ({}, {"x-lorikeet-fleet": "lk-wrong"}, {"x-lorikeet-fleet": self.infer}):
            answer = replica.post(CHAT, self.BODY, headers={"x-lorikeet-principal": principal, **more})
            self.assertEqual((answer.status, answer.json["error"]["code"]), (403, "insufficient_scope"), more)
        known = {"x-lorikeet-principal": principal, "x-lorikeet-fleet": self.fleet}
        self.assertEqual(replica.post(CHAT, self.BODY, headers=known).status, 200)
        self.assertEqual(replica.get("/v1/keys", headers=known).status, 403, "keys are made where they are judged")
        self.assertEqual(replica.post(CHAT, self.BODY, headers={**known, "x-lorikeet-principal": "{}"}).status, 403)

    def test_keys_and_tenants_are_the_routers(self):
        router = self.route()
        status, made = router.json("POST", "/v1/keys", {"tenant": "other", "scopes": ["infer"]}, key=self.admin)
        self.assertEqual(status, 201)
        self.assertEqual(router.call("POST", CHAT, self.BODY, key=made["key"])[0], 200, "at once")
        self.assertEqual(router.json("GET", f"/v1/keys/{made['id']}", key=self.admin)[1]["state"], "usable")
        self.assertEqual(router.json("DELETE", f"/v1/keys/{made['id']}", key=self.admin), (200, {"id": made["id"], "object": "api_key", "deleted": True}))
        self.assertEqual(router.call("POST", CHAT, self.BODY, key=made["key"])[0], 401)
        self.assertEqual(router.json("PATCH", "/v1/tenants/other", {"max_in_flight": 7}, key=self.admin)[1]["max_in_flight"], 7)
        self.assertEqual(router.json("POST", "/v1/tenants", {"name": "other"}, key=self.admin)[0], 409)
        self.assertEqual({t["name"] for t in router.json("GET", "/v1/tenants", key=self.admin)[1]["data"]}, {"acme", "other", "ops"})
        self.assertEqual(router.call("POST", "/v1/keys", {"tenant": "other"}, key=self.admin)[0], 400)
        # Another process changes them, too.
        self.make("router.db", "keys", "revoke", self.other.split("-")[1])
        wait_for(lambda: router.call("POST", CHAT, self.BODY, key=self.other)[0] == 401, "the revoked key")

    def test_limits_hold_for_the_fleet(self):
        router = self.route()
        with self.heads(router, 4):
            wait_for(lambda: self.in_flight(router) == 4, "four in flight")
            status, error = router.json("POST", CHAT, self.BODY, key=self.infer)
            self.assertEqual((status, error["error"]["code"]), (429, "rate_limit_exceeded"))
            self.assertEqual(router.call("POST", CHAT, self.BODY, key=self.other)[0], 200)
        wait_for(lambda: self.in_flight(router) == 0, "none in flight")
        self.assertEqual(router.call("POST", TEXT, {"model": "sql", "prompt": ["a"] * 5, "max_tokens": 1}, key=self.infer)[0], 400, "five answers at once")
        seen = wait_for(self.requests_seen, "the request of the other")
        self.assertEqual({event["tenant"] for event in seen}, {"other"}, "no replica heard of them")
        # What answers really took is charged: streamed and whole.
        self.make("router.db", "keys", "tenant", "set", "other", "--tokens-per-minute", "100000")
        wait_for(lambda: router.json("GET", "/v1/tenants/other", key=self.admin)[1]["tokens_per_minute"], "the limit")
        used = 0
        for stream in (False, True):
            status, data = router.call("POST", TEXT, {"model": "sql", "prompt": "Once", "max_tokens": 5, "ignore_eos": True, "n": 2, "stream": stream, "temperature": 0,
                                                      **({"stream_options": {"include_usage": True}} if stream else {})}, key=self.other)
            self.assertEqual(status, 200)
            usage = json.loads(data)["usage"] if not stream else json.loads([e for e in data.decode().split("\n\n") if '"usage":{' in e][-1][6:])["usage"]
            used += usage["completion_tokens"] + 2 * usage["prompt_tokens"]  # the prompt is computed for each choice
        charged = lambda: int(re.search(r'tokens_total{tenant="other"} (\d+)', router.call("GET", "/metrics", key=self.fleet)[1].decode())[1])  # noqa: E731
        first = charged()
        self.assertGreaterEqual(first, used)

    def test_two_routers_share_what_a_tenant_may_have(self):
        routers = [self.route() for _ in range(2)]
        for router in routers:
            wait_for(lambda router=router: router.status()["routers"] == 2, "the other router")
        with self.heads(routers[0], 2):
            wait_for(lambda: self.in_flight(routers[0]) == 2, "two in flight")
            self.assertEqual(routers[0].call("POST", CHAT, self.BODY, key=self.infer)[0], 429)
            self.assertEqual(routers[1].call("POST", CHAT, self.BODY, key=self.infer)[0], 200)
            with self.heads(routers[1], 2):
                wait_for(lambda: self.in_flight(routers[1]) == 2, "two more in flight")
                self.assertEqual(routers[1].call("POST", CHAT, self.BODY, key=self.infer)[0], 429)
                routers[0].process.kill()
                wait_for(lambda: routers[1].status()["routers"] == 1, "the other one's end")
                self.assertEqual(routers[1].call("POST", CHAT, self.BODY, key=self.infer)[0], 200, "all of it is here now")


class Waiting(Directory):
    def test_streams_that_wait_get_comments(self):
        server = self.start("--sse-ping", "0.3", "--max-running", "1", adapters=())
        router = Router(server.address)
        self.addCleanup(router.stop)
        router.ready(1)
        with server.kept_busy({"model": "base", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "n": 16}):
            connection = http.client.HTTPConnection(router.address, timeout=PATIENCE)
            self.addCleanup(connection.close)
            connection.request("POST", TEXT, json.dumps({"model": "base", "prompt": "x", "max_tokens": 3, "ignore_eos": True, "stream": True}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            self.assertEqual((response.readline(), response.readline()), (b": ping\n", b"\n"), "before anything was computed for it")
        lines = [line for line in response.read().decode().split("\n") if line]
        self.assertEqual(lines[-1], "data: [DONE]")
        self.assertEqual({line for line in lines if not line.startswith("data: ")} - {": ping"}, set())
        self.assertTrue(any('"finish_reason":"length"' in line for line in lines), lines)


class Command(Directory):
    def test_what_it_is_told_to_judge_by_must_be_there(self):
        out = subprocess.run([BINARY, "route", "--replica", "http://127.0.0.1:1", "--port", "0", "--state", self.path("none.db")], capture_output=True, text=True,
                             timeout=PATIENCE)
        self.assertEqual(out.returncode, 1)
        self.assertIn("no such file", out.stderr)

    def test_plain_key_in_front_of_replicas_without_keys(self):
        server = self.start(adapters=("sql",))
        router = Router(server.address, options=("--host", "0.0.0.0"), environment={"LORIKEET_API_KEY": "a-key-of-my-own-1234"})
        self.addCleanup(router.stop)
        router.address = router.address.replace("0.0.0.0", "127.0.0.1")
        wait_for(lambda: router.call("GET", "/ready")[0] == 200, "ready")
        body = {"model": "sql", "messages": QUESTION, "max_tokens": 2}
        self.assertEqual(router.call("POST", CHAT, body)[0], 401)
        self.assertEqual(router.call("POST", CHAT, body, key="a-key-of-my-own-1235")[0], 401)
        self.assertEqual(router.call("POST", CHAT, body, key="a-key-of-my-own-1234")[0], 200)
        self.assertEqual(wait_for(lambda: server.event("request"), "the request")["tenant"], "default")
        self.assertEqual(router.json("GET", "/v1/keys", key="a-key-of-my-own-1234")[0], 403)


class EveryRoute(ServerTest):
    """What the server's own description lists is answered through a router as by the server."""
    ADAPTERS = ("sql", "tag")
    BODIES = {
        "/v1/chat/completions": {"model": "sql", "messages": QUESTION, "max_tokens": 3},
        "/v1/completions": {"model": "tag", "prompt": "Once", "max_tokens": 3},
        "/v1/embeddings": {"model": "base", "input": "Once"},
        "/tokenize": {"model": "base", "prompt": "Once"},
        "/detokenize": {"model": "base", "tokens": [5, 6]},
    }
    OWN = {"/v1/status": "fleet", "/metrics": "lorikeet_route_", "/v1/fleet/state": None, "/v1/fleet/prefetch/{adapter}": None, "/live": '"live"'}

    def test_every_route(self):
        router = Router(self.server.address)
        self.addCleanup(router.stop)
        router.ready(1)
        paths = self.server.get("/openapi.json").json["paths"]
        self.assertEqual(router.json("GET", "/openapi.json")[1]["paths"], paths)
        self.assertGreater(len(paths), 20)
        for path, methods in paths.items():
            for method in methods:
                method = method.upper()
                real = path.replace("{id}", "sql").replace("{name}", "sql")
                body = self.BODIES.get(path, {}) if method in ("POST", "PATCH") else None
                with self.subTest(f"{method} {path}"):
                    if method == "DELETE":
                        real = real.replace("sql", "none")
                    if path in self.OWN:
                        status, data = router.call(method, real)
                        self.assertEqual(status, 200 if self.OWN[path] else 404, data)
                        self.assertIn(self.OWN[path] or "no such endpoint", data.decode())
                        continue
                    status, data = router.call(method, real, body)
                    answer = self.server.call(method, real, body)
                    self.assertEqual(status, answer.status, (data, answer))
                    if answer.headers.get("content-type", "").startswith("application/json"):
                        ours, theirs = json.loads(data), answer.json
                        self.assertEqual(set(ours), set(theirs))
                        if status >= 400:
                            self.assertEqual({key: ours["error"].get(key) for key in ("type", "code")}, {key: theirs["error"].get(key) for key in ("type", "code")})
        self.assertEqual(router.call("GET", "/")[1], self.server.get("/").body)
        self.assertEqual(router.call("GET", "/console/console.js")[0], 200)
        for path in ("/healthz", "/ping", "/readyz", "/livez"):
            self.assertEqual(router.call("GET", path)[0], 200)
        self.assertEqual(router.call("DELETE", "/v1/models")[0], 405)
        self.assertEqual(router.call("GET", "/v1/nothing")[0], 404)

    def test_lists_say_where_adapters_are(self):
        other = Server(adapters=("sql",))
        self.addCleanup(other.stop)
        router = Router(self.server.address, other.address)
        self.addCleanup(router.stop)
        router.ready(2)
        adapters = router.json("GET", "/v1/adapters")[1]["data"]
        self.assertEqual([a["name"] for a in adapters], ["sql", "tag"])
        self.assertEqual([len(a["replicas"]) for a in adapters], [2, 1])
        self.assertEqual(adapters[1]["replicas"][0]["url"], f"http://{self.server.address}")
        self.assertEqual(router.json("GET", "/v1/adapters/tag")[0], 200, "whoever has it")
        self.assertEqual(router.json("GET", "/v1/models/tag")[0], 200)
        self.assertEqual(router.json("GET", "/v1/models/none")[0], 404)
        page = router.json("GET", "/v1/adapters?limit=1")[1]
        self.assertEqual((len(page["data"]), page["has_more"]), (1, True))

    def test_answers_name_their_request(self):
        router = Router(self.server.address)
        self.addCleanup(router.stop)
        router.ready(1)
        body = self.BODIES[CHAT]
        for method, path, sent in (("POST", CHAT, body), ("POST", CHAT, {**body, "stream": True}), ("POST", CHAT, {**body, "model": "none"}), ("GET", "/v1/models", None),
                                   ("GET", "/v1/adapters/none", None)):
            with contextlib.closing(http.client.HTTPConnection(router.address, timeout=PATIENCE)) as connection:
                connection.request(method, path, None if sent is None else json.dumps(sent), {"Content-Type": "application/json", "X-Request-Id": "my-own"})
                response = connection.getresponse()
                response.read()
                self.assertEqual(response.headers.get_all("x-request-id"), ["my-own"], (path, sent))

    def test_a_page_of_the_routers_own_is_welcome(self):
        router = Router(self.server.address)
        self.addCleanup(router.stop)
        router.ready(1)
        with contextlib.closing(http.client.HTTPConnection(router.address, timeout=PATIENCE)) as connection:
            connection.request("POST", CHAT, json.dumps(self.BODIES[CHAT]), {"Content-Type": "application/json", "Origin": f"http://{router.address}"})
            self.assertEqual(connection.getresponse().status, 200)
