# SPDX-License-Identifier: Apache-2.0
"""Tiny random base checkpoints in the Hugging Face directory layout."""
from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

EOS_TOKEN = 2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a case: its length, how many tokens to generate, and whether all logits are stored."""

    length: int
    greedy: int = 16
    full: bool = False


DEFAULT_PROMPTS = (Prompt(1, full=True), Prompt(5, full=True), Prompt(17, 20), Prompt(40, 20))


@dataclasses.dataclass(frozen=True)
class Base:
    """One base checkpoint: the exact config.json, the storage dtype, and the prompts to record."""

    name: str
    config: dict[str, Any]
    dtype: str = "float32"
    shards: int = 1
    prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS


def generator(name: str) -> torch.Generator:
    """A random generator whose seed depends only on the name, so that cases do not influence each other."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _config(arch: str, model_type: str, shape: tuple[int, int, int, int, int, int], **extra: Any) -> dict[str, Any]:
    """The keys shared by all config files; shape is (hidden, intermediate, layers, heads, kv heads, vocab)."""
    hidden, intermediate, layers, heads, kv_heads, vocab = shape
    config: dict[str, Any] = {
        "architectures": [arch],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": EOS_TOKEN,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 256,
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocab,
    }
    config.update(extra)
    return config


def _llama(*shape: int, **extra: Any) -> dict[str, Any]:
    return _config("LlamaForCausalLM", "llama", shape, **extra)


def _mistral(*shape: int, **extra: Any) -> dict[str, Any]:
    return _config("MistralForCausalLM", "mistral", shape, **extra)


def _qwen2(*shape: int, **extra: Any) -> dict[str, Any]:
    return _config("Qwen2ForCausalLM", "qwen2", shape, **{"rms_norm_eps": 1e-6, **extra})


def _qwen3(*shape: int, **extra: Any) -> dict[str, Any]:
    return _config("Qwen3ForCausalLM", "qwen3", shape, **{"rms_norm_eps": 1e-6, **extra})


def _llama_bases() -> list[Base]:
    """Llama: attention shapes, biases and every kind of rope scaling."""
    yarn_prompts = (Prompt(1, full=True), Prompt(9, full=True), Prompt(24), Prompt(90))
    return [
        Base(
            "llama_mha",
            _llama(
                48, 88, 2, 4, 4, 131,
                dtype="float32", attention_bias=False, mlp_bias=False, pretraining_tp=1,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
            prompts=(Prompt(1, 20, True), Prompt(5, 24, True), Prompt(17, 24, True), Prompt(40, 24)),
        ),
        Base(
            "llama_gqa_llama3",
            _llama(
                48, 72, 3, 6, 2, 131,
                torch_dtype="float32", head_dim=16, tie_word_embeddings=True, rope_theta=5000.0,
                rope_scaling={
                    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64, "rope_type": "llama3",
                },
            ),
            prompts=(Prompt(1, full=True), Prompt(5, full=True), Prompt(17, 20, True), Prompt(70, 20)),
        ),
        Base(
            "llama_linear",
            _llama(
                32, 56, 2, 4, 4, 96,
                torch_dtype="float32", rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.5},
            ),
        ),
        Base(
            "llama_dynamic",
            _llama(
                32, 56, 2, 2, 1, 96,
                torch_dtype="float32", max_position_embeddings=32, rope_theta=10000.0,
                rope_scaling={"type": "dynamic", "factor": 2.0},
            ),
            prompts=(
                Prompt(5, full=True), Prompt(16), Prompt(32, 0), Prompt(33, 0, True), Prompt(48, 0), Prompt(77, 0),
            ),
        ),
        Base(
            "llama_dynamic_v5",
            _llama(
                32, 56, 2, 2, 1, 96,
                dtype="float32", max_position_embeddings=24, head_dim=12,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 4.0},
            ),
            prompts=(Prompt(8, full=True), Prompt(25, 0), Prompt(50, 0)),
        ),
        Base(
            "llama_yarn",
            _llama(
                48, 72, 2, 2, 2, 131,
                torch_dtype="float32", rope_theta=10000.0, max_position_embeddings=64,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            ),
            prompts=(Prompt(1, full=True), Prompt(9, full=True), Prompt(17), Prompt(45)),
        ),
        Base(
            "llama_yarn_attention_factor",
            _llama(
                32, 56, 2, 2, 2, 96,
                dtype="float32", max_position_embeddings=512,
                rope_parameters={
                    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 8.0, "attention_factor": 1.3,
                    "beta_fast": 4.0, "beta_slow": 0.5, "original_max_position_embeddings": 64,
                },
            ),
            prompts=yarn_prompts,
        ),
        Base(
            "llama_yarn_mscale",
            _llama(
                32, 56, 2, 2, 1, 96,
                dtype="float32", max_position_embeddings=128, head_dim=24,
                rope_parameters={
                    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "mscale": 1.5, "mscale_all_dim": 0.5,
                    "beta_fast": 2, "beta_slow": 0.25, "original_max_position_embeddings": 32, "truncate": False,
                },
            ),
            prompts=yarn_prompts,
        ),
        Base(
            "llama_bias",
            _llama(
                48, 72, 2, 4, 2, 131,
                dtype="float32", attention_bias=True, mlp_bias=True, rms_norm_eps=0.01,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
        ),
    ]


