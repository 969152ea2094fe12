# SPDX-License-Identifier: Apache-2.0
"""Keys of every origin, their scopes, the API for keys and tenants, usage, what belongs to a tenant."""
import json
import os
import pathlib
import sqlite3
import unittest

from harness import Directory, ServerTest, wait_for


class Access(Directory):
    refused = ServerTest.refused
    good = ServerTest.good

    def serve(self, *args: str, **kwargs):
        kwargs.setdefault("adapters", ("sql",))
        return self.start(*args, state=self.path("state.db"), **kwargs)

    def key(self, tenant: str, scope: str) -> str:
        return self.keys("create", "--tenant", tenant, "--scope", scope)


class PlainKeys(Access):
    def test_from_a_file_and_the_environment(self):
        file = pathlib.Path(self.path("key"))
        file.write_text("a-key-from-a-file\nand a comment\n")
        server = self.serve("--host", "0.0.0.0", "--api-key-file", str(file), environment={"LORIKEET_API_KEY": "sk-from-the-environment"})
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        for key in ("a-key-from-a-file", "sk-from-the-environment"):
            self.assertEqual(server.chat(key=key, max_tokens=1).status, 200)
            self.assertEqual(server.get("/v1/models", headers={"x-api-key": key}).status, 200)
            for method, path in (("GET", "/v1/adapters"), ("GET", "/metrics"), ("GET", "/v1/keys"), ("POST", "/v1/tenants")):
                self.refused(server.call(method, path, {} if method == "POST" else None, key=key), 403, code="insufficient_scope")
        for key in (None, "", "a-key-from-a-fil", "a-key-from-a-file2", "and a comment", "sk-from-the-environmenT"):
            self.refused(server.chat(key=key, max_tokens=1), 401)
        # Another key takes its place, as a mounted secret is replaced.
        file.with_suffix(".new").write_text("another-key-of-mine\n")
        os.rename(file.with_suffix(".new"), file)
        wait_for(lambda: server.chat(key="another-key-of-mine", max_tokens=1).status == 200, "the new key")
        self.refused(server.chat(key="a-key-from-a-file", max_tokens=1), 401)
        # One that is no key changes nothing.
        file.write_text("\n")
        wait_for(lambda: server.event("keys_not_readable"), "a word of it")
        self.assertEqual(server.chat(key="another-key-of-mine", max_tokens=1).status, 200)
        usage = {row["key"] for row in server.get("/v1/usage", key="another-key-of-mine").json["data"]}
        self.assertEqual(usage, {"file"})
        server.stop(0)
        for secret in ("a-key-from-a-file", "another-key-of-mine", "sk-from-the-environment"):
            self.assertNotIn(secret, server.log)


class RequireKeys(Access):
    def test_closed_without_any_key(self):
        socket = self.path("admin.sock")
        server = self.serve("--require-keys", "--admin", f"unix:{socket}")
        self.refused(server.chat(max_tokens=1), 401)
        self.assertTrue(server.event("no_usable_key"))
        self.assertEqual(server.get("/health").status, 200)
        # The socket is the file system's to guard: the first key can be made there.
        admin = f"unix:{socket}"
        self.good(server.post("/v1/tenants", {"name": "acme"}, address=admin), 201)
        key = self.good(server.post("/v1/keys", {"tenant": "acme", "scopes": "infer"}, address=admin), 201)["key"]
        self.assertEqual(server.chat(key=key, max_tokens=1).status, 200)
        self.refused(server.get("/v1/keys", key=key), 404)  # not on this listener
        server.stop(0)
        # The state is lost: nobody gets in.
        for name in os.listdir(self.dir):
            if name.startswith("state.db"):
                os.remove(self.path(name))
        server = self.serve("--require-keys")
        self.refused(server.chat(max_tokens=1), 401)
        server.stop(0)


