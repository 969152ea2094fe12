# SPDX-License-Identifier: Apache-2.0
"""What is stored, and what cannot be: a held, full or missing state file; who sees changes, and when."""
import contextlib
import os
import resource
import sqlite3
import threading
import unittest

from harness import Directory, ServerTest


@contextlib.contextmanager
def held(path: str):
    """Another process that writes and does not end."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


class StoredChanges(Directory):
    refused = ServerTest.refused

    def serve(self, **kwargs):
        self.copy_adapter("sql", "root", "sql")
        server = self.start("--lora-root", self.path("root"), state=self.path("state.db"), adapters=("dates",), **kwargs)
        self.assertEqual(server.post("/v1/adapters", {"name": "a", "path": "sql"}).status, 201)
        self.assertEqual(server.call("PATCH", "/v1/adapters/a", {"alias": "prod"}).status, 200)
        self.assertEqual(server.post("/v1/tenants", {"name": "old"}).status, 201)
        return server

    def models(self, server) -> list:
        return sorted(model["id"] for model in server.get("/v1/models").json["data"])

    CHANGES = (("DELETE", "/v1/adapters/a", None), ("DELETE", "/v1/adapters/a@1", None), ("DELETE", "/v1/adapters/prod", None),
               ("PATCH", "/v1/adapters/dates", {"alias": "prod"}), ("PATCH", "/v1/adapters/dates", {"alias": "next"}), ("PATCH", "/v1/adapters/a", {"pinned": True}),
               ("PATCH", "/v1/adapters/a", {"pinned": True, "alias": "next"}), ("POST", "/v1/adapters", {"name": "b", "path": "sql"}),
               ("POST", "/v1/adapters", {"name": "a", "path": "sql"}), ("POST", "/v1/load_lora_adapter", {"lora_name": "b", "lora_path": "sql"}),
               ("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}), ("POST", "/v1/tenants", {"name": "new"}), ("PATCH", "/v1/tenants/old", {"weight": 2}),
               ("DELETE", "/v1/tenants/old", None), ("POST", "/v1/keys", {"tenant": "old", "scopes": "infer"}))

    def nothing_changes(self, server, reason: str):
        before = self.models(server)
        for method, path, body in self.CHANGES:
            with self.subTest(method=method, path=path, body=body):
                answer = server.call(method, path, body)
                self.assertEqual(answer.status, 503, answer)
                self.assertIn("not in effect", answer.text)
                self.assertNotIn(self.dir, answer.text)
        self.assertEqual(self.models(server), before)
        adapter = server.get("/v1/adapters/prod").json
        self.assertEqual((adapter["id"], adapter["pinned"]), ("a@1", False))
        self.assertEqual([(row["name"], row["weight"]) for row in server.get("/v1/tenants").json["data"]], [("old", 1)])
        self.assertEqual(server.get("/v1/keys").json["data"], [])
        self.assertIn(reason, server.event("state_not_written")["reason"])
        metrics = server.get("/metrics").text
        self.assertRegex(metrics, rf"lorikeet_state_write_failures_total {len(self.CHANGES)}\b")

    def restarted(self, server):
        before = self.models(server)
        server.stop(0)
        server = self.start("--lora-root", self.path("root"), state=self.path("state.db"), adapters=("dates",))
        self.assertEqual(self.models(server), before)
        server.stop(0)

    def test_held_by_another_process(self):
        server = self.serve()
        with held(self.path("state.db")):
            self.nothing_changes(server, "locked")
        self.assertEqual(server.call("DELETE", "/v1/adapters/a").status, 200)
        self.restarted(server)

    def test_full_disk(self):
        server = self.serve()
        limit = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, limit[1]))
        self.nothing_changes(server, "state.db")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
        self.assertEqual(server.call("DELETE", "/v1/adapters/prod").status, 200)
        self.restarted(server)

    def test_file_that_was_taken_away(self):
        server = self.serve()
        os.rename(self.path("state.db"), self.path("elsewhere.db"))
        self.nothing_changes(server, "removed or replaced")
        os.rename(self.path("elsewhere.db"), self.path("state.db"))
        self.assertEqual(server.call("PATCH", "/v1/adapters/a", {"alias": "next"}).status, 200)
        self.restarted(server)

    def test_completions_do_not_wait_for_the_file(self):
        server = self.serve()
        with held(self.path("state.db")):
            changes = [threading.Thread(target=server.call, args=("PATCH", "/v1/adapters/dates", {"alias": f"x{i}"})) for i in range(8)]
            for change in changes:
                change.start()
            self.assertEqual(server.chat(model="a", max_tokens=1).status, 200)
            self.assertEqual(server.get("/v1/adapters/a").status, 200)
            self.assertTrue(any(change.is_alive() for change in changes), "they wait for the file, one after the other")
            for change in changes:
                change.join()
        server.stop(0)


if __name__ == "__main__":
    unittest.main()
