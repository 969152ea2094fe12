# SPDX-License-Identifier: Apache-2.0
"""Adapters that are known without being served now: after a restart with other files or another base, while a directory is away, by the thousand."""
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import unittest

from harness import ADAPTERS, BINARY, MODEL, PATIENCE, Directory, Server, wait_for

RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"
MARCH, DATE = "We met on the 8th of March 1973.", "1973-03-08"


class Known(Directory):
    def content(self, answer) -> str:
        self.assertEqual(answer.status, 200, answer)
        return answer.json["choices"][0]["message"]["content"]

    def says(self, server: Server, model: str, prompt: str = RIGA) -> str:
        return self.content(server.chat(prompt, model, temperature=0))

    def unavailable(self, server: Server, model: str, *words: str) -> None:
        answer = server.chat(RIGA, model)
        self.assertEqual(answer.status, 503, answer)
        self.assertEqual(answer.json["error"]["code"], "adapter_unavailable", answer)
        self.assertIn("retry-after", answer.headers)
        for word in words:
            self.assertIn(word, answer.json["error"]["message"])
        self.assertNotIn(self.dir, answer.text)  # clients learn no paths

    def names(self, server: Server) -> list:
        return [model["id"] for model in server.get("/v1/models").json["data"]][1:]

    def metric(self, server: Server, name: str) -> float:
        for line in server.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")


