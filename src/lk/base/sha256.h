// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4), for content digests of adapters and prefix-cache keys.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace lk {

class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  void update(const void* data, size_t size) { update({static_cast<const std::byte*>(data), size}); }
  std::array<uint8_t, 32> finish();  // call once

 private:
  void block(const uint8_t* data);
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> pending_{};
  uint64_t num_bytes_ = 0;
};

std::string to_hex(std::span<const uint8_t> bytes);

}  // namespace lk
