# SPDX-License-Identifier: Apache-2.0
"""Adapters that come and go: vLLM's endpoints, /v1/adapters, --lora-dir, what survives a restart, what is refused."""
import json
import os
import pathlib
import shutil
import struct
import threading
import unittest

from harness import ADAPTERS, Directory, Server, wait_for

RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"
MARCH, DATE = "We met on the 8th of March 1973.", "1973-03-08"


def content(answer) -> str:
    assert answer.status == 200, answer
    return answer.json["choices"][0]["message"]["content"]


def says(server: Server, model: str, prompt: str) -> str:
    return content(server.chat(prompt, model, temperature=0))


def adapter(server: Server, name: str) -> dict:
    answer = server.get(f"/v1/adapters/{name}")
    assert answer.status == 200, answer
    return answer.json


def names(server: Server) -> list:
    return [model["id"] for model in server.get("/v1/models").json["data"]][1:]


class HostMemory(Directory):
    def test_what_was_dropped_is_read_again(self):
        """Host memory for one of three large adapters and pages for two of them: all answer right."""
        for name in ("a", "b", "c"):
            self.copy_adapter("sql", "root", name)
        self.copy_adapter("dates", "root", "dates")
        server = self.start("--lora-dir", self.path("root"), "--watch-interval", "3600", "--host-memory", "700KiB", "--memory", "1680KiB", adapters=())
        for _ in range(3):
            for name in ("a", "b", "c"):
                self.assertEqual(says(server, name, RIGA), SQL)
            self.assertEqual(says(server, "dates", MARCH), DATE)
        # A copy that is being used is not dropped: the last answer may come before whoever read it let go of it.
        wait_for(lambda: server.status()["memory"]["adapters"] <= 700 << 10, "copies within the budget")
        status = server.status()
        self.assertGreater(status["adapters"]["host_drops"], 0)
        self.assertGreater(status["adapters"]["disk_reads"], 0)
        self.assertEqual(status["adapters"]["failed_disk_reads"], 0)
        metrics = server.get("/metrics").text
        self.assertIn("lorikeet_host_tier_drops_total ", metrics)
        self.assertIn("lorikeet_host_tier_limit_bytes 716800", metrics)
        # Other files under the same names: whose copy was dropped fails until it is loaded again, and never answers with them.
        for name in ("a", "b", "c"):
            shutil.copy(f"{ADAPTERS}/sort/adapter_model.safetensors", self.path("root", name))
        answers = [server.chat(RIGA, name, temperature=0) for name in ("a", "b", "c") * 2]
        failed = [answer for answer in answers if answer.status != 200]
        self.assertGreater(len(failed), 0)
        for answer in failed:
            self.assertEqual(answer.status, 503)
            self.assertNotIn(self.path("root"), answer.text)
            if answer.json["error"]["code"] == "adapter_unavailable":
                self.assertIn("not what they were when it was loaded", answer.json["error"]["message"])
        self.assertEqual({answer.json["error"]["code"] for answer in failed} - {"overloaded"}, {"adapter_unavailable"})
        for answer in answers:
            if answer.status == 200:
                self.assertEqual(content(answer), SQL)
        self.assertEqual(says(server, "dates", MARCH), DATE)
        self.assertIn("adapter_unreadable", server.log)


