// SPDX-License-Identifier: Apache-2.0
// A hostile tokenizer.json, and texts through it. The input is the JSON; what follows its first
// zero byte (or a fixed text) is encoded, and some ids are decoded. What can be loaded must not
// crash, hang, or decode in two ways.
#include <cstdint>
#include <string>
#include <vector>

#include "lk/base/check.h"
#include "lk/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view json = input.substr(0, zero);
  const std::string_view text =
      zero == input.npos ? std::string_view("Hello  world </s>\n 12\xC3\xA9\xE2\x96\x81x") : input.substr(zero + 1);
  const auto tokenizer = lk::Tokenizer::parse(json, "fuzz");
  if (!tokenizer.ok()) {
    LK_CHECK(tokenizer.status().message().starts_with("fuzz"), "{}", tokenizer.status().message());
    return 0;
  }
  std::vector<int32_t> ids;
  if (auto encoded = (*tokenizer)->encode(text, true); encoded.ok()) ids = *encoded;
  for (const int32_t id : ids) LK_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "{}", id);
  for (size_t k = 0; k < text.size() && k < 64; ++k) ids.push_back(static_cast<unsigned char>(text[k]));
  for (const bool skip : {false, true}) {
    lk::IncrementalDecoder decoder(*tokenizer, skip);
    std::string pieces;
    for (const int32_t id : ids) pieces += decoder.push(id);
    pieces += decoder.flush();
    LK_CHECK(pieces == (*tokenizer)->decode(ids, skip));
  }
  return 0;
}
