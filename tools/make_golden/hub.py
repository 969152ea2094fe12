# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and adapters as hubs and trainers write them, and what transformers and PEFT make of each.

Writes tests/golden/hub/: models/<name>, adapters/<name>, manifest.json and expected.safetensors. A case either has
expected values (log-probabilities of a prompt and the last logits, or pooled embeddings), or a part of the message with
which it must be refused; `warns` are parts of warnings that must be there. Everything is float32 with eager attention.

    python tools/make_golden/hub.py            # write everything again, half a minute
"""
from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import pathlib
import shutil
import warnings
from typing import Any, Callable

import torch
import transformers
from bases import generator, write_json
from peft.tuners.lora.variants import calculate_alora_offsets
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "hub"
State = dict[str, torch.Tensor]
Config = dict[str, Any]
VOCAB = 48
TEXT: Config = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT_LENGTHS = (1, 14)


def _fill(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """Random weights, norms around one."""
    gen = generator("hub " + name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=gen)
            parameter.copy_(1 + 0.2 * noise if "norm" in key and key.endswith("weight") else 0.35 * noise)
    return model.eval()


def _save(path: pathlib.Path, config: Config, state: State) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    config.pop("transformers_version", None)
    write_json(path / "config.json", config)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path / "model.safetensors", {"format": "pt"})


def _text_config(model_type: str, **extra: Any) -> Config:
    return {**TEXT, "model_type": model_type, **extra}


class Writer:
    """Collects the cases and their arrays."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.arrays: State = {}

    def prompts(self, name: str, lengths: tuple[int, ...] = PROMPT_LENGTHS) -> list[list[int]]:
        gen = generator("hub prompt " + name)
        return [torch.randint(3, VOCAB, (length,), generator=gen).tolist() for length in lengths]

    def add(
        self,
        name: str,
        model: str,
        adapter: str | None = None,
        lm: torch.nn.Module | None = None,
        decoder: torch.nn.Module | None = None,
        refused: str | None = None,
        warns: list[str] | None = None,
        lengths: tuple[int, ...] = PROMPT_LENGTHS,
        prompts: list[list[int]] | None = None,
        max_new_tokens: int = 0,
        convert: bool = False,
        unmergeable: str | None = None,
        shares_base: bool | None = None,
    ) -> None:
        """One case: `lm` gives logits, `decoder` hidden states, `refused` says why there are none.

        `max_new_tokens`: also what `lm` generates, greedily. `convert`: the adapter is of another trainer, for `adapter
        convert`. `unmergeable`: why no merged model can be made of it. `shares_base`: of an activated adapter, whether keys
        and values before its activation are the base's.
        """
        entry: dict[str, Any] = {"name": name, "model": f"models/{model}", "adapter": f"adapters/{adapter}" if adapter else None}
        if refused:
            entry["refused"] = refused
        if convert:
            entry["convert"] = True
        if unmergeable:
            entry["unmergeable"] = unmergeable
        if shares_base is not None:
            entry["shares_base"] = shares_base
        entry["warns"] = warns or []
        entry["prompts"] = []
        for index, tokens in enumerate([] if refused else prompts or self.prompts(name, lengths)):
            prompt: dict[str, Any] = {"token_ids": tokens}
            ids = torch.tensor([tokens])
            with torch.no_grad():
                if shares_base is not None:
                    offset = calculate_alora_offsets(lm.peft_config, "default", ids)[0]
                    prompt["activated_at"] = None if offset is None else len(tokens) - offset
                if lm is not None:
                    table = torch.log_softmax(lm(input_ids=ids, use_cache=False).logits[0].double(), -1)
                    prompt["last_key"] = f"{name}/{index}/last"
                    self.arrays[prompt["last_key"]] = table[-1].float()
                    if len(tokens) > 1:
                        prompt["prompt_key"] = f"{name}/{index}/prompt"
                        self.arrays[prompt["prompt_key"]] = table[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].float()
                if lm is not None and max_new_tokens:
                    made = lm.generate(input_ids=ids, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
                    prompt["output"] = made[0, len(tokens) :].tolist()
                if decoder is not None:
                    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
                    for kind, value in {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}.items():
                        prompt[f"{kind}_key"] = f"{name}/{index}/{kind}"
                        self.arrays[prompt[f"{kind}_key"]] = torch.nn.functional.normalize(value, dim=0)
            entry["prompts"].append(prompt)
        self.cases.append(entry)
        print(name, flush=True)


# --- Checkpoints


def load_lm(name: str) -> torch.nn.Module:
    """The model as transformers loads it for text."""
    path = ROOT / "models" / name
    config = AutoConfig.from_pretrained(path)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def _write_text(name: str, config: Config, edit: Callable[[State, Config], None] | None = None, half: bool = False) -> None:
    model = _fill(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)), name)
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    written = json.loads(model.config.to_json_string())
    written["architectures"] = [type(model).__name__]
    written["dtype"] = "float16" if half else "float32"
    if half:
        state = {key: value.half() for key, value in state.items()}
    if edit:
        edit(state, written)
    _save(ROOT / "models" / name, written, state)