class VllmEndpoints(Directory):
    def text(self, answer, status: int, text: str):
        self.assertEqual((answer.status, answer.text), (status, text))
        self.assertTrue(answer.headers["content-type"].startswith("text/plain"))

    def error(self, answer, status: int, kind: str, message: str | None = None, param: str | None = None):
        self.assertEqual(answer.status, status, answer)
        error = answer.json["error"]
        self.assertEqual((error["type"], error["param"], error["code"]), (kind, param, status))
        if message:
            self.assertEqual(error["message"], message)

    def test_bodies_and_statuses(self):
        self.copy_adapter("sql", "root", "sql")
        self.copy_adapter("dates", "root", "dates")
        server = self.start("--lora-root", self.path("root"), adapters=())
        load = lambda body: server.post("/v1/load_lora_adapter", body)
        unload = lambda body: server.post("/v1/unload_lora_adapter", body)
        path = self.path("root", "sql")
        self.text(load({"lora_name": "a", "lora_path": path}), 200, "Success: LoRA adapter 'a' added successfully.")
        self.assertEqual(says(server, "a", RIGA), SQL)
        self.assertEqual(names(server), ["a"])
        loaded = "The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
        self.error(load({"lora_name": "a", "lora_path": path}), 400, "InvalidUserInput", loaded)
        self.error(load({"lora_name": "a", "lora_path": path, "load_inplace": False}), 400, "InvalidUserInput", loaded)
        self.text(load({"lora_name": "a", "lora_path": "dates", "load_inplace": True}), 200, "Success: LoRA adapter 'a' added successfully.")
        self.assertEqual(says(server, "a", MARCH), DATE)
        for body in ({"lora_name": "b"}, {"lora_path": path}, {}, {"lora_name": "", "lora_path": path}, {"lora_name": None, "lora_path": path}):
            self.error(load(body), 400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        self.error(load({"lora_name": "b", "lora_path": self.path("root", "nothing")}), 404, "NotFoundError")
        os.mkdir(self.path("root", "empty"))
        self.error(load({"lora_name": "b", "lora_path": "empty"}), 404, "NotFoundError")
        for name in ("a b", "../b"):
            self.error(load({"lora_name": name, "lora_path": path}), 400, "BadRequestError", param="lora_name")
        for bad in ([], "x", 5):
            self.error(load(bad), 400, "BadRequestError")
        for param, value in (("lora_name", 5), ("load_inplace", "yes")):
            self.error(load({"lora_name": "b", "lora_path": path, param: value}), 400, "BadRequestError", param=param)
        self.error(load({"lora_name": "base", "lora_path": path}), 400, "InvalidUserInput")
        self.error(load(b"{"), 400, "BadRequestError")
        self.text(unload({"lora_name": "a", "lora_int_id": None}), 200, "Success: LoRA adapter 'a' removed successfully.")
        server_says = server.chat(RIGA, "a")
        self.assertEqual((server_says.status, server_says.json["error"]["code"]), (404, "model_not_found"))
        self.error(unload({"lora_name": "a"}), 404, "NotFoundError", "The lora adapter 'a' cannot be found.")
        for body in ({}, {"lora_name": ""}, {"lora_name": None}):
            self.error(unload(body), 400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
        self.text(load({"lora_name": "a", "lora_path": "sql"}), 200, "Success: LoRA adapter 'a' added successfully.")
        server.stop(0)

    def test_off_without_roots(self):
        server = self.start(adapters=("sql",))
        self.error(server.post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": f"{ADAPTERS}/sql"}), 404, "NotFoundError")
        self.assertEqual(server.post("/v1/adapters", {"name": "a", "path": f"{ADAPTERS}/sql"}).status, 403)
        server.stop(0)


class HubNames(Directory):
    """Names as hubs and trainers write them, everywhere a name is taken."""

    def test_everywhere(self):
        for name in ("sql", "dates"):
            self.copy_adapter(name, "root", "acme", name)
        hub = "acme/_sql+v1.0"
        arguments = ("--lora-root", self.path("root"), "--lora", f"org/tag={ADAPTERS}/tag")
        server = self.start(*arguments, adapters=(), state=self.path("state.db"))
        made = server.post("/v1/adapters", {"name": hub, "path": "acme/sql"})
        self.assertEqual(made.status, 201, made)
        self.assertEqual(server.call("PATCH", f"/v1/adapters/{hub}", {"alias": "prod/sql"}).status, 200)
        self.assertEqual(server.post("/v1/load_lora_adapter", {"lora_name": "acme/dates", "lora_path": "acme/dates"}).status, 200)
        self.assertEqual(names(server), ["acme/_sql+v1.0", "acme/dates", "org/tag", "prod/sql"])
        for name in (hub, f"{hub}@1", f"base:{hub}", "prod/sql"):
            self.assertEqual(says(server, name, RIGA), SQL, name)
        self.assertEqual(server.chat(RIGA, "acme/dates*0.5+org/tag*0.5").status, 200, "sums of them")
        for path in (f"/v1/models/{hub}", "/v1/models/acme%2F_sql%2Bv1.0", "/v1/adapters/acme%2F_sql%2Bv1.0", f"/v1/adapters/{hub}", f"/v1/adapters/{hub}@1"):
            self.assertEqual(server.get(path).status, 200, path)
        self.assertEqual(server.get("/v1/models/acme/dates+org/tag").status, 404)
        server.stop(0)
        server = self.start(*arguments, adapters=(), state=self.path("state.db"))
        self.assertEqual(says(server, "prod/sql", RIGA), SQL)
        self.assertEqual(server.call("DELETE", f"/v1/adapters/{hub}").status, 200)
        self.assertEqual(server.chat(RIGA, hub).status, 404)
        for bad in ("acme/", "/acme", "a//b", "a/../b", "a/.b", "+a", "a\\b", "x" * 129):
            answer = server.post("/v1/adapters", {"name": bad, "path": "acme/sql"})
            self.assertEqual((answer.status, answer.json["error"]["param"]), (400, "name"), bad)
            answer = server.post("/v1/load_lora_adapter", {"lora_name": bad, "lora_path": "acme/sql"})
            self.assertEqual((answer.status, answer.json["error"]["param"]), (400, "lora_name"), bad)
            answer = server.call("PATCH", "/v1/adapters/prod/sql", {"alias": bad})
            self.assertIn((answer.status, answer.json["error"]["param"]), ((400, "alias"), (404, None)), bad)
        server.stop(0)


class NamesOfTheBase(Directory):
    def test_each_is_the_base(self):
        server = self.start("--served-model-name", "first", "--served-model-name", "org/second", adapters=("sql",))
        self.assertEqual([(model["id"], model["parent"]) for model in server.get("/v1/models").json["data"]], [("first", None), ("org/second", None), ("sql", "first")])
        pages, after = [], ""
        for _ in range(3):
            page = server.get(f"/v1/models?limit=1&after={after}").json
            after = page["last_id"]
            pages.append((after, page["has_more"]))
        self.assertEqual(pages, [("first", True), ("org/second", True), ("sql", False)])
        for name in ("first", "org/second", "base", ""):
            self.assertEqual(server.complete("x", name, max_tokens=1).json["model"], "first")
        self.assertEqual(server.get("/v1/models/org/second").json["id"], "org/second")
        self.assertEqual(server.complete("x", "org/second:sql", max_tokens=1).json["model"], "sql")


class OwnEndpoints(Directory):
    def test_life(self):
        for name in ("sql", "dates"):
            self.copy_adapter(name, "root", name)
        server = self.start("--lora-root", self.path("root"), adapters=("tag",), state=self.path("state.db"))
        self.assertEqual([entry["id"] for entry in server.get("/v1/adapters").json["data"]], ["tag@1"])
        made = server.post("/v1/adapters", {"name": "x", "path": "sql"})
        self.assertEqual(made.status, 201, made)
        for key, value in {"id": "x@1", "object": "adapter", "name": "x", "version": 1, "rank": 16, "pinned": False, "path": self.path("root", "sql")}.items():
            self.assertEqual(made.json[key], value)
        self.assertEqual(made.json["targets"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
        self.assertRegex(made.json["digest"], "^(sha256:)?[0-9a-f]{64}$")
        self.assertGreater(made.json["host_bytes"], 500_000)
        # As it is after the probe, which needed its pages.
        self.assertEqual((made.json["tier"], made.json["running"], made.json["waiting"]), ("device", 0, 0), made)

        # A second version beside the first; the name means the newest.
        second = server.post("/v1/adapters", {"name": "x", "path": "dates", "keep_previous": True})
        self.assertEqual((second.status, second.json["id"]), (201, "x@2"))
        self.assertNotEqual(second.json["digest"], made.json["digest"])
        self.assertEqual((says(server, "x", MARCH), says(server, "x@2", MARCH), says(server, "x@1", RIGA)), (DATE, DATE, SQL))
        self.assertEqual(server.chat(RIGA, "x@1").headers["x-adapter"], "x@1")
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "sql", "replace": False}).status, 409)

        # Lists come a page at a time.
        listed, after = [], ""
        while True:
            page = server.get(f"/v1/models?limit=2&after={after}").json
            listed += [model["id"] for model in page["data"]]
            self.assertLessEqual(len(page["data"]), 2)
            self.assertEqual((page["first_id"], page["last_id"]), (page["data"][0]["id"], page["data"][-1]["id"]))
            after = page["last_id"]
            if not page["has_more"]:
                break
        whole = server.get("/v1/models").json
        self.assertEqual((listed, whole["has_more"]), ([model["id"] for model in whole["data"]], False))
        versions = server.get("/v1/adapters").json["data"]
        page = server.get("/v1/adapters?limit=1").json
        self.assertEqual((page["data"], page["has_more"]), (versions[:1], len(versions) > 1))
        self.assertEqual(server.get(f"/v1/adapters?after={page['last_id'].replace('@', '%40')}").json["data"], versions[1:])
        for query in ("limit=0", "limit=10001", "limit=x", "limit=", "limit=1.5", "after=" + "x" * 400):
            for path in ("/v1/models", "/v1/adapters"):
                self.assertEqual(server.get(f"{path}?{query}").json["error"]["param"], query.split("=")[0])
        # An alias, and its flip.
        self.assertEqual(server.call("PATCH", "/v1/adapters/x@1", {"alias": "prod"}).status, 200)
        self.assertEqual(says(server, "prod", RIGA), SQL)
        self.assertEqual(server.chat(RIGA, "prod").json["model"], "prod")
        self.assertIn("prod", names(server))
        self.assertEqual(server.call("PATCH", "/v1/adapters/x@2", {"alias": "prod"}).status, 200)
        self.assertEqual(says(server, "prod", MARCH), DATE)
        for path, body, status in (("x", {"alias": "base"}, 409), ("x", {"alias": "tag"}, 409), ("x", {"alias": "a//b"}, 400), ("nothing", {"alias": "y"}, 404),
                                   ("x@9", {"alias": "y"}, 404), ("x", {}, 400), ("x", {"pinned": 1}, 400), ("x", {"what": 1}, 400)):
            answer = server.call("PATCH", f"/v1/adapters/{path}", body)
            self.assertEqual(answer.status, status, (path, body, answer))
            self.assertIn("message", answer.json["error"])
        for body, param in (({"pinned": 1}, "pinned"), ({"what": 1}, "what")):
            self.assertEqual(server.call("PATCH", "/v1/adapters/x", body).json["error"]["param"], param)
        for body, param in (({"path": "sql"}, "name"), ({"name": "y"}, "path"), ({"name": "y", "path": "sql", "pinned": 1}, "pinned"), ({"name": "y", "path": "sql", "a": 1}, "a"),
                            ({"name": "y", "path": "nothing"}, "path"), ({"name": "y", "path": "/etc"}, "path"), ({"name": "x", "path": "sql", "replace": False}, "name")):
            self.assertEqual(server.post("/v1/adapters", body).json["error"]["param"], param)
        self.assertEqual(server.post("/v1/adapters", {"name": "prod", "path": "sql"}).status, 409)

        # Pins.
        self.assertTrue(server.call("PATCH", "/v1/adapters/x@1", {"pinned": True}).json["pinned"])
        self.assertTrue(adapter(server, "x@1")["pinned"])
        self.assertEqual(adapter(server, "x@1")["tier"], "device")
        self.assertGreater(adapter(server, "x@1")["device_bytes"], 0)

        # Everything is there again after a restart, the next version is 3.
        server.stop(0)
        server = self.start("--lora-root", self.path("root"), adapters=("tag",), state=self.path("state.db"))
        self.assertEqual([(entry["id"], entry["pinned"]) for entry in server.get("/v1/adapters").json["data"]],
                         [("tag@1", False), ("x@1", True), ("x@2", False)])
        self.assertEqual((says(server, "x", MARCH), says(server, "x@1", RIGA), says(server, "prod", MARCH)), (DATE, SQL, DATE))
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "sql"}).json["id"], "x@3")
        # x@2 stays because the alias names it.
        self.assertEqual([entry["id"] for entry in server.get("/v1/adapters").json["data"]], ["tag@1", "x@2", "x@3"])

        # Unloading really frees.
        self.assertEqual(says(server, "x", RIGA), SQL)
        before = adapter(server, "x@3")
        freed = server.call("DELETE", "/v1/adapters/x@3")
        self.assertEqual(freed.status, 200)
        self.assertEqual((freed.json["deleted"], freed.json["freed_host_bytes"]), (True, before["host_bytes"]))
        self.assertGreater(before["device_bytes"], 0)
        self.assertGreaterEqual(freed.json["freed_device_bytes"], before["device_bytes"])  # and what was cached of its prompts
        self.assertEqual(says(server, "x", MARCH), DATE)
        self.assertEqual(server.call("DELETE", "/v1/adapters/prod").json["deleted"], True)
        self.assertEqual(server.chat(model="prod").status, 404)
        self.assertEqual(server.call("DELETE", "/v1/adapters/x").status, 200)
        self.assertEqual(server.call("DELETE", "/v1/adapters/x").status, 404)
        self.assertEqual(server.get("/v1/adapters/x").status, 404)
        self.assertEqual(server.chat(model="x").status, 404)
        server.stop(0)
        server = self.start("--lora-root", self.path("root"), adapters=("tag",), state=self.path("state.db"))
        self.assertEqual(names(server), ["tag"])
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "sql"}).json["id"], "x@4")  # never a number twice
        server.stop(0)

    def test_state_keeps_only_what_clients_loaded(self):
        self.copy_adapter("sql", "root", "sql")
        options = {"state": self.path("state.db")}
        server = self.start("--lora-root", self.path("root"), "--lora", f"x={ADAPTERS}/sql", adapters=(), **options)
        self.assertEqual(server.call("PATCH", "/v1/adapters/x", {"pinned": True}).status, 200)
        server.call("PATCH", "/v1/adapters/x", {"alias": "gone"})
        server.call("DELETE", "/v1/adapters/x")  # and its alias with it
        self.assertEqual(server.post("/v1/adapters", {"name": "y", "path": "sql"}).status, 201)
        server.stop(0)
        server = self.start("--lora-root", self.path("root"), "--lora", f"x={ADAPTERS}/dates", adapters=(), **options)
        self.assertEqual(says(server, "x", MARCH), DATE)
        self.assertEqual(names(server), ["x", "y"])
        server.stop(0)

    def test_restart_without_the_files(self):
        self.copy_adapter("sql", "root", "sql")
        server = self.start("--lora-root", self.path("root"), adapters=("tag",), state=self.path("state.db"))
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "sql"}).status, 201)
        server.stop(0)
        shutil.rmtree(self.path("root", "sql"))
        server = self.start("--lora-root", self.path("root"), adapters=("tag",), state=self.path("state.db"))
        self.assertEqual(server.event("adapter_failed")["adapter"], "x")
        self.assertEqual(server.chat(model="x").json["error"]["code"], "adapter_unavailable")
        self.assertEqual(server.chat(model="tag").status, 200)
        server.stop(0)

    def test_replace_while_a_stream_runs(self):
        for name in ("sql", "dates"):
            self.copy_adapter(name, "root", name)
        server = self.start("--lora-root", self.path("root"), adapters=())
        server.post("/v1/adapters", {"name": "x", "path": "sql"})
        request = {"model": "x", "messages": [{"role": "user", "content": RIGA}], "temperature": 0, "ignore_eos": True, "max_tokens": 400}
        quiet = content(server.post("/v1/chat/completions", request))
        with server.open_stream("/v1/chat/completions", request) as stream:
            first = [stream.next() for _ in range(3)]
            self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "dates"}).status, 201)
            self.assertEqual(says(server, "x", MARCH), DATE)
            events = first + stream.rest()
        self.assertEqual("".join(event["choices"][0]["delta"].get("content", "") for event in events), quiet)
        # Deleting waits for the stream; ?wait=0 does not.
        request["model"] = "x"
        with server.open_stream("/v1/chat/completions", request) as stream:
            stream.next()
            quick = server.call("DELETE", "/v1/adapters/x?wait=0")
            self.assertEqual((quick.status, quick.json["deleted"], "freed_host_bytes" in quick.json), (202, True, False))
            self.assertEqual(server.chat(model="x").status, 404)
            self.assertTrue(stream.rest())
        wait_for(lambda: server.status()["pool"]["adapter"] == 0, "pages back")
        server.stop(0)

    def test_churn_under_load(self):
        """Every answer is that of one of the two contents, never a mixture, never an error but 404."""
        for name in ("sql", "dates"):
            self.copy_adapter(name, "root", name)
        server = self.start("--lora-root", self.path("root"), adapters=())
        server.post("/v1/adapters", {"name": "x", "path": "sql"})
        expected = {says(server, "x", RIGA)}
        server.post("/v1/adapters", {"name": "x", "path": "dates"})
        expected.add(says(server, "x", RIGA))
        self.assertEqual(len(expected), 2)
        wrong, seen, stop = [], [], threading.Event()

        def client():
            while not stop.is_set():
                answer = server.chat(RIGA, "x", temperature=0)
                if answer.status == 404:
                    continue
                text = answer.json["choices"][0]["message"]["content"] if answer.status == 200 else repr(answer)
                seen.append(text)
                if text not in expected:
                    wrong.append(text)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for i in range(30):
            self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "sql" if i % 2 else "dates"}).status, 201)
            if i % 10 == 5:
                self.assertEqual(server.call("DELETE", "/v1/adapters/x").status, 200)
            if i >= 28:  # each content once until somebody heard an answer that began after the change
                before = len(seen)
                wait_for(lambda: len(seen) > before + len(threads), "answers")
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertEqual(set(seen), expected)
        server.stop(0)


