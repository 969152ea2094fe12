#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds lk::Tokenizer against the `tokenizers` package: same ids, same decoded text, on generated lines.

  cmake --build --preset cpu-release --target tokenizer_driver
  python3 tools/compare_tokenizers.py --lines 1000000            full run; exit status 1 on any difference
  python3 tools/compare_tokenizers.py --write-fixtures tests/text/fixtures
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("RUST_BACKTRACE", "0")
import tokenizers  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tokenizer_kinds  # noqa: E402

BATCH = 10000
FIXTURE_KINDS = ["gpt2", "llama3", "qwen", "llama2", "mistral", "mistral_always"]


def without_panics(tokenizer, lines):
    """The lines that the package can encode: some combinations of its own parts make it panic."""
    try:
        tokenizer.encode_batch_fast(lines)
        return lines
    except BaseException as error:
        if "Panic" not in type(error).__name__:
            raise
    good = []
    for line in lines:
        try:
            tokenizer.encode_fast(line) if hasattr(tokenizer, "encode_fast") else tokenizer.encode(line)
            good.append(line)
        except BaseException as error:
            if "Panic" not in type(error).__name__:
                raise
    return good


def theirs(tokenizer, lines, id_lists):
    with_special = [e.ids for e in tokenizer.encode_batch_fast(lines, add_special_tokens=True)]
    plain = [e.ids for e in tokenizer.encode_batch_fast(lines, add_special_tokens=False)]
    decoded = [tokenizer.decode_batch(with_special, skip_special_tokens=skip) for skip in (True, False)]
    random_decoded = [tokenizer.decode_batch(id_lists, skip_special_tokens=skip) for skip in (True, False)]
    return with_special, plain, decoded[0], decoded[1], random_decoded[0], random_decoded[1]


def ours(driver, path, lines, id_lists):
    request = bytearray()
    for line in lines:
        data = b"E" + line.encode()
        request += struct.pack("<I", len(data)) + data
    for ids in id_lists:
        data = b"D" + struct.pack(f"<{len(ids)}i", *ids)
        request += struct.pack("<I", len(data)) + data
    result = subprocess.run([driver, path], input=bytes(request), capture_output=True)
    if result.returncode != 0:
        return None, result.stderr.decode(errors="replace").strip() or f"exit status {result.returncode}"
    answer, at = result.stdout, 0

    def field():
        nonlocal at
        (size,) = struct.unpack_from("<I", answer, at)
        at += 4 + size
        return answer[at - size:at]

    def ids():
        data = field()
        return list(struct.unpack(f"<{len(data) // 4}i", data))

    out = ([], [], [], [], [])
    for _ in lines:
        out[0].append(ids())
        out[1].append(ids())
        for k in (2, 3, 4):
            out[k].append(field().decode())
    random_decoded = ([], [])
    for _ in id_lists:
        random_decoded[0].append(field().decode())
        random_decoded[1].append(field().decode())
    return out + random_decoded, None


