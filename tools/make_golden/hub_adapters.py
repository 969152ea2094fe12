# SPDX-License-Identifier: Apache-2.0
"""Adapters of hub.py: kinds that PEFT loads and that are easy to get wrong, above all on tied bases."""
from __future__ import annotations

import json
import math
import pathlib
from typing import Any, Callable

import torch
from bases import generator, write_json
from hub import LINEAR, ROOT, TEXT, State, Writer, _text_config, _write_text, load_lm
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModel

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


def _resized(lm: torch.nn.Module, vocab_size: int | None, name: str) -> torch.nn.Module:
    """With rows of its own where the vocabulary grows: an adapter that does not bring them is seen."""
    if vocab_size is None:
        return lm
    before = lm.config.vocab_size
    lm.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        for index, end in enumerate((lm.get_input_embeddings(), lm.get_output_embeddings())):
            rows = end.weight[before:]
            rows.copy_(0.35 * torch.randn(rows.shape, generator=generator(f"hub rows {name} {index}")))
    return lm


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
        vocab_size: int | None = None,
        **case: Any,
    ) -> None:
        """Makes, saves, edits and reloads an adapter; the values are of what PEFT loads from the directory.

        `vocab_size`: to which the base is resized before.
        """
        name = f"{self.base}__{name}"
        path = ROOT / "adapters" / name
        torch.manual_seed(0)
        model = get_peft_model(_resized(load_lm(self.base), vocab_size, "trained"), config)
        _randomize(model, name, isinstance(getattr(config, "init_lora_weights", None), str))
        model.save_pretrained(path, save_embedding_layers=save_embeddings)
        _tidy(path, self.base)
        if edit:
            _edit(path, edit)
        lm = None
        if expected and "refused" not in case:
            lm = PeftModel.from_pretrained(_resized(load_lm(self.base), vocab_size, "loaded"), path).eval()
        self.writer.add(name, self.base, adapter=name, lm=lm, **case)


def _lora(targets: Any, **extra: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "target_modules": targets, **extra})


def _heads(out: AdapterWriter) -> None:
    """Everything about the two ends of the model, on a tied and on an untied base."""
    def change(key: str) -> Callable[[State], None]:
        def apply(state: State) -> None:
            found = next(name for name in state if name.endswith(key))
            state[found] = state[found] + 0.2 * torch.randn(state[found].shape, generator=generator(key))

        return apply

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
    if out.base == "tied":
        for ends, named in (("embedding", ["embed_tokens"]), ("head", ["lm_head"]), ("both", ["embed_tokens", "lm_head"])):
            config = {"modules_to_save": named, "ensure_weight_tying": True}
            out.add(f"saved_tied_{ends}", _lora(["v_proj"], **config))
            # The copies beside them are the base's, or another's: nobody sees these.
            out.add(f"saved_tied_{ends}_twice", _lora(["v_proj"], **config), save_embeddings=True)
            out.add(f"saved_tied_{ends}_copy_changed", _lora(["v_proj"], **config), save_embeddings=True, edit=change("embed_tokens.original_module.weight"))
    out.add("head_rows", _lora(["v_proj"], trainable_token_indices={"lm_head": SOME}))
    out.add("both_rows", _lora(["v_proj"], trainable_token_indices={"embed_tokens": SOME, "lm_head": OTHER}))
    # PEFT writes this for a tied base, too, and then fails when it runs.
    out.add("rows_and_saved_head", _lora(["v_proj"], trainable_token_indices=SOME, modules_to_save=["lm_head"]),
            **({"refused": "beside lm_head in modules_to_save"} if out.base == "tied" else {}))
    out.add("rows_copied", _lora(["v_proj"], trainable_token_indices=SOME), save_embeddings=True)
    out.add("trainable_tokens", TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=SOME))
    out.add("trainable_head_rows", TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=SOME, target_modules=["lm_head"]))

    out.add("head_copy_changed", _lora(["lm_head", "v_proj"]), save_embeddings=True, edit=change("lm_head.base_layer.weight"),
            warns=["lm_head.base_layer.weight"])
    out.add("embedding_copy_changed", _lora(["embed_tokens", "v_proj"]), save_embeddings=True,
            edit=change("embed_tokens.base_layer.weight"), warns=["embed_tokens.base_layer.weight"])


