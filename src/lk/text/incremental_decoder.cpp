// SPDX-License-Identifier: Apache-2.0
#include "lk/text/tokenizer_impl.h"

namespace lk {

IncrementalDecoder::IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)),
      skip_special_tokens_(skip_special_tokens),
      stream_(std::make_unique<DecodeStream>(tokenizer_->impl_->decoder.start())) {}
IncrementalDecoder::IncrementalDecoder(IncrementalDecoder&&) noexcept = default;
IncrementalDecoder& IncrementalDecoder::operator=(IncrementalDecoder&&) noexcept = default;
IncrementalDecoder::~IncrementalDecoder() = default;

std::string IncrementalDecoder::push(int32_t id) {
  std::string text;
  const Tokenizer::Impl& impl = *tokenizer_->impl_;
  const std::string* token = impl.token_text(id);
  if (token != nullptr && !(skip_special_tokens_ && impl.added.is_special_text(*token))) stream_->push(*token, text);
  return text;
}

std::string IncrementalDecoder::flush() {
  std::string text;
  stream_->finish(text);
  *stream_ = tokenizer_->impl_->decoder.start();
  return text;
}

}  // namespace lk
