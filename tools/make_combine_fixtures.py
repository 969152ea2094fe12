#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/lora_tools/fixtures/combine: three adapters of tests/lora/fixtures/base and what PEFT's
add_weighted_adapter makes of them, as changes of weights, "CASE/MODULE" -> [out, in]. Random masks (DARE) are drawn from
the same counters as ours. Needs torch, transformers and peft (0.21.2)."""
import json
import pathlib
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

BASE = "tests/lora/fixtures/base"
ADAPTERS = {
    "first": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    "second": dict(r=4, lora_alpha=2, target_modules=["q_proj", "up_proj"]),
    "third": dict(r=2, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"]),
}
TWO, ALL = (["first", "second"], [0.75, -1.25]), (["first", "second", "third"], [1.0, 0.5, 2.0])
CASES = {
    "cat": (*ALL, dict(combination_type="cat")),
    "svd_3": (*ALL, dict(combination_type="svd", svd_rank=3)),
    "linear": (*TWO, dict(combination_type="linear")),
    "ties": (*TWO, dict(combination_type="ties", density=0.5)),
    "ties_frequency": (["first", "second"], [1.0, 2.0], dict(combination_type="ties", density=0.7, majority_sign_method="frequency")),
    "dare_linear": (*TWO, dict(combination_type="dare_linear", density=0.6)),
    "dare_ties": (*TWO, dict(combination_type="dare_ties", density=0.6)),
    "magnitude_prune": (*TWO, dict(combination_type="magnitude_prune", density=0.4)),
    "ties_svd_4": (*ALL, dict(combination_type="ties_svd", density=0.5, svd_rank=4)),
    "dare_linear_svd_4": (*ALL, dict(combination_type="dare_linear_svd", density=0.5, svd_rank=4)),
    "dare_ties_svd_4": (*ALL, dict(combination_type="dare_ties_svd", density=0.5, svd_rank=4)),
    "magnitude_prune_svd_4": (*ALL, dict(combination_type="magnitude_prune_svd", density=0.3, svd_rank=4)),
    # With rsLoRA first PEFT keeps use_rslora, so that alpha = r means a scaling of sqrt(r) instead of 1.
    "rslora_first_cat": (["third", "first"], [1.0, 1.0], dict(combination_type="cat")),
}
SEED = 5
MASK = (1 << 64) - 1


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


class Draws:
    """torch.bernoulli from the counters of src/lk/base/rng.h, one seed per tensor."""

    def __init__(self):
        self.count = 0

    def __call__(self, probabilities):
        self.count += 1
        seed = mix64(mix64(SEED ^ mix64(self.count)))
        draws = [(mix64(seed ^ ((i * 0xD1342543DE82EF95 + 1) & MASK)) >> 11) * 2.0 ** -53 for i in range(probabilities.numel())]
        drawn = torch.tensor(draws, dtype=torch.float64).reshape(probabilities.shape)
        return (drawn < probabilities.to(torch.float64)[(0,) * probabilities.dim()].item()).to(probabilities.dtype)


def load_base():
    return LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def make_adapter(out, index, arguments):
    torch.manual_seed(20 + index)
    model = get_peft_model(load_base(), LoraConfig(task_type="CAUSAL_LM", **arguments))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "base"
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


@torch.no_grad()
def combined(root, adapters, weights, arguments):
    model = PeftModel.from_pretrained(load_base(), root / adapters[0], adapter_name=adapters[0])
    for name in adapters[1:]:
        model.load_adapter(root / name, adapter_name=name)
    torch.bernoulli, real = Draws(), torch.bernoulli
    try:
        model.add_weighted_adapter(adapters, weights, "sum", **arguments)
    finally:
        torch.bernoulli = real
    changes = {}
    for path, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "sum" in module.lora_A:
            changes[path] = module.get_delta_weight("sum").contiguous().clone()
    return changes


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/lora_tools/fixtures/combine")
    root.mkdir(parents=True, exist_ok=True)
    for index, (name, arguments) in enumerate(ADAPTERS.items()):
        make_adapter(root / name, index, arguments)
    expected = {}
    for case, (adapters, weights, arguments) in CASES.items():
        changes = combined(root, adapters, weights, arguments)
        expected |= {f"{case}/{path}": change for path, change in changes.items()}
        print(f"{case:24} {len(changes)} modules, norm {sum(c.norm() ** 2 for c in changes.values()) ** 0.5:.4f}")
    save_file(expected, root / "expected.safetensors")


if __name__ == "__main__":
    main()