def _biases(writer: Writer) -> None:
    _write_text("biased", _text_config("llama", attention_bias=True, mlp_bias=True))
    out = AdapterWriter(writer, "biased")
    out.add("bias_all", _lora(["q_proj", "up_proj"], bias="all"))
    out.add("bias_lora_only", _lora(["q_proj", "up_proj"], bias="lora_only"))


def _half(writer: Writer) -> None:
    """A base in float16, adapters in bfloat16: what PEFT in float32 makes of the stored values is the truth."""
    def rounded(state: State) -> None:
        for key in state:
            state[key] = state[key].bfloat16()

    for base, tied in (("half_tied", True), ("half_untied", False)):
        _write_text(base, _text_config("qwen3", tie_word_embeddings=tied), half=True)
        out = AdapterWriter(writer, base)
        out.add("bf16_head", _lora(["lm_head", "v_proj"]), save_embeddings=False, edit=rounded)
        # The copy of the base is rounded, too, and takes the base's place: at both ends of a tied one.
        out.add("bf16_head_copied", _lora(["lm_head", "v_proj"]), edit=rounded, warns=["lm_head.base_layer.weight"])


def _frozen_copies(writer: Writer) -> None:
    """base_layer copies of linear layers, as saving a whole state dict leaves them."""
    base = load_file(ROOT / "models" / "untied" / "model.safetensors")
    out = AdapterWriter(writer, "untied")

    def copies(change: bool) -> Callable[[State], None]:
        def apply(state: State) -> None:
            for key in [key for key in state if "lora_A" in key]:
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                weight = base[module + ".weight"]
                state[f"base_model.model.{module}.base_layer.weight"] = weight * 1.5 if change and "layers.1" in module else weight

        return apply

    out.add("frozen_copies", _lora(["q_proj", "down_proj"]), edit=copies(False))
    out.add("frozen_copies_changed", _lora(["q_proj", "down_proj"]), edit=copies(True), warns=["q_proj.base_layer.weight"])
    out.add("frozen_copies_changed_dora", _lora(["q_proj", "down_proj"], use_dora=True), edit=copies(True), warns=["base_layer"])


