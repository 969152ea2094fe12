#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of `lorikeet federate` on the demo's base: what it refuses, and what kills leave. Usage: federate_test.py BINARY"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

BINARY = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
MODEL = "examples/demo/model"


class Federate(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        for name in ("red", "blue"):
            lines = [json.dumps({"prompt": f"{name} {n} =", "completion": f" {n + 1}"}) for n in range(30)]
            (self.dir / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def federate(self, *args, code=0):
        done = subprocess.run([BINARY, "federate", *map(str, args)], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def split(self):
        self.federate("split", self.dir / "red.jsonl", self.dir / "blue.jsonl", "--clients", 4, "--alpha", 0.5, "--min-examples", 3,
                      "--out", self.dir / "clients")

    def run_file(self, **more):
        run = {"base": MODEL, "dtype": "f32", "block_tokens": 64, "threads": 1, "rounds": 3, "seed": 5,
               "adapter": {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]},
               "clients": {"data": str(self.dir / "clients" / "*.jsonl"), "per_round": 3},
               "train": {"steps": 3, "batch_samples": 2, "lr": 5e-3},
               "rule": {"name": "slora", "stage1_rounds": 2}, "eval": {"path": [str(self.dir / "red.jsonl")]}}
        path = self.dir / "run.yaml"
        path.write_text(json.dumps(run | more))  # JSON is YAML
        return path

    def test_killed_and_started_again_it_ends_with_the_same_bytes(self):
        self.split()
        run = self.run_file()
        whole, parts = self.dir / "whole", self.dir / "parts"
        shown = self.federate("simulate", run, "--out", whole).stdout
        self.assertEqual(shown, (whole / "metrics.jsonl").read_text())
        self.assertEqual(len(shown.splitlines()), 4)
        for round_ in (0, 1, 2):
            process = subprocess.Popen([BINARY, "federate", "simulate", str(run), "--out", str(parts)], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True)
            self.addCleanup(process.stdout.close)
            for line in process.stdout:
                if json.loads(line)["round"] >= round_:
                    break
            process.send_signal(signal.SIGKILL if round_ else signal.SIGTERM)
            self.assertIn(process.wait(60), (-signal.SIGKILL, 130))
        self.federate("simulate", run, "--out", parts)
        for name in ("latest/state.safetensors", "latest/adapter_model.safetensors", "latest/adapter_config.json", "metrics.jsonl", "run.json"):
            self.assertEqual((whole / name).read_bytes(), (parts / name).read_bytes(), name)
        self.assertIn("3 rounds are over", self.federate("inspect", parts, "--base", MODEL).stdout)
        verified = subprocess.run([BINARY, "adapter", "verify", str(parts / "latest"), "--base", MODEL], capture_output=True, text=True, check=False)
        self.assertEqual(verified.returncode, 0, verified.stderr)

    def test_aggregate_names_what_it_writes_and_refuses_what_means_nothing(self):
        for name in ("c1", "c2"):
            shutil.copytree("examples/demo/adapters/sql", self.dir / name / "latest")
        given = [f"{self.dir}/c1/latest/", f"{self.dir}/c2/latest"]
        self.federate("aggregate", *given, "--base", MODEL, "--rule", "fedsa", "--out", self.dir / "personal")
        self.assertEqual(sorted(path.name for path in (self.dir / "personal").iterdir()), ["c1-latest", "c2-latest"])
        config = json.loads((self.dir / "personal/c1-latest/adapter_config.json").read_text())
        self.assertEqual(config["base_model_name_or_path"], MODEL)
        refused = self.federate("aggregate", given[0], given[0], "--base", MODEL, "--rule", "fedsa", "--out", self.dir / "none", code=1)
        self.assertIn("twice", refused.stderr)
        self.assertFalse((self.dir / "none").exists(), "nothing is half made")
        for flag, value, rule in (("--trim", "0.1", "fedavg"), ("--residual-rank", "4", "fedavg"), ("--max-rank", "4", "fedavg")):
            refused = self.federate("aggregate", *given, "--base", MODEL, "--rule", rule, flag, value, "--out", self.dir / "none", code=1)
            self.assertIn(flag, refused.stderr)
        self.federate("aggregate", *given, "examples/demo/adapters/sql", "--base", MODEL, "--rule", "trimmed", "--trim", "0.34", "--out", self.dir / "mean")

    def test_by_files_it_is_the_same_adapter(self):
        self.split()
        run = self.run_file(rounds=2, rule={"name": "slora", "stage1_rounds": 1})
        self.federate("simulate", run, "--out", self.dir / "simulated")
        names = [f"client-{n:02}" for n in range(4)]
        run = self.run_file(rounds=2, rule={"name": "slora", "stage1_rounds": 1}, clients={"names": names, "per_round": 3, "quorum": 2})
        server, outbox, inbox = self.dir / "server", self.dir / "outbox", self.dir / "inbox"
        inbox.mkdir()
        for round_ in (1, 2):
            given = self.federate("round", run, "--state", server, "--out", outbox).stdout.split()
            self.assertEqual(len(given), 3)
            updates = []
            for path in map(pathlib.Path, given):
                updates.append(inbox / f"{round_}-{path.name}")
                self.federate("client", "--round", path, "--data", self.dir / "clients" / f"{path.stem}.jsonl", "--base", MODEL, "--out", updates[-1])
            if round_ == 1:  # too few: the round stays open
                self.assertIn("quorum 2", self.federate("close", run, "--state", server, updates[0], code=1).stderr)
            broken = inbox / "broken.safetensors"
            broken.write_bytes(updates[0].read_bytes()[:1000])
            done = self.federate("close", run, "--state", server, *updates, updates[1], broken, given[0])
            self.assertEqual(done.stderr.count("refused"), 2, done.stderr)
            shutil.rmtree(outbox)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            self.assertEqual((server / "latest" / name).read_bytes(), (self.dir / "simulated" / "latest" / name).read_bytes())
        self.assertIn("all 2 rounds", self.federate("round", run, "--state", server, "--out", outbox, code=1).stderr)
        other = self.run_file(rounds=3, rule={"name": "slora", "stage1_rounds": 1}, clients={"names": names, "per_round": 3})
        self.assertIn("another run", self.federate("close", other, "--state", self.dir / "other", updates[0], code=1).stderr)

    def test_privacy_is_spent_round_by_round_and_ends_the_run(self):
        self.split()
        names = [f"client-{n:02}" for n in range(4)]
        more = {"rounds": 9, "rule": {"name": "ffa"}, "privacy": {"clip": 0.1, "noise": 2, "max_epsilon": 4}}
        run = self.run_file(clients={"names": names}, **more)
        server, outbox, updates = self.dir / "server", self.dir / "outbox", []
        first = self.federate("round", run, "--state", server, "--out", outbox)
        self.assertIn("will come to epsilon", first.stderr)
        for name in names:
            updates.append(self.dir / f"{name}.update")
            self.federate("client", "--round", outbox / f"{name}.safetensors", "--data", self.dir / "clients" / f"{name}.jsonl", "--base", MODEL,
                          "--out", updates[-1])
        self.assertIn("epsilon", self.federate("close", run, "--state", server, *updates).stdout)
        self.assertIn("privacy: epsilon", self.federate("inspect", server, "--base", MODEL).stdout)
        self.assertNotIn("aggregation_error", (server / "metrics.jsonl").read_text())
        model = server / "latest" / "adapter_model.safetensors"
        self.assertIn("privacy", self.federate("close", run, "--state", server, "--model", model, "--received", names[0], code=1).stderr)
        self.assertFalse((server / "noise.key").exists())
        # In a simulation until the budget is spent: that is a success.
        run = self.run_file(**more)
        done = self.federate("simulate", run, "--out", self.dir / "simulated")
        self.assertIn("protects nobody", done.stderr)
        self.assertIn("the run ends after round", done.stderr)
        rounds = [json.loads(line) for line in done.stdout.splitlines()][1:]
        self.assertLess(len(rounds), 9)
        self.assertLessEqual(rounds[-1]["epsilon"], 4)
        self.assertEqual(self.federate("simulate", run, "--out", self.dir / "simulated").stdout, "")
        # A secret sample of nobody is closed with nothing.
        run = self.run_file(rounds=1, rule={"name": "ffa"}, clients={"names": names, "per_round": 1}, privacy={"clip": 0.1, "noise": 2, "sampling": "poisson"})
        self.federate("round", run, "--state", self.dir / "poisson", "--out", self.dir / "asked")
        self.assertIn("round 1 of 1: 0 updates, epsilon", self.federate("close", run, "--state", self.dir / "poisson").stdout)
        refused = self.federate("simulate", self.run_file(rule={"name": "flex"}, privacy={"clip": 0.1, "noise": 2}), "--out", self.dir / "x", code=1)
        self.assertIn("not linear", refused.stderr)

    def test_refusals_name_what_to_change(self):
        self.assertIn("already", self.federate_after_split())
        self.assertIn("another", self.other_run())
        for more, word in (({"rule": {"name": "fedsgd"}}, "fedavg"), ({"clients": {"data": "nowhere/*"}}, "nowhere"), ({"rounds": 0}, "rounds"),
                           ({"clients": {"data": str(self.dir / "clients" / "*.jsonl"), "quorum": 9}}, "quorum")):
            done = self.federate("simulate", self.run_file(**more), "--out", self.dir / "x", code=1)
            self.assertIn(word, done.stderr)
            self.assertFalse((self.dir / "x").exists())
        self.assertIn("no finished round", self.federate("inspect", self.dir, "--base", MODEL, code=1).stderr)

    def federate_after_split(self):
        self.split()
        return self.federate("split", self.dir / "red.jsonl", "--clients", 4, "--out", self.dir / "clients", code=1).stderr

    def other_run(self):
        self.federate("simulate", self.run_file(rounds=1, rule={"name": "fedavg"}), "--out", self.dir / "one")
        return self.federate("simulate", self.run_file(rounds=1, rule={"name": "ffa"}), "--out", self.dir / "one", code=1).stderr


if __name__ == "__main__":
    unittest.main()