def _mistral_bases() -> list[Base]:
    """Mistral: windows of 7 and 16 tokens, none at all, and a checkpoint stored in float16."""
    return [
        Base(
            "mistral_window7",
            _mistral(48, 72, 2, 4, 2, 131, torch_dtype="float32", rope_theta=10000.0, sliding_window=7),
            prompts=(Prompt(1, 20, True), Prompt(7, full=True), Prompt(8, full=True), Prompt(40, 20)),
        ),
        Base(
            "mistral_window16",
            _mistral(
                32, 56, 2, 2, 1, 96,
                dtype="float32", head_dim=24, sliding_window=16,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
            prompts=(Prompt(3, full=True), Prompt(16), Prompt(17, full=True), Prompt(64, 20)),
        ),
        Base(
            "mistral_full_f16",
            _mistral(
                64, 96, 2, 4, 1, 128,
                torch_dtype="float16", rope_theta=1000000.0, sliding_window=None, head_dim=24,
            ),
            dtype="float16",
        ),
    ]


def _qwen_bases() -> list[Base]:
    """Qwen2 and Qwen3: biases on q, k, v; windows on some layers; q and k norms; bfloat16 shards."""
    window_prompts = (Prompt(4, full=True), Prompt(9), Prompt(10, full=True), Prompt(47, 20))
    return [
        Base(
            "qwen2_tied",
            _qwen2(
                48, 88, 2, 6, 2, 131,
                torch_dtype="float32", rope_theta=1000000.0, tie_word_embeddings=True,
                use_sliding_window=False, sliding_window=4, max_window_layers=1,
            ),
        ),
        Base(
            "qwen2_window",
            _qwen2(
                32, 56, 4, 4, 2, 96,
                torch_dtype="float32", rope_theta=1000000.0,
                use_sliding_window=True, sliding_window=9, max_window_layers=2,
            ),
            prompts=window_prompts,
        ),
        Base(
            "qwen2_layer_types",
            _qwen2(
                32, 56, 3, 4, 2, 96,
                dtype="float32", rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                use_sliding_window=True, sliding_window=9, max_window_layers=3,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
            prompts=window_prompts,
        ),
        Base(
            "qwen3",
            _qwen3(
                48, 72, 2, 4, 2, 131,
                dtype="float32", head_dim=16, attention_bias=False, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                use_sliding_window=False, sliding_window=None, max_window_layers=2,
                layer_types=["full_attention", "full_attention"],
            ),
        ),
        Base(
            "qwen3_bf16_sharded",
            _qwen3(
                48, 72, 3, 4, 2, 131,
                torch_dtype="bfloat16", head_dim=24, attention_bias=False, rope_theta=1000000, rope_scaling=None,
                use_sliding_window=False, sliding_window=None, max_window_layers=3,
            ),
            dtype="bfloat16",
            shards=3,
        ),
    ]


def _divisible_bases() -> list[Base]:
    """Shapes that ranks can divide: into 4 (two queries to each KV head), and into 2 only (three to each)."""
    return [
        Base(
            "qwen3_ranks4",
            _qwen3(
                48, 128, 2, 8, 4, 131,
                dtype="bfloat16", head_dim=16, attention_bias=False, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                use_sliding_window=False, sliding_window=None, max_window_layers=2,
                layer_types=["full_attention", "full_attention"],
            ),
            dtype="bfloat16",
        ),
        Base(
            "llama_ranks2",
            _llama(
                42, 192, 2, 6, 2, 131,
                dtype="bfloat16", head_dim=32, attention_bias=True, mlp_bias=True,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
            dtype="bfloat16",
        ),
    ]


def all_bases() -> list[Base]:
    """Every base checkpoint of the fixture set."""
    return _llama_bases() + _mistral_bases() + _qwen_bases() + _divisible_bases()


def _random_parameter(name: str, shape: torch.Size, gen: torch.Generator) -> torch.Tensor:
    """A random value of realistic scale: norms around one, biases clearly non-zero, matrices about 0.2."""
    value = torch.randn(shape, generator=gen)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * value
    if name.endswith(".bias"):
        return 0.3 * value
    if "embed_tokens" in name:
        return 0.4 * value
    return 0.2 * value


def _shard_of(name: str, shards: int) -> int:
    """Puts one layer's tensors in different shards, as size-based splitting does at a boundary."""
    return zlib.crc32(name.encode()) % shards


def _write_weights(state: dict[str, torch.Tensor], path: pathlib.Path, shards: int) -> None:
    """Writes model.safetensors, or several shards and model.safetensors.index.json."""
    if shards == 1:
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensor for name, tensor in state.items() if _shard_of(name, shards) == shard}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(path / "model.safetensors.index.json", index)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON the way Hugging Face does: two spaces, keys in the given order, a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_base(base: Base, root: pathlib.Path) -> None:
    """Writes one checkpoint directory; tied output weights are not stored, as in real checkpoints."""
    path = root / "models" / base.name
    path.mkdir(parents=True)
    write_json(path / "config.json", dict(sorted(base.config.items())))
    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    gen = generator(base.name)
    state = {
        name: _random_parameter(name, parameter.shape, gen).to(DTYPES[base.dtype])
        for name, parameter in model.named_parameters()
    }
    _write_weights(state, path, base.shards)


def load_base(name: str, root: pathlib.Path) -> PreTrainedModel:
    """Loads a checkpoint with float32 weights and eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        root / "models" / name, dtype=torch.float32, attn_implementation="eager"
    )
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return model.eval()
