#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a seventh adapter for the demo's base, loads it into the running server and shows its answers before and after.

Usage: train.py URL LORIKEET DIRECTORY     (Python's standard library only; DIRECTORY is a --lora-root of the server)

The task is none that the other adapters know: dates as Germans write them. Dates that are asked for are never trained.
"""
import json
import pathlib
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
MONTHS = "January February March April May June July August September October November December".split()
NAME = "german-dates"
ASKED = [(1973, 3, 8), (2021, 11, 30), (1999, 7, 4)]


def post(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error.code} {error.read().decode()}")


def question(rng: random.Random, year: int, month: int, day: int) -> str:
    name = MONTHS[month - 1]
    return rng.choice([f"We met on {name} {day}, {year}.", f"The letter is from {day} {name} {year}.", f"Date: {name} {day}, {year}"])


def answer(year: int, month: int, day: int) -> str:
    return f"{day}.{month}.{year}"


def write_data(path: pathlib.Path) -> None:
    rng = random.Random(1)
    with open(path, "w", encoding="utf-8") as out:
        for _ in range(2000):
            date = (rng.randint(1950, 2049), rng.randint(1, 12), rng.randint(1, 28))
            if date in ASKED:
                continue
            messages = [{"role": "user", "content": question(rng, *date)}, {"role": "assistant", "content": answer(*date)}]
            out.write(json.dumps({"messages": messages}) + "\n")


def main() -> int:
    url, lorikeet, directory = sys.argv[1].rstrip("/"), sys.argv[2], pathlib.Path(sys.argv[3]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    data, adapter = directory / f"{NAME}.jsonl", directory / f"{NAME}-{int(time.time())}"
    write_data(data)
    rng = random.Random(2)
    questions = [question(rng, *date) for date in ASKED]

    def ask(model: str) -> list[str]:
        return [post(url, "/v1/chat/completions", {"model": model, "temperature": 0, "max_tokens": 24,
                                                   "messages": [{"role": "user", "content": text}]})["choices"][0]["message"]["content"]
                for text in questions]

    before = ask("base")
    print(f"\n==> training a new adapter beside the running server: {sum(1 for _ in open(data))} examples of German dates\n", flush=True)
    begin = time.monotonic()
    subprocess.run([lorikeet, "train", "--model", str(HERE / "model"), "--data", str(data), "--output", str(adapter), "--name", NAME,
                    "--set", "adapter.rank=8", "--set", "adapter.alpha=16", "--set", "train.steps=200", "--set", "train.batch_samples=24",
                    "--set", "train.lr=4e-3", "--set", "train.schedule=cosine", "--set", "train.warmup_steps=5",
                    "--set", "block_tokens=1024", "--set", f"metrics={directory / 'metrics.jsonl'}"], check=True)
    seconds = time.monotonic() - begin
    post(url, "/v1/adapters", {"name": NAME, "path": str(adapter)})
    after = ask(NAME)
    print(f"\n  trained in {seconds:.0f} s and loaded; its first answers:\n")
    right = 0
    for text, date, old, new in zip(questions, ASKED, before, after):
        right += new.strip() == answer(*date)
        print(f"  {text}\n    before  {' '.join(old.split())[:90]}\n    after   {new.strip()}\n")
    if right < len(ASKED) - 1:
        print("the new adapter has not learnt its task: something is wrong", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
