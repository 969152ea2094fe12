// SPDX-License-Identifier: Apache-2.0
// Parses a template into its tree. The grammar and its precedences are those of jinja2 3.1.
#pragma once

#include <string_view>

#include "lk/text/jinja/ast.h"

namespace lk::jinja {

// Nesting of expressions and blocks; keeps the parser, the evaluator and ~Expr off the end of the
// stack.
inline constexpr int kMaxSyntaxDepth = 200;

Block parse(std::string_view source);  // TemplateError with the line

}  // namespace lk::jinja
