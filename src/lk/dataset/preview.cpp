// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/preview.h"

#include <algorithm>
#include <string_view>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr const char* kReset = "\033[0m";
constexpr const char* kMasked = "\033[2m";
constexpr const char* kTrained = "\033[1;32m";
constexpr const char* kWeighted = "\033[1;33m";

// A terminal must not obey the data. What is no character, such as half of one, is escaped too.
std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t valid = utf8::find_invalid(text).value_or(text.size());
    for (const char c : text.substr(0, valid)) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F)
        out += fmt::format("\\x{:02X}", byte);
      else
        out += c;
    }
    if (valid < text.size()) out += fmt::format("\\x{:02X}", static_cast<unsigned char>(text[valid]));
    text.remove_prefix(std::min(text.size(), valid + 1));
  }
  return out;
}

std::string run_text(std::string_view bytes, float weight, bool color) {
  if (bytes.empty()) return "";
  const std::string text = printable(bytes);
  if (color) return fmt::format("{}{}{}", weight == 0 ? kMasked : weight == 1 ? kTrained : kWeighted, text, kReset);
  if (weight == 0) return text;
  return weight == 1 ? fmt::format("[[{}]]", text) : fmt::format("[[{}]]*{}", text, weight);
}

}  // namespace

std::string preview_sample(const Sample& sample, const Tokenizer& tokenizer, bool color) {
  std::string out, run;
  float weight = 0;  // of the run
  for (size_t k = 0; k < sample.ids.size(); ++k) {
    if (sample.weights[k] != weight) {
      out += run_text(run, weight, color);
      run.clear();
      weight = sample.weights[k];
    }
    const int32_t id = sample.ids[k];
    run += tokenizer.is_special(id) ? tokenizer.id_to_token(id).value_or("") : tokenizer.token_bytes(id);
  }
  return out + run_text(run, weight, color) + "\n";
}

}  // namespace lk
