# SPDX-License-Identifier: Apache-2.0
"""Adapters of hub.py that are not the base's everywhere: activated ones (aLoRA), and those of a resized vocabulary."""
from __future__ import annotations

from typing import Any

import torch
from hub import VOCAB, Writer
from hub_adapters import AdapterWriter, _lora

INVOCATION = [7, 8]


def _prompt(length: int, invocations: tuple[int, ...] = ()) -> list[int]:
    gen = torch.Generator().manual_seed(length)
    tokens = torch.randint(9, VOCAB, (length,), generator=gen).tolist()
    for at in invocations:
        tokens[at : at + 2] = INVOCATION
    return tokens


# In the middle; twice, pages apart, with the beginning of a third at the end; never; at once; as the last tokens.
ACTIVATED_PROMPTS = [_prompt(14, (5,)), _prompt(40, (3, 21)) + INVOCATION[:1], _prompt(20), _prompt(9, (0,)), _prompt(18, (16,))]


def _activated(writer: Writer) -> None:
    def add(base: str, name: str, targets: Any, shares_base: bool, tokens: list[int] | None = None, **extra: Any) -> None:
        config = _lora(targets, alora_invocation_tokens=tokens or INVOCATION, **extra)
        # Without copies of the base beside the adapter: other cases have these.
        AdapterWriter(writer, base).add(
            f"activated_{name}", config, save_embeddings=False, prompts=ACTIVATED_PROMPTS, max_new_tokens=8,
            unmergeable="activated LoRA", shares_base=shares_base)

    for base in ("tied", "untied"):
        add(base, "plain", ["q_proj", "v_proj", "down_proj"], True)
        add(base, "head", ["lm_head", "k_proj"], True, use_rslora=True)
        add(base, "one_token", "all-linear", True, tokens=INVOCATION[1:])
        add(base, "saved_head", ["v_proj"], True, modules_to_save=["lm_head"])
        # What these replace acts before the activation, too.
        add(base, "saved_embedding", ["v_proj"], False, modules_to_save=["embed_tokens"])
        add(base, "saved_norms", ["v_proj"], False, modules_to_save=["norm", "input_layernorm"])
        add(base, "rows", ["v_proj"], False, trainable_token_indices=[7, 8, 12])
        # No tokens: PEFT takes it for a plain one.
        AdapterWriter(writer, base).add("activated_never", _lora(["v_proj"], alora_invocation_tokens=[]), prompts=ACTIVATED_PROMPTS)
    add("biased", "bias", ["q_proj", "up_proj"], False, bias="all")
    add("biased", "lora_bias", ["q_proj", "up_proj"], True, lora_bias=True)


def _resized_vocabularies(writer: Writer) -> None:
    """Grown by five tokens, as trainers do who add some, and cut to those of the tokenizer."""
    for base in ("tied", "untied"):
        out = AdapterWriter(writer, base)
        for kind, size in (("grown", VOCAB + 5), ("shrunk", VOCAB - 7)):
            last = size - 1
            # The first token is one that only the larger vocabulary has, when it is the adapter's.
            prompts = [[last], [last, 5, 9, 3, last - 1, 11, last, 20, 30, 31, 32, 4, 8, 15, 16, 23, last, 12, 3, 7]]

            def add(name: str, config: Any, **case: Any) -> None:
                out.add(f"{kind}_{name}", config, vocab_size=size, prompts=prompts, max_new_tokens=6,
                        unmergeable="vocabulary of", **case)

            add("copied", _lora(["v_proj"]))
            add("saved", _lora(["v_proj"], modules_to_save=["embed_tokens", "lm_head"]))
            add("saved_embedding", _lora(["v_proj"], modules_to_save=["embed_tokens"]))
            add("lora", _lora(["embed_tokens", "lm_head", "v_proj"]))
            add("dora", _lora(["embed_tokens", "lm_head"], use_dora=True))
            add("rows", _lora(["v_proj"], trainable_token_indices=[3, last - 1, last]))
            if base == "tied":
                for ends, named in (("embedding", ["embed_tokens"]), ("head", ["lm_head"]), ("both", ["embed_tokens", "lm_head"])):
                    add(f"tied_{ends}", _lora(["v_proj"], modules_to_save=named, ensure_weight_tying=True))
                add("tied_lora", _lora(["embed_tokens", "v_proj"], ensure_weight_tying=True))
                add("tied_rows", _lora(["v_proj"], trainable_token_indices=[3, last], ensure_weight_tying=True))
            if base == "untied":
                add("head_rows", _lora(["v_proj"], trainable_token_indices={"embed_tokens": [last], "lm_head": [4, last]}))
        # Saved without the rows that nobody else has.
        out.add("grown_not_saved", _lora(["v_proj"], modules_to_save=["embed_tokens"]), save_embeddings=False,
                vocab_size=VOCAB + 5, refused="save_embedding_layers=True")


def variants(writer: Writer) -> None:
    """All cases."""
    _activated(writer)
    _resized_vocabularies(writer)
