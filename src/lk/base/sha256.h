// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4), for content digests of adapters and prefix-cache keys: OpenSSL's, which uses the processor's
// instructions for it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

struct evp_md_ctx_st;

namespace lk {

class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  void update(const void* data, size_t size) { update({static_cast<const std::byte*>(data), size}); }
  std::array<uint8_t, 32> finish();  // call once

 private:
  struct Recycle {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Recycle> context_;
};

std::string to_hex(std::span<const uint8_t> bytes);

}  // namespace lk
