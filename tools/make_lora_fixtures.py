#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/lora/fixtures: tiny random models, adapters saved by PEFT, and what each adapter makes of the model.

Needs torch, transformers and peft; no downloads. Every adapter is saved, loaded again into a fresh base and probed:
expected.safetensors holds, for each module it changes, the effective weight (the module applied to the identity) and
bias (applied to zero).

Usage: make_lora_fixtures.py [output directory]
       make_lora_fixtures.py --check FIXTURES DIRECTORY   DIRECTORY/<name> is a fixture saved again by lorikeet: PEFT must
                                                          load it and give the expected weights
"""
import json
import pathlib
import shutil
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES = {
    "base": dict(),
    "tied": dict(tie_word_embeddings=True),
    "biased": dict(attention_bias=True, mlp_bias=True),
}
# name: (base, LoraConfig arguments)
ADAPTERS = {
    "plain": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    "all_linear": ("base", dict(r=2, lora_alpha=3, target_modules="all-linear")),
    "regex": ("base", dict(r=3, lora_alpha=6, target_modules=r".*\.1\.(self_attn\.[qk]_proj|mlp\.(?!up).*_proj)")),
    "rslora": ("base", dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"])),
    "patterns": ("base", dict(r=4, lora_alpha=8, target_modules=ALL,
                              rank_pattern={"layers.0.self_attn.q_proj": 1, r".*\.mlp\..*": 2, "v_proj": 6},
                              alpha_pattern={r"^model\.layers\.1\.self_attn\.o_proj": 5, "k_proj|q_proj": 7})),
    "dora": ("base", dict(r=4, lora_alpha=8, use_dora=True, target_modules=ALL + ["lm_head"])),
    "dora_rslora": ("base", dict(r=4, lora_alpha=8, use_dora=True, use_rslora=True, target_modules=["up_proj"])),
    "embeddings": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj", "embed_tokens"])),
    "lm_head": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"])),
    "modules_to_save": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj"],
                                     modules_to_save=["lm_head", "embed_tokens", "norm", "input_layernorm"])),
    "saved_linear": ("base", dict(r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["layers.1.mlp.down_proj"])),
    "tokens": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[3, 1, 17])),
    "tokens_head": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj"],
                                 trainable_token_indices={"embed_tokens": [0, 5], "lm_head": [5, 6, 7]})),
    "layers": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], layers_to_transform=[1])),
    "layers_pattern": ("base", dict(r=4, lora_alpha=8, target_modules=["q_proj"], layers_to_transform=0, layers_pattern="layers")),
    "exclude": ("base", dict(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=r".*\.0\..*|.*k_proj")),
    "pissa": ("base", dict(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=ALL)),
    "pissa_rslora": ("base", dict(r=2, lora_alpha=8, init_lora_weights="pissa", use_rslora=True, target_modules=["q_proj"])),
    "pissa_dora": ("base", dict(r=2, lora_alpha=8, init_lora_weights="pissa", use_dora=True, target_modules=["q_proj", "down_proj"])),
    "pissa_head": ("base", dict(r=2, lora_alpha=8, init_lora_weights="pissa", target_modules=["q_proj", "lm_head"])),
    "olora": ("base", dict(r=4, lora_alpha=8, init_lora_weights="olora", target_modules=ALL)),
    "orthogonal": ("base", dict(r=4, lora_alpha=8, init_lora_weights="orthogonal", target_modules=["q_proj"])),
    "lora_bias": ("biased", dict(r=4, lora_alpha=8, lora_bias=True, target_modules=ALL)),
    "biased_dora": ("biased", dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "down_proj"])),
    "tied_tokens": ("tied", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[3, 1, 17])),
    "tied_embeddings": ("tied", dict(r=4, lora_alpha=8, target_modules=["embed_tokens"])),
    "tied_ensured": ("tied", dict(r=4, lora_alpha=8, target_modules=["embed_tokens"], ensure_weight_tying=True)),
    "tied_saved": ("tied", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "tied_saved_ensured": ("tied", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"],
                                        ensure_weight_tying=True)),
    "tied_lm_head": ("tied", dict(r=4, lora_alpha=8, target_modules=["lm_head"])),
    "tied_saved_head": ("tied", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"])),
}


def make_base(directory, **overrides):
    torch.manual_seed(7)
    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, vocab_size=40, max_position_embeddings=64, initializer_range=0.3,
                         **overrides)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)


def load_base(directory):
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)


def perturb(model):
    """Stands for training: every trainable tensor moves away from its initial value."""
    torch.manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if "magnitude" in name:
                    parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))


@torch.no_grad()
def probe(model):
    """Effective weights by module path: what forward() does, whatever wrappers PEFT put around it."""
    root = model.base_model.model if isinstance(model, PeftModel) else model
    found = {}

    def linear(path, module, width):
        bias = module(torch.zeros(1, width))[0]
        found[path + ".weight"] = (module(torch.eye(width)) - bias).T.contiguous().clone()
        if bias.abs().max() > 0:
            found[path + ".bias"] = bias.clone()

    config = root.config
    found["model.embed_tokens.weight"] = root.model.embed_tokens(torch.arange(config.vocab_size)).clone()
    for index, layer in enumerate(root.model.layers):
        for name in ALL:
            part = "self_attn" if name in ALL[:4] else "mlp"
            width = config.intermediate_size if name == "down_proj" else config.hidden_size
            linear(f"model.layers.{index}.{part}.{name}", getattr(getattr(layer, part), name), width)
        for name in ["input_layernorm", "post_attention_layernorm"]:
            found[f"model.layers.{index}.{name}.weight"] = getattr(layer, name).weight.clone()
    found["model.norm.weight"] = root.model.norm.weight.clone()
    linear("lm_head", root.lm_head, config.hidden_size)
    return found


def make_adapter(out, base_directory, arguments):
    torch.manual_seed(5)
    model = get_peft_model(load_base(base_directory), LoraConfig(task_type="CAUSAL_LM", **arguments))
    perturb(model)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    fresh = PeftModel.from_pretrained(load_base(base_directory), out).eval()
    before, after = probe(load_base(base_directory)), probe(fresh)
    expected = {name: value for name, value in after.items()
                if name not in before or (value - before[name]).abs().max() > 1e-6}
    save_file(expected, out / "expected.safetensors")
    path = out / "adapter_config.json"  # the base's name is a path of this machine
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_directory.name
    for key, value in config.items():  # sets, in an order that changes from run to run
        if isinstance(value, list) and key in ("target_modules", "exclude_modules", "modules_to_save"):
            value.sort()
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    print(f"{out.name:20} {len(expected)} changed")


def check(fixtures, directory):
    failures = 0
    for name, (base, _) in ADAPTERS.items():
        if not (directory / name).exists():
            continue
        before = probe(load_base(fixtures / base))
        after = probe(PeftModel.from_pretrained(load_base(fixtures / base), directory / name).eval())
        expected = load_file(fixtures / name / "expected.safetensors")
        wanted = {key: expected.get(key, before.get(key)) for key in after}
        worst = max(((after[key] - value).norm() / value.norm()).item() for key, value in wanted.items())
        failures += worst > 1e-5
        print(f"{name:20} {worst:.1e}{'  WRONG' if worst > 1e-5 else ''}")
    return 1 if failures else 0


def main():
    if sys.argv[1:2] == ["--check"]:
        sys.exit(check(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])))
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/lora/fixtures")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, overrides in BASES.items():
        make_base(root / name, **overrides)
    for name, (base, arguments) in ADAPTERS.items():
        make_adapter(root / name, root / base, arguments)


if __name__ == "__main__":
    main()
