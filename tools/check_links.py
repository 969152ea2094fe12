#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails on a relative link or a docs/ path that leads nowhere: links and names of *.md files in Markdown (with their #anchors), docs/ paths anywhere."""
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAME = re.compile(r"(?<![\w/.:-])((?:\.\./|[\w-]+/)*[\w-]+\.md)\b")
DOCS_PATH = re.compile(r"(?<![\w/.-])(docs/[\w./-]*\w)")


def anchors(path: pathlib.Path) -> set:
    """As GitHub makes them of headings: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def targets(path: pathlib.Path, line: str):
    """(what is named, the places it may be)"""
    for name in DOCS_PATH.findall(line):
        yield name, [ROOT / name]
    if path.suffix != ".md":
        return
    for link in LINK.findall(line):
        if not re.match(r"[a-z]+:", link):
            yield link, [path.parent / link]
    for name in NAME.findall(line):
        yield name, [path.parent / name, ROOT / name]


def leads_nowhere(path: pathlib.Path, named: str, places: list) -> bool:
    file, _, anchor = named.partition("#")
    if not file:
        return anchor not in anchors(path)
    found = [place for place in (pathlib.Path(str(place).partition("#")[0]) for place in places) if place.exists()]
    return not found or (anchor != "" and anchor not in anchors(found[0]))


def main() -> int:
    names = []
    if shutil.which("git"):  # an archive without its history, on a machine without git, is looked at as a whole
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
        names = listed.stdout.splitlines()
    files = [ROOT / name for name in names] or [path for path in ROOT.rglob("*") if "build" not in path.parts]
    bad, checked = [], 0
    for path in files:
        if not path.is_file() or path == pathlib.Path(__file__).resolve():
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            for named, places in targets(path, line):
                checked += 1
                if leads_nowhere(path, named, places):
                    bad.append(f"{path.relative_to(ROOT)}:{number}: {named} is not there")
    print("\n".join(bad) if bad else f"links: {checked} lead somewhere")
    return 1 if bad or checked == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
