#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of `lorikeet simulate`: outputs, files, one clear line per error. Usage: simulate_test.py BINARY"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet"


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([BINARY, "simulate", *args], capture_output=True, text=True, timeout=300, check=False)


class Simulate(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)

    def path(self, name: str, text: str = "") -> str:
        path = os.path.join(self.dir, name)
        if text:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return path

    def refused(self, *args: str, words: str):
        done = run(*args)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertIn(words, done.stderr)

    def test_a_suite_prints_a_table_and_writes_json(self):
        out = self.path("out.json")
        done = run("--suite", "vtc-overload", "--duration", "60", "--per-tenant", "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("service difference", done.stdout)
        with open(out, encoding="utf-8") as file:
            data = json.load(file)
        self.assertEqual(data["format"], "lorikeet-simulation-1")
        result = data["runs"][0]["result"]
        self.assertEqual(result["requests"], result["done"])
        self.assertEqual([t["name"] for t in result["tenants"]], ["c0", "c1"])
        self.assertEqual(len(result["timeline"]["time_s"]), len(result["timeline"]["service"]))

    def test_sweeps_run_every_combination(self):
        out = self.path("out.json")
        done = run("--requests", "20", "--sweep", "adapters=1,4", "--sweep", "rate=1,2,4", "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(out, encoding="utf-8") as file:
            data = json.load(file)
        self.assertEqual(data["sweep"], ["adapters", "rate"])
        self.assertEqual([(r["swept"]["adapters"], r["swept"]["rate"]) for r in data["runs"]],
                         [(a, r) for a in ("1", "4") for r in ("1", "2", "4")])

    def test_equal_seeds_give_equal_output(self):
        args = ("--requests", "100", "--rate", "10", "--tenants", "3", "--fault-cancel", "0.01")
        self.assertEqual(run(*args, "--seed", "5").stdout, run(*args, "--seed", "5").stdout)
        self.assertNotEqual(run(*args, "--seed", "5").stdout, run(*args, "--seed", "6").stdout)

    def test_printed_machine_can_be_used(self):
        machine = self.path("machine.json", run("--model", "a100-80-7b", "--print-model").stdout)
        args = ("--requests", "50", "--rate", "10")
        self.assertEqual(run("--model", machine, *args).stdout, run("--model", "a100-80-7b", *args).stdout)

    def test_a_trace_is_replayed(self):
        trace = self.path("trace.csv", "time,context,generated,adapter,tenant\n0,10,5,0,a\n0.5,20,6,1,b\n")
        done = run("--trace", trace, "--adapters", "2", "--per-tenant")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("2 requests", done.stdout)

    def test_streams_describe_tenants(self):
        done = run("--stream", "tenant=a,rate=2,to=10,input=16,output=8", "--stream", "tenant=b,rate=1,to=10,input=16,output=8,weight=2", "--per-tenant")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("30 requests", done.stdout)

    def test_fuzz_and_list(self):
        done = run("--fuzz-seeds", "20", "--first-seed", "7")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("20 seeds from 7: every invariant held", done.stdout)
        self.assertIn("vtc-overload", run("--list").stdout)

    def test_calibration_by_cpu_time_needs_one_thread(self):
        done = subprocess.run([BINARY, "bench", "calibrate", "--dummy", "none.json", "--cpu-time"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--cpu-time needs --threads 1", done.stderr)

    def test_bad_input_is_refused_with_the_reason(self):
        self.refused("--weights", "1/-1", words="--weights: a weight must be a number in 1e-06..1000000, got \"-1\"")
        self.refused("--weights", "nan", words="a weight must be a number")
        self.refused("--rate", "0", words="--rate: rate must be a number")
        self.refused("--trace", self.path("a.csv", "time,context,generated\n2,1,1\n1,1,1\n"), words="a.csv: line 3: out of order")
        self.refused("--trace", self.path("b.csv", "time,context,generated,adapter\n2,1,1,9\n"), "--adapters", "3", words="b.csv: line 2: unknown adapter")
        self.refused("--pool-tokens", "64", "--ranks", "64", words="does not hold adapter 0")
        self.refused("--pool-tokens", "512", "--adapters", "0", words="does not hold one sequence of")
        self.refused("--slo", "0.001", words="no request can meet an objective of 0.001 s")
        self.refused("--model", "z80", words="no cost model \"z80\"")
        self.refused("--suite", "vtc", words="no suite \"vtc\"")
        self.refused("--sweep", "colour=red,blue", words="no parameter \"colour\"")
        self.refused("--sweep", "rate", words="--sweep wants KEY=VALUE,VALUE")
        self.refused("--sweep", "rate=1,x", words="rate must be a number")
        self.refused("--merging", "sometimes", words="never, always, exclusive, dlora or cost")
        self.refused("--scheduling-policy", "luck", words="--scheduling-policy")
        self.refused("--quantum", "5", words="dlpm")
        self.refused("--service-cost", "1e6,1e6,1e6,1e6,1", words="only ratios matter")
        self.refused("--advance-share", "2", words="2")
        self.refused("--length-prediction", "none", "--advance-share", "0.5", words="--length-prediction")
        self.refused("--scheduling-policy", "lcf", "--preempt-gap", "1", words="--preempt-gap")
        self.refused("--stream", "rate=1,speed=2", words="--stream: unknown key \"speed\"")


if __name__ == "__main__":
    unittest.main()
