// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/json_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk::openai {
namespace {

void append_escaped(std::string& out, std::string_view text) {
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20)
          fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<int>(c));
        else
          out += c;
    }
  }
}

}  // namespace

void append_string(std::string& out, std::string_view text) {
  out += '"';
  if (!utf8::find_invalid(text)) {
    append_escaped(out, text);
  } else {
    std::string clean;
    utf8::append_lossy(clean, text, true);
    append_escaped(out, clean);
  }
  out += '"';
}

void append_number(std::string& out, float number) {
  if (std::isfinite(number))
    fmt::format_to(std::back_inserter(out), "{:#}", number);
  else
    out += "null";
}

void append_logprob(std::string& out, float logprob) {
  append_number(out, std::isnan(logprob) ? -9999.0f : std::clamp(logprob, -9999.0f, 9999.0f));
}

void append_ints(std::string& out, std::span<const int32_t> numbers) {
  fmt::format_to(std::back_inserter(out), "[{}]", fmt::join(numbers, ","));
}

void append_bytes(std::string& out, std::string_view bytes) {
  out += '[';
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

}  // namespace lk::openai
