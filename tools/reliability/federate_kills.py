#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills the server and the clients of a federation over HTTP with SIGKILL again and again, starts each anew, and holds the end against a
simulation that was never stopped: the adapter must have the same bytes. Whom to kill, and how long after the last line of the ledger, is
drawn, so that a slow machine gets as far as a fast one.

  tools/reliability/federate_kills.py --rule slora --kills 60
"""
import argparse
import json
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "examples/demo/model"


class Federation:
    def __init__(self, args: argparse.Namespace, work: pathlib.Path):
        self.binary, self.work = args.lorikeet, work
        self.clients = [f"c{n}" for n in range(args.clients)]
        for number, client in enumerate(self.clients):
            lines = [json.dumps({"prompt": f"{number} + {n} =", "completion": f" {number + n}"}) for n in range(3 + number)]
            (work / f"{client}.jsonl").write_text("\n".join(lines) + "\n")
            made = subprocess.run([self.binary, "keys", "create", "--state", work / "keys.db", "--tenant", client, "--scope", "federate"],
                                  capture_output=True, text=True, check=True)
            (work / f"{client}.key").write_text(made.stdout)
        run = {"base": str(MODEL), "dtype": "f32", "block_tokens": 64, "threads": 1, "rounds": args.rounds, "seed": args.seed,
               "adapter": {"rank": 2, "alpha": 3, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 3]},
               "train": {"steps": 2, "batch_samples": 2, "lr": 5e-3}, "rule": {"name": args.rule}}
        for name, clients in (("simulated", {"data": str(work / "c*.jsonl")}), ("server", {"names": self.clients})):
            (work / f"{name}.yaml").write_text(json.dumps(run | {"clients": clients | {"quorum": len(self.clients)}}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.running: dict[str, subprocess.Popen] = {}
        self.log = (work / "log").open("w")

    def simulate(self) -> bytes:
        subprocess.run([self.binary, "federate", "simulate", self.work / "simulated.yaml", "--out", self.work / "simulated"], check=True, capture_output=True)
        return (self.work / "simulated/latest/adapter_model.safetensors").read_bytes()

    def start(self, name: str) -> None:
        if name == "server":
            command = ["server", self.work / "server.yaml", "--state", self.work / "server", "--keys", self.work / "keys.db", "--port", self.port]
        else:
            command = ["client", "--server", f"http://127.0.0.1:{self.port}", "--key-file", self.work / f"{name}.key", "--data", self.work / f"{name}.jsonl",
                       "--base", MODEL, "--state", self.work / f"own-{name}", "--threads", 1]
        self.running[name] = subprocess.Popen([self.binary, "federate", *map(str, command)], stdout=self.log, stderr=self.log)

    def lines(self) -> int:
        ledger = self.work / "server/ledger.jsonl"
        return len(ledger.read_text().splitlines()) if ledger.exists() else 0

    def ended(self) -> bool:
        """The server is through; a process that failed by itself ends the drill."""
        for name, process in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            if code != 0:
                raise SystemExit(f"{name} ended with {code}:\n" + (self.work / "log").read_text()[-3000:])
            if name == "server":
                return True
        return False

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()
        self.start(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--rule", default="slora")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(args, pathlib.Path(folder))
        expected = federation.simulate()
        names = ["server", *federation.clients]
        for name in names:
            federation.start(name)
        kills = {name: 0 for name in names}
        try:
            while sum(kills.values()) < args.kills and not federation.ended():
                until = federation.lines() + rng.randint(0, 4)
                while federation.lines() < until and not federation.ended():
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.3))
                if federation.ended():
                    break
                name = rng.choice(names)
                kills[name] += 1
                federation.kill(name)
            code = federation.running["server"].wait(600)
        finally:
            for process in federation.running.values():
                process.kill()
                process.wait()
        same = (federation.work / "server/latest/adapter_model.safetensors").read_bytes() == expected
        print(f"{args.rule}: {args.rounds} rounds, {sum(kills.values())} kills {kills}: {'the same bytes' if same else 'OTHER BYTES'}, exit code {code}")
        return 0 if same and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
