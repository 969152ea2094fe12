#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of `lorikeet serve`. Usage: server_test.py BINARY [unittest arguments, e.g. -v -k Keys]; from the repository root."""
import os
import sys
import unittest

if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
    os.environ["LORIKEET"] = os.path.abspath(sys.argv.pop(1))
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)

# "*_test.py" without this file.
MODULES = sorted(name[:-3] for name in os.listdir(here) if name.endswith("_test.py") and name != "server_test.py")


def load_tests(loader, *_):
    return unittest.TestSuite(loader.loadTestsFromName(name) for name in MODULES)


if __name__ == "__main__":
    unittest.main()
