#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Learning rates of transformers' schedules, for tests/train/job_config_test.cpp.

usage: make_schedules.py > tests/train/fixtures/schedules.json   (needs transformers, but not torch)

A row: schedule, min_ratio, warmup_steps, total_steps, and the learning rate of every step for lr = 1.
"""
import ast
import importlib.util
import json
import math
import pathlib
import types

# The rules alone, as they stand in transformers/optimization.py: importing the file needs torch, they do not.
FILE = pathlib.Path(importlib.util.find_spec("transformers").origin).parent / "optimization.py"
RULES = ast.parse(FILE.read_text())
RULES.body = [node for node in RULES.body if isinstance(node, ast.FunctionDef) and node.name.endswith("_lr_lambda")]
schedules = types.SimpleNamespace()
exec(compile("from __future__ import annotations\n" + ast.unparse(RULES), str(FILE), "exec"), {"math": math}, vars(schedules))

TOTAL = 40


def factor(schedule, min_ratio, warmup, step):
    common = {"num_warmup_steps": warmup}
    if schedule == "constant":
        return schedules._get_constant_schedule_with_warmup_lr_lambda(step, **common)
    if schedule == "linear" and min_ratio == 0:
        return schedules._get_linear_schedule_with_warmup_lr_lambda(step, num_training_steps=TOTAL, **common)
    if schedule == "linear":
        return schedules._get_polynomial_decay_schedule_with_warmup_lr_lambda(
            step, num_training_steps=TOTAL, lr_end=min_ratio, power=1.0, lr_init=1, **common
        )
    if schedule == "cosine":
        return schedules._get_cosine_schedule_with_warmup_lr_lambda(
            step, num_training_steps=TOTAL, num_cycles=0.5, min_lr_rate=min_ratio, **common
        )
    timescale = warmup or 10_000  # as get_inverse_sqrt_schedule
    return schedules._get_inverse_sqrt_schedule_lr_lambda(step, timescale=timescale, **common)


def main():
    rows = []
    for schedule, ratios in {"constant": [0], "linear": [0, 0.1], "cosine": [0, 0.1], "inverse_sqrt": [0]}.items():
        for min_ratio in ratios:
            for warmup in (0, 7):
                rates = [factor(schedule, min_ratio, warmup, step) for step in range(TOTAL + 3)]
                row = {"schedule": schedule, "min_ratio": min_ratio, "warmup": warmup, "total": TOTAL, "rates": rates}
                rows.append(json.dumps(row))
    print("[" + ",\n ".join(rows) + "]")


if __name__ == "__main__":
    main()
