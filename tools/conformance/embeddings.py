#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""/v1/embeddings against the normalised mean of transformers' last hidden states, in f32; for the base and an adapter of each kind.

    python tools/conformance/embeddings.py build/cpu-release/bin/lorikeet
"""
import importlib.metadata
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import running_server  # noqa: E402

TOLERANCE = 1e-4


def main() -> int:
    server = running_server.start(sys.argv[1] if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet", "--dtype", "f32")
    for package in ("transformers", "peft", "torch"):
        print(package, importlib.metadata.version(package))
    texts = [json.loads(line)["prompt"] for line in open("examples/demo/tasks/tag.jsonl").readlines()[:20]] + ["Hello", "a " * 300]
    tokenizer = AutoTokenizer.from_pretrained("examples/demo/model")
    worst = 0.0
    for name in ("base", "sql", "sort", "tag"):
        model = AutoModelForCausalLM.from_pretrained("examples/demo/model", dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, f"examples/demo/adapters/{name}", autocast_adapter_dtype=True)
        model = model.float().eval()
        answer = server.post("/v1/embeddings", {"model": name, "input": texts}).json
        largest = 0.0
        for text, item in zip(texts, answer["data"], strict=True):
            ids = torch.tensor([tokenizer(text).input_ids])
            with torch.no_grad():
                mean = model(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
            expected = mean / mean.norm()
            largest = max(largest, (torch.tensor(item["embedding"]) - expected).abs().max().item())
        print(f"{name:6} {len(texts)} texts, largest difference of a component {largest:.2e}", flush=True)
        worst = max(worst, largest)
    server.stop(0)
    print(f"largest difference {worst:.2e}, allowed {TOLERANCE}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
