// SPDX-License-Identifier: Apache-2.0
// Element types and exact conversions between f32, bf16 and f16 storage.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

#include "lk/base/check.h"

namespace lk {

enum class DType : uint8_t { kF32, kBF16, kF16 };

constexpr int64_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
constexpr const char* to_string(DType dtype) {
  return dtype == DType::kF32 ? "f32" : dtype == DType::kBF16 ? "bf16" : "f16";
}

// bfloat16 storage: the upper half of an f32. Rounds to nearest even; NaN stays NaN (quiet).
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u)
      bits = static_cast<uint16_t>((u >> 16) | 0x40);
    else
      bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE half storage.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float value);
  explicit operator float() const;
};
static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2);

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>)
    return DType::kF32;
  else if constexpr (std::is_same_v<T, bf16>)
    return DType::kBF16;
  else {
    static_assert(std::is_same_v<T, f16>);
    return DType::kF16;
  }
}

// Calls f(std::type_identity<T>{}) with the C++ type of `dtype`.
template <class F>
decltype(auto) dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(std::type_identity<float>{});
    case DType::kBF16:
      return f(std::type_identity<bf16>{});
    case DType::kF16:
      return f(std::type_identity<f16>{});
  }
  check_failed(__FILE__, __LINE__, "dtype", "not a DType");
}

// Element-wise copy with conversion; n elements, no aliasing.
void convert(const void* src, DType src_dtype, void* dst, DType dst_dtype, int64_t n);

}  // namespace lk
