#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every option that a message of the program names must be one that the program has.

usage: check_remedies.py LORIKEET

Looks at the string literals of src/ and apps/ for "--option", and for a remedy that names a setting by its field
("raise max_something"), which is right only for the fields of a request and the keys of a jobs file.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
FIELD = re.compile(r"\b(?:raise|lower|increase|reduce) ([a-z]+(?:_[a-z]+)+)")
REQUEST_FIELDS = {"max_tokens"}
JOBS_KEYS = {"block_tokens", "max_length"}


def help_of(program, *arguments):
    run = subprocess.run([program, *arguments], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{program} {' '.join(arguments)} fails: {run.stderr}")
    return run.stdout


def options_of(program, *command):
    short = help_of(program, *command, "--help")
    found = set(OPTION.findall(short + help_of(program, *command, "--help-all")))
    _, _, subcommands = short.partition("Subcommands:")
    for name in re.findall(r"^  ([a-z][a-z-]*)\b", subcommands, re.M):
        found |= options_of(program, *command, name)
    return found


def literals(text):
    """The string literals of a source, adjacent ones joined, with their lines; comments left out."""
    text = re.sub(r"//[^\n]*", lambda match: "" if '"' not in match[0] else match[0], text)
    end, parts, line = -1, [], 0
    for match in LITERAL.finditer(text):
        if end >= 0 and not text[end : match.start()].strip():
            parts.append(match[1])
        else:
            if parts:
                yield line, "".join(parts)
            parts, line = [match[1]], text.count("\n", 0, match.start()) + 1
        end = match.end()
    if parts:
        yield line, "".join(parts)


def main():
    options = options_of(sys.argv[1])
    assert {"memory", "model", "rank"} <= options, f"help was not understood: {sorted(options)}"
    bad, seen = [], 0
    for folder in ("src", "apps"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in (".cpp", ".h"):
                continue
            for line, text in literals(path.read_text()):
                where = f"{path.relative_to(ROOT)}:{line}"
                for name in OPTION.findall(text) if " " in text else ():  # a lone one is its definition
                    seen += 1
                    if name not in options:
                        bad.append(f"{where}: names --{name}, which the program does not have")
                for name in FIELD.findall(text):
                    if name not in REQUEST_FIELDS | JOBS_KEYS:
                        bad.append(f"{where}: names the setting {name}; name the option that sets it")
    assert seen > 20, "no options found in messages: does the search still work?"
    if bad:
        sys.exit("\n".join(bad))
    print(f"remedies: {seen} options named in the sources, all of them exist")


if __name__ == "__main__":
    main()
