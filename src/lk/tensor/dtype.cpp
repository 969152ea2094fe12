// SPDX-License-Identifier: Apache-2.0
#include "lk/tensor/dtype.h"

#include <cstring>

namespace lk {

// Written out because not every compiler has _Float16 on baseline x86-64. Rounds to nearest even.
f16::f16(float value) {
  constexpr uint32_t kInfinity = 0x7f800000, kOverflow = 0x477ff000 /* 65520 */,
                     kSmallestNormal = 0x38800000 /* 2^-14 */;
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000);
  const uint32_t magnitude = u & 0x7fffffff;
  if (magnitude > kInfinity) {
    bits = static_cast<uint16_t>(sign | 0x7e00);
  } else if (magnitude >= kOverflow) {
    bits = static_cast<uint16_t>(sign | 0x7c00);
  } else if (magnitude < kSmallestNormal) {
    // Adding 0.5 leaves the subnormal's ten bits, rounded, at the bottom of the mantissa.
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000));
  } else {
    const uint32_t odd = (magnitude >> 13) & 1;
    bits = static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfff + odd) >> 13));
  }
}

f16::operator float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  if (exponent == 0)
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

void convert(const void* src, DType src_dtype, void* dst, DType dst_dtype, int64_t n) {
  if (src_dtype == dst_dtype) {
    if (n > 0) std::memcpy(dst, src, static_cast<size_t>(n * dtype_bytes(src_dtype)));
    return;
  }
  dispatch_dtype(src_dtype, [&]<class S>(std::type_identity<S>) {
    dispatch_dtype(dst_dtype, [&]<class D>(std::type_identity<D>) {
      const S* in = static_cast<const S*>(src);
      D* out = static_cast<D*>(dst);
      for (int64_t i = 0; i < n; ++i) out[i] = D(static_cast<float>(in[i]));
    });
  });
}

}  // namespace lk
