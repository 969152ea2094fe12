#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails on an #include against the layers: a module may include itself and the modules listed for it, nothing else.
Also on what may only be called in one place."""
import pathlib
import re
import sys

ALLOWED = {
    "base": [],
    "net": ["base"], "hub": ["base"], "text": ["base"], "tensor": ["base"], "memory": ["base"],
    "grammar": ["base", "text"],
    "cluster": ["base", "net"],
    "registry": ["base", "net"],
    "kernels": ["base", "tensor"],
    "io": ["base", "tensor"],
    "ops": ["base", "tensor", "kernels"],
    "dataset": ["base", "io", "text"],
    "lora": ["base", "tensor", "io"],
    "lora_tools": ["base", "tensor", "io", "lora"],
    "model": ["base", "tensor", "io", "kernels", "ops", "lora"],
    "train": ["base", "tensor", "text", "io", "dataset", "kernels", "ops", "lora", "lora_tools", "model"],
    "federated": ["base", "tensor", "text", "io", "dataset", "kernels", "ops", "lora", "lora_tools", "model", "train"],
    "sched": ["base", "memory"],
    "merging": ["base", "memory", "sched"],
    "sim": ["base", "memory", "sched", "merging", "cluster"],
    "engine": ["base", "tensor", "io", "kernels", "ops", "lora", "model", "sched", "memory"],
    "infer": ["base", "text", "grammar", "io", "ops", "lora", "memory", "sched", "merging", "engine"],
    "load": ["base", "net"],
    "serve": ["base", "net", "cluster", "registry", "text", "grammar", "io", "ops", "lora", "memory", "sched", "merging", "engine", "infer", "federated"],
}
# call -> where alone it may stand, and what to use elsewhere
ONE_PLACE = {"json::serialize(": ("src/lk/base/json_text.cpp", "lk::json_text (base/json_text.h)")}


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    bad = []
    for path in sorted((root / "src/lk").rglob("*")):
        if path.suffix not in (".h", ".cpp"):
            continue
        module = path.relative_to(root / "src/lk").parts[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s+["<]lk/(\w+)/', line)
            if found and found[1] != module and found[1] not in ALLOWED.get(module, []):
                bad.append(f"{path.relative_to(root)}:{number}: {module} must not include {found[1]}")
    for path in sorted([*(root / "src").rglob("*.cpp"), *(root / "src").rglob("*.h"), *(root / "apps").rglob("*.cpp")]):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for call, (home, instead) in ONE_PLACE.items():
                if call in line.split("//")[0] and str(path.relative_to(root)) != home:
                    bad.append(f"{path.relative_to(root)}:{number}: {call.rstrip('(')}: use {instead}")
    print("\n".join(bad) if bad else "layers: every include is allowed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
