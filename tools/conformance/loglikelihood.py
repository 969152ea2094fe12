#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lm-eval's loglikelihood through the server (`local-completions`) against lm-eval's through transformers and peft, both in f32.

    python tools/conformance/loglikelihood.py build/cpu-release/bin/lorikeet

100 prompts with their answers from examples/demo/tasks, for the base and each adapter: the largest difference of a sum of log-probabilities must be
at most 1e-3, and both must agree whether the answer is what greedy decoding gives.
"""
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib.metadata  # noqa: E402

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

import running_server  # noqa: E402

TOLERANCE = 1e-3
COUNT = 100


def instances() -> list:
    rows = []
    for i in range(COUNT):
        task = ("dates", "json", "math", "sort", "sql", "tag")[i % 6]
        with open(f"examples/demo/tasks/{task}.jsonl") as file:
            row = json.loads(file.readlines()[i // 6])
        rows.append(Instance("loglikelihood", row, (row["prompt"], row["expected"]), i))
    return rows


def main() -> int:
    server = running_server.start(sys.argv[1] if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet", "--dtype", "f32")
    for package in ("lm_eval", "transformers", "peft", "torch"):
        print(package, importlib.metadata.version(package))
    requests = instances()
    worst = 0.0
    failed = False
    print(f"{'model':8} {'largest difference':>18} {'of a sum of':>12} {'same greedy':>12}")
    for name in ("base", "dates", "json", "math", "sort", "sql", "tag"):
        api = LocalCompletionsAPI(model=name, base_url=f"http://{server.address}/v1/completions", tokenizer="examples/demo/model", tokenizer_backend="huggingface",
                                  tokenized_requests=True, num_concurrent=4, max_length=512)
        reference = HFLM(pretrained="examples/demo/model", peft=None if name == "base" else f"examples/demo/adapters/{name}", dtype="float32", device="cpu", batch_size=8)
        ours, theirs = api.loglikelihood(requests, disable_tqdm=True), reference.loglikelihood(requests, disable_tqdm=True)
        differences = [abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True)]
        greedy = sum(a == b for (_, a), (_, b) in zip(ours, theirs, strict=True))
        at = max(range(COUNT), key=differences.__getitem__)
        print(f"{name:8} {differences[at]:18.2e} {theirs[at][0]:12.4f} {greedy:8} / {COUNT}", flush=True)
        worst = max(worst, differences[at])
        failed |= greedy != COUNT
    server.stop(0)
    print(f"largest difference {worst:.2e}, allowed {TOLERANCE}")
    return 1 if failed or not worst <= TOLERANCE else 0


if __name__ == "__main__":
    sys.exit(main())
