#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a conversation are trained: ours against transformers' assistant masks.

usage: compare_masks.py MASK_DRIVER      (needs `pip install transformers jinja2`; the driver is a CMake target)

Random conversations of the texts of tests/text/fixtures, as ChatML. transformers needs {% generation %} marks in the
template; ours is given the template with and without them, and must give the same ids and the same mask; also where
the marks include the line break behind the end of a turn, as those of TRL do.
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from transformers import PreTrainedTokenizerFast

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests/text/fixtures"
TOKENIZERS = ("qwen", "llama3")  # that know <|im_end|>, which closes a turn
START = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
CONTENT = "{{ m['content'] + '<|im_end|>' }}"
END = "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
MARKED = "{% if m['role'] == 'assistant' %}{% generation %}" + CONTENT + "{% endgeneration %}{% else %}" + CONTENT + "{% endif %}"
WIDE = MARKED.replace("{% endgeneration %}", "{{ '\n' }}{% endgeneration %}").replace("{% else %}" + CONTENT, "{% else %}" + CONTENT + "{{ '\n' }}")
# What ours is given, and what transformers is.
TEMPLATES = {"plain": (START + CONTENT + END, START + MARKED + END), "marked": (START + MARKED + END,) * 2}
TEMPLATES["wide"] = (START + WIDE + END.replace("{{ '\n' }}", "", 1),) * 2


def conversations(texts, count):
    rng = random.Random(7)
    for _ in range(count):
        roles = ["user", "assistant"] * rng.randint(1, 4)
        yield [{"role": role, "content": rng.choice(texts)} for role in roles]


def compare(driver, name, folder):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(FIXTURES / name / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in (FIXTURES / name / "expected.jsonl").open()]
    cases = list(conversations([text for text in texts if "<|" not in text], 300))
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": case}) + "\n" for case in cases))
    for kind, (source, theirs) in TEMPLATES.items():
        expected = []
        for case in cases:
            made = tokenizer.apply_chat_template(case, chat_template=theirs, return_dict=True, return_assistant_tokens_mask=True)
            expected.append(list(zip(made["input_ids"], map(float, made["assistant_masks"]))))
        (folder / "template").write_text(source)
        run = subprocess.run(
            [driver, FIXTURES / name, folder / "template", data], capture_output=True, text=True, check=True
        )
        found = [[(int(i), float(w)) for i, w in (item.split(":") for item in line.split())] for line in run.stdout.splitlines()]
        wrong = [k for k, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]]
        if len(found) != len(expected) or wrong:
            sys.exit(f"{name}, {kind}: {len(wrong)} of {len(expected)} conversations differ, the first: {wrong[:1]}")
        print(f"{name}, {kind}: {len(found)} conversations, {sum(map(len, found))} tokens as transformers has them")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in TOKENIZERS:
            compare(sys.argv[1], name, pathlib.Path(folder))
