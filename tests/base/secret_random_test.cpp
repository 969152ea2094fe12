// SPDX-License-Identifier: Apache-2.0
#include "lk/base/secret_random.h"

#include <gtest/gtest.h>

#include <array>

namespace lk {
namespace {

// RFC 8439, appendix A.1, test vectors 1 and 2 (blocks 0 and 1 of the key of zeros), and a block behind what is made at
// once.
TEST(KeyStream, IsChaCha20) {
  KeyStream stream({});
  EXPECT_EQ(stream.next(), 0x903df1a0ade0b876u);
  EXPECT_EQ(stream.next(), 0x28bd8653e56a5d40u);
  for (int word = 2; word < 8; ++word) stream.next();
  EXPECT_EQ(stream.next(), 0x7a385155bee7079fu);
  for (int word = 9; word < 64 * 8; ++word) stream.next();
  EXPECT_EQ(stream.next(), 0xad1d7aa3285b6f1cu);
  EXPECT_EQ(stream.next(), 0xd0ed2c2d4f8c9f39u);
}

TEST(KeyStream, NumbersBelowABoundAreEvenlySpread) {
  KeyStream stream({1});
  std::array<int, 6> counts{};
  for (int draw = 0; draw < 60'000; ++draw) ++counts.at(stream.below(6));
  for (const int count : counts) EXPECT_NEAR(count, 10'000, 400);
  EXPECT_EQ(stream.below(1), 0u);
  int heads = 0;
  for (int toss = 0; toss < 10'000; ++toss) heads += stream.coin();
  EXPECT_NEAR(heads, 5'000, 250);
}

TEST(SecretKey, IsAnotherOneEachTime) { EXPECT_NE(draw_secret_key().value(), draw_secret_key().value()); }

}  // namespace
}  // namespace lk