def compare(driver, name, config, num_lines, seed, show):
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(config, file, ensure_ascii=False)
    differences = 0
    tokens = 0
    compared = 0
    try:
        try:
            tokenizer = Tokenizer.from_file(file.name)
        except BaseException as error:  # the package refuses it: so must we
            result, message = ours(driver, file.name, [], [])
            print(f"{name:16} refused by the package ({str(error)[:60]}), by ours: {message}")
            return 0, 0, int(result is not None)
        source = tokenizer_kinds.TextSource(seed)
        rng = random.Random(seed + 1)
        size = tokenizer.get_vocab_size()
        for begin in range(0, num_lines, BATCH):
            count = min(BATCH, num_lines - begin)
            lines = without_panics(tokenizer, [source.line() for _ in range(count)])
            compared += len(lines)
            id_lists = [[rng.randrange(size + 3) for _ in range(rng.randrange(12))] for _ in range(count // 10)]
            reference = theirs(tokenizer, lines, id_lists)
            result, message = ours(driver, file.name, lines, id_lists)
            if result is None:
                print(f"{name}: {message}")
                return compared, tokens, differences + 1
            tokens += sum(map(len, reference[0]))
            for what, a, b, inputs in [("ids", reference[0], result[0], lines),
                                       ("ids without special", reference[1], result[1], lines),
                                       ("decode, skip special", reference[2], result[2], reference[0]),
                                       ("decode", reference[3], result[3], reference[0]),
                                       ("incremental", reference[2], result[4], reference[0]),
                                       ("decode random, skip", reference[4], result[5], id_lists),
                                       ("decode random", reference[5], result[6], id_lists)]:
                for x, y, line in zip(a, b, inputs):
                    if x != y:
                        differences += 1
                        if differences <= show:
                            print(f"{name}: {what}\n  input  {line!r}\n  theirs {x!r}\n  ours   {y!r}")
                            if isinstance(x, list):
                                print("  theirs", [tokenizer.id_to_token(i) for i in x])
                                print("  ours  ", [tokenizer.id_to_token(i) for i in y])
    finally:
        os.unlink(file.name)
    return compared, tokens, differences


def write_fixtures(directory):
    os.makedirs(directory, exist_ok=True)
    for name, config in tokenizer_kinds.kinds(700).items():
        if name not in FIXTURE_KINDS:
            continue
        path = os.path.join(directory, name)
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "tokenizer.json"), "w") as file:
            json.dump(config, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
        tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        source = tokenizer_kinds.TextSource(7)
        lines = [line for line in (source.line() for _ in range(5000)) if len(line) < 60][:250]
        reference = theirs(tokenizer, lines, [])
        with open(os.path.join(path, "expected.jsonl"), "w") as file:
            for line, ids, plain, skip, full in zip(lines, *reference[:4]):
                record = {"text": line, "ids": ids, "plain": plain, "skip": skip, "full": full}
                # What repeats is left out: the test knows the defaults.
                if record["plain"] == ids:
                    del record["plain"]
                for key in ("skip", "full"):
                    if record[key] == line:
                        del record[key]
                file.write(json.dumps(record, ensure_ascii=True, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", default="build/cpu-release/bin/tokenizer_driver")
    parser.add_argument("--lines", type=int, default=20000, help="over all kinds")
    parser.add_argument("--random-kinds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=4000)
    parser.add_argument("--show", type=int, default=3, help="differences printed per kind")
    parser.add_argument("--only", help="one kind")
    parser.add_argument("--write-fixtures", metavar="DIR")
    args = parser.parse_args()
    if args.write_fixtures:
        write_fixtures(args.write_fixtures)
        return 0
    all_kinds = tokenizer_kinds.kinds(args.vocab)
    bases = [all_kinds["gpt2"], all_kinds["llama2"]]
    jobs = {name: (config, args.lines * 9 // 10 // len(all_kinds)) for name, config in all_kinds.items()}
    for k in range(args.random_kinds):
        jobs[f"random_{k}"] = (tokenizer_kinds.random_kind(args.seed * 1000 + k, bases[k % 2]),
                               args.lines // 10 // args.random_kinds)
    if args.random_kinds == 0:
        jobs = {name: (config, args.lines // len(all_kinds)) for name, config in all_kinds.items()}
    total_lines = total_tokens = total_differences = 0
    start = time.time()
    for k, (name, (config, num_lines)) in enumerate(jobs.items()):
        if args.only and name != args.only:
            continue
        lines, tokens, differences = compare(args.driver, name, config, num_lines + 1, args.seed * 100 + k, args.show)
        print(f"{name:16} {lines:9} lines {tokens:10} ids {differences:6} differences", flush=True)
        total_lines += lines
        total_tokens += tokens
        total_differences += differences
    print(f"tokenizers {tokenizers.__version__}: {total_lines} lines, {total_tokens} ids, "
          f"{total_differences} differences, {time.time() - start:.0f} s")
    return 1 if total_differences else 0


if __name__ == "__main__":
    sys.exit(main())