class Restart(Known):
    def restart(self, server: Server | None, **kwargs) -> Server:
        if server:
            server.stop(0)
        return self.start("--lora-root", self.path("root"), adapters=(), state=self.path("state.db"), **kwargs)

    def test_changed_files_are_not_the_version_they_were(self):
        self.copy_adapter("sql", "root", "x")
        self.copy_adapter("dates", "root", "y")
        server = self.restart(None)
        for name in ("x", "y"):
            self.assertEqual(server.post("/v1/adapters", {"name": name, "path": name}).status, 201)
        self.assertEqual(server.call("PATCH", "/v1/adapters/x@1", {"alias": "prod"}).status, 200)
        digest = server.get("/v1/adapters/x").json["digest"]
        server.stop(0)
        os.rename(self.path("root", "x"), self.path("x"))
        self.copy_adapter("math", "root", "x")
        server = self.restart(None)
        # The name, the version, an alias to it and a sum with it: none of them is answered with other weights.
        for model in ("x", "x@1", "prod", "x*0.5+y*0.5"):
            self.unavailable(server, model, "its files changed")
        self.assertEqual(self.says(server, "y", MARCH), DATE)
        self.assertEqual(self.names(server), ["prod", "y"])
        shown = server.get("/v1/adapters/x").json
        self.assertEqual((shown["id"], shown["state"], shown["digest"]), ("x@1", "unavailable", digest))
        self.assertIn("changed: ", shown["reason"])
        self.assertEqual(server.event("adapter_changed_on_disk")["adapter"], "x")
        self.assertEqual(self.metric(server, 'lorikeet_adapters_unavailable{reason="changed"}'), 1)
        self.assertEqual(server.status()["adapters"]["unavailable"]["changed"], 1)
        # The files that it stands for are back.
        shutil.rmtree(self.path("root", "x"))
        os.rename(self.path("x"), self.path("root", "x"))
        wait_for(lambda: server.chat(RIGA, "x@1", temperature=0).status == 200, "x@1 is back")
        self.assertEqual(self.says(server, "prod"), SQL)
        self.assertEqual(self.metric(server, 'lorikeet_adapters_unavailable{reason="changed"}'), 0)
        server.stop(0)

    def test_what_is_there_now_is_another_version(self):
        self.copy_adapter("sql", "root", "x")
        server = self.restart(None)
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "x"}).status, 201)
        server.stop(0)
        shutil.rmtree(self.path("root", "x"))
        self.copy_adapter("dates", "root", "x")
        server = self.restart(None)
        self.unavailable(server, "x")
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "x"}).json["id"], "x@2")
        self.assertEqual(self.says(server, "x", MARCH), DATE)
        self.assertEqual(server.chat(model="x@1").status, 404)
        server = self.restart(server)
        self.assertEqual(self.says(server, "x@2", MARCH), DATE)
        self.assertEqual(server.call("DELETE", "/v1/adapters/x").status, 200)
        server.stop(0)

    def test_a_changed_template_is_a_change(self):
        self.copy_adapter("sql", "root", "x")
        server = self.restart(None)
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "x"}).status, 201)
        server.stop(0)
        with open(self.path("root", "x", "chat_template.jinja"), "w") as file:
            file.write("{{ messages[0].content }}")
        server = self.restart(None)
        self.unavailable(server, "x@1", "its files changed")
        server.stop(0)

    def test_adapters_of_another_base_stay_stored(self):
        self.copy_adapter("sql", "root", "x")
        server = self.restart(None)
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "x"}).status, 201)
        server.call("PATCH", "/v1/adapters/x", {"alias": "prod"})
        server.stop(0)
        other = self.path("other")
        shutil.copytree(MODEL, other)
        with open(os.path.join(other, "config.json")) as file:
            original = json.load(file)
        with open(os.path.join(other, "config.json"), "w") as file:
            json.dump({**original, "rope_theta": original.get("rope_theta", 10000) * 2}, file)
        server = self.restart(None, model=(other,))
        self.assertEqual(server.event("adapters_of_other_bases")["adapters"], 1)
        self.assertEqual(self.names(server), [])
        self.assertEqual(server.chat(model="x").status, 404)
        self.assertEqual(server.chat(model="prod").status, 404)
        # Its own adapter of that name has a number of its own.
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "x"}).json["id"], "x@2")
        server = self.restart(server)
        self.assertEqual(self.names(server), ["prod", "x"])
        self.assertEqual(self.says(server, "x@1"), SQL)
        self.assertEqual(server.chat(model="x@2").status, 404)
        self.assertEqual(self.says(server, "prod"), SQL)
        # The same model from elsewhere, and with another note of who wrote it.
        shutil.rmtree(other)
        shutil.copytree(MODEL, other)
        with open(os.path.join(other, "config.json"), "w") as file:
            json.dump({**original, "transformers_version": "9.9.9"}, file)
        server.stop(0)
        server = self.restart(None, model=(other,))
        self.assertEqual(self.says(server, "x@1"), SQL)
        server.stop(0)

    def test_numbers_of_directories_stand_for_their_content(self):
        """--lora and --lora-dir are read again at each start: a number is the content it was."""
        self.copy_adapter("sql", "dir", "x")
        options = {"adapters": (), "state": self.path("state.db")}
        flags = ("--lora-dir", self.path("dir"), "--lora", f"y={ADAPTERS}/sql")
        server = self.start(*flags, **options)
        self.assertEqual([entry["id"] for entry in server.get("/v1/adapters").json["data"]], ["x@1", "y@1"])
        server.stop(0)
        server = self.start(*flags, **options)
        self.assertEqual([entry["id"] for entry in server.get("/v1/adapters").json["data"]], ["x@1", "y@1"])
        server.stop(0)
        shutil.rmtree(self.path("dir", "x"))
        self.copy_adapter("dates", "dir", "x")
        server = self.start("--lora-dir", self.path("dir"), "--lora", f"y={ADAPTERS}/dates", **options)
        self.assertEqual([entry["id"] for entry in server.get("/v1/adapters").json["data"]], ["x@2", "y@2"])
        self.assertEqual(server.chat(model="x@1").status, 404)
        server.stop(0)


    def test_what_a_tenant_stored_is_held_to_its_roots(self):
        self.copy_adapter("sql", "tenants", "globex", "x")
        key = self.keys("create", "--tenant", "acme", "--scope", "adapters,infer")
        admin = self.keys("create", "--tenant", "root", "--scope", "admin")
        options = {"adapters": (), "state": self.path("state.db")}
        server = self.start("--lora-root", self.path("tenants"), **options)
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "globex/x"}, key=key).status, 201)
        server.stop(0)
        server = self.start("--lora-root", self.path("tenants", "{tenant}"), **options)
        shown = server.get("/v1/adapters/x", key=admin).json
        self.assertEqual((shown["state"], shown["tenant"]), ("unavailable", "acme"))
        self.assertEqual(server.chat(RIGA, "x", key=key).status, 503)
        server.stop(0)


