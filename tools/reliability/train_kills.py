#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills `lorikeet train` with SIGKILL again and again, goes on each time, and holds the end against a run that was never stopped: the
adapter's file must have the same bytes and every step the same loss.

  python3 tools/train_demo/records.py build/demo-records
  tools/reliability/train_kills.py build/demo-records/dates.jsonl --steps 600
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def losses(path: pathlib.Path) -> list:
    return [(m["step"], m["loss"]) for m in map(json.loads, path.read_text().splitlines()) if "grad_norm" in m]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--max-kills", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        data = work / "data.jsonl"
        data.write_text("".join(line + "\n" for line in args.data.read_text().splitlines()[: args.records]))

        def command(name: str) -> list:
            options = {"adapter.rank": 4, "adapter.dropout": 0.1, "train.steps": args.steps, "train.batch_samples": 2, "train.lr": 2e-3,
                       "train.schedule": "cosine", "save.every": 1, "block_tokens": 256, "metrics": work / f"{name}.jsonl"}
            sets = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
            return [args.lorikeet, "train", "--model", str(ROOT / "examples/demo/model"), "--data", str(data), "--output", str(work / name),
                    "--threads", "1", *sets]

        subprocess.run(command("whole"), check=True, capture_output=True)
        rng, kills, code = random.Random(4), 0, None
        while code is None and kills < args.max_kills:
            process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                code = process.wait(timeout=rng.uniform(0.35, 0.75))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        if code != 0:
            print(f"{kills} kills, then exit code {code}")
            return 1
        files = [(work / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
        curves = [losses(work / f"{name}.jsonl") for name in ("whole", "killed")]
    same = files[0] == files[1], curves[0] == curves[1] and len(curves[0]) == args.steps
    print(f"{kills} kills in {args.steps} steps; adapter {'the same' if same[0] else 'DIFFERS'}, losses {'the same' if same[1] else 'DIFFER'}")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