class Refusals(Directory):
    def setUp(self):
        super().setUp()
        self.copy_adapter("sql", "root", "sql")
        self.copy_adapter("sql", "outside")
        self.server = self.start("--lora-root", self.path("root"), adapters=("tag",))

    def load(self, path: str) -> tuple:
        answer = self.server.post("/v1/adapters", {"name": "bad", "path": path})
        self.assertIn(answer.status, (400, 403, 404), answer)
        self.assertEqual(self.server.chat(model="bad").status, 404)
        self.assertEqual(self.server.get("/v1/adapters/bad").status, 404)
        return answer.status, answer.json["error"]["message"]

    def test_paths(self):
        os.symlink(self.path("outside"), self.path("root", "link"))
        os.symlink("../outside", self.path("root", "relative"))
        os.symlink("/", self.path("root", "slash"))
        os.mkdir(self.path("root", "files"))
        for name in os.listdir(self.path("outside")):
            os.symlink(self.path("outside", name), self.path("root", "files", name))
        for path in (self.path("outside"), "../outside", "sql/../../outside", "link", "relative", "files", "/", "/etc", "/proc/self/root", "slash" + self.path("outside"),
                     self.path("root") + "/../outside", self.path("root-not"), "/nothing/at/all", ".", "", "sql\u0000", "x" * 5000):
            with self.subTest(path=path):
                _, message = self.load(path)
                self.assertNotIn("outside/", message)
        inside, outside = self.load("/etc/passwd"), self.load("/etc/no-such-file")
        self.assertEqual(inside[0], outside[0])
        os.symlink("sql", self.path("root", "good"))  # stays inside
        self.assertIn(self.server.post("/v1/adapters", {"name": "good", "path": "good"}).status, (201, 403))
        self.server.stop(0)

    def test_contents(self):
        fixtures = "tests/golden/fixtures/adapters/"
        for name in ("llama_mha__r8_attention", "qwen3__r6_linear", "llama_mha__r64_linear"):  # of other models
            shutil.copytree(fixtures + name, self.path("root", name))
            self.assertEqual(self.load(name)[0], 400)

        def damaged(name: str, change):
            target = self.copy_adapter("sql", "root", name)
            change(pathlib.Path(target))
            return self.load(name)

        def edit_config(**fields):
            def change(path):
                config = json.loads((path / "adapter_config.json").read_text())
                (path / "adapter_config.json").write_text(json.dumps({**config, **fields}))
            return change

        def cut(size):
            return lambda path: os.truncate(path / "adapter_model.safetensors", size)

        def poison(path):  # not a number in the last weights
            with open(path / "adapter_model.safetensors", "r+b") as file:
                file.seek(-2, os.SEEK_END)
                file.write(struct.pack("<H", 0x7FC0))

        size = os.path.getsize(f"{ADAPTERS}/sql/adapter_model.safetensors")
        for i, change in enumerate((cut(0), cut(7), cut(100), cut(size - 1), poison, edit_config(r=8), edit_config(r=0), edit_config(r="x"), edit_config(r=-1),
                                    edit_config(peft_type="IA3"), edit_config(lora_alpha=float("nan")),
                                    lambda path: (path / "adapter_config.json").write_text("{"), lambda path: (path / "adapter_config.json").unlink(),
                                    lambda path: (path / "adapter_model.safetensors").unlink(), lambda path: (path / "chat_template.jinja").write_text("{% for %}"))):
            with self.subTest(case=i):
                status, message = damaged(f"damaged{i}", change)
                self.assertIn(status, (400, 404), message)
        self.assertEqual(says(self.server, "tag", "On Tuesday Ben Keller met Sam in Berlin."), "On [DATE Tuesday] [PER Ben Keller] met [PER Sam] in [LOC Berlin].")
        self.server.stop(0)

    def test_warnings_are_logged(self):
        target = self.copy_adapter("sql", "root", "odd")
        path = pathlib.Path(target) / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["q_proj"]}))
        self.assertEqual(self.server.post("/v1/load_lora_adapter", {"lora_name": "odd", "lora_path": "odd"}).status, 200)
        self.assertIn("target_modules", wait_for(lambda: self.server.event("adapter_warning"), "the warning")["reason"])
        self.server.stop(0)

    def test_files_that_change_while_loaded(self):
        self.copy_adapter("sql", "root", "cut")
        for name in ("sql", "cut"):
            self.assertEqual(self.server.post("/v1/adapters", {"name": name, "path": name}).status, 201)
        os.truncate(self.path("root", "cut", "adapter_model.safetensors"), 10)
        shutil.rmtree(self.path("root", "sql"))
        for name in ("sql", "cut"):
            self.assertEqual(says(self.server, name, RIGA), SQL)
            self.assertEqual(says(self.server, f"{name}*0.5+{name}*0.5", RIGA), SQL)  # needs the weights again
        self.assertEqual(self.server.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "sql", "load_inplace": True}).status, 404)
        self.assertEqual(self.server.post("/v1/load_lora_adapter", {"lora_name": "cut", "lora_path": "cut", "load_inplace": True}).status, 400)
        for name in ("sql", "cut"):  # the old version is still there
            self.assertEqual(says(self.server, name, RIGA), SQL)
        self.server.stop(0)