def _bare(state: State, _: Config) -> None:
    for key in list(state):
        state[key.removeprefix("model.")] = state.pop(key)


def _own_head(state: State, name: str) -> None:
    state["lm_head.weight"] = 0.35 * torch.randn(VOCAB, TEXT["hidden_size"], generator=generator(name))


def _disagreeing(writer: Writer) -> None:
    tied = _text_config("qwen3", tie_word_embeddings=True)

    def case(name: str, config: Config, edit: Callable[[State, Config], None] | None, **kwargs: Any) -> None:
        _write_text(name, config, edit)
        writer.add(name, name, lm=None if "refused" in kwargs else load_lm(name), **kwargs)

    def head_only(state: State, _: Config) -> None:
        state["lm_head.weight"] = state.pop("model.embed_tokens.weight")

    def copied(state: State, _: Config) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]

    def twice(state: State, _: Config) -> None:
        state["norm.weight"] = state["model.norm.weight"] + 1

    def more(state: State, _: Config) -> None:
        state["model.layers.0.self_attn.q_proj.bias"] = torch.ones(16)
        state["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 2)
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        state["score.weight"] = torch.ones(3, dtype=torch.int64)

    def no_head(state: State, _: Config) -> None:
        state.pop("lm_head.weight")

    def wrong_type(state: State, _: Config) -> None:
        state["model.norm.weight"] = torch.ones(16, dtype=torch.int32)

    case("tied_in_config_only", tied, lambda s, _: _own_head(s, "lies"), warns=["'lm_head.weight' differ: they are not tied"])
    case("tied_copy", tied, copied)
    case("tied_head_only", tied, head_only)
    case("bare_tied", tied, _bare)
    case("bare_tied_in_config_only", tied, lambda s, c: (_bare(s, c), _own_head(s, "lies")), warns=["they are not tied"])
    case("head_missing", _text_config("llama"), no_head, refused="'lm_head.weight' is missing")
    case("named_twice", tied, twice, refused="stand for the same weight")
    case("not_read", tied, wrong_type, refused="has dtype I32")
    case(
        "more_tensors", _text_config("llama"), more,
        warns=["'model.layers.0.self_attn.q_proj.bias' is not part", "'model.layers.7.mlp.up_proj.weight' is not part", "'score.weight'"],
    )


def _embedding_models(writer: Writer) -> None:
    def headless(state: State, config: Config) -> None:
        state.pop("lm_head.weight")
        _bare(state, config)
        config["architectures"] = ["MistralModel"]

    def bidirectional(state: State, config: Config) -> None:
        config["is_causal"] = False

    _write_text("headless", _text_config("mistral", sliding_window=None), headless)
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
               "pooling_mode_max_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True}
    path = ROOT / "models" / "headless"
    (path / "1_Pooling").mkdir()
    write_json(path / "1_Pooling" / "config.json", pooling)
    decoder = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    writer.add("headless", "headless", decoder=decoder, lengths=(1, 14, 40))
    _write_text("bidirectional", _text_config("llama"), bidirectional)
    writer.add("bidirectional", "bidirectional", refused="is_causal is false")


def _scaled_rope(writer: Writer) -> None:
    factors = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.7, 3.0, 4.0]}
    kinds = {
        "rope_linear": ({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}, 16),
        "rope_yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}, 16),
        "rope_longrope": ({"rope_type": "longrope", "original_max_position_embeddings": 16, "rope_theta": 10000.0, **factors}, 64),
        "rope_longrope_factor": ({"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0, **factors}, 16),
    }
    for name, (rope, positions) in kinds.items():
        _write_text(name, _text_config("llama", max_position_embeddings=positions, rope_parameters=rope))
        writer.add(name, name, lm=load_lm(name), lengths=(1, 14, 60))


def _multimodal(writer: Writer) -> None:
    clip = {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "projection_dim": 8}
    pixtral = {"model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
               "image_size": 28, "patch_size": 14, "head_dim": 4}
    siglip = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    qwen_vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "out_hidden_size": 16, "num_heads": 2, "patch_size": 14}
    qwen_ids = {"image_token_id": 40, "video_token_id": 41, "vision_start_token_id": 42, "vision_end_token_id": 43}

    def rope(section: list[int], theta: float) -> Config:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": section}}

    kinds: dict[str, tuple[str, Config]] = {
        "llava": ("llava", {"text_config": _text_config("llama"), "vision_config": clip, "image_token_id": 40}),
        "mistral3": ("mistral3", {"text_config": _text_config("mistral", sliding_window=None), "vision_config": pixtral, "image_token_id": 40}),
        "qwen2_vl": ("qwen2_vl", {"text_config": {**TEXT, **rope([1, 1, 2], 1e4)}, **qwen_ids, "vision_config": {
            "depth": 1, "embed_dim": 8, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1, "patch_size": 14}}),
        "qwen2_5_vl": ("qwen2_5_vl", {"text_config": {**TEXT, **rope([1, 1, 2], 1e6)}, "tie_word_embeddings": True, **qwen_ids,
                                      "vision_config": {**qwen_vision, "fullatt_block_indexes": [0]}}),
        "qwen3_vl": ("qwen3_vl", {"text_config": {**TEXT, **rope([2, 1, 1], 5e5)}, **qwen_ids, "vision_config": {
            **qwen_vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}}),
        "internvl": ("internvl", {"text_config": _text_config("qwen2"), "image_token_id": 40, "vision_config": {
            **siglip, "image_size": [28, 28], "patch_size": [14, 14]}}),
        "idefics3": ("idefics3", {"text_config": _text_config("llama"), "vision_config": siglip, "image_token_id": 40, "scale_factor": 2}),
    }
    for name, (model_type, arguments) in kinds.items():
        path = ROOT / "models" / name
        model = _fill(AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **arguments)), name)
        model.save_pretrained(path)
        (path / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        state = load_file(path / "model.safetensors")
        parts = ("vision", "visual", "projector", "connector")
        other = sorted(key for key in state if any(part in key for part in parts))
        if name == "qwen2_vl":  # as on the hub: the text model's fields at the top
            text = config.pop("text_config")
            text.pop("model_type")
            scaling = text.pop("rope_parameters")
            text["rope_theta"] = scaling["rope_theta"]
            text["rope_scaling"] = {"type": "mrope", "mrope_section": scaling["mrope_section"]}
            config = {**text, **config}
        _save(path, config, state)
        lm = load_lm(name)
        _save(path, config, {key: value for key, value in state.items() if key not in other[1:]})
        writer.add(name, name, lm=lm, warns=[f"'{other[0]}' is not part"])


def main() -> None:
    """Writes the whole directory."""
    from hub_adapters import adapters
    from hub_variants import variants

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(ROOT, ignore_errors=True)
    writer = Writer()
    _disagreeing(writer)
    _embedding_models(writer)
    _scaled_rope(writer)
    _multimodal(writer)
    adapters(writer)
    variants(writer)
    save_file(writer.arrays, ROOT / "expected.safetensors")
    lines = ",\n ".join(json.dumps(case) for case in writer.cases)
    (ROOT / "manifest.json").write_text(f'{{"transformers": "{transformers.__version__}", "cases": [\n {lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
