#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of `lorikeet keys` and of configuration files. Usage: keys_test.py BINARY"""
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
MODEL = os.path.abspath("examples/demo/model")


class Program(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.state = os.path.join(self.dir, "sub", "state.db")
        self.environment = {"PATH": os.environ["PATH"], "HOME": self.dir, "LORIKEET_STATE": self.state}

    def run_it(self, *args: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run([BINARY, *args], capture_output=True, text=True, timeout=60, check=False, env={**self.environment, **variables})

    def good(self, *args: str, **variables: str) -> str:
        done = self.run_it(*args, **variables)
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        return done.stdout

    def refused(self, *args: str, words: tuple = (), **variables: str):
        done = self.run_it(*args, **variables)
        self.assertEqual(done.returncode, 1, (args, done.stdout, done.stderr))
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("lorikeet: "), done.stderr)
        self.assertEqual(done.stdout, "")
        for word in words:
            self.assertIn(word, done.stderr)

    def create(self, *args: str) -> str:
        return self.good("keys", "create", "--tenant", "acme", "--scope", "infer", *args).strip()

    def keys(self) -> list:
        return json.loads(self.good("keys", "list", "--json"))


class Keys(Program):
    def test_create_list_revoke(self):
        key = self.create("--note", "CI runner")
        self.assertRegex(key, r"^lk-[0-9A-Za-z]{12}-[0-9A-Za-z]{43}$")
        [row] = self.keys()
        self.assertEqual((row["id"], row["tenant"], row["scopes"], row["note"], row["expires"], row["state"]),
                         (key.split("-")[1], "acme", "infer", "CI runner", 0, "usable"))
        self.assertLess(abs(row["created"] - time.time()), 100)
        self.assertEqual(stat.S_IMODE(os.stat(self.state).st_mode), 0o600)
        table = self.good("keys", "list")
        self.assertIn("CI runner", table)
        self.assertNotIn(key.split("-")[2], table + json.dumps(self.keys()))
        self.good("keys", "revoke", row["id"])
        self.assertEqual(self.keys()[0]["state"], "revoked")
        second = self.create()
        self.good("keys", "revoke", second)  # the whole key
        self.assertEqual([row["state"] for row in self.keys()], ["revoked", "revoked"])
        self.refused("keys", "revoke", "nobody", words=("nobody",))
        self.refused("keys", "revoke", "lk-nobody", words=("nobody",))

    def test_expiry(self):
        now = time.time()
        for text, seconds in (("30d", 30 * 86400), ("12h", 12 * 3600), ("2w", 14 * 86400)):
            created = json.loads(self.create("--expires", text, "--json"))
            self.assertLess(abs(created["expires"] - now - seconds), 100)
            self.assertIn(created["expires"], [row["expires"] for row in self.keys()])
        created = json.loads(self.good("keys", "create", "--tenant", "acme", "--scope", "admin", "--expires", "2999-01-31", "--json"))
        self.assertEqual(created["expires"], 32474736000)
        self.assertEqual(created["key"].split("-")[1], created["id"])
        self.create("--expires", "2999-01-31T00:00:01Z")
        self.assertIn(32474736001, [row["expires"] for row in self.keys()])
        count = len(self.keys())
        for bad in ("2999-02-30", "1999-01-01", "soon", "0d", "-5d", "5", "5y", "99999999999999999999d", "2999-01-31x"):
            self.refused("keys", "create", "--tenant", "acme", "--scope", "infer", f"--expires={bad}", words=(bad,))
        self.assertEqual(len(self.keys()), count)

    def test_bad_input(self):
        self.refused("keys", "create", "--tenant", "a/b", "--scope", "infer", words=("a/b",))
        self.refused("keys", "create", "--tenant", "acme", "--scope", "root", words=("root", "infer, adapters, metrics, fleet, federate, admin"))
        self.refused("keys", "create", "--tenant", "acme", "--scope", "", words=("scope",))
        self.refused("keys", "create", "--tenant", "acme", "--scope", "infer", "--note", "a\nb", words=("note",))
        self.refused("keys", "list", "--state", "/dev/null", words=("/dev/null",))
        self.refused("keys", "list", "--state", self.dir, words=(self.dir,))
        damaged = os.path.join(self.dir, "damaged.db")
        pathlib.Path(damaged).write_bytes(b"nonsense" * 1000)
        self.refused("keys", "list", "--state", damaged, words=(damaged, "damaged"))
        for args in (("keys",), ("keys", "create"), ("keys", "create", "--tenant", "a"), ("keys", "revoke"), ("keys", "tenant"),
                     ("keys", "tenant", "set", "a", "--weight", "x"), ("keys", "nonsense")):
            self.assertEqual(self.run_it(*args).returncode, 2, args)

    def test_key_that_cannot_be_printed_is_revoked(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([BINARY, "keys", "create", "--tenant", "acme", "--scope", "infer"], stdout=full, stderr=subprocess.PIPE,
                                  text=True, timeout=60, check=False, env=self.environment)
        self.assertEqual(done.returncode, 1)
        self.assertIn("revoked", done.stderr)
        self.assertEqual([row["state"] for row in self.keys()], ["revoked"])

    def test_where_the_state_is(self):
        without = {"LORIKEET_STATE": ""}
        for variables, expected in (({"STATE_DIRECTORY": f"{self.dir}/s:/x", "XDG_STATE_HOME": f"{self.dir}/x"}, "s/state.db"),
                                    ({"XDG_STATE_HOME": f"{self.dir}/x"}, "x/lorikeet/state.db"), ({}, ".local/state/lorikeet/state.db")):
            self.good("keys", "list", **without, **variables)
            self.assertTrue(os.path.exists(os.path.join(self.dir, expected)), expected)
        self.good("keys", "list", "--state", os.path.join(self.dir, "flag.db"))
        self.assertTrue(os.path.exists(os.path.join(self.dir, "flag.db")))
        self.assertFalse(os.path.exists(self.state))


class Tenants(Program):
    def tenants(self) -> list:
        return json.loads(self.good("keys", "tenant", "list", "--json"))

    def test_set_keeps_what_is_not_given(self):
        self.good("keys", "tenant", "set", "acme", "--weight", "2.5", "--max-in-flight", "8", "--adapters", "sql-*,base")
        self.good("keys", "tenant", "set", "acme", "--tokens-per-minute", "60000")
        self.assertEqual(self.tenants(), [{"name": "acme", "weight": 2.5, "max_in_flight": 8, "tokens_per_minute": 60000, "adapters": ["sql-*", "base"],
                                           "object": "tenant", "max_adapters": 0, "max_versions": 0, "max_sums": 0}])
        self.assertIn("sql-*,base", self.good("keys", "tenant", "list"))
        self.good("keys", "tenant", "set", "acme", "--adapters", "")
        self.assertEqual(self.tenants()[0]["adapters"], [])

    def test_refusals(self):
        for args in (("--weight", "0"), ("--weight", "-1"), ("--weight", "nan"), ("--weight", "inf"), ("--max-in-flight", "-1"),
                     ("--tokens-per-minute", "-1"), ("--adapters", "a:b"), ("--adapters", "a,,b"), ("--adapters", "a b")):
            self.refused("keys", "tenant", "set", "acme", *args, words=("acme",))
        self.refused("keys", "tenant", "set", "..", words=("..",))
        self.assertEqual(self.tenants(), [])

    def test_remove(self):
        self.refused("keys", "tenant", "remove", "acme", words=("acme",))
        key = self.create()
        self.refused("keys", "tenant", "remove", "acme", words=("usable keys",))
        self.good("keys", "revoke", key)
        self.good("keys", "tenant", "remove", "acme")
        self.assertEqual(self.tenants(), [])
        self.assertEqual(len(self.keys()), 1)  # revoked keys stay: the server must not become an open one


class Configuration(Program):
    def test_generate_reads_a_file(self):
        path = os.path.join(self.dir, "c.toml")
        pathlib.Path(path).write_text(f'model = "{MODEL}"\n\n[sampling]\nmax_tokens = 3\nignore-eos = true\n')
        args = ("generate", "--config", path, "--prompt", "Once upon a time")
        plain = self.good("generate", MODEL, "--prompt", "Once upon a time", "--max-tokens", "3", "--ignore-eos")
        self.assertEqual(self.good(*args), plain)
        self.assertEqual(self.good(*args, "--check-config"), "configuration OK\n")
        printed = self.good(*args, "--print-config", LORIKEET_TOP_K="7")
        self.assertIn("\nmax-tokens = 3\n", printed)
        self.assertIn("\ntop-k = 7\n", printed)
        pathlib.Path(path).write_text(printed)
        self.assertEqual(self.good("generate", "--config", path, "--print-config"), printed)
        pathlib.Path(path).write_text("\nmax_tokns = 3\n")
        self.refused(*args, words=(f"{path}:2:", "max_tokns", "max-tokens"))
        pathlib.Path(path).write_text('max_tokens = "3"\n')
        self.refused(*args, words=(f"{path}:1:", "an integer"))
        self.refused(*args, LORIKEET_CONFIG="", LORIKEET_TOP_K="x", words=("LORIKEET_TOP_K",))
        self.assertTrue(re.search(r"LORIKEET_CONFIG is for --config", self.good("generate", "--help")))

    def test_packaged_example_fits_the_program(self):
        if "serve" not in self.good("--help").split():
            self.skipTest("no serve command yet")
        path = os.path.join(self.dir, "example.toml")
        text = pathlib.Path("packaging/lorikeet.toml").read_text()
        pathlib.Path(path).write_text(re.sub(r"(?m)^#(?=[a-z-]+ = )", "", text))  # with every example line in force
        self.good("serve", "--config", path, "--print-config")


if __name__ == "__main__":
    unittest.main()
