# SPDX-License-Identifier: Apache-2.0
"""Writes the data that the demo's adapters are trained on: for each task NAME.jsonl, and NAME-held.jsonl with the 150
held-out examples of examples/demo/tasks, as OpenAI messages.

    python3 tools/train_demo/records.py DIRECTORY [--count 12000] [--seed 1]

Needs nothing beyond Python. Training examples are never held-out ones (tasks.held_out).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import tasks


def write(path: Path, examples) -> None:
    with open(path, "w", encoding="utf-8") as out:
        for example in examples:
            messages = [{"role": "user", "content": example.user}, {"role": "assistant", "content": example.answer}]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(tasks.TASKS):
        rng = random.Random(args.seed * 1000 + number)
        write(args.directory / f"{task}.jsonl", (tasks.draw(task, rng) for _ in range(args.count)))
        write(args.directory / f"{task}-held.jsonl", tasks.test_set(task))


if __name__ == "__main__":
    main()
