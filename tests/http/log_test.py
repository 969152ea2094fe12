# SPDX-License-Identifier: Apache-2.0
"""What the log says of requests and of changes, and the file it is in."""
import json
import os
import pathlib
import signal
import unittest

from harness import Directory, wait_for

SLOW = {"model": "sql", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "temperature": 0, "n": 16}


class Requests(Directory):
    def line(self, server, **wanted) -> dict:
        def find():
            found = [line for line in server.events("request") if all(line.get(name) == value for name, value in wanted.items())]
            return found[0] if found else None
        return wait_for(find, f"a line with {wanted}")

    def test_streams_are_logged_at_their_end(self):
        key = self.keys("create", "--tenant", "acme", "--scope", "infer")
        server = self.start("--max-running", "1", state=self.path("state.db"), adapters=("sql",))
        with server.open_stream("/v1/completions", {**SLOW, "n": 1, "max_tokens": 8}, key=key) as stream:
            stream.rest()
        line = self.line(server, stream=True, outcome="ok")
        self.assertEqual((line["status"], line["adapter"], line["finish"], line["output_tokens"], line["choices"]), (200, "sql", "length", 8, 1))
        self.assertEqual((line["tenant"], line["key"]), ("acme", key[3:15]))
        self.assertGreater(line["prompt_tokens"], 0)
        with server.open_stream("/v1/completions", SLOW, key=key) as stream:
            stream.next()
            self.assertEqual(len([line for line in server.events("request") if line.get("stream")]), 1, "not before the end")
        line = self.line(server, stream=True, outcome="client_left")
        self.assertEqual((line["status"], line["adapter"], line["choices"]), (200, "sql", 16))
        self.assertGreater(line["output_tokens"], 0)
        # One that leaves before its answer.
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps(SLOW), {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
        wait_for(lambda: "lorikeet_tenant_in_flight{tenant=\"acme\"} 16" in self.metrics(server), "it runs")
        connection.close()
        self.assertEqual(self.line(server, outcome="client_left", stream=False)["status"], 499)
        answer = server.complete(key=key, model="sql", max_tokens=4)
        self.assertEqual(self.line(server, id=answer.headers["x-request-id"])["prompt_tokens"], answer.json["usage"]["prompt_tokens"])
        server.stop(0)

    def metrics(self, server) -> str:
        if not hasattr(self, "admin"):
            self.admin = self.keys("create", "--tenant", "root", "--scope", "admin")
            server.signal(signal.SIGHUP)
            wait_for(lambda: server.get("/metrics", key=self.admin).status == 200, "the key is known")
        return server.get("/metrics", key=self.admin).text


class Audit(Directory):
    def test_every_change_has_a_line(self):
        self.copy_adapter("sql", "root", "sql")
        key = self.keys("create", "--tenant", "acme", "--scope", "adapters")
        server = self.start("--lora-root", self.path("root"), state=self.path("state.db"), adapters=("dates",))
        calls = (("POST", "/v1/adapters", {"name": "a", "path": "sql"}), ("POST", "/v1/adapters", {"name": "a", "path": "sql"}),
                 ("POST", "/v1/adapters", {"name": "b", "path": "nothing"}), ("PATCH", "/v1/adapters/a", {"pinned": True, "alias": "prod"}),
                 ("PATCH", "/v1/adapters/a", {"pinned": False}), ("DELETE", "/v1/adapters/prod", None), ("DELETE", "/v1/adapters/a", None),
                 ("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "sql"}), ("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}),
                 ("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}))
        for method, path, body in calls:
            server.call(method, path, body, key=key)
        found = lambda: [(line["action"], line["target"], line["outcome"]) for line in server.events("audit")]
        expected = [("adapter_load", "a@1", "ok"), ("adapter_replace", "a@2", "ok"), ("adapter_load", "b", "failed"), ("adapter_pin", "a", "ok"),
                    ("alias_set", "prod -> a", "ok"), ("adapter_unpin", "a", "ok"), ("alias_remove", "prod", "ok"), ("adapter_unload", "a", "ok"),
                    ("adapter_load", "a@3", "ok"), ("adapter_unload", "a", "ok"), ("adapter_unload", "a", "failed")]
        wait_for(lambda: len(found()) >= len(expected), "the lines")
        self.assertEqual(found(), expected)
        for line in server.events("audit"):
            self.assertEqual((line["tenant"], line["key"]), ("acme", key[3:15]))
            self.assertTrue(line["id"])
        # By another process: it is seen, and nobody knows whose hand it was.
        other = self.keys("create", "--tenant", "late", "--scope", "infer")
        self.keys("revoke", other)
        self.keys("revoke", key)
        wait_for(lambda: ("key_revoked", key[3:15], "ok") in found(), "the revocation")
        self.assertIn(("tenant_created", "late", "ok"), found())
        server.stop(0)


class File(Directory):
    def test_written_within_a_second_and_rotated(self):
        path = pathlib.Path(self.path("log"))
        server = self.start(log_file=str(path), state=self.path("state.db"), adapters=("sql",))
        server.chat(max_tokens=1, headers={"x-request-id": "first"})
        wait_for(lambda: "first" in path.read_text(), "the line, though nothing else happens")
        os.rename(path, self.path("log.1"))
        server.signal(signal.SIGHUP)
        wait_for(path.exists, "a new file")
        server.chat(max_tokens=1, headers={"x-request-id": "second"})
        wait_for(lambda: "second" in path.read_text(), "the line")
        self.assertNotIn("second", pathlib.Path(self.path("log.1")).read_text())
        self.assertRegex(server.get("/metrics").text, r"lorikeet_log_dropped_lines_total 0\b")
        server.stop(0)


if __name__ == "__main__":
    unittest.main()
