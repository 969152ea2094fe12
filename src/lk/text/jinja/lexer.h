// SPDX-License-Identifier: Apache-2.0
// Splits a template into text and the tokens of its tags, with Jinja's white-space control under
// trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False (as transformers sets it).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lk::jinja {

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kPrintBegin,
  kPrintEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // kString: unescaped; kOperator: its characters
  int64_t integer = 0;
  double number = 0;
  int line = 1;
};

// TemplateError on malformed input. Ends with one kEnd token.
std::vector<Token> lex(std::string_view source);

}  // namespace lk::jinja
