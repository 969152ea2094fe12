// SPDX-License-Identifier: Apache-2.0
// Regular expressions without memory or look-around, as expressions over code points.
#pragma once

#include <functional>
#include <string_view>

#include "lk/grammar/automaton.h"
#include "lk/grammar/code_points.h"
#include "lk/grammar/ir.h"

namespace lk::grammar {

struct RegexOptions {
  int max_depth = 64;
  // How a character of a set is written; empty: in UTF-8.
  std::function<Expr(const CodePoints&)> spell;
  // JSON Schema: the text matches when a part of it does, and '.' stops at the line ends of ECMA-262. Otherwise the
  // whole text must match and '.' stops at \n only.
  bool search = false;
};

Result<Expr> parse_regex(Ir& ir, std::string_view pattern, const RegexOptions& options, Budget& budget);

// "{m}", "{m,}" or "{m,n}" at text[at]: moves `at` behind it. nullopt (and `at` unchanged) if it is not of this form.
struct Bounds {
  int64_t min, max;  // max kUnbounded
};
std::optional<Bounds> parse_bounds(std::string_view text, size_t& at);
inline constexpr int64_t kMaxRepeat = 100'000;

}  // namespace lk::grammar
