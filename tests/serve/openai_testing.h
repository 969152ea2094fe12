// SPDX-License-Identifier: Apache-2.0
// A byte-level tokenizer of 256 bytes, some pairs and two special tokens, for tests of the API: texts can be cut
// anywhere.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "lk/serve/openai/openai.h"
#include "lk/text/tokenizer.h"

namespace lk::testing {

inline constexpr int32_t kEndToken = 256, kToolToken = 257;  // "<|end|>", "<tool_call>": special

// The GPT-2 alphabet: the character that stands for a byte.
inline std::string byte_letter(int byte) {
  const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

// Token b is byte b.
inline std::shared_ptr<const Tokenizer> byte_tokenizer() {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string letter = byte_letter(byte);
    if (letter == "\"" || letter == "\\") letter = "\\" + letter;
    vocab += fmt::format("{}\"{}\":{}", byte ? "," : "", letter, byte);
  }
  const auto special = [](std::string_view content, int id) {
    return fmt::format(
        R"({{"id":{},"content":"{}","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}})",
        id, content);
  };
  auto tokenizer = Tokenizer::parse(
      fmt::format(R"({{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{},{}],"normalizer":null,
        "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}},"post_processor":null,
        "decoder":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}},
        "model":{{"type":"BPE","dropout":null,"unk_token":null,"vocab":{{{}}},"merges":[]}}}})",
                  special("<|end|>", kEndToken), special("<tool_call>", kToolToken), vocab),
      "byte tokenizer");
  LK_CHECK(tokenizer.ok(), "{}", tokenizer.status().message());
  return *tokenizer;
}

inline std::vector<int32_t> byte_tokens(std::string_view text) {
  std::vector<int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

}  // namespace lk::testing
