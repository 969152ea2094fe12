#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/fixtures, the reference checkpoints, adapters and outputs for the C++ tests.

Run without arguments to write everything again; run with --verify to reload it all from disk and compare.
"""
from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import sys
import warnings
from typing import Any

import peft
import torch
import transformers
from adapters import Adapter, all_adapters, load_adapter, write_adapter
from bases import Base, Prompt, all_bases, load_base, write_base, write_json
from expected import Expected, find_prompt
from extras import write_extras
from safetensors.torch import load_file, save_file
from training import write_training

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "fixtures"
Arrays = dict[str, torch.Tensor]


def _store(arrays: Arrays, key: str, value: torch.Tensor | None) -> str | None:
    """Adds an array and returns its key, or null where there is nothing to store."""
    if value is None:
        return None
    arrays[key] = value.float().contiguous()
    return key


def _prompt_entry(arrays: Arrays, prefix: str, prompt: Prompt, found: Expected) -> dict[str, Any]:
    """The manifest entry of one prompt."""
    return {
        "token_ids": found.token_ids,
        "logits_key": _store(arrays, f"{prefix}/logits", found.logits if prompt.full else None),
        "last_logits_key": _store(arrays, f"{prefix}/last_logits", found.logits[-1].clone()),
        "prompt_logprobs_key": _store(arrays, f"{prefix}/prompt_logprobs", found.prompt_logprobs),
        "greedy": found.greedy,
        "greedy_logprobs_key": _store(arrays, f"{prefix}/greedy_logprobs", found.greedy_logprobs),
        "min_top2_gap": found.min_gap,
    }


def _prompts(model: torch.nn.Module, name: str, prompts: tuple[Prompt, ...], arrays: Arrays) -> list[dict[str, Any]]:
    """The manifest entries of all prompts of one case."""
    entries = []
    for index, prompt in enumerate(prompts):
        prefix = f"{name}/{index}"
        found = find_prompt(model, model.config.vocab_size, prompt, prefix)
        entries.append(_prompt_entry(arrays, prefix, prompt, found))
    return entries


def _base_case(base: Base, arrays: Arrays) -> dict[str, Any]:
    """The manifest case of a base alone."""
    prompts = _prompts(load_base(base.name, ROOT), base.name, base.prompts, arrays)
    return {"name": base.name, "model": f"models/{base.name}", "adapter": None, "prompts": prompts}


def _adapter_prompts(base: Base) -> tuple[Prompt, ...]:
    """The prompts of the base, with all logits stored only for the short ones."""
    return tuple(dataclasses.replace(prompt, full=prompt.full and prompt.length <= 10) for prompt in base.prompts)


def _adapter_case(adapter: Adapter, base: Base, arrays: Arrays, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The manifest case of a base with an adapter; a fused twin has the same expected values as its source."""
    if adapter.fused_of:
        prompts = done[adapter.fused_of]["prompts"]
    else:
        prompts = _prompts(load_adapter(adapter, ROOT), adapter.case, _adapter_prompts(base), arrays)
    return {
        "name": adapter.case,
        "model": f"models/{adapter.base}",
        "adapter": f"adapters/{adapter.case}",
        "prompts": prompts,
    }


def _mixed_batches(adapters: list[Adapter], cases: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Lists of cases on one base that a server must be able to run in a single batch, base rows included."""
    batches: dict[tuple[str, str], list[str]] = {}
    for adapter in adapters:
        for kind in adapter.mixed:
            batches.setdefault((adapter.base, kind), [adapter.base]).append(adapter.case)
    result = []
    for (base, kind), names in batches.items():
        names = [*names, base]
        rows = [{"case": name, "prompt": row % len(cases[name]["prompts"])} for row, name in enumerate(names)]
        result.append({"name": f"{base}_{kind}", "model": f"models/{base}", "rows": rows})
    return result


def generate() -> None:
    """Writes the whole fixture directory."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    arrays: Arrays = {}
    cases: dict[str, dict[str, Any]] = {}
    bases = {base.name: base for base in all_bases()}
    for base in bases.values():
        write_base(base, ROOT)
        cases[base.name] = _base_case(base, arrays)
        print(base.name, flush=True)
    adapters = all_adapters()
    for adapter in adapters:
        write_adapter(adapter, ROOT)
        cases[adapter.case] = _adapter_case(adapter, bases[adapter.base], arrays, cases)
        print(adapter.case, flush=True)
    save_file(arrays, ROOT / "expected.safetensors")
    manifest = {
        "format": 1,
        "versions": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "arrays": "expected.safetensors",
        "cases": list(cases.values()),
        "mixed_batches": _mixed_batches(adapters, cases),
    }
    write_manifest(manifest)


def add(names: list[str]) -> None:
    """Writes these bases with their adapters again, or for the first time, and leaves the rest of the fixtures."""
    manifest = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))
    models = {f"models/{name}" for name in names}
    prefixes = tuple(f"{name}{end}" for name in names for end in ("/", "__"))
    arrays = {key: value for key, value in load_file(ROOT / "expected.safetensors").items() if not key.startswith(prefixes)}
    cases: dict[str, dict[str, Any]] = {}
    adapters = [adapter for adapter in all_adapters() if adapter.base in names]
    bases = {base.name: base for base in all_bases() if base.name in names}
    for base in bases.values():
        shutil.rmtree(ROOT / "models" / base.name, ignore_errors=True)
        write_base(base, ROOT)
        cases[base.name] = _base_case(base, arrays)
        print(base.name, flush=True)
    for adapter in adapters:
        shutil.rmtree(ROOT / "adapters" / adapter.case, ignore_errors=True)
        write_adapter(adapter, ROOT)
        cases[adapter.case] = _adapter_case(adapter, bases[adapter.base], arrays, cases)
        print(adapter.case, flush=True)
    save_file(arrays, ROOT / "expected.safetensors")
    for key, new in (("cases", list(cases.values())), ("mixed_batches", _mixed_batches(adapters, cases))):
        manifest[key] = [entry for entry in manifest[key] if entry["model"] not in models] + new
    write_manifest(manifest)


def write_manifest(manifest: dict[str, Any]) -> None:
    """Writes manifest.json with every list of numbers on one line, so that it stays readable."""
    text = json.dumps(manifest, indent=1)
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    (ROOT / "manifest.json").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="reload the fixtures from disk and compare")
    parser.add_argument("--extras", action="store_true", help="write only extras.json and extras.safetensors")
    parser.add_argument("--training", action="store_true", help="write only training.json and training.safetensors")
    parser.add_argument("--add", nargs="+", metavar="BASE", help="write only these bases and their adapters")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.verify:
        from verify import verify

        return verify(ROOT)
    if args.add:
        add(args.add)
        return 0
    if not args.extras and not args.training:
        generate()
    if not args.training:
        write_extras(ROOT)
    if not args.extras:
        write_training(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
