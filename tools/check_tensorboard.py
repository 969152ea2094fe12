#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The event files of a training run, read by the real `tensorboard` package, against its metrics.

usage: check_tensorboard.py TENSORBOARD_DIR METRICS.jsonl     (needs `pip install tensorboard`)

Every number of every line must be there once, at its step, as the nearest float; and nothing else.
"""
import collections
import json
import pathlib
import sys

import numpy
from tensorboard.backend.event_processing import event_accumulator

STEP_TAGS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
EVAL_TAGS = ("loss", "perplexity", "accuracy", "exact_match")


def expected(lines):
    """{job: {tag: {step: value}}}"""
    jobs = collections.defaultdict(lambda: collections.defaultdict(dict))
    for line in lines:
        entry = json.loads(line)
        kind, tags = ("eval", EVAL_TAGS) if "perplexity" in entry else ("train", STEP_TAGS)
        for tag in tags:
            if tag in entry:
                value = float("nan") if entry[tag] is None else entry[tag]
                jobs[entry["job"]][f"{kind}/{tag}"][entry["step"]] = numpy.float32(value)
    return jobs


def found(directory):
    events = event_accumulator.EventAccumulator(str(directory), size_guidance={event_accumulator.SCALARS: 0})
    events.Reload()
    tags = {}
    for tag in events.Tags()["scalars"]:
        scalars = events.Scalars(tag)
        tags[tag] = {scalar.step: numpy.float32(scalar.value) for scalar in scalars}
        if len(tags[tag]) != len(scalars):
            sys.exit(f"{directory}: {tag}: a step stands twice")
    return tags


def main():
    root, metrics = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    jobs, count = expected(metrics.read_text().splitlines()), 0
    for job, tags in jobs.items():
        read = found(root / job)
        if set(read) != set(tags):
            sys.exit(f"{job}: the tags are {sorted(read)}, not {sorted(tags)}")
        for tag, steps in tags.items():
            if set(read[tag]) != set(steps):
                sys.exit(f"{job}: {tag}: steps differ: {sorted(set(read[tag]) ^ set(steps))[:10]}")
            for step, value in steps.items():
                if not numpy.array_equal(read[tag][step], value, equal_nan=True):
                    sys.exit(f"{job}: {tag}: step {step} is {read[tag][step]}, not {value}")
                count += 1
    if count == 0:
        sys.exit(f"{metrics} is empty")
    print(f"tensorboard: {count} scalars of {len(jobs)} jobs are as in {metrics}")


if __name__ == "__main__":
    main()
