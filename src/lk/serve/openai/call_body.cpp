// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/call_body.h"

#include <fmt/format.h>

#include <iterator>

#include <boost/json.hpp>

namespace lk::openai {

void append_escaped(std::string& out, char c) {
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\t':
      out += "\\t";
      return;
    case '\r':
      out += "\\r";
      return;
    default:
      if (static_cast<unsigned char>(c) >= 0x20) return void(out += c);
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<int>(c));
  }
}

void append_word(std::string& out, std::string_view word) {
  static constexpr std::pair<std::string_view, std::string_view> kWords[] = {
      {"True", "true"}, {"False", "false"}, {"None", "null"}, {"true", "true"}, {"false", "false"}, {"null", "null"}};
  for (const auto& [python, json] : kWords)
    if (word == python) return void(out += json);
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(word, error);
  if (!error && value.is_number()) return void(out += word);
  out += '"';
  for (const char c : word) append_escaped(out, c);
  out += '"';
}

}  // namespace lk::openai
