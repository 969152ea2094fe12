# SPDX-License-Identifier: Apache-2.0
"""Adapters of hub.py: kinds that PEFT loads and that are easy to get wrong, above all on tied bases."""
from __future__ import annotations

import json
import math
import pathlib
from typing import Any, Callable

import torch
from bases import generator, write_json
from hub import LINEAR, ROOT, VOCAB, State, Writer, _text_config, _write_text, load_lm
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

SOME, OTHER = [3, 5, 9, 17, 31], [4, 5, 10, 40]


def _randomize(model: PeftModel, name: str, perturb: bool) -> None:
    """Random adapter weights; `perturb` adds to PiSSA's and OLoRA's beginnings instead."""
    gen = generator("hub adapter " + name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=gen)
            if "lora_magnitude" in key:
                parameter *= 1 + 0.2 * noise
            elif "lora_" in key and perturb:
                parameter += 0.3 * parameter.std() * noise
            elif "lora_" in key:
                parameter.copy_(noise * 0.6 / math.sqrt(max(parameter.shape)))
            elif "trainable_tokens_delta" in key:
                parameter.copy_(0.4 * noise)
            elif "modules_to_save" in key or (key.endswith(".bias") and parameter.requires_grad):
                parameter += 0.3 * noise


def _tidy(path: pathlib.Path, base: str) -> None:
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(path / "adapter_config.json", config)


def _edit(path: pathlib.Path, change: Callable[[State], None]) -> None:
    state = load_file(path / "adapter_model.safetensors")
    change(state)
    save_file(state, path / "adapter_model.safetensors", {"format": "pt"})


class AdapterWriter:
    """Writes adapters of one base."""

    def __init__(self, writer: Writer, base: str) -> None:
        self.writer, self.base = writer, base

    def add(
        self,
        name: str,
        config: Any,
        save_embeddings: bool | str = "auto",
        edit: Callable[[State], None] | None = None,
        expected: bool = True,
        **case: Any,
    ) -> None:
        """Makes, saves, edits and reloads an adapter; the values are of what PEFT loads from the directory."""
        name = f"{self.base}__{name}"
        path = ROOT / "adapters" / name
        torch.manual_seed(0)
        model = get_peft_model(load_lm(self.base), config)
        _randomize(model, name, isinstance(getattr(config, "init_lora_weights", None), str))
        model.save_pretrained(path, save_embedding_layers=save_embeddings)
        _tidy(path, self.base)
        if edit:
            _edit(path, edit)
        lm = PeftModel.from_pretrained(load_lm(self.base), path).eval() if expected and "refused" not in case else None
        self.writer.add(name, self.base, adapter=name, lm=lm, **case)


def _lora(targets: Any, **extra: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "target_modules": targets, **extra})


def _heads(out: AdapterWriter) -> None:
    """Everything about the two ends of the model, on a tied and on an untied base."""
    for init in ("pissa", "olora"):
        out.add(f"{init}_head", _lora(["lm_head", "q_proj"], init_lora_weights=init))
        out.add(f"{init}_head_raw", _lora(["lm_head", "q_proj"], init_lora_weights=init), save_embeddings=False)
        out.add(f"{init}_both_raw", _lora(["embed_tokens", "lm_head"], init_lora_weights=init), save_embeddings=False)
        out.add(f"{init}_embedding", _lora(["embed_tokens"], init_lora_weights=init))
        out.add(f"{init}_both", _lora(["embed_tokens", "lm_head", "up_proj"], init_lora_weights=init))
    out.add("lora_head", _lora(["lm_head", "v_proj"]))
    out.add("dora_head", _lora(["lm_head", "v_proj"], use_dora=True))
    out.add("dora_embedding", _lora(["embed_tokens", "v_proj"], use_dora=True))
    out.add("dora_both", _lora(["embed_tokens", "lm_head"], use_dora=True))
    out.add("saved_head", _lora(["v_proj"], modules_to_save=["lm_head"]))
    out.add("saved_embedding", _lora(["v_proj"], modules_to_save=["embed_tokens"]))
    out.add("saved_both", _lora(["v_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    out.add("saved_twice", _lora(["v_proj"], modules_to_save=["embed_tokens", "lm_head"]), save_embeddings=True)
    out.add("head_rows", _lora(["v_proj"], trainable_token_indices={"lm_head": SOME}))
    out.add("both_rows", _lora(["v_proj"], trainable_token_indices={"embed_tokens": SOME, "lm_head": OTHER}))
    # PEFT writes this for a tied base, too, and then fails when it runs.
    out.add("rows_and_saved_head", _lora(["v_proj"], trainable_token_indices=SOME, modules_to_save=["lm_head"]),
            **({"refused": "beside lm_head in modules_to_save"} if out.base == "tied" else {}))
    out.add("rows_copied", _lora(["v_proj"], trainable_token_indices=SOME), save_embeddings=True)
    out.add("trainable_tokens", TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=SOME))
    out.add("trainable_head_rows", TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=SOME, target_modules=["lm_head"]))

    def change(key: str) -> Callable[[State], None]:
        def apply(state: State) -> None:
            found = next(name for name in state if name.endswith(key))
            state[found] = state[found] + 0.2 * torch.randn(state[found].shape, generator=generator(key))

        return apply

    out.add("head_copy_changed", _lora(["lm_head", "v_proj"]), save_embeddings=True, edit=change("lm_head.base_layer.weight"),
            warns=["lm_head.base_layer.weight"])
    out.add("embedding_copy_changed", _lora(["embed_tokens", "v_proj"]), save_embeddings=True,
            edit=change("embed_tokens.base_layer.weight"), warns=["embed_tokens.base_layer.weight"])


def _biases(writer: Writer) -> None:
    _write_text("biased", _text_config("llama", attention_bias=True, mlp_bias=True))
    out = AdapterWriter(writer, "biased")
    out.add("bias_all", _lora(["q_proj", "up_proj"], bias="all"))
    out.add("bias_lora_only", _lora(["q_proj", "up_proj"], bias="lora_only"))


def adapters(writer: Writer) -> None:
    """All adapter cases."""
    _write_text("tied", _text_config("qwen3", tie_word_embeddings=True))
    _write_text("untied", _text_config("qwen3", tie_word_embeddings=False))
    for base in ("tied", "untied"):
        writer.add(base, base, lm=load_lm(base))
        _heads(AdapterWriter(writer, base))
    _biases(writer)
