// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lk/tensor/buffer.h"
#include "lk/tensor/tensor_view.h"

namespace lk {
namespace {

TEST(BF16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bf16(1.00390625f).bits, 0x3f80);  // halfway: to even
  EXPECT_EQ(bf16(1.01171875f).bits, 0x3f82);  // halfway: to even, upwards
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(static_cast<float>(bf16(std::numeric_limits<float>::infinity()))));
}

TEST(F16, RoundTripsEveryFiniteValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    f16 half;
    half.bits = static_cast<uint16_t>(bits);
    const float value = static_cast<float>(half);
    if (std::isnan(value)) continue;
    EXPECT_EQ(f16(value).bits, bits);
  }
}

TEST(F16, RoundsToNearestEvenAtEveryScale) {
  EXPECT_EQ(f16(1.0f + 0x1p-11f).bits, 0x3c00);      // halfway: to even
  EXPECT_EQ(f16(1.0f + 3 * 0x1p-11f).bits, 0x3c02);  // halfway: to even, upwards
  EXPECT_EQ(f16(1.0f + 0x1p-11f + 0x1p-20f).bits, 0x3c01);
  EXPECT_EQ(f16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(f16(0x1p-25f).bits, 0);  // halfway to the smallest subnormal
  EXPECT_EQ(f16(0x1.8p-25f).bits, 1);
  EXPECT_EQ(f16(-0x1p-24f).bits, 0x8001);
  EXPECT_TRUE(std::isnan(static_cast<float>(f16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(TensorView, SliceKeepsRowsAndConverts) {
  const bf16 data[6] = {bf16(0), bf16(1), bf16(2), bf16(3), bf16(4), bf16(5)};
  const TensorView view(data, DType::kBF16, {3, 2});
  float out[4];
  view.slice(1, 3).copy_to(out);
  EXPECT_EQ(out[0], 2);
  EXPECT_EQ(out[3], 5);
  EXPECT_EQ(view.shape_string(), "[3, 2]");
}

TEST(Buffer, IsZeroedAlignedAndMovable) {
  for (int64_t bytes : {int64_t{1}, int64_t{4097}, int64_t{9} << 20}) {
    Buffer buffer(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_EQ(buffer.data()[bytes - 1], std::byte{0});
    Buffer moved = std::move(buffer);
    EXPECT_EQ(moved.size_bytes(), bytes);
  }
}

}  // namespace
}  // namespace lk
