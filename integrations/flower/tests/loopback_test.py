#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lorikeet-flower against the real thing: a SuperLink and SuperNodes of flwr on loopback, each node with records of its own.

Usage: PYTHON_WITH_FLWR loopback_test.py [LORIKEET]. Skipped, and said so, where flwr is not installed. From the repository's root.
"""
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest

LORIKEET = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
MODEL = os.path.abspath("examples/demo/model")
APP = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(sys.executable).parent
PATIENCE = 300  # seconds for a step, on a machine that does much else

# Programs that a node takes for lorikeet.
FAILS = "#!/bin/sh\necho 'lorikeet: the disk is full' >&2\nexit 1\n"
HANGS = "#!/bin/sh\nexec sleep 100000\n"
GARBAGE = """#!/usr/bin/env python3
import sys
open(sys.argv[sys.argv.index("--out") + 1], "wb").write(b"no update")
"""
NOT_FINITE = f"""#!/usr/bin/env python3
import struct, subprocess, sys
out = sys.argv[sys.argv.index("--out") + 1]
subprocess.run(["{LORIKEET}", *sys.argv[1:]], check=True)
data = open(out, "rb").read()
open(out, "wb").write(data[:-4] + struct.pack("<f", float("nan")))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_arrays(path):
    """Name to (shape, f32 bytes)."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {name: data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__"}


@unittest.skipUnless(importlib.util.find_spec("flwr"), "flwr is not installed: python3 -m venv V && V/bin/pip install 'flwr>=1.42,<2'")
class Loopback(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="lorikeet-flower-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir, ignore_errors=True)
        cls.port = free_port()
        home = cls.dir / "home"
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{cls.port}"\ninsecure = true\n')
        cls.env = os.environ | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
        for client in range(3):
            lines = [json.dumps({"prompt": f"{client} + {n} =", "completion": f" {client + n}"}) for n in range(3 + client)]
            (cls.dir / f"c{client}.jsonl").write_text("\n".join(lines) + "\n")
        for name in ("fails", "hangs", "garbage", "nan"):
            shutil.copy(cls.dir / "c0.jsonl", cls.dir / f"{name}.jsonl")
        cls.start("superlink", "flower-superlink", "--insecure", "--port", cls.port, "--disable-runtime-dependency-installation")
        cls.wait_for(cls.dir / "superlink.log", "Uvicorn running")
        for client in ("c0", "c1", "c2"):
            cls.node(client, LORIKEET)

    @classmethod
    def start(cls, name, program, *args):
        log = (cls.dir / f"{name}.log").open("w")
        process = subprocess.Popen([BIN / program, *map(str, args)], stdout=log, stderr=subprocess.STDOUT, env=cls.env, cwd=cls.dir, start_new_session=True)
        log.close()
        cls.addClassCleanup(process.wait)
        cls.addClassCleanup(os.killpg, process.pid, signal.SIGKILL)
        return process

    @classmethod
    def wait_for(cls, path, text):
        end = time.monotonic() + PATIENCE
        while text not in path.read_text():
            assert time.monotonic() < end, path.read_text()
            time.sleep(0.2)

    @classmethod
    def node(cls, client, program):
        if not os.path.isabs(program):
            stub = cls.dir / f"{client}.stub"
            stub.write_text(program)
            stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
            program = stub
        config = {"client": client, "base": MODEL, "data": cls.dir / f"{client}.jsonl", "state": cls.dir / f"node-{client}", "lorikeet": program}
        text = " ".join(f'{key}="{value}"' for key, value in config.items()) + " threads=1"
        cls.start(f"node-{client}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{cls.port}", "--port", free_port(), "--node-config", text)
        cls.wait_for(cls.dir / f"node-{client}.log", "SuperNode ID")

    def run_file(self, name, clients, rule, **more):
        run = {"base": MODEL, "dtype": "f32", "block_tokens": 64, "threads": 1, "rounds": 2, "seed": 11, "keep": 9,
               "adapter": {"rank": 2, "alpha": 3, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 3]},
               "train": {"steps": 2, "batch_samples": 2, "lr": 5e-3}, "rule": rule, "clients": clients}
        path = self.dir / f"{name}.yaml"
        path.write_text(json.dumps(run | more))  # JSON is YAML
        return path

    def simulate(self, name, clients, rule, **more):
        data = [str(self.dir / f"c{n}.jsonl") for n in range(3)]
        run = self.run_file(f"{name}-simulated", {"data": data} | clients, rule, **more)
        out = self.dir / f"{name}-simulated"
        subprocess.run([LORIKEET, "federate", "simulate", run, "--out", out], check=True, capture_output=True, timeout=PATIENCE)
        return out

    def flower(self, name, clients, rule, carried="bundle", deadline=120.0, patience=30.0, **more):
        run = self.run_file(name, {"names": ["c0", "c1", "c2"]} | clients, rule, **more)
        state = self.dir / name
        config = f'run="{run}" state="{state}" lorikeet="{LORIKEET}" wire="{carried}" deadline={deadline} patience={patience}'
        done = subprocess.run([BIN / "flwr", "run", APP, "here", "--run-config", config, "--stream"], env=self.env, cwd=self.dir, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
        self.said = done.stdout
        return state

    def adapter(self, state):
        path = state / "latest" / "adapter_model.safetensors"
        self.assertTrue(path.exists(), self.said)
        return path.read_bytes()

    def ledger(self, state):
        return [json.loads(line) for line in (state / "ledger.jsonl").read_text().splitlines()]

    def test_bundle_gives_the_simulation_s_bytes(self):
        for number, (rule, more) in enumerate([({"name": "slora", "stage1_rounds": 1}, {}), ({"name": "flex"}, {"ranks": {"c0": 1}, "wire": "bf16"})]):
            with self.subTest(rule["name"]):
                clients = {"per_round": 2, "quorum": 2}
                simulated = self.simulate(f"bundle{number}", clients, rule, **more)
                state = self.flower(f"bundle{number}", clients, rule, **more)
                self.assertEqual(self.adapter(state), (simulated / "latest/adapter_model.safetensors").read_bytes())
                self.assertIn("all 2 rounds", subprocess.run([LORIKEET, "federate", "round", self.dir / f"bundle{number}.yaml", "--state", state, "--out", self.dir / "none"],
                                                             capture_output=True, text=True, check=False).stderr)

    def test_what_a_node_keeps_stays_with_it(self):
        simulated = self.simulate("fedsa", {}, {"name": "fedsa"})
        state = self.flower("fedsa", {}, {"name": "fedsa"})
        mine, theirs = (read_arrays(path / "latest/adapter_model.safetensors") for path in (state, simulated))
        self.assertEqual({name: data for name, data in mine.items() if "lora_A" in name}, {name: data for name, data in theirs.items() if "lora_A" in name})
        self.assertTrue(any((self.dir / "node-c0").rglob("own-000002.safetensors")))
        self.assertFalse(any(state.rglob("own-*")))

    def test_arrays_for_a_strategy_of_flower_s(self):
        import numpy as np

        for rule in ("fedavg", "ffa", "rolora"):
            with self.subTest(rule):
                simulated = self.simulate(f"arrays-{rule}", {}, {"name": rule})
                state = self.flower(f"arrays-{rule}", {}, {"name": rule}, carried="arrays")
                self.adapter(state)
                # FedAvg's means are of f32, in the order in which clients answered.
                mine, theirs = self.checkpoints(state), self.checkpoints(simulated)
                for name, first in theirs[0].items():
                    np.testing.assert_allclose(mine[0][name], first, rtol=1e-5, atol=1e-8, err_msg=name)
                # Clients that train from them learn what the last bit says: AdamW's step has a gradient's sign however
                # small that is. So a value may differ, and the change as a whole may not.
                for name, last in theirs[1].items():
                    change = np.linalg.norm(last - theirs[0][name])
                    self.assertLessEqual(np.linalg.norm(mine[1][name] - last), 1e-2 * change + 1e-5 * np.linalg.norm(last), name)
                    if rule == "ffa" and "lora_A" in name:
                        self.assertEqual(mine[1][name].tobytes(), theirs[0][name].tobytes(), "what is frozen is not averaged")

    def checkpoints(self, state):
        """The adapters after both rounds, by tensor."""
        import numpy as np

        return [{name: np.frombuffer(data, "<f4") for name, data in read_arrays(state / f"rounds/checkpoint-{round}/adapter_model.safetensors").items()}
                for round in (1, 2)]

    def test_a_round_closes_by_quorum(self):
        for name, stub in (("fails", FAILS), ("hangs", HANGS), ("garbage", GARBAGE), ("nan", NOT_FINITE)):
            self.node(name, stub)
        names = ["c0", "c1", "fails", "hangs", "garbage", "nan", "nowhere"]
        state = self.flower("quorum", {"names": names, "quorum": 2}, {"name": "fedavg"}, deadline=45.0, patience=10.0, rounds=1)
        self.adapter(state)
        events = {(line["event"], line.get("client")): line.get("reason", "") for line in self.ledger(state)}
        self.assertIn(("received", "c0"), events)
        self.assertIn(("received", "c1"), events)
        self.assertIn("disk is full", events["failed", "fails"])
        self.assertIn("no answer", events["failed", "hangs"])
        self.assertIn("no safetensors file", events["failed", "garbage"])
        self.assertIn("not finite", events["refused", "nan"])
        self.assertIn("no node", events["failed", "nowhere"])
        for client, why in (("fails", "disk is full"), ("garbage", "no safetensors"), ("nowhere", "no node")):
            self.assertRegex(self.said, f"{client}: .*{why}")
        # Too few: the run ends, and the next one goes on.
        state = self.flower("none", {"names": ["c0", "fails"], "quorum": 2, "retries": 1}, {"name": "fedavg"}, rounds=1)
        self.assertFalse((state / "latest").exists())
        self.assertIn("no quorum of 2 in 2 attempts", self.said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
