// SPDX-License-Identifier: Apache-2.0
// The parts of a Tokenizer, shared by tokenizer.cpp and incremental_decoder.cpp.
#pragma once

#include <memory>

#include "lk/text/added_tokens.h"
#include "lk/text/bpe_model.h"
#include "lk/text/decoder.h"
#include "lk/text/normalizer.h"
#include "lk/text/post_processor.h"
#include "lk/text/pre_tokenizer.h"
#include "lk/text/tokenizer.h"

namespace lk {

struct Tokenizer::Impl {
  std::shared_ptr<const BpeModel> model;              // the base's and its adapters' tokenizers may share one
  std::unique_ptr<const Normalizer> normalizer;       // null: none
  std::unique_ptr<const PreTokenizer> pre_tokenizer;  // null: none
  AddedTokens added;
  PostProcessor post_processor;
  Decoder decoder;
  int64_t vocab_size = 0;
  std::string pipeline;      // digest of the sections beside vocabulary and added tokens
  std::string decoder_text;  // that section
  // kUnsupported when an adapter's decoder could keep busy the thread that answers everybody.
  Status check_decoder(const Impl& base, const JsonView& section) const;
  double longest_shown() const;  // bytes at most that one token shows

  // The normalised text cut at the added tokens. Requires: valid UTF-8.
  Result<PieceList> cut(std::string_view text, bool track, WorkBudget& budget) const;
  // The ids of a text, without what the post-processor adds; with `begins`, where each begins.
  Result<std::vector<int32_t>> plain_ids(std::string_view text, std::vector<size_t>* begins) const;
  // What decoding sees of an id; nullptr outside the vocabulary.
  const std::string* token_text(int32_t id) const;
};

}  // namespace lk
