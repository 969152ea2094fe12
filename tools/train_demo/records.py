# SPDX-License-Identifier: Apache-2.0
"""Writes the training data of the demo's adapters: one JSONL file per task, OpenAI messages.

    python records.py DIRECTORY [--count 20000] [--seed 1]

Held-out examples (tasks.held_out) are never written; `lorikeet train` then needs nothing but these files and the base.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(tasks.TASKS):
        rng = random.Random(args.seed * 1000 + number)
        with open(args.directory / f"{task}.jsonl", "w", encoding="utf-8") as out:
            for _ in range(args.count):
                example = tasks.draw(task, rng)
                messages = [{"role": "user", "content": example.user}, {"role": "assistant", "content": example.answer}]
                out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
