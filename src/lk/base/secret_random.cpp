// SPDX-License-Identifier: Apache-2.0
#include "lk/base/secret_random.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <bit>
#include <cstring>

#include "lk/base/check.h"

namespace lk {

static_assert(std::endian::native == std::endian::little, "words of a stream are little-endian on every machine");

Result<SecretKey> draw_secret_key() {
  SecretKey key;
  if (RAND_priv_bytes(key.data(), static_cast<int>(key.size())) != 1)
    return internal_error("the system's generator of random numbers gave none");
  return key;
}

KeyStream::KeyStream(const SecretKey& key) : context_(EVP_CIPHER_CTX_new()) {
  const std::array<uint8_t, 16> start{};  // block counter and nonce: a key is used for one stream
  LK_CHECK(context_ && EVP_EncryptInit_ex(context_, EVP_chacha20(), nullptr, key.data(), start.data()) == 1,
           "ChaCha20 cannot start");
}
KeyStream::~KeyStream() { EVP_CIPHER_CTX_free(context_); }

void KeyStream::refill() {
  const decltype(words_) zeros{};
  int written = 0;
  LK_CHECK(EVP_EncryptUpdate(context_, reinterpret_cast<uint8_t*>(words_.data()), &written,
                             reinterpret_cast<const uint8_t*>(zeros.data()), sizeof(words_)) == 1 &&
               written == static_cast<int>(sizeof(words_)),
           "ChaCha20 failed");
  used_ = 0;
}

uint64_t KeyStream::next() {
  if (used_ == words_.size()) refill();
  return words_[used_++];
}

bool KeyStream::coin() {
  if (coins_left_ == 0) coins_ = next(), coins_left_ = 64;
  --coins_left_;
  const bool heads = (coins_ & 1) != 0;
  coins_ >>= 1;
  return heads;
}

uint64_t KeyStream::below(uint64_t bound) {
  LK_CHECK(bound >= 1);
  const uint64_t first = (0 - bound) % bound;  // 2^64 mod bound: so many words would favour small numbers
  for (;;)
    if (const uint64_t word = next(); word >= first) return word % bound;
}

}  // namespace lk
