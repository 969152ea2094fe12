#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills `lorikeet train` with SIGKILL again and again, goes on each time, and holds the end against a run that was never stopped: the
adapter's file must have the same bytes and every step the same loss. When to kill is drawn: shortly after the start, or so many checkpoints
on and a moment later, so that a slow machine gets as far as a fast one.

  python3 tools/train_demo/records.py build/demo-records
  tools/reliability/train_kills.py build/demo-records/dates.jsonl --kills 100
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def losses(path: pathlib.Path) -> list:
    return [(m["step"], m["loss"]) for m in map(json.loads, path.read_text().splitlines()) if "grad_norm" in m]


def newest_step(checkpoints: pathlib.Path) -> int:
    try:
        return max((int(path.name.removeprefix("checkpoint-")) for path in checkpoints.glob("checkpoint-*")), default=0)
    except OSError:  # one that went meanwhile
        return 0


def code_before_kill(process: subprocess.Popen, checkpoints: pathlib.Path, rng: random.Random):
    """Waits for the moment to kill; the exit code of a process that ended before."""
    moment = rng.uniform(0, 0.5 if rng.random() < 0.15 else 0.05)
    until = newest_step(checkpoints) + (0 if moment > 0.05 else rng.randint(1, 6))
    while newest_step(checkpoints) < until:
        if process.poll() is not None:
            return process.returncode
        time.sleep(0.002)
    try:
        return process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--records", type=int, default=300)
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
        while code is None:
            process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if kills < args.kills:
                code = code_before_kill(process, work / "killed/checkpoints", rng)
            else:
                code = process.wait()
            if code is None:
                process.kill()
                process.wait()
                kills += 1
        if code != 0:
            print(f"{kills} kills, then exit code {code}")
            return 1
        files = [(work / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
        curves = [losses(work / f"{name}.jsonl") for name in ("whole", "killed")]
    if kills < args.kills:
        print(f"it ended after {kills} kills; give it more --steps")
        return 1
    same = files[0] == files[1], curves[0] == curves[1] and len(curves[0]) == args.steps
    print(f"{kills} kills in {args.steps} steps; adapter {'the same' if same[0] else 'DIFFERS'}, losses {'the same' if same[1] else 'DIFFER'}")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
