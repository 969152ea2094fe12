// SPDX-License-Identifier: Apache-2.0
// Small vocabularies, byte-by-byte acceptance, and random texts guided by the mask.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "lk/grammar/grammar.h"
#include "lk/grammar/vocabulary.h"

namespace lk::grammar_testing {

// Token b is byte b; 256 ends.
inline std::shared_ptr<const TokenVocabulary> byte_vocabulary(std::vector<std::string> more = {}) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  tokens.emplace_back();
  for (std::string& token : more) tokens.push_back(std::move(token));
  return std::make_shared<grammar::TrieVocabulary>(std::move(tokens), std::vector<int32_t>{256});
}

inline GrammarSpec schema_spec(std::string json) { return {GrammarSpec::Kind::kJsonSchema, std::move(json), {}}; }
inline GrammarSpec regex_spec(std::string pattern) { return {GrammarSpec::Kind::kRegex, std::move(pattern), {}}; }
inline GrammarSpec ebnf_spec(std::string text) { return {GrammarSpec::Kind::kEbnf, std::move(text), {}}; }
inline GrammarSpec choice_spec(std::vector<std::string> choices) {
  return {GrammarSpec::Kind::kChoice, "", std::move(choices)};
}

inline std::shared_ptr<const Grammar> compile(const GrammarSpec& spec,
                                              const std::shared_ptr<const TokenVocabulary>& vocabulary) {
  auto grammar = compile_grammar(spec, vocabulary);
  EXPECT_TRUE(grammar.ok()) << spec.text << "\n" << grammar.status().message();
  return grammar.ok() ? *grammar : nullptr;
}

inline std::string compile_error(const GrammarSpec& spec, const GrammarLimits& limits = {}) {
  const auto grammar = compile_grammar(spec, byte_vocabulary(), limits);
  if (grammar.ok()) return "compiled";
  EXPECT_EQ(grammar.status().code(), StatusCode::kInvalidArgument);
  return grammar.status().message();
}

// How a text relates to the language: with the byte vocabulary.
enum class Fit { kNo, kPrefix, kWhole };
inline Fit fit(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  GrammarState state(grammar);
  for (const char c : text) {
    if (!state.accept(static_cast<unsigned char>(c))) return Fit::kNo;
  }
  return state.can_end() ? Fit::kWhole : Fit::kPrefix;
}
inline bool matches(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  return fit(grammar, text) == Fit::kWhole;
}

inline std::vector<int32_t> allowed_tokens(const GrammarState& state, int64_t vocab_size) {
  std::vector<uint64_t> words(static_cast<size_t>(vocab_size + 63) / 64, ~uint64_t{0});
  state.allowed(words);
  std::vector<int32_t> out;
  for (int64_t token = 0; token < static_cast<int64_t>(words.size()) * 64; ++token) {
    if (words[static_cast<size_t>(token / 64)] >> (token % 64) & 1) {
      EXPECT_LT(token, vocab_size);
      out.push_back(static_cast<int32_t>(token));
    }
  }
  return out;
}

// Takes allowed tokens at random until the end; after `wish` tokens it takes the end, or what closes things, when it
// can. Fails the test when no token is allowed.
template <class Random>
std::string random_text(const std::shared_ptr<const Grammar>& grammar, const TokenVocabulary& vocabulary,
                        Random& random, int wish) {
  const auto& trie = static_cast<const grammar::TrieVocabulary&>(vocabulary);
  GrammarState state(grammar);
  std::string text;
  for (int step = 0; step < wish + 3000; ++step) {
    const std::vector<int32_t> tokens = allowed_tokens(state, vocabulary.size());
    if (tokens.empty()) {
      ADD_FAILURE() << "no token is allowed after " << text;
      return text;
    }
    std::vector<int32_t> ends, closing;
    for (const int32_t token : tokens) {
      if (trie.is_end(token)) ends.push_back(token);
      const std::string& bytes = trie.bytes(token);
      if (bytes == "\"" || bytes == "}" || bytes == "]" || bytes == ")") closing.push_back(token);
    }
    EXPECT_EQ(!ends.empty(), state.can_end()) << text;
    const bool close = step > wish;
    const auto& from = close && !ends.empty() ? ends : close && !closing.empty() ? closing : tokens;
    const int32_t token = from[random() % from.size()];
    EXPECT_TRUE(state.accept(token)) << text << " + " << trie.bytes(token);
    if (trie.is_end(token)) return text;
    text += trie.bytes(token);
  }
  ADD_FAILURE() << "no end after " << text.substr(0, 2000);
  return text;
}

}  // namespace lk::grammar_testing
