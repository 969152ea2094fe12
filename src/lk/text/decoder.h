// SPDX-License-Identifier: Apache-2.0
// The "decoder" section of tokenizer.json, as a chain of streaming stages: tokens go in one by one,
// text comes out as soon as no later token can change it. Decoding a whole list is the same stream
// flushed at its end, so incremental text always adds up to the decoded text. Thread safety:
// Decoder is immutable after parse; a DecodeStream belongs to one thread at a time.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lk/text/growth.h"
#include "lk/text/json_view.h"

namespace lk {

// One step of the chain. Between stages flow tokens, in fragments of whole characters: the stages
// before a Fuse see every token as one fragment, those after it one token that grows.
class DecodeStage {
 public:
  // Where a stage puts its result: the next stage, or the text.
  class Output {
   public:
    virtual ~Output() = default;
    virtual void write(std::string_view fragment, bool ends_token) = 0;
  };
  virtual ~DecodeStage() = default;
  virtual void push(std::string_view fragment, bool ends_token, Output& out) = 0;
  virtual void finish(Output& out) = 0;  // no more tokens
  // The bytes that this stage makes of one token in the middle of a text, which need not be whole
  // characters. Requires: a fresh stage.
  virtual std::string middle_bytes(std::string_view token) { return std::string(token); }
  virtual bool joins_tokens() const { return false; }
};

// A running chain.
class DecodeStream {
 public:
  explicit DecodeStream(std::vector<std::unique_ptr<DecodeStage>> stages) : stages_(std::move(stages)) {}
  void push(std::string_view token, std::string& text);  // appends what is final to `text`
  void finish(std::string& text);

 private:
  class Link;
  std::vector<std::unique_ptr<DecodeStage>> stages_;
};

class Decoder {
 public:
  // A null section joins tokens with spaces, as the package does. kUnsupported for one that multiplies texts.
  static Result<Decoder> parse(const JsonView& json);
  DecodeStream start() const;
  // The raw bytes of a token in the middle of a text.
  std::string middle_bytes(std::string_view token) const;
  // How much longer than a token what it shows may be.
  const Growth& growth() const { return growth_; }
  // Whether it matches regular expressions: of these nobody knows how long they take.
  bool has_pattern() const { return has_pattern_; }

  // Makes a fresh stage for a stream.
  class Factory {
   public:
    virtual ~Factory() = default;
    virtual std::unique_ptr<DecodeStage> make() const = 0;
  };

 private:
  Status add(const JsonView& json);
  std::vector<std::shared_ptr<const Factory>> factories_;
  Growth growth_;
  bool has_pattern_ = false;
};

}  // namespace lk
