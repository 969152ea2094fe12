// SPDX-License-Identifier: Apache-2.0
// ChunkDecoder: the chunked transfer coding of one request body, byte by byte and strictly: CRLF only, no signs or
// spaces around sizes, bounded numbers of chunks and of bytes that are not body. (Beast's decoder asserts on a last
// chunk that arrives in pieces.)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

struct HttpError {
  int status = 0;  // 0 = none
  std::string message;
};

class ChunkDecoder {
 public:
  enum class Event { kNeedMore, kData, kDone, kError };
  static constexpr int64_t kMaxChunks = 16'384;
  static constexpr int64_t kMaxExtraBytes = 4'096;  // extensions and trailers of the whole body

  explicit ChunkDecoder(int64_t max_body_bytes) : bytes_left_(max_body_bytes), max_body_bytes_(max_body_bytes) {}
  // Takes bytes from the front of `data`. With kData, `piece` is the next part of the body.
  Event next(std::string_view* data, std::string_view* piece);
  const HttpError& error() const { return error_; }

 private:
  enum class State {
    kSize,
    kExtension,
    kSizeLf,
    kData,
    kDataCr,
    kDataLf,
    kTrailerName,
    kTrailerValue,
    kTrailerLf,
    kEndLf,
    kDone
  };
  bool step(unsigned char c);
  bool size_byte(unsigned char c);
  bool trailer_byte(unsigned char c);
  bool size_complete();
  bool fail(int status, std::string message);

  State state_ = State::kSize;
  int digits_ = 0;
  int64_t size_ = 0;  // of this chunk: being read, then what is left of its data
  int64_t chunks_ = 0, extra_bytes_ = 0, name_bytes_ = 0;
  int64_t bytes_left_;
  const int64_t max_body_bytes_;
  HttpError error_;
};

bool is_token_char(unsigned char c);  // of field names

}  // namespace lk
