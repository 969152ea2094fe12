// SPDX-License-Identifier: Apache-2.0
// Compiles arbitrary grammars (the first byte picks the kind) under small limits, then follows their masks: no crash,
// no leak, no hang, no allowed token that is refused, and no dead end.
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "lk/grammar/grammar.h"
#include "lk/grammar/vocabulary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto vocabulary = [] {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    tokens.emplace_back();
    for (const char* more : {"\": ", "\",\"", "{\"", "[[", "}]", "12", "true,", "\n  ", "ab", "\xC3\xA9x", "\\u00"})
      tokens.emplace_back(more);
    return std::make_shared<lk::grammar::TrieVocabulary>(std::move(tokens), std::vector<int32_t>{256});
  }();
  if (size < 1) return 0;
  lk::GrammarSpec spec;
  spec.kind = static_cast<lk::GrammarSpec::Kind>(data[0] % 5);
  spec.text.assign(reinterpret_cast<const char*>(data + 1), size - 1);
  if (spec.kind == lk::GrammarSpec::Kind::kChoice) {
    for (size_t at = 0; at <= spec.text.size();) {
      const size_t end = std::min(spec.text.find('\n', at), spec.text.size());
      spec.choices.push_back(spec.text.substr(at, end - at));
      at = end + 1;
    }
    spec.text.clear();
  }
  lk::GrammarLimits limits;
  limits.max_compiled_bytes = 1 << 20;
  limits.compile_timeout = std::chrono::milliseconds(200);
  const auto grammar = lk::compile_grammar(spec, vocabulary, limits);
  if (!grammar.ok()) return 0;
  lk::GrammarState state(*grammar);
  std::array<uint64_t, 8> words{};
  uint64_t random = size;
  for (size_t k = 0; k < size; ++k) random = (random ^ data[k]) * 0x9E3779B97F4A7C15u;
  for (int step = 0; step < 24; ++step) {
    state.allowed(words);
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token < vocabulary->size(); ++token) {
      if (words[static_cast<size_t>(token / 64)] >> (token % 64) & 1) tokens.push_back(token);
    }
    if (tokens.empty()) __builtin_trap();
    random = (random ^ random >> 29) * 0xD6E8FEB86659FD93u;
    const int32_t token = tokens[random % tokens.size()];
    if (!state.accept(token)) __builtin_trap();
    if (token == 256) break;
  }
  return 0;
}
