#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Adapters trained here, loaded by the real PEFT; and one that PEFT half trained, trained on here.

usage: check_peft.py [--lorikeet BINARY] [--kinds NAME,...]       (needs torch, transformers and peft)

`lorikeet train` trains one adapter of every kind in one joint run on the demo's base in f32. PEFT loads each, and its log-probabilities
over a prompt are compared with lorikeet's own, which must differ by less than 1e-4. Then PEFT trains an adapter for some steps; a job with
init_from goes on with it: its first loss must be PEFT's, and what comes out must again be the same in both.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "examples/demo/model"
TOP = 20  # log-probabilities that lorikeet gives per position
LIMIT = 1e-4
ATTENTION = ["q_proj", "v_proj"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"kind": "dora"},
    "lora_bias": {"lora_bias": True},
    "multilora": {"kind": "multilora", "num_modules": 3, "rank": 4},
    "patterns": {"rank_pattern": {"q_proj": 4, r".*\.1\.mlp\..*": 16}, "alpha_pattern": {"v_proj": 3}},
    "some_layers": {"target_modules": ATTENTION, "layers_to_transform": [1, 3]},
    "embedding_and_head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "saved_norms": {"target_modules": ATTENTION, "modules_to_save": ["norm", "input_layernorm"]},
    "saved_head": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ATTENTION, "trainable_tokens": [40, 41, 300]},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "eva": {"init": "eva"},
}
TEXTS = [f"The {a} of {b} is {len(a) * len(b)}, says the {b}." for a in ("sum", "price", "length") for b in ("apples", "roads", "it")]
PROMPT = [1, 40, 41, 300, 17, 500, 40, 9, 1200, 300, 77, 41, 823, 5, 64, 1101]


def base_model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def train(lorikeet, folder, jobs):
    """Runs the jobs together; {job: the loss of its first step}"""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    defaults = {"adapter": {"rank": 8, "alpha": 16}, "data": {"path": str(data)}, "train": {"steps": 12, "batch_samples": 3, "lr": 3e-3}}
    run = {"base": str(MODEL), "dtype": "f32", "block_tokens": 1024, "output": str(folder / "out"), "defaults": defaults, "jobs": jobs}
    (folder / "jobs.yaml").write_text(json.dumps(run))
    done = subprocess.run([lorikeet, "train", folder / "jobs.yaml"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"lorikeet train fails:\n{done.stderr}")
    lines = map(json.loads, (folder / "out/metrics.jsonl").read_text().splitlines())
    return {line["job"]: line["loss"] for line in lines if line["step"] == 1}


def ours(lorikeet, adapter):
    """Per position of the prompt but the first: {token: log-probability}"""
    options = ["--lora", f"x={adapter}", "--adapter", "x"] if adapter else []
    request = {"token_ids": PROMPT, "max_tokens": 1, "prompt_logprobs": TOP, "temperature": 0}
    run = subprocess.run([lorikeet, "generate", MODEL, "--dtype", "f32", *options, "--input", "-"], input=json.dumps(request),
                         capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"lorikeet generate fails: {run.stderr}")
    answer = json.loads(run.stdout)
    return [{top["token"]: top["logprob"] for top in [entry, *entry["top"]]} for entry in answer["prompt_logprobs"]]


def largest_difference(found, expected):
    return max(abs(value - expected[at, token].item()) for at, row in enumerate(found) for token, value in row.items())


def logprobs(model):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, :-1], dim=-1)


def check(lorikeet, name, adapter, base):
    """The largest difference between the two, and what the adapter changes."""
    model = PeftModel.from_pretrained(base_model(), adapter).eval()
    theirs = logprobs(model)
    difference, effect = largest_difference(ours(lorikeet, adapter), theirs), (theirs - base).abs().max().item()
    print(f"{name:20} {difference:9.2e}  of {effect:7.3f} that it changes", flush=True)
    return difference < LIMIT < effect


def half_trained(folder):
    """An adapter after some steps of PEFT, and its loss on the first text."""
    torch.manual_seed(3)
    config = LoraConfig(r=6, lora_alpha=9, target_modules=["q_proj", "o_proj", "up_proj"], use_rslora=True, rank_pattern={"o_proj": 3}, task_type="CAUSAL_LM")
    model = get_peft_model(base_model(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    end = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
    end = end[0] if isinstance(end, list) else end

    def loss(text):
        ids = torch.tensor([tokenizer(text)["input_ids"] + [end]])
        return model(input_ids=ids, labels=ids).loss

    for step in range(8):
        optimizer.zero_grad()
        loss(TEXTS[step]).backward()
        optimizer.step()
    model.save_pretrained(folder)
    with torch.no_grad():
        return loss(TEXTS[0]).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorikeet", default=ROOT / "build/cpu-release/bin/lorikeet")
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    base, good = logprobs(base_model()), True
    print("largest difference of log-probabilities, lorikeet against PEFT:")
    plain = largest_difference(ours(args.lorikeet, None), base)
    print(f"{'(base)':20} {plain:9.2e}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        kinds = args.kinds.split(",")
        train(args.lorikeet, folder, [{"name": kind, "adapter": KINDS[kind]} for kind in kinds])
        for kind in kinds:
            good = check(args.lorikeet, kind, folder / "out" / kind, base) and good
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        theirs = half_trained(folder / "peft")
        job = {"name": "on", "adapter": {"init_from": str(folder / "peft")}, "data": {"shuffle": False}, "train": {"batch_samples": 1}}
        first = train(args.lorikeet, folder, [job])["on"]
        print(f"half trained by PEFT: its loss {theirs:.6f}, the first one here {first:.6f}")
        good = abs(first - theirs) < LIMIT * theirs and good
        good = check(args.lorikeet, "trained on here", folder / "out/on", base) and good
    sys.exit(0 if good else "PEFT and lorikeet differ")


if __name__ == "__main__":
    main()
