// SPDX-License-Identifier: Apache-2.0
#include "lk/net/chunk_decoder.h"

#include <fmt/format.h>

#include <algorithm>

namespace lk {

bool is_token_char(unsigned char c) {
  const bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return alphanumeric ||
         (c != 0 && std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos);
}

bool ChunkDecoder::fail(int status, std::string message) {
  error_ = {status, std::move(message)};
  return false;
}

ChunkDecoder::Event ChunkDecoder::next(std::string_view* data, std::string_view* piece) {
  if (error_.status != 0) return Event::kError;
  while (!data->empty() && state_ != State::kDone) {
    if (state_ == State::kData) {
      *piece = data->substr(0, static_cast<size_t>(std::min<int64_t>(size_, static_cast<int64_t>(data->size()))));
      data->remove_prefix(piece->size());
      size_ -= static_cast<int64_t>(piece->size());
      if (size_ == 0) state_ = State::kDataCr;
      return Event::kData;
    }
    if (!step(static_cast<unsigned char>(data->front()))) return Event::kError;
    data->remove_prefix(1);
  }
  return state_ == State::kDone ? Event::kDone : Event::kNeedMore;
}

bool ChunkDecoder::step(unsigned char c) {
  switch (state_) {
    case State::kSize:
    case State::kExtension:
      return size_byte(c);
    case State::kSizeLf:
      return c == '\n' ? size_complete() : fail(400, "a chunk size is not followed by CRLF");
    case State::kDataCr:
      state_ = State::kDataLf;
      return c == '\r' || fail(400, "a chunk is longer than its size");
    case State::kDataLf:
      state_ = State::kSize;
      digits_ = 0;
      size_ = 0;
      return c == '\n' || fail(400, "a chunk is not followed by CRLF");
    case State::kTrailerName:
    case State::kTrailerValue:
      return trailer_byte(c);
    case State::kTrailerLf:
      state_ = State::kTrailerName;
      name_bytes_ = 0;
      return c == '\n' || fail(400, "a trailer line does not end in CRLF");
    case State::kEndLf:
      state_ = State::kDone;
      return c == '\n' || fail(400, "the body does not end in CRLF");
    case State::kData:
    case State::kDone:
      break;
  }
  return true;
}

bool ChunkDecoder::size_byte(unsigned char c) {
  if (state_ == State::kExtension) {  // up to the CR; nothing reads it
    if (++extra_bytes_ > kMaxExtraBytes) return fail(400, "chunk extensions are too long");
  } else {
    int digit = -1;
    if (c >= '0' && c <= '9') digit = c - '0';
    if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
    if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
    if (digit >= 0) {
      if (++digits_ > 15) return fail(400, "a chunk size has too many digits");  // so size_ cannot overflow
      size_ = size_ * 16 + digit;
      return true;
    }
    if (digits_ == 0) return fail(400, "a chunk size is missing or malformed");
    if (c == ';') {
      state_ = State::kExtension;
      return true;
    }
    if (c != '\r') return fail(400, "a chunk size is malformed");
  }
  if (c == '\r') {
    state_ = State::kSizeLf;
    return true;
  }
  return (c >= 0x20 && c != 0x7f) || c == '\t' || fail(400, "a chunk extension contains a control character");
}

bool ChunkDecoder::size_complete() {
  if (size_ == 0) {
    state_ = State::kTrailerName;
    return true;
  }
  if (size_ > bytes_left_) return fail(413, fmt::format("the body is larger than {} bytes", max_body_bytes_));
  if (++chunks_ > kMaxChunks) return fail(400, fmt::format("the body has more than {} chunks", kMaxChunks));
  bytes_left_ -= size_;
  state_ = State::kData;
  return true;
}

bool ChunkDecoder::trailer_byte(unsigned char c) {
  if (++extra_bytes_ > kMaxExtraBytes) return fail(400, "the trailer is too long");
  if (state_ == State::kTrailerName) {
    if (c == '\r' && name_bytes_ == 0) {
      state_ = State::kEndLf;
      return true;
    }
    if (c == ':' && name_bytes_ > 0) {
      state_ = State::kTrailerValue;
      return true;
    }
    ++name_bytes_;
    return is_token_char(c) || fail(400, "a trailer field is malformed");
  }
  if (c == '\r') {
    state_ = State::kTrailerLf;
    return true;
  }
  return (c >= 0x20 && c != 0x7f) || c == '\t' || fail(400, "a trailer contains a control character");
}

}  // namespace lk
