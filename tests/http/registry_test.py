# SPDX-License-Identifier: Apache-2.0
"""A fleet whose members find each other in etcd. Skipped where etcd is not installed."""
import base64
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from etcd import PROGRAM, Etcd
from fleet_test import CHAT, QUESTION, Router
from harness import BINARY, PATIENCE, Directory, Server, wait_for

needs_etcd = unittest.skipUnless(PROGRAM, "etcd is not installed (apt-get install etcd-server)")
BODY = {"messages": QUESTION, "temperature": 0, "max_tokens": 6}


class Fleet(Directory):
    def setUp(self):
        super().setUp()
        self.etcd = Etcd()
        self.addCleanup(self.etcd.stop)

    def replica(self, *options, **arguments):
        server = Server("--fleet", self.etcd.url(), "--fleet-dir", tempfile.mkdtemp(dir=self.dir), *options, **arguments)
        self.addCleanup(self.end, server)
        return server

    @staticmethod
    def end(server):
        if server.process.poll() is None:
            server.signal(signal.SIGCONT)
            server.process.kill()
        server.process.wait(PATIENCE)
        server.stop()

    def router(self, *options):
        router = Router(options=("--fleet", self.etcd.url(), *options))
        self.addCleanup(router.stop)
        return router

    @staticmethod
    def urls(router):
        return sorted(replica["url"] for replica in router.status()["replicas"])


@needs_etcd
class Members(Fleet):
    def test_they_come_stay_and_go(self):
        router = self.router()
        self.assertEqual(router.status()["replicas"], [])
        self.assertEqual(router.json("POST", CHAT, {"model": "base", **BODY})[1]["error"]["code"], "no_replica")
        one, two = self.replica(), self.replica()
        router.ready(2)
        # Nobody is removed because the registry is away, and everything is answered.
        self.etcd.signal(signal.SIGSTOP)
        wait_for(lambda: one.events("registry"), "a line about the registry")
        self.assertEqual(router.json("POST", CHAT, {"model": "sql", **BODY})[0], 200)
        self.etcd.kill()
        two.process.kill()
        two.process.wait(PATIENCE)
        wait_for(lambda: {replica["state"] for replica in router.status()["replicas"]} == {"ready", "gone"}, "one gone")
        self.assertEqual(router.json("POST", CHAT, {"model": "sql", **BODY})[0], 200)
        three = self.replica()  # starts without it, too
        self.assertEqual(three.post(CHAT, {"model": "sql", **BODY}).status, 200)
        self.assertEqual(len(router.status()["replicas"]), 2)
        self.etcd.start()
        # Now it says that the second is no member any more, which does not answer either; and that there is a third.
        wait_for(lambda: self.urls(router) == sorted(f"http://{replica.address}" for replica in (one, three)), "one left, one came")
        router.ready(2)
        # Who leaves by itself is gone from the registry at once.
        three.signal(signal.SIGTERM)
        three.process.wait(PATIENCE)
        wait_for(lambda: self.urls(router) == [f"http://{one.address}"], "it left")
        self.assertEqual(router.json("POST", CHAT, {"model": "sql", **BODY})[0], 200)

    def test_one_that_answers_stays_without_its_entry(self):
        replica = self.replica()
        router = self.router()
        router.ready(1)
        self.etcd.kill()
        self.etcd.directory, _ = tempfile.mkdtemp(), self.etcd.directory  # all its data is lost
        self.addCleanup(self.etcd.stop)
        self.etcd.start()
        wait_for(self.etcd.healthy, "etcd")
        # It registers again before its place was ever missed.
        for _ in range(20):
            self.assertEqual(router.json("POST", CHAT, {"model": "sql", **BODY})[0], 200)
        other = self.router()
        other.ready(1)

    def test_static_replicas_beside_it(self):
        outside = Server()
        self.addCleanup(self.end, outside)
        router = self.router("--replica", f"http://{outside.address}")
        router.ready(1)
        self.replica()
        router.ready(2)

    def test_strange_values_are_ignored_once(self):
        for name, value in (("x", "nothing"), ("y", json.dumps({"form": 9, "id": "y"})), ("z", json.dumps({"form": 1, "id": "z", "url": "http://a/path"}))):
            self.etcd.put(f"/lorikeet/test/members/{name}", value)
        router = self.router()
        self.replica()
        router.ready(1)
        self.assertEqual(len(router.status()["replicas"]), 1)
        wait_for(lambda: sum("member_ignored" in line for line in router.lines) == 3, "three lines")

    def test_refusals(self):
        def refused(*arguments, words):
            out = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=PATIENCE)
            self.assertNotEqual(out.returncode, 0)
            self.assertIn(words, out.stderr)

        serve = ("serve", "examples/demo/model", "--no-state", "--check-config", "--fleet-dir", self.path("fleet"))
        refused("route", "--fleet", "etcd://127.0.0.1", words="names no fleet")
        refused("route", "--fleet", "consul://127.0.0.1/a", words="etcd://HOST:PORT")
        refused(*serve, "--fleet", self.etcd.url(), "--host", "0.0.0.0", "--insecure", words="--advertise")
        refused(*serve, "--fleet", self.etcd.url(), "--advertise", "http://a/b", words="HOST:PORT")
        refused(*serve, "--advertise", "http://a:1", words="--fleet")
        refused(*serve, "--fleet", self.etcd.url(), "--fleet-id", "../x", words="--fleet-id")


