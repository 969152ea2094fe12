// SPDX-License-Identifier: Apache-2.0
// Structured output: a JSON schema, regular expression, list of choices or EBNF grammar, compiled once into a
// byte-level automaton and turned into the set of tokens that may come next. Compilation is bounded in time, memory and
// size; matching is exact: every sampled text is a prefix of a text of the language, and the end token is allowed
// exactly where a text of the language ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/text/tokenizer.h"

namespace lk {

struct GrammarSpec {
  enum class Kind : uint8_t { kJsonObject, kJsonSchema, kRegex, kChoice, kEbnf, kLark, kPythonCalls };
  Kind kind = Kind::kJsonObject;
  // Schema (JSON), pattern, grammar, or functions as a list of {"name", "parameters"}; at most
  // GrammarLimits::max_source_bytes.
  std::string text;
  std::vector<std::string> choices;  // kChoice
};

struct GrammarLimits {
  int64_t max_source_bytes = 64 << 10;
  int64_t max_compiled_bytes = 32 << 20;
  int max_depth = 64;                                // nesting of schema and pattern, not of the generated text
  std::chrono::milliseconds compile_timeout{2'000};  // of the compiling thread's processor time
  // Called about every millisecond while compiling, when given: may do something else meanwhile, which does not count.
  // False: the compilation is given up (kUnavailable).
  std::function<bool()> go_on;
};

// The bytes that each token adds to the text, arranged for mask computation. Built once per tokenizer; immutable.
class TokenVocabulary {
 public:
  // `end_tokens` end a text (end of sequence, end of turn). `like` may be null: its memory is shared when all tokens
  // have the same bytes, as when an adapter only adds special tokens.
  static std::shared_ptr<const TokenVocabulary> create(const Tokenizer& tokenizer, int64_t vocab_size,
                                                       std::span<const int32_t> end_tokens,
                                                       const std::shared_ptr<const TokenVocabulary>& like = nullptr);
  virtual ~TokenVocabulary() = default;
  virtual int64_t size() const = 0;
  uint64_t id() const { return id_; }  // of no other one in this process

 protected:
  TokenVocabulary();

 private:
  const uint64_t id_;
};

class Grammar;  // compiled, immutable, shared between requests

// kInvalidArgument with the place and the reason: syntax, an unsupported keyword (by name), a limit.
Result<std::shared_ptr<const Grammar>> compile_grammar(const GrammarSpec& spec,
                                                       std::shared_ptr<const TokenVocabulary> vocabulary,
                                                       const GrammarLimits& limits = {});
int64_t grammar_bytes(const Grammar& grammar);  // memory it holds, masks cached so far included

// Where one text stands. Not thread safe; copies are cheap. A state only grows with the nesting of the text.
class GrammarState {
 public:
  explicit GrammarState(std::shared_ptr<const Grammar> grammar);
  GrammarState(const GrammarState&);
  GrammarState(GrammarState&&) noexcept;
  ~GrammarState();
  // Bit t of words[t / 64] is 1 when token t may come next; end tokens exactly when the text may end here.
  void allowed(std::span<uint64_t> words) const;
  bool accept(int32_t token);  // false (and unchanged) when the token is not allowed
  bool can_end() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Compiled grammars by specification, least recently used out first, bounded in bytes, and the last ones that could not
// be compiled, with the reason. Thread safe; compiles on the caller's thread, once per specification even when many ask
// at once.
class GrammarCache {
 public:
  GrammarCache(std::shared_ptr<const TokenVocabulary> vocabulary, int64_t max_bytes, GrammarLimits limits = {});
  ~GrammarCache();
  // `go_on`: GrammarLimits::go_on of this compilation. `vocabulary`: an adapter's; null for the one given above.
  Result<std::shared_ptr<const Grammar>> get(const GrammarSpec& spec, std::function<bool()> go_on = {},
                                             std::shared_ptr<const TokenVocabulary> vocabulary = nullptr);
  // What get() would say without compiling anything: nothing when it would have to.
  std::optional<Result<std::shared_ptr<const Grammar>>> find(
      const GrammarSpec& spec, const std::shared_ptr<const TokenVocabulary>& vocabulary = nullptr);
  int64_t bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lk
