// SPDX-License-Identifier: Apache-2.0
// Tokenizer: reads a Hugging Face tokenizer.json (BPE models, byte-level or SentencePiece-style
// with byte fallback) and reproduces the `tokenizers` package id for id. Other model types and
// unknown parts are refused by name. Thread safety: immutable after load; encode and decode are
// const and may run concurrently.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/text/tokenizer_config.h"

namespace lk {

class Tokenizer {
 public:
  // directory/tokenizer.json, and what the files beside it say of tokens.
  static Result<std::shared_ptr<const Tokenizer>> load(const std::string& directory);
  // `base`: shares its vocabulary, where that is the same.
  static Result<std::shared_ptr<const Tokenizer>> parse(std::string_view json, std::string_view where,
                                                        const TokenizerConfig& config = {},
                                                        const Tokenizer* base = nullptr);
  ~Tokenizer();

  // Invalid UTF-8 in `text` is kInvalidArgument naming the byte offset. add_special_tokens runs the
  // post-processor.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens) const;
  // Also says at which byte of `text` each token begins: a space that a normalizer puts before a word, where the word
  // does; special tokens that the post-processor adds, at the start or the end of the text.
  struct Encoding {
    std::vector<int32_t> ids;
    std::vector<size_t> begins;  // as many, not decreasing
  };
  Result<Encoding> encode_with_offsets(std::string_view text, bool add_special_tokens) const;
  // Ids outside the vocabulary are skipped (as the `tokenizers` package does).
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  int64_t vocab_size() const;  // highest id + 1, added tokens included
  bool shares_vocabulary_with(const Tokenizer& other) const;
  // Whether every text gets the same ids, and every id shows the same text.
  bool same_as(const Tokenizer& other) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  std::optional<std::string> id_to_token(int32_t id) const;
  bool is_special(int32_t id) const;
  // The raw bytes that a token adds in the middle of a text: perhaps part of a character. Empty for
  // special tokens and ids outside the vocabulary. At the very start of a text some decoders drop a
  // space (SentencePiece style); that is not seen here.
  std::string token_bytes(int32_t id) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  friend class IncrementalDecoder;
};

class DecodeStream;

// Turns a growing list of ids into text pieces whose concatenation equals decode(all ids), never
// emitting half a UTF-8 character: text waits until no later id can change it. That is at most an
// unfinished character for byte-level decoders; with byte fallback it is the whole run of <0x..>
// tokens, because one bad byte turns all of the run into U+FFFD. flush() gives what is left (U+FFFD
// for bytes that never became a character) and starts a new text.
class IncrementalDecoder {
 public:
  IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens);
  IncrementalDecoder(IncrementalDecoder&&) noexcept;
  IncrementalDecoder& operator=(IncrementalDecoder&&) noexcept;
  ~IncrementalDecoder();
  std::string push(int32_t id);
  std::string flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<DecodeStream> stream_;
};

}  // namespace lk
