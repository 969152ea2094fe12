# SPDX-License-Identifier: Apache-2.0
"""PEFT adapters with random, clearly non-zero weights on the tiny base checkpoints."""
from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import torch
from bases import DEFAULT_PROMPTS, DTYPES, Prompt, generator, load_base, write_json
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LINEAR = ATTENTION + MLP
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter: the LoraConfig arguments and how its file is written."""

    name: str
    base: str
    lora: dict[str, Any]
    dtype: str = "float32"
    save_embeddings: bool = False
    shared_a: bool = False
    fused_of: str | None = None
    mixed: bool = False
    prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS

    @property
    def case(self) -> str:
        """The case name, which is also the directory name."""
        return f"{self.base}__{self.name}"


def _plain_adapters() -> list[Adapter]:
    """Ordinary LoRA of several ranks and storage types on the main base."""
    base = "llama_mha"
    return [
        Adapter("r1", base, {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}, mixed=True),
        Adapter("r8_attention", base, {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}, mixed=True),
        Adapter("r64_linear", base, {"r": 64, "lora_alpha": 32, "target_modules": LINEAR}, mixed=True),
        Adapter("rslora_r3", base, {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": LINEAR}, mixed=True),
    ]


def all_adapters() -> list[Adapter]:
    """Every adapter of the fixture set."""
    return _plain_adapters()


def _scaled_b(layer: LoraLayer, value: torch.Tensor, strength: float) -> torch.Tensor:
    """Scales a random B so that the adapter's contribution does not depend on rank and alpha."""
    return value * strength / (layer.scaling["default"] * math.sqrt(layer.r["default"]))


def _randomize_lora(layer: LoraLayer, gen: torch.Generator, perturb: bool) -> None:
    """Fills one LoRA layer; perturb keeps the initial A and B (PiSSA, OLoRA) and adds noise to them."""
    for name, parameter in layer.named_parameters():
        if "base_layer" in name:
            continue
        noise = torch.randn(parameter.shape, generator=gen)
        if "magnitude" in name:
            parameter.data *= 1.0 + 0.2 * noise
        elif perturb:
            parameter.data += 0.3 * parameter.data.std() * noise
        elif name.endswith(".bias"):
            parameter.data = 0.3 * noise
        elif "embedding_A" in name:
            parameter.data = noise
        elif "embedding_B" in name:
            parameter.data = _scaled_b(layer, noise, 0.3)
        elif "lora_A" in name:
            parameter.data = noise / math.sqrt(parameter.shape[1])
        else:
            parameter.data = _scaled_b(layer, noise, 0.5)


def _randomize_extra(name: str, parameter: torch.nn.Parameter, gen: torch.Generator) -> None:
    """Changes a fully trained module or trained token rows."""
    noise = torch.randn(parameter.shape, generator=gen)
    if "trainable_tokens_delta" in name:
        parameter.data = 0.4 * noise
    elif "norm" in name:
        parameter.data += 0.2 * noise
    else:
        parameter.data += 0.5 * parameter.data.std() * noise


def _share_a(model: PeftModel) -> None:
    """Gives q, k, v (and gate, up) one common A, as an adapter of a fused projection has."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        for parts in FUSED.values():
            if isinstance(module, LoraLayer) and name.rsplit(".", 1)[-1] in parts[1:]:
                first = modules[name.rsplit(".", 1)[0] + "." + parts[0]]
                module.lora_A["default"].weight.data = first.lora_A["default"].weight.data.clone()


def _randomize(model: PeftModel, adapter: Adapter) -> None:
    """Gives every trainable weight of the adapter a random value."""
    gen = generator(adapter.case)
    perturb = isinstance(adapter.lora.get("init_lora_weights"), str)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            _randomize_lora(module, gen, perturb)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name or "trainable_tokens_delta" in name:
            _randomize_extra(name, parameter, gen)
    if adapter.shared_a:
        _share_a(model)


def _tidy(path: pathlib.Path, base: str) -> None:
    """Makes the directory reproducible: sorted lists instead of set order, no model card, a neutral base name."""
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(path / "adapter_config.json", config)


def _cast_file(path: pathlib.Path, dtype: str) -> None:
    """Rewrites the adapter's tensors in another dtype."""
    file = path / "adapter_model.safetensors"
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def adapter_path(adapter: Adapter, root: pathlib.Path) -> pathlib.Path:
    """The directory of the adapter."""
    return root / "adapters" / adapter.case


def fuse_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames and joins q, k, v and gate, up tensors to qkv_proj and gate_up_proj."""
    fused: dict[str, torch.Tensor] = {}
    for name in sorted(state):
        module = re.search(r"\.(\w+_proj)\.", name).group(1)
        target = next((key for key, parts in FUSED.items() if module in parts), None)
        if target is None:
            fused[name] = state[name]
            continue
        rows = [state[name.replace(module, part)] for part in FUSED[target]]
        new_name = name.replace(module, target)
        if "lora_A" in name:
            assert all(torch.equal(rows[0], row) for row in rows)
            fused[new_name] = rows[0]
        else:
            fused[new_name] = torch.cat(rows)
    return fused


def _write_fused(adapter: Adapter, root: pathlib.Path) -> None:
    """Writes the fused-name twin of an adapter."""
    source = root / "adapters" / adapter.fused_of
    path = adapter_path(adapter, root)
    path.mkdir(parents=True)
    state = fuse_state(load_file(source / "adapter_model.safetensors"))
    save_file(state, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    parts = [part for group in FUSED.values() for part in group]
    kept = [name for name in config["target_modules"] if name not in parts]
    config["target_modules"] = sorted(kept + list(FUSED))
    write_json(path / "adapter_config.json", config)


def write_adapter(adapter: Adapter, root: pathlib.Path) -> None:
    """Creates, randomizes and saves one adapter."""
    if adapter.fused_of:
        _write_fused(adapter, root)
        return
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", **adapter.lora)
    model = get_peft_model(load_base(adapter.base, root), config)
    with torch.no_grad():
        _randomize(model, adapter)
    path = adapter_path(adapter, root)
    model.save_pretrained(path, save_embedding_layers=adapter.save_embeddings)
    _tidy(path, adapter.base)
    if adapter.dtype != "float32":
        _cast_file(path, adapter.dtype)


def load_adapter(adapter: Adapter, root: pathlib.Path) -> PeftModel:
    """Loads base and adapter from disk with float32 compute; PiSSA and OLoRA change the loaded base here."""
    model = PeftModel.from_pretrained(load_base(adapter.base, root), adapter_path(adapter, root))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return model.eval()