class KeysAndTenants(Access):
    def test_life_of_a_key(self):
        admin = self.key("root", "admin")
        server = self.serve()
        made = self.good(server.post("/v1/keys", {"tenant": "root", "scopes": ["infer", "metrics"], "note": "for the dashboard", "expires": "30d"}, key=admin), 201)
        key = made["key"]
        self.assertEqual((made["id"], made["scopes"], made["note"], made["state"]), (key[3:15], "infer,metrics", "for the dashboard", "usable"))
        self.assertEqual((server.chat(key=key, max_tokens=1).status, server.get("/metrics", key=key).status, server.get("/v1/status", key=key).status), (200, 200, 200))
        self.refused(server.get("/v1/adapters", key=key), 403)
        self.refused(server.get("/v1/keys", key=key), 403, code="insufficient_scope")
        listed = server.get("/v1/keys", key=admin)
        self.assertEqual({row["id"] for row in listed.json["data"]}, {admin[3:15], key[3:15]})
        self.assertNotIn(key[16:], listed.text)
        self.assertEqual(listed.headers["cache-control"], "no-store")
        self.assertEqual(self.good(server.get(f"/v1/keys/{key[3:15]}", key=admin))["note"], "for the dashboard")
        self.assertEqual(server.call("DELETE", f"/v1/keys/{key[3:15]}", key=admin).json["deleted"], True)
        self.refused(server.chat(key=key, max_tokens=1), 401)  # at once
        self.refused(server.call("DELETE", "/v1/keys/nothing", key=admin), 404)
        self.refused(server.get("/v1/keys/nothing", key=admin), 404)
        for body, param in (({}, "tenant"), ({"tenant": "root"}, "scopes"), ({"tenant": "root", "scopes": ["root"]}, "scopes"), ({"tenant": "root", "scopes": "infer", "x": 1}, "x"),
                            ({"tenant": "root", "scopes": "infer", "expires": "soon"}, "expires"), ({"tenant": "root", "scopes": "infer", "expires": "2001-01-01"}, "expires")):
            self.refused(server.post("/v1/keys", body, key=admin), 400, param=param)
        self.refused(server.post("/v1/keys", {"tenant": "root", "scopes": "infer", "note": "two\nlines"}, key=admin), 400)
        self.refused(server.post("/v1/keys", {"tenant": "nobody", "scopes": "infer"}, key=admin), 404)
        actions = [(line["action"], line["outcome"], line["key"]) for line in server.events("audit")]
        self.assertIn(("key_create", "ok", admin[3:15]), actions)
        self.assertIn(("key_revoke", "ok", admin[3:15]), actions)
        self.assertIn(("key_revoke", "failed", admin[3:15]), actions)
        self.assertNotIn("state file", [line.get("by") for line in server.events("audit")], "its own changes have one line")
        server.stop(0)
        self.assertNotIn(key[16:], server.log)

    def test_a_key_whose_client_left_is_not_usable(self):
        """Nobody was told it: it is revoked."""
        admin, ops = self.key("root", "admin"), self.key("ops", "admin")
        known = {admin[3:15], ops[3:15]}
        server = self.serve()

        def status():
            return server.get("/v1/status", key=admin).json

        def made() -> list:
            return [row["state"] for row in server.get("/v1/keys", key=admin).json["data"] if row["id"] not in known]

        for _ in range(20):  # the change is given up when the file is held for two seconds: a slow machine needs another try
            lock = sqlite3.connect(self.path("state.db"), isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")  # the change waits for this
            connection = server.connect()
            connection.request("POST", "/v1/keys", json.dumps({"tenant": "ops", "scopes": ["infer"]}), {"Content-Type": "application/json", "Authorization": f"Bearer {ops}"})
            wait_for(lambda: any(t["name"] == "ops" and t["in_flight"] == 1 for t in status()["tenants"]), "the request")
            before = status()["http"]["connections"]
            connection.close()
            wait_for(lambda: status()["http"]["connections"] < before, "its end")
            lock.rollback()
            lock.close()
            wait_for(lambda: all(t["in_flight"] == 0 for t in status()["tenants"] if t["name"] == "ops"), "the change")
            if made():
                break
        wait_for(lambda: set(made()) == {"revoked"}, "its revocation")
        server.stop(0)

    def test_life_of_a_tenant(self):
        admin = self.key("root", "admin")
        server = self.serve()
        made = self.good(server.post("/v1/tenants", {"name": "acme", "max_in_flight": 2, "adapters": ["sql", "base"], "max_sums": 3}, key=admin), 201)
        self.assertEqual((made["weight"], made["max_in_flight"], made["adapters"], made["max_sums"]), (1, 2, ["sql", "base"], 3))
        self.refused(server.post("/v1/tenants", {"name": "acme"}, key=admin), 409)
        changed = self.good(server.call("PATCH", "/v1/tenants/acme", {"weight": 4, "adapters": []}, key=admin))
        self.assertEqual((changed["weight"], changed["max_in_flight"], changed["adapters"]), (4, 2, []))
        self.assertEqual(self.good(server.get("/v1/tenants/acme", key=admin)), changed)
        self.assertEqual([row["name"] for row in self.good(server.get("/v1/tenants", key=admin))["data"]], ["acme", "root"])
        for body, param in (({"name": "a b"}, None), ({}, "name"), ({"name": "x", "weight": 0}, "weight"), ({"name": "x", "max_sums": -1}, "max_sums"), ({"name": "x", "y": 1}, "y"),
                            ({"name": "x", "adapters": ["x,y"]}, None)):
            self.refused(server.post("/v1/tenants", body, key=admin), 400, param=param)
        self.refused(server.call("PATCH", "/v1/tenants/acme", {"name": "other"}, key=admin), 400, param="name")
        self.refused(server.call("PATCH", "/v1/tenants/nobody", {}, key=admin), 404)
        key = self.good(server.post("/v1/keys", {"tenant": "acme", "scopes": "infer"}, key=admin), 201)["key"]
        # A limit holds from the answer on.
        self.good(server.call("PATCH", "/v1/tenants/acme", {"adapters": ["sql"]}, key=admin))
        self.refused(server.chat(model="base", key=key), 404, code="model_not_found")
        self.refused(server.call("DELETE", "/v1/tenants/acme", key=admin), 409)
        self.good(server.call("DELETE", f"/v1/keys/{key[3:15]}", key=admin))
        self.good(server.call("DELETE", "/v1/tenants/acme", key=admin))
        self.refused(server.get("/v1/tenants/acme", key=admin), 404)
        server.stop(0)

    def test_without_a_state_file(self):
        server = self.start(adapters=("sql",))
        for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/tenants"), ("DELETE", "/v1/tenants/x")):
            body = {"tenant": "x", "scopes": "infer"} if method == "POST" else None
            self.refused(server.call(method, path, body), 409, code="no_state")
        server.stop(0)

    def test_the_first_key_closes_the_server(self):
        server = self.serve()
        self.good(server.post("/v1/tenants", {"name": "acme"}), 201)
        key = self.good(server.post("/v1/keys", {"tenant": "acme", "scopes": "admin"}), 201)["key"]
        self.refused(server.chat(max_tokens=1), 401)
        self.assertEqual(server.chat(key=key, max_tokens=1).status, 200)
        server.stop(0)


class Usage(Access):
    def test_by_key(self):
        one, two, admin = self.key("acme", "infer"), self.key("acme", "infer"), self.key("root", "admin")
        server = self.serve()
        answers = [server.complete("The same beginning of every prompt, again and again and again.", key=one, model="sql", max_tokens=4).json["usage"] for _ in range(2)]
        server.chat(key=two, max_tokens=1)
        own = server.get("/v1/usage", key=one).json
        self.assertEqual([row["key"] for row in own["data"]], [one[3:15]])
        row = own["data"][0]
        self.assertEqual((row["tenant"], row["requests"]), ("acme", 2))
        self.assertEqual(row["prompt_tokens"], sum(a["prompt_tokens"] for a in answers))
        self.assertEqual(row["output_tokens"], sum(a["completion_tokens"] for a in answers))
        self.assertGreater(row["cached_tokens"], 0)
        self.assertEqual({row["key"] for row in server.get("/v1/usage", key=admin).json["data"]}, {one[3:15], two[3:15]})
        self.refused(server.get("/v1/usage"), 401)
        metrics = server.get("/metrics", key=admin).text
        for what in ("prompt", "cached", "output"):
            self.assertIn(f'lorikeet_key_{what}_tokens_total{{key="{one[3:15]}"}} {row[f"{what}_tokens"]}\n', metrics)
        server.stop(0)


class Belongings(Access):
    def load(self, server, name: str, path: str, key: str, **fields):
        return server.post("/v1/adapters", {"name": name, "path": path, **fields}, key=key)

    def test_roots_of_tenants(self):
        for tenant in ("acme", "globex"):
            self.copy_adapter("sql", "tenants", tenant, "up", "mine")
        self.copy_adapter("dates", "shared", "dates")
        os.symlink(self.path("tenants", "globex", "up", "mine"), self.path("tenants", "acme", "up", "link"))
        acme, globex, admin, nobody = self.key("acme", "adapters"), self.key("globex", "adapters"), self.key("root", "admin"), self.key("new", "adapters")
        server = self.serve("--lora-root", self.path("tenants", "{tenant}", "up"), "--lora-root", self.path("shared"))
        self.good(self.load(server, "a", "mine", acme), 201)
        self.assertEqual(server.get("/v1/adapters/a", key=admin).json["path"], self.path("tenants", "acme", "up", "mine"))
        self.good(self.load(server, "g", self.path("tenants", "globex", "up", "mine"), globex), 201)
        self.good(self.load(server, "d", "dates", acme), 201)
        for path in (self.path("tenants", "globex", "up", "mine"), "../../globex/up/mine", "link", self.path("tenants", "acme", "up", "link")):
            self.refused(self.load(server, "x", path, acme), 403)
        self.refused(self.load(server, "x", "mine", nobody), 404)
        self.good(self.load(server, "all", "acme/up/mine", admin), 201)
        # What was stored comes back, each tenant's from its own place.
        names = [row["id"] for row in server.get("/v1/adapters", key=admin).json["data"]]
        server.stop(0)
        server = self.serve("--lora-root", self.path("tenants", "{tenant}", "up"), "--lora-root", self.path("shared"))
        self.assertEqual([row["id"] for row in server.get("/v1/adapters", key=admin).json["data"]], names)
        self.refused(server.call("DELETE", "/v1/adapters/a", key=globex), 403)
        server.stop(0)

    def test_what_a_tenant_loaded_is_its_own(self):
        self.copy_adapter("sql", "root", "sql")
        acme, globex, admin = self.key("acme", "adapters"), self.key("globex", "adapters"), self.key("root", "admin")
        server = self.serve("--lora-root", self.path("root"))
        self.good(self.load(server, "a", "sql", acme), 201)
        self.refused(self.load(server, "a", "sql", globex), 409)
        for method, path, body in (("DELETE", "/v1/adapters/a", None), ("DELETE", "/v1/adapters/a@1", None), ("PATCH", "/v1/adapters/a", {"pinned": True}),
                                   ("PATCH", "/v1/adapters/a", {"alias": "b"})):
            self.refused(server.call(method, path, body, key=globex), 403, "another tenant")
        # Whose it is, is for its owner and for who administrates.
        for key, shown in ((acme, "acme"), (globex, None), (admin, "acme")):
            self.assertEqual([row["tenant"] for row in server.get("/v1/adapters", key=key).json["data"] if row["name"] == "a"], [shown])
            self.assertEqual(server.get("/v1/adapters/a", key=key).json["tenant"], shown)
        self.assertEqual(server.post("/v1/unload_lora_adapter", {"lora_name": "a"}, key=globex).status, 403)
        self.good(server.call("PATCH", "/v1/adapters/a", {"alias": "b"}, key=acme))
        self.refused(server.call("PATCH", "/v1/adapters/sql", {"alias": "b"}, key=globex), 403)
        self.refused(server.call("DELETE", "/v1/adapters/b", key=globex), 403)
        self.good(server.call("PATCH", "/v1/adapters/sql", {"alias": "c"}, key=globex))  # the operator's is everybody's
        self.good(server.call("DELETE", "/v1/adapters/a", key=admin))
        self.good(self.load(server, "a", "sql", globex), 201)
        server.stop(0)

    def test_quotas(self):
        self.copy_adapter("sql", "root", "sql")
        self.keys("tenant", "set", "acme", "--max-adapters", "2", "--max-versions", "3", "--max-sums", "1")
        acme, globex, admin = self.key("acme", "adapters,infer"), self.key("globex", "adapters,infer"), self.key("root", "admin")
        server = self.serve("--lora-root", self.path("root"), adapters=("sql", "dates"))
        self.good(self.load(server, "a", "sql", acme), 201)
        self.good(self.load(server, "b", "sql", acme), 201)
        self.refused(self.load(server, "c", "sql", acme), 429, "2 adapters")
        self.good(self.load(server, "a", "sql", acme), 201)  # in place of one
        self.good(self.load(server, "a", "sql", acme, keep_previous=True), 201)
        self.refused(self.load(server, "b", "sql", acme, keep_previous=True), 429, "3 versions")
        self.good(self.load(server, "c", "sql", globex), 201)
        self.good(self.load(server, "d", "sql", admin), 201)
        self.good(server.call("DELETE", "/v1/adapters/b", key=acme))
        self.good(self.load(server, "e", "sql", acme), 201)
        # Sums: its own oldest makes room.
        sums = lambda: server.get("/v1/status", key=admin).json["memory"]["num_sums"]
        for model in ("sql*0.5+dates*0.5", "sql*0.6+dates*0.4", "sql*0.7+dates*0.3"):
            self.assertEqual(server.chat(model=model, key=globex, max_tokens=1).status, 200)
        self.assertEqual(sums(), 3)
        for model in ("sql*0.1+dates*0.9", "sql*0.2+dates*0.8", "sql*0.3+dates*0.7"):
            self.assertEqual(server.chat(model=model, key=acme, max_tokens=1).status, 200)
        self.assertEqual(sums(), 4)
        server.stop(0)


if __name__ == "__main__":
    unittest.main()
