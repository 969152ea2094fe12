#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every C++ source as .clang-format has it? (One version of the program: others break lines elsewhere.)
# Usage: tools/check_format.sh [--fix]
cd "$(dirname "$0")/.." || exit 2
mode="--dry-run -Werror"
[ "${1:-}" = --fix ] && mode=-i
find apps src tests -name '*.cpp' -o -name '*.h' | xargs clang-format-14 $mode
