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
from bases import DTYPES, generator, load_base, write_json
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LINEAR = ATTENTION + MLP
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter: the LoraConfig arguments, how its file is written, and the mixed batches it joins.

    overrides replaces keys of the written adapter_config.json; shared_a gives q, k, v (and gate, up) one A;
    fused_of makes the adapter a copy of another one under the names of the fused projections.
    """

    name: str
    base: str
    lora: dict[str, Any]
    dtype: str = "float32"
    save_embeddings: bool = False
    shared_a: bool = False
    fused_of: str | None = None
    mixed: tuple[str, ...] = ()
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def case(self) -> str:
        """The case name, which is also the directory name."""
        return f"{self.base}__{self.name}"


def _lora(r: int, alpha: int, targets: list[str] | str, **extra: Any) -> dict[str, Any]:
    """LoraConfig arguments of an adapter."""
    return {"r": r, "lora_alpha": alpha, "target_modules": targets, **extra}


def _plain_adapters() -> list[Adapter]:
    """Ordinary LoRA on the main base: ranks, scalings, patterns, storage types."""
    base = "llama_mha"
    query_value = ["q_proj", "v_proj"]
    rank_pattern = {
        "^model.layers.1.mlp.down_proj": 7,
        "layers.0.self_attn.q_proj": 2,
        r"layers\.1\.mlp\.(gate|up)_proj": 5,
        "q_proj": 9,
    }
    alpha_pattern = {"v_proj": 3, "layers.0.mlp.gate_proj": 20, "o_proj": 6, "layers.1.self_attn.o_proj": 24}
    patterns = _lora(4, 8, LINEAR, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)
    both = ("plain", "all")
    return [
        Adapter("r1", base, _lora(1, 2, query_value), mixed=both),
        Adapter("r8_attention", base, _lora(8, 16, ATTENTION), mixed=both),
        Adapter("r64_linear", base, _lora(64, 32, "all-linear"), mixed=both),
        Adapter("rslora_r3", base, _lora(3, 5, LINEAR, use_rslora=True), mixed=both),
        Adapter("patterns", base, patterns, mixed=both),
        Adapter(
            "patterns_rslora", base, {**patterns, "use_rslora": True, "exclude_modules": ["layers.0.mlp.up_proj"]}
        ),
        Adapter("f16_r8", base, _lora(8, 8, query_value), dtype="float16", mixed=both),
        Adapter("bf16_r16", base, _lora(16, 8, MLP), dtype="bfloat16", mixed=both),
        Adapter("fused_source", base, _lora(5, 10, LINEAR), shared_a=True),
        Adapter("fused", base, {}, fused_of=f"{base}__fused_source", mixed=both),
    ]


def _special_adapters() -> list[Adapter]:
    """Everything beyond plain LoRA on the main base, whose output weights are not tied."""
    base = "llama_mha"
    some = list(range(3, 131, 5))
    other = list(range(4, 131, 7))
    everything = ("all",)
    return [
        Adapter("lora_bias", base, _lora(2, 4, ["q_proj", "o_proj", "down_proj"], lora_bias=True), mixed=everything),
        Adapter("dora_r4", base, _lora(4, 8, LINEAR, use_dora=True), mixed=everything),
        Adapter("dora_embedding", base, _lora(3, 6, ["embed_tokens", "lm_head", "v_proj"], use_dora=True)),
        Adapter("embed_head", base, _lora(5, 10, ["embed_tokens", "lm_head", "q_proj"]), mixed=everything),
        Adapter("embed_head_saved", base, _lora(2, 2, ["embed_tokens", "lm_head"]), save_embeddings=True),
        Adapter("embed_rslora", base, _lora(3, 4, ["embed_tokens"], use_rslora=True)),
        Adapter(
            "modules_to_save",
            base,
            _lora(4, 8, ["q_proj", "v_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"]),
            mixed=everything,
        ),
        Adapter("final_norm", base, _lora(2, 2, ["up_proj"], modules_to_save=["model.norm"])),
        Adapter("tokens", base, _lora(2, 4, ["k_proj"], trainable_token_indices=some), mixed=everything),
        Adapter(
            "tokens_and_head",
            base,
            _lora(2, 4, ["k_proj"], trainable_token_indices={"embed_tokens": some, "lm_head": other}),
            mixed=everything,
        ),
        Adapter("pissa_r4", base, _lora(4, 8, LINEAR, init_lora_weights="pissa"), mixed=everything),
        Adapter("olora_r4", base, _lora(4, 8, LINEAR, init_lora_weights="olora"), mixed=everything),
        Adapter(
            "pissa_rslora", base, _lora(3, 5, ["q_proj", "down_proj"], init_lora_weights="pissa", use_rslora=True)
        ),
    ]


def _tied_adapters() -> list[Adapter]:
    """Adapters on the base with grouped queries and tied output weights."""
    base = "llama_gqa_llama3"
    some = list(range(3, 131, 5))
    regex = r".*layers\.(0|2)\.(self_attn\.(q|v)_proj|mlp\.down_proj)"
    embed_tied = _lora(3, 6, ["embed_tokens", "v_proj"], ensure_weight_tying=True)
    modules_tied = _lora(2, 2, ["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    mixed = ("all",)
    return [
        Adapter("r8_linear", base, _lora(8, 12, LINEAR), mixed=mixed),
        Adapter(
            "layers_to_transform",
            base,
            _lora(4, 8, ["q_proj", "up_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
            mixed=mixed,
        ),
        Adapter("regex", base, _lora(4, 8, regex), mixed=mixed),
        Adapter("fused_source", base, _lora(6, 9, LINEAR), shared_a=True),
        Adapter("fused", base, {}, fused_of=f"{base}__fused_source", mixed=mixed),
        Adapter("embed", base, _lora(3, 6, ["embed_tokens", "v_proj"]), mixed=mixed),
        Adapter("head", base, _lora(3, 6, ["lm_head"]), mixed=mixed),
        Adapter("embed_ensure_tied", base, embed_tied),
        Adapter("modules_to_save", base, _lora(2, 2, ["q_proj"], modules_to_save=["embed_tokens"]), mixed=mixed),
        Adapter("modules_ensure_tied", base, modules_tied),
        Adapter("tokens", base, _lora(2, 4, ["k_proj"], trainable_token_indices=some), mixed=mixed),
    ]


def _other_adapters() -> list[Adapter]:
    """Adapters on the other bases: biases, windows, q and k norms, rope scaling, half-precision checkpoints."""
    return [
        Adapter("lora_bias", "llama_bias", _lora(4, 8, LINEAR, lora_bias=True)),
        Adapter("dora_rslora", "llama_bias", _lora(4, 4, LINEAR, use_dora=True, use_rslora=True)),
        Adapter("fused_source", "llama_bias", _lora(3, 6, LINEAR, lora_bias=True), shared_a=True),
        Adapter("fused", "llama_bias", {}, fused_of="llama_bias__fused_source"),
        Adapter("r8_attention", "mistral_window7", _lora(8, 16, ATTENTION)),
        Adapter("r5_all_linear", "mistral_window7", _lora(5, 4, LINEAR), overrides={"target_modules": "all-linear"}),
        Adapter("f16_r4", "mistral_full_f16", _lora(4, 8, LINEAR), dtype="float16"),
        Adapter("r8_linear", "qwen2_tied", _lora(8, 8, LINEAR)),
        Adapter("dora_r2", "qwen2_tied", _lora(2, 4, LINEAR, use_dora=True)),
        Adapter("trained_biases", "qwen2_tied", _lora(2, 4, ["q_proj", "v_proj"], bias="lora_only")),
        Adapter("r4", "qwen2_window", _lora(4, 8, ATTENTION)),
        Adapter("r6_linear", "qwen3", _lora(6, 6, LINEAR)),
        Adapter("all_norms", "qwen3", _lora(2, 2, ["q_proj"], modules_to_save=["norm"])),
        Adapter("bf16_r6", "qwen3_bf16_sharded", _lora(6, 12, LINEAR), dtype="bfloat16"),
        Adapter("r4", "llama_dynamic", _lora(4, 8, ["q_proj", "k_proj"])),
        Adapter("r4", "llama_yarn", _lora(4, 8, ["q_proj", "k_proj"])),
    ]


def _divisible_adapters() -> list[Adapter]:
    """Adapters of each kind on the bases that ranks can divide."""
    base = "qwen3_ranks4"
    some = list(range(3, 131, 5))
    mixed = ("all",)
    saved = _lora(2, 4, ["q_proj", "gate_proj"], modules_to_save=["o_proj", "v_proj", "down_proj", "norm"])
    return [
        Adapter("r8_linear", base, _lora(8, 12, LINEAR), dtype="bfloat16", mixed=mixed),
        Adapter("r3_inputs", base, _lora(3, 5, ["o_proj", "down_proj"], use_rslora=True), mixed=mixed),
        Adapter("dora_r4", base, _lora(4, 8, LINEAR, use_dora=True), dtype="bfloat16", mixed=mixed),
        Adapter("pissa_r4", base, _lora(4, 8, ["o_proj", "up_proj"], init_lora_weights="pissa"), mixed=mixed),
        Adapter("fused_source", base, _lora(5, 9, LINEAR), dtype="bfloat16", shared_a=True),
        Adapter("fused", base, {}, fused_of=f"{base}__fused_source", mixed=mixed),
        Adapter("linears_saved", base, saved, dtype="bfloat16", mixed=mixed),
        Adapter("head", base, _lora(3, 6, ["lm_head", "o_proj"]), mixed=mixed),
        Adapter("modules_to_save", base, _lora(2, 2, ["q_proj"], modules_to_save=["embed_tokens"]), mixed=mixed),
        Adapter("tokens", base, _lora(2, 4, ["k_proj"], trainable_token_indices=some), mixed=mixed),
        Adapter("lora_bias", "llama_ranks2", _lora(4, 8, LINEAR, lora_bias=True), dtype="bfloat16", mixed=mixed),
        Adapter("dora_rslora", "llama_ranks2", _lora(4, 4, LINEAR, use_dora=True, use_rslora=True), mixed=mixed),
        Adapter("trained_biases", "llama_ranks2", _lora(2, 4, ["q_proj", "down_proj"], bias="lora_only"), mixed=mixed),
    ]


def all_adapters() -> list[Adapter]:
    """Every adapter of the fixture set."""
    return (
        _plain_adapters() + _special_adapters() + _tied_adapters() + _other_adapters() + _divisible_adapters()
    )


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
            parameter *= 1.0 + 0.2 * noise
        elif perturb:
            parameter += 0.3 * parameter.std() * noise
        elif name.endswith(".bias"):
            parameter.copy_(0.3 * noise)
        elif "embedding_A" in name:
            parameter.copy_(noise)
        elif "embedding_B" in name:
            parameter.copy_(_scaled_b(layer, noise, 0.3))
        elif "lora_A" in name:
            parameter.copy_(noise / math.sqrt(parameter.shape[1]))
        else:
            parameter.copy_(_scaled_b(layer, noise, 0.5))


def _randomize_extra(name: str, parameter: torch.nn.Parameter, gen: torch.Generator) -> None:
    """Changes a fully trained module or trained token rows."""
    noise = torch.randn(parameter.shape, generator=gen)
    if "trainable_tokens_delta" in name:
        parameter.copy_(0.4 * noise)
    elif "norm" in name:
        parameter += 0.2 * noise
    else:
        parameter += 0.5 * parameter.std() * noise


def _share_a(model: PeftModel) -> None:
    """Gives q, k, v (and gate, up) one common A, as an adapter of a fused projection has."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        for parts in FUSED.values():
            if isinstance(module, LoraLayer) and name.rsplit(".", 1)[-1] in parts[1:]:
                first = modules[name.rsplit(".", 1)[0] + "." + parts[0]]
                module.lora_A["default"].weight.copy_(first.lora_A["default"].weight)


