// SPDX-License-Identifier: Apache-2.0
#include "lk/tensor/dtype.h"

#include <cstring>

namespace lk {

// _Float16 arithmetic conversion rounds to nearest even on every target GCC and Clang support here.
f16::f16(float value) : bits(std::bit_cast<uint16_t>(static_cast<_Float16>(value))) {}
f16::operator float() const { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

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
