# SPDX-License-Identifier: Apache-2.0
"""Reloads all fixtures from disk with fresh objects and compares every expected value."""
from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from adapters import Adapter, adapter_path, all_adapters, fuse_state, load_adapter
from bases import load_base
from expected import evaluate, forward
from safetensors.torch import load_file

TOLERANCE = 1e-5
MIN_EFFECT = 0.02


def _error(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference relative to the largest value."""
    if actual.shape != wanted.shape:
        return float("inf")
    return float((actual - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9))


def _check_prompt(model: torch.nn.Module, prompt: dict[str, Any], arrays: dict[str, torch.Tensor]) -> float:
    """The largest error of one prompt; infinite where the tokens differ or are no longer robust."""
    found = evaluate(model, prompt["token_ids"], len(prompt["greedy"]))
    if found is None or found.greedy != prompt["greedy"]:
        return float("inf")
    values = {
        "logits_key": found.logits,
        "last_logits_key": found.logits[-1],
        "prompt_logprobs_key": found.prompt_logprobs,
        "greedy_logprobs_key": found.greedy_logprobs,
    }
    return max(_error(value, arrays[prompt[key]]) for key, value in values.items() if prompt[key])


def _effect(base: torch.nn.Module, prompts: list[dict[str, Any]], arrays: dict[str, torch.Tensor]) -> float:
    """How much the adapter changes the last logits of its longest prompt."""
    prompt = max(prompts, key=lambda entry: len(entry["token_ids"]))
    return _error(forward(base, prompt["token_ids"])[-1], arrays[prompt["last_logits_key"]])


def _check_fused(adapter: Adapter, root: pathlib.Path) -> float:
    """Whether a fused twin holds exactly the tensors of its source."""
    source = load_file(root / "adapters" / adapter.fused_of / "adapter_model.safetensors")
    fused = load_file(adapter_path(adapter, root) / "adapter_model.safetensors")
    wanted = fuse_state(source)
    same = wanted.keys() == fused.keys() and all(torch.equal(fused[key], wanted[key]) for key in wanted)
    return 0.0 if same else float("inf")


def _check_case(
    case: dict[str, Any], adapter: Adapter | None, arrays: dict[str, torch.Tensor], root: pathlib.Path
) -> bool:
    """Compares one case and prints its errors."""
    name = case["model"].removeprefix("models/")
    if adapter and adapter.fused_of:
        error = _check_fused(adapter, root)
        model = None
    else:
        model = load_adapter(adapter, root) if adapter else load_base(name, root)
        error = max(_check_prompt(model, prompt, arrays) for prompt in case["prompts"])
    effect = _effect(load_base(name, root), case["prompts"], arrays) if adapter else 1.0
    good = error < TOLERANCE and effect > MIN_EFFECT
    print(f"{'ok  ' if good else 'FAIL'} {case['name']}: error {error:.1e}, effect {effect:.2f}", flush=True)
    return good


def verify(root: pathlib.Path) -> int:
    """Checks every case; the return value is a process exit status."""
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    arrays = load_file(root / manifest["arrays"])
    adapters = {adapter.case: adapter for adapter in all_adapters()}
    results = [_check_case(case, adapters.get(case["name"]), arrays, root) for case in manifest["cases"]]
    print(f"{sum(results)} of {len(results)} cases agree")
    return 0 if all(results) else 1