def _multimodal_adapters(writer: Writer) -> None:
    """Adapters of the text model inside a multimodal one; patterns name modules as that model does."""
    vlm = AdapterWriter(writer, "qwen3_vl")
    path = "model.language_model.layers.1.self_attn.q_proj"
    text = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    vlm.add("text", _lora(text, alpha_pattern={path: 21}, rank_pattern={path: 2}), warns=["model.visual"])
    vlm.add("all_linear", _lora("all-linear"), warns=["adapt other parts of a multimodal model"])
    llava = AdapterWriter(writer, "llava")

    def older_names(state: State) -> None:
        for key in list(state):
            state[key.replace("model.model.language_model.", "model.language_model.model.")] = state.pop(key)

    llava.add("text", _lora(r".*language_model.*\.(q_proj|v_proj)"), warns=["multi_modal_projector"])
    # The same file as transformers before 4.52 named the modules: PEFT's values are those of the file before.
    name, older = "llava__text", "llava__older_names"
    path = ROOT / "adapters" / older
    path.mkdir()
    config = json.loads((ROOT / "adapters" / name / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = r".*language_model\.model.*\.(q_proj|v_proj)"
    write_json(path / "adapter_config.json", config)
    save_file(load_file(ROOT / "adapters" / name / "adapter_model.safetensors"), path / "adapter_model.safetensors", {"format": "pt"})
    _edit(path, older_names)
    lm = PeftModel.from_pretrained(load_lm("llava"), ROOT / "adapters" / name).eval()
    writer.add(older, "llava", adapter=older, lm=lm, warns=["multi_modal_projector"])


def _bare_adapter(writer: Writer) -> None:
    """An adapter of an embedding model, whose modules have no "model." level."""
    name, path = "headless__bare", ROOT / "adapters" / "headless__bare"

    def base() -> torch.nn.Module:
        return AutoModel.from_pretrained(ROOT / "models" / "headless", dtype=torch.float32, attn_implementation="eager")

    alpha = {"layers.0.self_attn.q_proj": 30}
    model = get_peft_model(base(), _lora(["q_proj", "up_proj"], task_type="FEATURE_EXTRACTION", alpha_pattern=alpha))
    _randomize(model, name, False)
    model.save_pretrained(path)
    _tidy(path, "headless")
    decoder = PeftModel.from_pretrained(base(), path).eval()
    writer.add(name, "headless", adapter=name, decoder=decoder)


def _other_trainers(writer: Writer) -> None:
    """mlx-lm's and mistral-finetune's files of adapters that PEFT has, too."""
    heads, kv_heads, dim = TEXT["num_attention_heads"], TEXT["num_key_value_heads"], TEXT["head_dim"]

    def mlx(state: State, dora: bool) -> tuple[State, dict[str, Any]]:
        names = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m",
                 "lora_embedding_A": "lora_a", "lora_embedding_B": "lora_b"}
        out = {}
        for key, value in state.items():
            end = next(end for end in names if key.endswith(end))
            out[key.removeprefix("base_model.model.").removesuffix(end) + names[end]] = value if value.dim() == 1 else value.T.contiguous()
        parameters = {"rank": 3, "dropout": 0.0, "scale": 2.0, "keys": ["self_attn.q_proj"]}
        return out, {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": parameters}

    def mlx_vlm(state: State, named: bool) -> tuple[State, dict[str, Any]]:
        parts = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight"} if named else {"lora_A": "A", "lora_B": "B"}
        out = {"vision_tower.encoder.layers.0.self_attn.q_proj.A": torch.ones(8, 3)}
        for key, value in state.items():
            module, part = key.removeprefix("base_model.model.model.language_model.").removesuffix(".weight").rsplit(".", 1)
            out[f"language_model.model.{module}.{parts[part]}"] = value.T.contiguous()
        return out, {"rank": 3, "alpha": 2.0, "dropout": 0.0}

    def mistral(state: State) -> State:
        names = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
                 "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
                 "mlp.up_proj": "feed_forward.w3"}
        out = {}
        for key, value in state.items():
            module = next(module for module in names if module in key)
            if "lora_B" in key and module[-6:] in ("q_proj", "k_proj"):  # pairs beside each other
                count = heads if module.endswith("q_proj") else kv_heads
                value = value.view(count, 2, dim // 2, -1).transpose(1, 2).reshape(count * dim, -1)
            out[key.removeprefix("base_model.model.model.").replace(module, names[module])] = value.contiguous()
        return out

    for base, name, config, kind in (
        ("untied", "mlx", _lora(LINEAR), "mlx"),
        ("untied", "mlx_dora", _lora(["q_proj", "up_proj"], use_dora=True), "mlx"),
        ("tied", "mlx_embedding", _lora(["embed_tokens", "v_proj"], ensure_weight_tying=True), "mlx"),
        ("untied", "mistral_finetune", _lora(LINEAR), "mistral"),
        ("llava", "mlx_vlm", _lora(r".*language_model.*\.(q_proj|down_proj)"), "mlx_vlm"),
        ("llava", "mlx_vlm_named", _lora(r".*language_model.*\.(k_proj|up_proj)"), "mlx_vlm"),
    ):
        name = f"{base}__{name}"
        path = ROOT / "adapters" / name
        model = get_peft_model(load_lm(base), config)
        _randomize(model, name, False)
        model.save_pretrained(path, save_embedding_layers=False)
        lm = PeftModel.from_pretrained(load_lm(base), path).eval()
        state = load_file(path / "adapter_model.safetensors")
        for file in path.iterdir():
            file.unlink()
        if kind == "mlx":
            tensors, settings = mlx(state, config.use_dora)
            save_file(tensors, path / "adapters.safetensors")
            write_json(path / "adapter_config.json", settings)
        elif kind == "mlx_vlm":
            tensors, settings = mlx_vlm(state, name.endswith("named"))
            save_file(tensors, path / "adapters.safetensors")
            write_json(path / "adapter_config.json", settings)
        else:
            save_file(mistral(state), path / "lora.safetensors")
            write_json(path / "params.json", {"dim": 16, "n_layers": 2, "lora": {"enable": True, "rank": 3, "dropout": 0.0, "scaling": 2.0}})
        writer.add(name, base, adapter=name, lm=lm, convert=True)


def adapters(writer: Writer) -> None:
    """All adapter cases."""
    _write_text("tied", _text_config("qwen3", tie_word_embeddings=True))
    _write_text("untied", _text_config("qwen3", tie_word_embeddings=False))
    for base in ("tied", "untied"):
        writer.add(base, base, lm=load_lm(base))
        _heads(AdapterWriter(writer, base))
    _biases(writer)
    _half(writer)
    _frozen_copies(writer)
    _multimodal_adapters(writer)
    _bare_adapter(writer)
    _other_trainers(writer)
