# SPDX-License-Identifier: Apache-2.0
"""Writes the held-out task files and the prompts of the side-by-side demo.

    python export.py
"""

from __future__ import annotations

import json

import tasks
from paths import DEMO, TASK_FILES

COUNT = 150
# Held-out examples that read well: the part of the user text that finds them.
OPENINGS = {"sql": ("How many", "Which"), "json": ("My friend", "In "), "math": ("What is",),
            "dates": ("We met on the",), "sort": ("Sort",), "tag": ("On ",)}
STORIES = [("base-story", "Once upon a time there was a brave fox who lived near the river."),
           ("base-people", "Anna was a curious baker who lived near the mill.")]


def write(path, rows: list[dict]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def main() -> None:
    """Write examples/demo/tasks/*.jsonl and examples/demo/prompts.jsonl."""
    TASK_FILES.mkdir(parents=True, exist_ok=True)
    shown = []
    for task in tasks.TASKS:
        examples = tasks.test_set(task, COUNT)
        assert all(tasks.held_out(e.key) for e in examples)
        write(TASK_FILES / f"{task}.jsonl", [
            dict(id=f"{task}-{i:03d}", adapter=task, prompt=tasks.prompt(e.user), expected=e.answer,
                 max_tokens=tasks.MAX_TOKENS[task], temperature=0, stop=["<|im_end|>"])
            for i, e in enumerate(examples)])
        for opening in OPENINGS[task]:
            e = next(x for x in examples if x.user.startswith(opening))
            shown.append(dict(id=f"show-{task}-{len(shown)}", adapter=task,
                              messages=[dict(role="user", content=e.user)], expected=e.answer,
                              max_tokens=tasks.MAX_TOKENS[task], temperature=0, stop=["<|im_end|>"]))
    for name, text in STORIES:
        shown.append(dict(id=f"show-{name}", prompt=text, max_tokens=80, temperature=0,
                          stop=["<|endoftext|>"]))
    write(DEMO / "prompts.jsonl", shown)


if __name__ == "__main__":
    main()