@needs_etcd
class Keys(Fleet):
    """Tenants and keys of the fleet's registry."""

    def keys(self, *arguments) -> str:
        out = subprocess.run([BINARY, "keys", *arguments, "--fleet", self.etcd.url()], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(out.returncode, 0, out.stderr)
        return out.stdout.strip()

    def replica(self, name: str, key: str):
        return super().replica("--fleet-keys", self.path(name), environment={"LORIKEET_FLEET_KEY": key})

    def router(self, name: str, key: str):
        router = Router(options=("--fleet", self.etcd.url(), "--fleet-keys", self.path(name)), environment={"LORIKEET_FLEET_KEY": key})
        self.addCleanup(router.stop)
        return router

    def test_a_key_made_anywhere_works_everywhere_until_it_is_revoked(self):
        fleet, admin = self.keys("create", "--tenant", "ops", "--scope", "fleet"), self.keys("create", "--tenant", "ops", "--scope", "admin")
        one, two = self.replica("one.json", fleet), self.replica("two.json", fleet)
        router = self.router("router.json", fleet)
        router.ready(2)

        def status(at, key):
            return router.json("POST", CHAT, {"model": "base", **BODY}, key=key)[0] if at is router else at.post(CHAT, {"model": "base", **BODY}, key=key).status

        everywhere = [one, two, router]
        self.assertEqual([status(at, None) for at in everywhere], [401] * 3)
        self.assertEqual([status(at, "lk-abcdefghijkl-" + "x" * 43) for at in everywhere], [401] * 3)
        # Made at each kind of place, the tenant with it.
        self.assertEqual(one.post("/v1/tenants", {"name": "acme", "max_in_flight": 7}, key=admin).status, 201)
        wait_for(lambda: "acme" in json.dumps(router.json("GET", "/v1/tenants", key=admin)[1]), "the tenant at the router")
        made = [one.post("/v1/keys", {"tenant": "acme", "scopes": ["infer"]}, key=admin).json["key"],
                router.json("POST", "/v1/keys", {"tenant": "acme", "scopes": ["infer"]}, key=admin)[1]["key"], self.keys("create", "--tenant", "acme", "--scope", "infer")]
        for key in made:
            for at in everywhere:
                wait_for(lambda at=at, key=key: status(at, key) == 200, "a key that is known")
        self.assertEqual(len(json.loads(self.keys("list", "--json"))), 5)
        # No secret is anywhere but with its owner.
        stored = json.dumps(self.etcd.call("/v3/kv/range", {"key": "AA==", "range_end": "AA=="}))
        texts = [base64.b64decode(pair["value"]).decode() for pair in json.loads(stored)["kvs"]] + [pathlib.Path(self.path(name)).read_text() for name in ("one.json", "router.json")]
        for key in (*made, fleet, admin):
            self.assertFalse([text for text in texts if key.split("-")[2] in text])
        self.assertEqual(os.stat(self.path("one.json")).st_mode & 0o777, 0o600)
        # Revoked at a replica, by hand, and at the router.
        self.assertEqual(two.call("DELETE", f"/v1/keys/{made[0].split('-')[1]}", key=admin).status, 200)
        self.keys("revoke", made[1])
        for key in made[:2]:
            for at in everywhere:
                wait_for(lambda at=at, key=key: status(at, key) == 401, "a key that is revoked")
        # Without the registry what was known holds, and nothing changes.
        self.etcd.kill()
        self.assertEqual([status(at, made[2]) for at in everywhere], [200] * 3)
        self.assertEqual([status(at, made[0]) for at in everywhere], [401] * 3)
        self.assertEqual(one.post("/v1/keys", {"tenant": "acme", "scopes": ["infer"]}, key=admin).status, 503)
        self.assertEqual(router.json("DELETE", f"/v1/keys/{made[2].split('-')[1]}", key=admin)[0], 503)
        one.signal(signal.SIGTERM)
        one.process.wait(PATIENCE)
        again = self.replica("one.json", fleet)
        self.assertEqual([status(again, key) for key in made], [401, 401, 200])
        # A server that never saw it lets nobody in, and knows all when it is back.
        fresh = self.replica("fresh.json", fleet)
        self.assertEqual(status(fresh, made[2]), 401)
        self.etcd.start()
        wait_for(lambda: status(fresh, made[2]) == 200, "the keys")


@needs_etcd
class Plans(Fleet):
    """The planner at a live router: three replicas, two of which were away while everything came to the first."""

    def test_moves_and_homes(self):
        body = {"messages": QUESTION, "temperature": 0, "max_tokens": 300, "ignore_eos": True}
        alone = Server()
        self.addCleanup(self.end, alone)
        models = ["sql", "json", "tag", "base"]
        quiet = {model: alone.post(CHAT, {"model": model, **body}).json["choices"][0]["message"]["content"] for model in models}
        replicas = [self.replica("--max-running", "2") for _ in range(3)]
        router = self.router("--planner", "greedy")
        router.ready(3)
        texts, failures = [], []

        def client(i: int):
            model = models[i % len(models)]
            try:
                with contextlib.closing(http.client.HTTPConnection(router.address, timeout=PATIENCE)) as connection:
                    connection.request("POST", CHAT, json.dumps({"model": model, "stream": True, **body}), {"Content-Type": "application/json"})
                    events = connection.getresponse().read().decode().split("\n\n")
                assert events[-2] == "data: [DONE]", events[-2:]
                texts.append((model, "".join(json.loads(event[6:])["choices"][0]["delta"].get("content") or "" for event in events[:-2] if event.startswith("data: {"))))
            except Exception as failure:  # noqa: BLE001: told by the test
                failures.append(failure)

        sent = 0
        for count in (24, 100, 400, 1600):  # as many as the first replica needs to be busy until the planner has looked, however fast it is
            for late in replicas[1:]:
                late.signal(signal.SIGSTOP)
            wait_for(lambda: sorted(r["state"] for r in router.status()["replicas"]) == ["ready", "silent", "silent"], "two that are silent")
            clients = [threading.Thread(target=client, args=(i,)) for i in range(count)]
            for thread in clients:
                thread.start()
            wait_for(lambda: router.status()["in_flight"] + len(texts) + len(failures) >= sent + count, "all in flight")
            for late in replicas[1:]:
                late.signal(signal.SIGCONT)
            for thread in clients:
                thread.join(4 * PATIENCE)
            sent += count
            router.ready(3)
            if router.status()["planned"] > 0:
                break
        self.assertEqual(failures, [])
        status = router.status()
        self.assertEqual((status["mismatches"], status["broken"], status["continued"]), (0, 0, 0), status)
        self.assertGreater(status["planned"], 0, status)
        self.assertTrue(any(move["why"] == "planned" for move in status["moves"]), status["moves"])
        for model, text in texts:
            self.assertEqual(text, quiet[model], model)
        self.assertEqual(len(texts), sent)

        def plan():
            out = subprocess.run([BINARY, "fleet", "plan", "--json", "--fleet", self.etcd.url()], capture_output=True, text=True, timeout=PATIENCE)
            return json.loads(out.stdout) if out.returncode == 0 else {}

        wait_for(lambda: set(plan().get("adapters", {})) >= {"sql", "json", "tag"}, "a plan with homes")
        homes = plan()["adapters"]
        self.assertLessEqual({url for entry in homes.values() for url in entry["homes"]}, {f"http://{replica.address}" for replica in replicas})
        # Another router goes by the same plan, and on from it when the first one has gone.
        leader = plan()["leader"]
        other = self.router()
        other.ready(3)
        wait_for(lambda: other.status()["plan"]["adapters_with_homes"] >= len(homes), "the plan at the other router")
        self.assertFalse(other.status()["plan"]["leads"])
        router.stop()
        wait_for(lambda: other.status()["plan"]["leads"], "the other router leads")
        wait_for(lambda: plan()["leader"] not in ("", leader), "its plan")
        # Which homes they are changes with the work; that it goes on from those that are there: tests/cluster/route_planner_test.cpp.
        self.assertLessEqual(set(homes), set(plan()["adapters"]))


@needs_etcd
class Adapters(Fleet):
    """A version that one replica was given is served by all."""

    def setUp(self):
        super().setUp()
        self.root = self.path("root")
        os.makedirs(self.root)

    def replica(self, *options, **arguments):
        return super().replica("--lora-root", self.root, *options, **arguments)

    def adapter(self, source: str, name: str) -> str:
        return self.copy_adapter(source, "root", name)

    def text(self, server, model: str, status: int = 200):
        answer = server.post(CHAT, {"model": model, **BODY})
        self.assertEqual(answer.status, status, answer)
        return answer.json["choices"][0]["message"]["content"] if status == 200 else answer.json["error"]["code"]

    def served(self, server, model: str) -> str:
        """Its text, once the server has heard of it."""
        wait_for(lambda: server.get(f"/v1/models/{model}").status == 200, f"{model} at {server.address}")
        return self.text(server, model)

    def gone(self, server, model: str):
        wait_for(lambda: server.get(f"/v1/models/{model}").status == 404, f"no {model} at {server.address}")

    def fleet(self, *words, check=True):
        out = subprocess.run([BINARY, "fleet", *words, "--fleet", self.etcd.url()], capture_output=True, text=True, timeout=PATIENCE)
        if check:
            self.assertEqual(out.returncode, 0, out.stderr)
        return out

    def test_published_once_served_everywhere(self):
        one, two, three = self.replica(), self.replica(), self.replica()
        router = self.router()
        router.ready(3)
        path = self.adapter("tag", "tag-1")
        expected = self.text(one, "tag")
        answer = router.json("POST", "/v1/adapters", {"name": "shared", "path": path})
        self.assertEqual((answer[0], answer[1]["id"], answer[1]["state"]), (201, "shared@1", "loaded"), answer)
        for server in (one, two, three):
            self.assertEqual(self.served(server, "shared"), expected)
            self.assertEqual(self.text(server, "shared@1"), expected)
        listed = json.loads(self.fleet("adapters", "list", "--json").stdout)
        self.assertEqual([entry["id"] for entry in listed], ["shared@1"])
        # What is changed in the directory is another version; the first is as it was.
        other = self.adapter("json", "json-1")
        self.assertEqual(json.loads(self.fleet("adapters", "publish", other, "--name", "shared").stdout)["id"], "shared@2")
        second = self.text(one, "json")
        for server in (one, two, three):
            wait_for(lambda: self.served(server, "shared") == second, "the second version")
            self.assertEqual(self.text(server, "shared@1"), expected)
        self.fleet("adapters", "alias", "stable", "shared@1")
        for server in (one, two, three):
            self.assertEqual(self.served(server, "stable"), expected)
        # What is refused is written nowhere: it would answer under that name once the name is free.
        self.assertEqual(one.post("/v1/adapters", {"name": "q", "path": path}).status, 201)
        for alias in ("q", "base", "model", "shared"):
            self.assertEqual(one.call("PATCH", "/v1/adapters/shared@1", {"alias": alias}).status, 409, alias)
        self.assertEqual(one.call("DELETE", "/v1/adapters/q").status, 200)
        for server in (one, two, three):
            self.gone(server, "q")
        self.assertEqual({entry["id"] for entry in json.loads(self.fleet("adapters", "list", "--json").stdout)}, {"shared@1", "shared@2", "stable"})
        self.assertEqual(one.post("/v1/adapters", {"name": "nothing", "path": "."}).status, 404)
        fetched = 0
        for server in (one, two, three):
            lines = server.call("GET", "/metrics").body.decode().splitlines()
            status = server.get("/v1/status").json["fleet"]
            self.assertIn("lorikeet_fleet_registry_reachable 1", lines)
            self.assertIn('lorikeet_fleet_fetches_total{result="ok"} %d' % status["fetched"], lines)
            self.assertGreaterEqual(status["disk_adapters"], 2)
            fetched += status["fetched"]
        self.assertEqual(fetched, 4, "two versions, each by the two who had not published it")
        # A number is never used twice.
        self.assertEqual(router.json("DELETE", "/v1/adapters/shared@2")[0], 200)
        for server in (one, two, three):
            self.gone(server, "shared@2")
            self.assertEqual(self.text(server, "shared"), expected)
        self.assertEqual(one.post("/v1/adapters", {"name": "shared", "path": path}).json["id"], "shared@3")
        self.fleet("adapters", "remove", "shared")
        for server in (one, two, three):
            for model in ("shared", "shared@1", "shared@3", "stable"):
                self.gone(server, model)
        self.assertEqual(two.call("DELETE", "/v1/adapters/shared").status, 404)
        self.assertEqual(json.loads(self.fleet("adapters", "list", "--json").stdout), [])

    def test_vllm_routes_and_own_names(self):
        one, two = self.replica(), self.replica()
        path = self.adapter("tag", "tag-1")
        answer = one.post("/v1/load_lora_adapter", {"lora_name": "org/shared", "lora_path": path})
        self.assertEqual(answer.status, 200, answer)
        self.served(two, "org/shared")
        self.assertEqual(two.post("/v1/load_lora_adapter", {"lora_name": "org/shared", "lora_path": path}).status, 400)
        self.assertEqual(two.post("/v1/unload_lora_adapter", {"lora_name": "org/shared"}).status, 200)
        self.gone(one, "org/shared")
        # Names that a replica was started with stay its own.
        answer = one.post("/v1/adapters", {"name": "sql", "path": path})
        self.assertEqual((answer.status, answer.json["error"]["param"]), (409, "name"), answer)
        self.assertEqual(one.post("/v1/adapters", {"name": "base", "path": path}).status, 409)
        self.assertEqual(one.post("/v1/adapters", {"name": "x", "path": "/etc"}).status, 403)
        # What cannot be served is not published.
        with open(os.path.join(path, "adapter_model.safetensors"), "r+b") as file:
            file.truncate(100)
        self.assertEqual(one.post("/v1/adapters", {"name": "bad", "path": path}).status, 400)
        self.assertEqual(two.get("/v1/models/bad").status, 404)

    def test_who_published_it_dies(self):
        one, two = self.replica(), self.replica()
        path = self.adapter("tag", "tag-1")
        self.assertEqual(one.post("/v1/adapters", {"name": "shared", "path": path}).status, 201)
        expected = self.served(two, "shared")
        one.process.kill()
        three = self.replica()
        self.assertEqual(self.served(three, "shared"), expected)
        # Only somebody who is gone has this one.
        four = self.replica()
        self.assertEqual(four.post("/v1/adapters", {"name": "lost", "path": path}).status, 201)
        self.assertEqual(four.post("/v1/adapters", {"name": "other", "path": self.adapter("json", "json-1")}).status, 201)
        four.process.kill()
        wait_for(lambda: three.get("/v1/models/other").status == 200, "other is known")
        self.assertEqual(self.text(three, "lost"), expected, "the same content is here")
        self.assertEqual(self.text(three, "other", 503), "adapter_unavailable")
        shown = three.get("/v1/adapters/other").json
        self.assertEqual(shown["state"], "unavailable")
        self.assertIn("adapter_", shown["reason"])
        self.assertEqual(self.text(three, "shared"), expected)

    def test_without_etcd(self):
        directory = self.path("two")
        one = self.replica()
        two = Server("--fleet", self.etcd.url(), "--fleet-dir", directory, "--lora-root", self.root)
        self.addCleanup(self.end, two)
        path = self.adapter("tag", "tag-1")
        self.assertEqual(one.post("/v1/adapters", {"name": "shared", "path": path}).status, 201)
        expected = self.served(two, "shared")
        self.etcd.kill()
        answer = one.post("/v1/adapters", {"name": "later", "path": path})
        self.assertEqual((answer.status, answer.headers.get("retry-after") is not None), (503, True), answer)
        self.assertEqual(one.call("DELETE", "/v1/adapters/shared").status, 503)
        self.assertEqual(self.text(one, "shared"), expected)
        self.assertEqual(self.text(two, "shared"), expected)
        two.process.kill()
        two.process.wait(PATIENCE)
        again = Server("--fleet", self.etcd.url(), "--fleet-dir", directory, "--lora-root", self.root)
        self.addCleanup(self.end, again)
        self.assertEqual(self.text(again, "shared"), expected)
        # All its data is lost: nobody takes anything away, and no number is given again.
        self.etcd.directory = tempfile.mkdtemp(dir=self.dir)
        self.etcd.start()
        wait_for(lambda: one.post("/v1/adapters", {"name": "shared", "path": path}).status == 201, "a publication")
        self.assertEqual(one.get("/v1/adapters/shared").json["version"], 2)
        for server in (one, again):
            self.assertEqual(self.served(server, "shared@2"), expected)
            self.assertEqual(self.text(server, "shared@1"), expected)

    def test_keys(self):
        state, other = self.path("one.db"), self.path("two.db")

        def key(state, scope):
            return subprocess.run([BINARY, "keys", "create", "--state", state, "--tenant", "acme", "--scope", scope], capture_output=True, text=True,
                                  check=True).stdout.strip()

        keys = {scope: key(state, scope) for scope in ("infer", "adapters", "fleet")}
        shutil.copy(state, other)
        third = self.path("three.db")
        shutil.copy(state, third)
        fleet = {"LORIKEET_FLEET_KEY": keys["fleet"]}
        one, two = self.replica(state=state, environment=fleet), self.replica(state=other, environment=fleet)
        without = self.replica(state=third)
        answer = one.post("/v1/adapters", {"name": "shared", "path": self.adapter("tag", "tag-1")}, key=keys["adapters"])
        self.assertEqual(answer.status, 201, answer)
        for server, status in ((two, 200), (without, 503)):
            wait_for(lambda: server.get("/v1/models/shared", key=keys["infer"]).status == 200, "it is known")
            self.assertEqual(server.post(CHAT, {"model": "shared", **BODY}, key=keys["infer"]).status, status)
        self.assertIn("scope fleet", without.get("/v1/adapters/shared", key=keys["adapters"]).json["reason"])
        # Files are for who has the fleet's key, and are no way to any other file.
        sums = [hashlib.sha256(pathlib.Path(self.root, "tag-1", name).read_bytes()).hexdigest() for name in ("adapter_config.json", "adapter_model.safetensors")]
        for bearer, status in ((None, 401), (keys["infer"], 403), (keys["adapters"], 403), (keys["fleet"], 206)):
            self.assertEqual(one.get(f"/v1/fleet/blobs/{sums[0]}", key=bearer).status, status)
        for name in ("0" * 64, sums[0].upper(), "..%2f..%2fetc%2fpasswd", sums[0] + "/x", ""):
            self.assertEqual(one.get(f"/v1/fleet/blobs/{name}", key=keys["fleet"]).status, 404, name)
        size = os.path.getsize(os.path.join(self.root, "tag-1", "adapter_model.safetensors"))
        for header, status, length in (("bytes=0-9", 206, 10), (f"bytes={size - 1}-", 206, 1), (f"bytes={size - 1}-{size + 5}", 206, 1), (f"bytes={size}-", 416, None),
                                       ("bytes=9-1", 416, None), ("bytes=-5", 416, None), ("lines=1-2", 416, None), ("bytes=99999999999999999999-", 416, None)):
            answer = one.get(f"/v1/fleet/blobs/{sums[1]}", key=keys["fleet"], headers={"Range": header})
            self.assertEqual(answer.status, status, header)
            if length:
                self.assertEqual(len(answer.body), length, header)

    def test_records_that_are_none(self):
        good = {"form": 1, "state": "ready", "digest": "0" * 64, "created": 1,
                "files": [{"name": "adapter_config.json", "bytes": 3, "sha256": "0" * 64}, {"name": "adapter_model.safetensors", "bytes": 3, "sha256": "1" * 64}]}
        bad = {"a/1": "no JSON", "b/1": json.dumps({**good, "form": 7}), "c/1": json.dumps({**good, "files": [{"name": "../../x", "bytes": 1, "sha256": "0" * 64}]}),
               "d/1": json.dumps({**good, "files": [*good["files"], {"name": "run.sh", "bytes": 1, "sha256": "0" * 64}]}), "sql/1": json.dumps(good),
               "e/x": json.dumps(good), "huge/1": json.dumps({**good, "files": [{**file, "bytes": 1 << 39} for file in good["files"]]})}
        for name, value in bad.items():
            self.etcd.put(f"/lorikeet/test/adapters/{name}", value)
        one = self.replica()
        wait_for(lambda: one.get("/v1/models/huge").status == 200, "the last of them")
        self.assertEqual(self.text(one, "huge", 503), "adapter_unavailable")
        self.assertIn("--fleet-disk", one.get("/v1/adapters/huge").json["reason"])
        for name in ("a", "b", "c", "d", "e"):
            self.assertEqual(one.get(f"/v1/models/{name}").status, 404)
        self.text(one, "sql")
        ignored = [event["reason"].split(":")[0] for event in one.events("registry") if event["what"] == "adapter_ignored"]
        self.assertEqual(sorted(ignored), ["adapters/a/1", "adapters/b/1", "adapters/c/1", "adapters/d/1", "adapters/e/x", "adapters/sql/1"])

    def test_status_and_drain(self):
        one, two = self.replica("--fleet-id", "one"), self.replica("--fleet-id", "two")
        router = self.router()
        router.ready(2)
        members = json.loads(self.fleet("status", "--json").stdout)["members"]
        self.assertEqual([(m["id"], m["state"], m["url"]) for m in members], [("one", "ready", f"http://{one.address}"), ("two", "ready", f"http://{two.address}")])
        self.assertIn("no member", self.fleet("drain", "three", check=False).stderr)
        self.fleet("drain", "one")
        self.assertEqual(one.process.wait(PATIENCE), 0)
        wait_for(lambda: self.urls(router) == [f"http://{two.address}"], "it left")
        again = self.replica("--fleet-id", "one")  # is not meant any more
        router.ready(2)
        self.assertIsNone(again.process.poll())
