// SPDX-License-Identifier: Apache-2.0
#include "lk/base/sha256.h"

#include <openssl/evp.h>

#include <utility>

#include "lk/base/check.h"

namespace lk {
namespace {

// Looked up once: by name it costs more than a short digest.
const EVP_MD* algorithm() {
  static const EVP_MD* const kSha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  LK_CHECK(kSha256 != nullptr, "OpenSSL offers no SHA-256");
  return kSha256;
}

// One context per thread is kept, so that the block keys of the prefix cache, computed while a step is put together,
// allocate nothing.
struct Spare {
  evp_md_ctx_st* context = nullptr;
  ~Spare() { EVP_MD_CTX_free(context); }
};
thread_local Spare spare;

}  // namespace

void Sha256::Recycle::operator()(evp_md_ctx_st* context) const {
  EVP_MD_CTX_free(std::exchange(spare.context, context));
}

Sha256::Sha256() : context_(std::exchange(spare.context, nullptr)) {
  if (!context_) context_.reset(EVP_MD_CTX_new());
  LK_CHECK(context_ && EVP_DigestInit_ex2(context_.get(), algorithm(), nullptr) == 1, "SHA-256 cannot start");
}

void Sha256::update(std::span<const std::byte> bytes) {
  LK_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1, "SHA-256 failed");
}

std::array<uint8_t, 32> Sha256::finish() {
  std::array<uint8_t, 32> digest;
  LK_CHECK(EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) == 1, "SHA-256 failed");
  return digest;
}

std::string to_hex(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (uint8_t byte : bytes) text += kDigits[byte >> 4], text += kDigits[byte & 15];
  return text;
}

}  // namespace lk
