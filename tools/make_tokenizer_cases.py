#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Directories as hubs hold them, and what transformers makes of them: tests/text/fixtures/tokenizer_cases.json.

  make_tokenizer_cases.py [--seed 1] [--random 80]

Each case is a set of files beside one of the small tokenizers; the expected values are token ids of texts that name the
added tokens, what is decoded of all ids, the special tokens by name, and the chat templates that are chosen without and
with tools. Needs transformers 5.24 and tokenizers.
"""
import argparse
import json
import pathlib
import random
import tempfile

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "tests/text/fixtures/tokenizer_cases.json"
FILLER = ["a", "b", " ", "x."]


def byte_level(added=(), prefix=False):
    vocab = {chr(code): code - 33 for code in range(33, 127)}
    vocab["Ġ"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    return tokenizer


def metaspace(scheme="first"):
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["▁"] + [chr(c) for c in range(97, 123)]
    vocab = {piece: k for k, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + ([] if scheme == "never" else [decoders.Strip(" ", 1, 0)]))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def tokenizers_by_name():
    plain = byte_level()
    flagged = byte_level([AddedToken("<a>", lstrip=True), AddedToken("<b>", special=True, normalized=False)])
    lower = byte_level([AddedToken("<N>", normalized=True)])
    lower.normalizer = normalizers.Lowercase()
    return {"plain": plain, "flagged": flagged, "lower": lower, "spaced": byte_level(prefix=True),
            "llama": metaspace(), "llama_never": metaspace("never")}


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False,
            "special": True, **flags}


def typed(content, **flags):
    return {"__type": "AddedToken", **token(content, **flags)}


def chosen_cases():
    """(tokenizer, files)"""
    config = "tokenizer_config.json"
    older = "special_tokens_map.json"
    yield "plain", {}
    yield "plain", {config: {}}
    yield "plain", {config: {"eos_token": "<e>"}}
    yield "plain", {config: {"eos_token": typed("<e>", lstrip=True), "bos_token": "!", "pad_token": None}}
    yield "plain", {config: {"added_tokens_decoder": {"94": token("<x>", special=False), "95": token("<y>")},
                             "eos_token": "<x>"}}
    yield "plain", {config: {"added_tokens_decoder": {"95": token("<x>"), "96": token("<w>", single_word=True)}}}
    yield "flagged", {config: {"added_tokens_decoder": {"95": token("<a>", rstrip=True), "96": token("<b>")}}}
    yield "flagged", {config: {"eos_token": "<a>"}}
    yield "flagged", {config: {"eos_token": "<a>", "added_tokens_decoder": {"95": token("<a>", lstrip=True, special=False)}}}
    yield "flagged", {config: {"extra_special_tokens": ["<a>", "<p>"]}}
    yield "plain", {config: {"extra_special_tokens": ["<p>", "<q>"], "image_token": "<i>"}}
    yield "plain", {config: {"additional_special_tokens": ["<p>"], "extra_special_tokens": {"video_token": "<v>"}}}
    yield "plain", {config: {"additional_special_tokens": [typed("<p>", rstrip=True)], "extra_special_tokens": []}}
    yield "plain", {config: {"model_specific_special_tokens": {"image_token": "<m>", "think_token": "<t>"}}}
    yield "plain", {config: {"mask_token": "<mask>", "unk_token": "<u>", "sep_token": "<sep>", "boi_token": "<boi>"}}
    yield "plain", {config: {"eos_token": "<e>"}, older: {"eos_token": "<f>", "bos_token": token("<b>", lstrip=True)},
                    "added_tokens.json": {"<z>": 95, "<f>": 96}}
    yield "plain", {config: {"eos_token": "<e>", "added_tokens_decoder": {}}, older: {"eos_token": "<f>"},
                    "added_tokens.json": {"<z>": 95}}
    yield "plain", {older: {"additional_special_tokens": ["<k>"], "pad_token": "<pad>"}}
    yield "plain", {config: {"split_special_tokens": True, "eos_token": "<e>"}}
    yield "lower", {config: {"eos_token": "<N>", "pad_token": "<Pad>"}}
    yield "lower", {config: {"added_tokens_decoder": {"95": token("<N>", normalized=False, special=False)}}}
    for name in ("plain", "spaced"):
        for value in (True, False):
            yield name, {config: {"add_prefix_space": value, "tokenizer_class": "GPT2Tokenizer", "bos_token": "!",
                                  "eos_token": "!", "unk_token": "!"}}
            yield name, {config: {"add_prefix_space": value, "tokenizer_class": "PreTrainedTokenizerFast"}}
    for name in ("llama", "llama_never"):
        for value in (True, False):
            yield name, {config: {"add_prefix_space": value, "tokenizer_class": "LlamaTokenizer", "legacy": False,
                                  "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}}
    folder = "additional_chat_templates"
    for templates in ({config: {"chat_template": "one"}},
                      {config: {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}},
                      {config: {"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]}},
                      {config: {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}},
                      {config: {"chat_template": "old"}, "chat_template.jinja": "new"},
                      {config: {"chat_template": "old"}, f"{folder}/tool_use.jinja": "t"},
                      {config: {}, "chat_template.jinja": "d", f"{folder}/tool_use.jinja": "t", f"{folder}/rag.jinja": "r"}):
        yield "plain", templates


def random_case(rng):
    contents = [f"<{c}>" for c in "abcdefgh"] + ["!", "xy", "#"]
    pick = lambda: rng.choice(contents)
    flags = lambda: {name: rng.random() < 0.3 for name in ("lstrip", "rstrip", "normalized", "special")}
    described = lambda: rng.choice([lambda: pick(), lambda: typed(pick(), **flags())])()
    config = {}
    for name in rng.sample(["bos_token", "eos_token", "pad_token", "unk_token", "image_token", "audio_token"], rng.randrange(4)):
        config[name] = described()
    if rng.random() < 0.4:
        key = rng.choice(["extra_special_tokens", "additional_special_tokens"])
        config[key] = [described() for _ in range(rng.randrange(1, 3))]
    files = {"tokenizer_config.json": config}
    if rng.random() < 0.5:
        names = rng.sample(contents[:8], rng.randrange(1, 4))
        config["added_tokens_decoder"] = {str(95 + k): token(name, **flags()) for k, name in enumerate(names)}
    elif rng.random() < 0.5:
        names = rng.sample(contents[:8], rng.randrange(1, 3))
        files["added_tokens.json"] = {name: 95 + k for k, name in enumerate(names)}
        files["special_tokens_map.json"] = {"eos_token": pick()}
    return rng.choice(["plain", "flagged"]), files


def declared_ids(files):
    listed = files.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    if listed is not None:
        return {int(k): v["content"] for k, v in listed.items()}
    return {v: k for k, v in files.get("added_tokens.json", {}).items()}


def expected(tokenizer, files):
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        tokenizer.save(str(root / "tokenizer.json"))
        for name, content in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(directory)
        except Exception:  # a file that transformers cannot read shows nothing
            return None
    backend = loaded.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    for number, content in declared_ids(files).items():
        if number not in added or added[number].content != content:
            return {"refused": True}  # it stands elsewhere: transformers says nothing
    texts = [f"{left}{t.content}{right}" for t in added.values() for left in ("a", " ", "a ") for right in ("", " b", "b")]
    texts += ["a b", "".join(t.content for t in added.values()), "<A><n> x"]
    encoded = [[text, loaded(text, add_special_tokens=False).input_ids] for text in dict.fromkeys(texts)]
    ids = list(range(max(backend.get_vocab(with_added_tokens=True).values()) + 1))
    lead = lambda k: backend.token_to_id("b" if k == backend.token_to_id("a") else "a")  # no token stands alone
    shown = [k for k in ids if backend.decode([lead(k), k], skip_special_tokens=True)
             == backend.decode([lead(k), k], skip_special_tokens=False)]
    result = {"encoded": encoded, "special": sorted(set(ids) - set(shown)), "names": loaded.special_tokens_map}
    if loaded.chat_template:
        for key, tools in (("template", None), ("tool_template", [{}])):
            try:
                result[key] = loaded.get_chat_template(tools=tools)
            except ValueError:
                result[key] = None
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--random", type=int, default=80)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    tokenizers = tokenizers_by_name()
    cases = []
    for name, files in list(chosen_cases()) + [random_case(rng) for _ in range(arguments.random)]:
        values = expected(tokenizers[name], files)
        if values is not None:
            cases.append({"tokenizer": name, "files": files, **values})
    document = {"tokenizers": {name: json.loads(t.to_str()) for name, t in tokenizers.items()}, "cases": cases}
    TARGET.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(cases)} cases, {sum(1 for case in cases if case.get('refused'))} refused")


if __name__ == "__main__":
    main()