class Away(Known):
    def test_an_unmounted_volume_unloads_nothing(self):
        for name in ("sql", "dates"):
            self.copy_adapter(name, "volume", name)
        server = self.start("--lora-dir", self.path("volume"), "--watch-interval", "0.05", adapters=())
        os.rename(self.path("volume"), self.path("away"))
        os.mkdir(self.path("volume"))
        wait_for(lambda: server.get("/v1/adapters").json["directories"][0]["state"] == "empty", "seen as empty")
        self.assertEqual(self.metric(server, 'lorikeet_adapter_directories{state="empty"}'), 1)
        self.assertEqual(self.says(server, "sql"), SQL)
        # Unreadable: there is nothing of that name now.
        os.rmdir(self.path("volume"))
        wait_for(lambda: server.get("/v1/adapters").json["directories"][0]["state"] == "unreadable", "seen as unreadable")
        self.assertEqual(self.says(server, "dates", MARCH), DATE)
        os.rename(self.path("away"), self.path("volume"))
        wait_for(lambda: server.get("/v1/adapters").json["directories"][0]["state"] == "ok", "seen again")
        self.assertEqual(self.says(server, "sql@1"), SQL)
        self.assertEqual([entry["state"] for entry in server.events("lora_dir")], ["empty", "unreadable", "ok"])
        # Told otherwise: the operator says that it is empty indeed.
        shutil.rmtree(self.path("volume"))
        os.mkdir(self.path("volume"))
        wait_for(lambda: server.get("/v1/adapters").json["directories"][0]["state"] == "empty", "seen as empty")

        server.signal(1)
        wait_for(lambda: server.chat(model="sql").status == 404, "gone")
        server.stop(0)

    def test_a_load_that_the_state_file_held_up_is_tried_again(self):
        self.copy_adapter("sql", "dir", "first")
        server = self.start("--lora-dir", self.path("dir"), "--watch-interval", "0.05", adapters=(), state=self.path("state.db"))
        other = sqlite3.connect(self.path("state.db"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        self.copy_adapter("dates", "dir", "late")
        wait_for(lambda: server.get("/v1/adapters/late").json.get("state") == "unavailable", "refused")
        self.unavailable(server, "late", "cannot be read now")
        other.execute("ROLLBACK")
        other.close()
        wait_for(lambda: server.chat(model="late").status == 200, "loaded, though its files did not change")
        server.stop(0)

    def test_stored_adapters_of_an_absent_volume_come_back_with_it(self):
        self.copy_adapter("sql", "root", "x")
        options = {"adapters": (), "state": self.path("state.db")}
        server = self.start("--lora-root", self.path("root"), **options)
        self.assertEqual(server.post("/v1/adapters", {"name": "x", "path": "x"}).status, 201)
        server.stop(0)
        os.rename(self.path("root", "x"), self.path("away"))
        server = self.start("--lora-root", self.path("root"), **options)
        self.unavailable(server, "x", "cannot be read now")
        os.rename(self.path("away"), self.path("root", "x"))
        wait_for(lambda: server.get("/v1/adapters/x").json["state"] == "loaded", "loaded without being asked for")
        self.assertEqual(self.says(server, "x@1"), SQL)
        server.stop(0)


class Lazy(Known):
    def setUp(self):
        super().setUp()
        for name in ("a", "b", "c", "d"):
            self.copy_adapter("sql", "dir", name)
        self.copy_adapter("dates", "dir", "e")

    def test_each_is_loaded_when_a_request_asks_for_it(self):
        server = self.start("--lora-dir", self.path("dir"), "--lora-eager", "3", adapters=())
        self.assertEqual(self.names(server), ["a", "b", "c", "d", "e"])
        self.assertEqual({entry["state"] for entry in server.get("/v1/adapters").json["data"]}, {"known"})
        self.assertEqual(server.get("/v1/models/a").json["id"], "a")
        self.assertEqual(server.get("/v1/adapters/a").json["state"], "known")
        first = server.chat(RIGA, "a", temperature=0)
        self.assertEqual(self.content(first), SQL)
        self.assertEqual(first.headers["x-adapter"], "a@1")
        self.assertEqual(self.says(server, "b@1"), SQL)
        self.assertEqual(self.says(server, "c*0.5+d*0.5"), SQL)
        self.assertEqual(server.post("/tokenize", {"model": "e", "prompt": "x"}).status, 200)
        self.assertEqual(server.status()["adapters"]["total"], 5)
        missing = server.chat(model="nobody")
        self.assertEqual((missing.status, missing.json["error"]["code"]), (404, "model_not_found"))
        self.assertEqual(server.chat(model="a@7").json["error"]["code"], "model_not_found")
        server.stop(0)

    def test_pins_and_aliases_of_what_is_known(self):
        server = self.start("--lora-dir", self.path("dir"), "--lora-eager", "3", adapters=())
        self.assertEqual(server.call("PATCH", "/v1/adapters/e", {"alias": "prod"}).status, 200)
        self.assertEqual(self.says(server, "prod", MARCH), DATE)
        pinned = server.call("PATCH", "/v1/adapters/a", {"pinned": True})
        self.assertEqual((pinned.status, pinned.json["pinned"], pinned.json["state"]), (200, True, "loaded"), pinned)
        self.assertEqual(server.call("DELETE", "/v1/adapters/b").status, 200)
        self.assertEqual(server.chat(model="b").status, 404)
        server.stop(0)

    def test_who_waits_for_a_load_is_in_flight(self):
        self.keys("tenant", "set", "t", "--max-in-flight", "1")
        key = self.keys("create", "--tenant", "t", "--scope", "infer")
        admin = self.keys("create", "--tenant", "root", "--scope", "admin")
        server = self.start("--lora-dir", self.path("dir"), "--lora-eager", "3", adapters=(), state=self.path("state.db"))
        other = sqlite3.connect(self.path("state.db"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # holds up the load, which stores the number it gives
        first = []
        waiting = threading.Thread(target=lambda: first.append(server.chat(RIGA, "a", key=key, temperature=0)))
        waiting.start()
        wait_for(lambda: [row["in_flight"] for row in server.get("/v1/status", key=admin).json["tenants"] if row["name"] == "t"] == [1], "in flight")
        second = server.chat(RIGA, "base", key=key)
        self.assertEqual((second.status, second.json["error"]["code"]), (429, "rate_limit_exceeded"))
        self.assertEqual(server.get("/v1/adapters/a", key=admin).json["state"], "known")
        other.execute("ROLLBACK")
        other.close()
        waiting.join()
        self.assertEqual(self.content(first[0]), SQL)
        self.assertEqual(server.chat(RIGA, "base", key=key).status, 200)
        server.stop(0)

    def test_names_reach_nothing_but_what_was_listed(self):
        self.copy_adapter("sql", "beside")
        os.symlink(self.path("beside"), self.path("dir", "out"))
        server = self.start("--lora-dir", self.path("dir"), "--lora-eager", "3", adapters=())
        for name in ("../beside", self.path("beside"), self.path("dir", "a"), "a/../b", "./a", "a/", "a\0", "a\0b", "..", ".", "base:../beside", "../dir/a"):
            with self.subTest(name=name):
                answer = server.chat(RIGA, name)
                self.assertEqual((answer.status, answer.json["error"]["code"], answer.json["error"]["param"]), (404, "model_not_found", "model"))
        self.unavailable(server, "out", "cannot be read now")
        self.assertIn("roots", server.get("/v1/adapters/out").json["reason"])
        server.stop(0)

    def test_tenants_load_only_what_they_may_use(self):
        self.keys("tenant", "set", "t", "--adapters", "a")
        key = self.keys("create", "--tenant", "t", "--scope", "infer")
        admin = self.keys("create", "--tenant", "t", "--scope", "admin")
        server = self.start("--lora-dir", self.path("dir"), "--lora-eager", "3", adapters=(), state=self.path("state.db"))
        for name in ("b", "nobody"):
            answer = server.chat(RIGA, name, key=key)
            self.assertEqual((answer.status, answer.json["error"]["code"]), (404, "model_not_found"))
            self.assertEqual(answer.json["error"]["message"].replace(name, "X"), "The model `X` does not exist or you do not have access to it.")
        self.assertEqual(self.content(server.chat(RIGA, "a", key=key, temperature=0)), SQL)
        self.assertEqual(server.get("/v1/status", key=admin).json["adapters"]["total"], 1)
        self.assertEqual([model["id"] for model in server.get("/v1/models", key=key).json["data"]], ["a"])
        server.stop(0)

    def test_more_than_a_page(self):
        first = self.path("dir", "a")
        for index in range(1000):
            os.mkdir(self.path("dir", f"m{index:04}"))
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                os.link(os.path.join(first, name), self.path("dir", f"m{index:04}", name))
        server = self.start("--lora-dir", self.path("dir"), "--watch-interval", "3600", adapters=())
        for path, key, extra in (("/v1/models", "id", 1), ("/v1/adapters", "name", 0)):
            page = server.get(path).json
            self.assertEqual((len(page["data"]), page["has_more"]), (1000, True))
            rest = server.get(f"{path}?after={page['last_id']}").json
            self.assertEqual((len(rest["data"]), rest["has_more"]), (5 + extra, False))
            names = [entry[key] for entry in page["data"] + rest["data"]][extra:]
            self.assertEqual(names, sorted(os.listdir(self.path("dir"))))
        # Whoever drives the server finds those behind the first page, too.
        done = subprocess.run([BINARY, "bench", "serve", f"http://{server.address}", "--endpoint", "completions", "--num-requests", "1", "--output-tokens", "1",
                               "--adapter-mix", "same", "--adapters", "m0999"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(server.get("/v1/adapters/m0999").json["state"], "loaded")
        server.stop(0)

    def test_many_stored_ones_are_loaded_when_asked_for_too(self):
        options = {"adapters": (), "state": self.path("state.db")}
        server = self.start("--lora-root", self.path("dir"), **options)
        for name in ("a", "b", "e"):
            self.assertEqual(server.post("/v1/adapters", {"name": name, "path": name, "pinned": name == "e"}).status, 201)
        server.stop(0)
        server = self.start("--lora-root", self.path("dir"), "--lora-eager", "2", **options)
        self.assertEqual({entry["id"]: entry["state"] for entry in server.get("/v1/adapters").json["data"]}, {"a@1": "known", "b@1": "known", "e@1": "loaded"})
        self.assertEqual(self.says(server, "a@1"), SQL)
        self.assertTrue(server.get("/v1/adapters/e").json["pinned"])
        server.stop(0)


if __name__ == "__main__":
    unittest.main()