def _randomize(model: PeftModel, adapter: Adapter) -> None:
    """Gives every trainable weight of the adapter a random value."""
    gen = generator(adapter.case)
    perturb = isinstance(adapter.lora.get("init_lora_weights"), str)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            _randomize_lora(module, gen, perturb)
    for name, parameter in model.named_parameters():
        trained_bias = name.endswith("base_layer.bias") and parameter.requires_grad
        if trained_bias or "modules_to_save" in name or "trainable_tokens_delta" in name:
            _randomize_extra(name, parameter, gen)
    if adapter.shared_a:
        _share_a(model)


def _tidy(path: pathlib.Path, adapter: Adapter) -> None:
    """Makes the directory reproducible: sorted lists instead of set order, no model card, a neutral base name.

    The patterns keep the order in which they were given: PEFT takes the first that matches, but sorts them on saving.
    """
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = adapter.base
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = adapter.lora.get(key, config[key])
    config.update(adapter.overrides)
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
    _tidy(path, adapter)
    if adapter.dtype != "float32":
        _cast_file(path, adapter.dtype)


def load_adapter(adapter: Adapter, root: pathlib.Path) -> PeftModel:
    """Loads base and adapter from disk with float32 compute; PiSSA and OLoRA change the loaded base here."""
    model = PeftModel.from_pretrained(load_base(adapter.base, root), adapter_path(adapter, root))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return model.eval()
