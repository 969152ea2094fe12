// SPDX-License-Identifier: Apache-2.0
// Random numbers that nobody can predict, for noise and samples that protect somebody (rng.h is for all others: whoever
// knows its seed knows its numbers). A key of the system's generator, and the stream of bits that follows from a key.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "lk/base/status.h"

struct evp_cipher_ctx_st;

namespace lk {

using SecretKey = std::array<uint8_t, 32>;

// OpenSSL's generator, seeded by the operating system. kInternal when it has no randomness to give.
Result<SecretKey> draw_secret_key();

// ChaCha20 (RFC 8439) of zeros: without the key its bits cannot be told from coin flips; with it they are always the
// same. At most 2^38 bytes of one key. Not thread-safe.
class KeyStream {
 public:
  explicit KeyStream(const SecretKey& key);
  KeyStream(const KeyStream&) = delete;
  KeyStream& operator=(const KeyStream&) = delete;
  ~KeyStream();

  uint64_t next();  // 64 bits
  bool coin();
  uint64_t below(uint64_t bound);  // uniform in [0, bound), bound >= 1, without a bias

 private:
  void refill();

  evp_cipher_ctx_st* context_;
  std::array<uint64_t, 512> words_;
  size_t used_ = 512;
  uint64_t coins_ = 0;
  int coins_left_ = 0;
};

}  // namespace lk
