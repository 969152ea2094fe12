# SPDX-License-Identifier: Apache-2.0
"""A `lorikeet serve` with the demo model for the scripts here (the black-box tests' own starter)."""
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(binary: str, *args: str, **kwargs):
    os.environ["LORIKEET"] = os.path.abspath(binary)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests" / "http"))
    from harness import Server
    return Server(*args, **kwargs)