class WatchedDirectory(Directory):
    def test_add_change_remove(self):
        self.copy_adapter("sql", "watched", "x")
        os.mkdir(self.path("watched", "not an adapter"))
        server = self.start("--lora-dir", self.path("watched"), "--watch-interval", "0.05", adapters=("tag",))
        self.assertEqual(names(server), ["tag", "x"])
        self.assertEqual(says(server, "x", RIGA), SQL)
        self.copy_adapter("dates", "watched", "y")
        wait_for(lambda: "y" in names(server), "y is loaded")
        self.assertEqual(says(server, "y", MARCH), DATE)
        self.copy_adapter("dates", "new")
        os.rename(self.path("watched", "x"), self.path("old"))
        os.rename(self.path("new"), self.path("watched", "x"))
        wait_for(lambda: server.get("/v1/adapters/x").status == 200 and adapter(server, "x")["version"] == 2, "x is replaced")
        self.assertEqual(says(server, "x", MARCH), DATE)
        shutil.rmtree(self.path("watched", "y"))
        wait_for(lambda: "y" not in names(server), "y is gone")
        self.assertEqual(server.chat(model="y").status, 404)
        broken = self.copy_adapter("sql", "watched.part", "z")
        os.truncate(os.path.join(broken, "adapter_model.safetensors"), 1000)
        os.rename(broken, self.path("watched", "z"))
        wait_for(lambda: server.event("adapter_failed"), "z is refused")
        self.assertEqual(server.event("adapter_failed")["adapter"], "z")
        self.assertEqual(names(server), ["tag", "x"])
        server.stop(0)

    def test_start_without_a_directory(self):
        for args in (("--lora-dir", self.path("nothing")), ("--lora-root", self.path("nothing"))):
            with self.assertRaisesRegex(RuntimeError, "not a directory"):
                Server(*args, adapters=())


if __name__ == "__main__":
    unittest.main()
