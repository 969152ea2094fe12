// SPDX-License-Identifier: Apache-2.0
// Is the emulator right? Each intrinsic against what the PTX ISA says of it, each kind of fault against its message.
#include "simt/probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <random>

#include "simt/host.h"

namespace simt_probe {
namespace {

using Words = std::vector<uint32_t>;

Words random_words(size_t n = kInWords) {
  std::mt19937 random(5);
  Words words(n);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  return words;
}

Words run(Mode mode, const Words& in, Shape grid = {}, Shape block = {kThreads, 1}) {
  const simt::Buffer<uint32_t> in_buffer("in", std::span(in));
  const simt::Buffer<uint32_t> out("out", kOutWords);
  probe({mode, in_buffer.data(), out.data()}, grid, block);
  return out.copy_out();
}

void expect_words(Mode mode, const Words& in, int n, const std::function<uint32_t(int)>& want) {
  for (const auto order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kShuffled}) {
    simt::order = order;
    const Words out = run(mode, in);
    for (int i = 0; i < n; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], want(i)) << "word " << i;
  }
  simt::order = simt::Order::kForward;
}
uint32_t at(const Words& words, int i) { return words[static_cast<size_t>(i)]; }

TEST(Probe, IndicesOfTwoDimensions) {
  const Words out = run(Mode::kIndices, random_words(), {3, 2}, {16, 4});
  for (uint32_t by = 0, n = 0; by < 2; ++by)
    for (uint32_t bx = 0; bx < 3; ++bx)
      for (uint32_t ty = 0; ty < 4; ++ty)
        for (uint32_t tx = 0; tx < 16; ++tx) EXPECT_EQ(out[n++], tx | ty << 8 | bx << 16 | by << 24);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". Small integers: every sum is exact.
TEST(Probe, Mma) {
  std::mt19937 random(1);
  float a[16][16], b[16][8], c[16][8];
  const auto value = [&] { return static_cast<float>(static_cast<int>(random() % 15) - 7); };
  for (int i = 0; i < 16; ++i) {
    for (float& x : a[i]) x = value();
    for (float& x : b[i]) x = value();
    for (float& x : c[i]) x = value();
  }
  const auto pair = [](float low, float high) {
    return std::bit_cast<uint32_t>(low) >> 16 | (std::bit_cast<uint32_t>(high) & 0xffff0000u);
  };
  Words in(kInWords);
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, t = lane % 4;
    uint32_t* p = in.data() + 10 * lane;
    for (int i = 0; i < 8; i += 2) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8, col = i < 4 ? t * 2 : t * 2 + 8;
      p[i / 2] = pair(a[row][col], a[row][col + 1]);
    }
    for (int i = 0; i < 4; i += 2) {
      const int row = i < 2 ? t * 2 : t * 2 + 8;
      p[4 + i / 2] = pair(b[row][group], b[row + 1][group]);
    }
    for (int i = 0; i < 4; ++i) p[6 + i] = std::bit_cast<uint32_t>(c[i < 2 ? group : group + 8][t * 2 + (i & 1)]);
  }
  expect_words(Mode::kMma, in, 128, [&](int word) {
    const int lane = word / 4, i = word % 4, row = i < 2 ? lane / 4 : lane / 4 + 8, col = lane % 4 * 2 + i % 2;
    float sum = c[row][col];
    for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][col];
    return std::bit_cast<uint32_t>(sum);
  });
}

TEST(Probe, Ldmatrix) {
  const Words in = random_words();
  const auto element = [&](int matrix, int row, int col) {
    return at(in, 4 * (8 * matrix + row) + col / 2) >> 16 * (col % 2) & 0xffff;
  };
  expect_words(Mode::kLdmatrix, in, 128, [&](int word) {
    const int lane = word / 4, i = word % 4;
    return element(i, lane / 4, lane % 4 * 2) | element(i, lane / 4, lane % 4 * 2 + 1) << 16;
  });
  expect_words(Mode::kLdmatrixTrans, in, 128, [&](int word) {
    const int lane = word / 4, i = word % 4;
    return element(i, lane % 4 * 2, lane / 4) | element(i, lane % 4 * 2 + 1, lane / 4) << 16;
  });
}

TEST(Probe, Copies) {
  const Words in = random_words();
  expect_words(Mode::kCpAsync, in, 4 * kThreads, [&](int word) {
    const int from = kThreads - 1 - word / 4;
    return from % 3 == 0 ? 0 : at(in, 4 * from + word % 4);
  });
  expect_words(Mode::kLoadStream, in, 4 * kThreads, [&](int word) { return at(in, word / 4 * 4 + 3 - word % 4); });
}

TEST(Probe, Pack) {
  Words in = random_words();
  const float special[] = {1.0f,
                           std::bit_cast<float>(0x3f808000u),  // ties go to even
                           std::bit_cast<float>(0x3f818000u),
                           std::bit_cast<float>(0x3f808001u),
                           INFINITY,
                           -0.0f,
                           std::bit_cast<float>(0x7f7fffffu),
                           NAN};
  for (size_t i = 0; i < 8; ++i) in[i] = std::bit_cast<uint32_t>(special[i]);
  for (size_t i = 8; i < 128; ++i)  // no NaN: it has many bits
    if ((in[i] & 0x7f800000u) == 0x7f800000u) in[i] = 0;
  const uint32_t want[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x8000, 0x7f80, 0x7fff};
  expect_words(Mode::kPack, in, kThreads, [&](int i) {
    const auto round = [&](int word) {
      if (word < 8) return want[word];
      const uint32_t x = at(in, word), down = x & 0xffff0000u, rest = x & 0xffff;
      return (rest > 0x8000 || (rest == 0x8000 && (down & 0x10000)) ? down + 0x10000 : down) >> 16;
    };
    return round(2 * i) | round(2 * i + 1) << 16;
  });
}

TEST(Probe, BetweenLanes) {
  const Words in = random_words();
  expect_words(Mode::kShuffle, in, kThreads, [&](int i) { return at(in, i / 32 * 32 + (i % 32 * 7 + 3) % 32); });
  expect_words(Mode::kShuffleXor, in, kThreads, [&](int i) { return at(in, i ^ 5); });
  expect_words(Mode::kBallot, in, kThreads, [&](int i) {
    uint32_t bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= at(in, i / 32 * 32 + lane) % 2 << lane;
    return bits;
  });
}

TEST(Probe, Arithmetic) {
  Words in = random_words();
  expect_words(Mode::kBytePerm, in, kThreads, [&](int i) {
    const uint64_t bytes = at(in, i) | uint64_t{at(in, i + 1)} << 32;
    uint32_t want = 0;
    for (int k = 0; k < 4; ++k) want |= static_cast<uint32_t>(bytes >> 8 * (at(in, i + 2) >> 4 * k & 7) & 255) << 8 * k;
    return want;
  });
  for (size_t i = 0; i < 2 * kThreads; ++i)  // products near 1, where a rounded product would lose the rest
    in[i] = std::bit_cast<uint32_t>(1.0f + static_cast<float>(i % 50) * 0x1p-23f);
  expect_words(Mode::kFma, in, kThreads, [&](int i) {
    const double x = std::bit_cast<float>(at(in, 2 * i)), y = std::bit_cast<float>(at(in, 2 * i + 1));
    return std::bit_cast<uint32_t>(static_cast<float>(x * y - 1));
  });
}

TEST(Probe, SharedMemoryBehindBarriers) {
  const Words in = random_words();
  expect_words(Mode::kSyncthreads, in, kThreads, [&](int i) { return at(in, kThreads - 1 - i); });
  expect_words(Mode::kDynamicShared, in, kThreads, [&](int i) { return at(in, kThreads - 1 - i); });
  expect_words(Mode::kSyncwarp, in, kThreads, [&](int i) { return at(in, i ^ 1); });
}

TEST(Probe, AtomicsOfAllBlocks) {
  const Words in = random_words();
  simt::Buffer<uint32_t> out("out", std::span<const uint32_t>(Words(kOutWords)));
  probe({Mode::kAtomicAdd, in.data(), out.data()}, {5, 1}, {kThreads, 1});
  EXPECT_EQ(out.copy_out()[0], 5u * (kThreads * (kThreads - 1) / 2));
}

struct FaultCase {
  Mode mode;
  const char* message;  // a regular expression
  Shape grid = {};
};
class Faults : public testing::TestWithParam<FaultCase> {};

TEST_P(Faults, IsReported) {
  const FaultCase& c = GetParam();
  for (const auto order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kShuffled}) {
    simt::order = order;
    try {
      run(c.mode, random_words(), c.grid);
      ADD_FAILURE() << "not noticed";
    } catch (const simt::Fault& fault) {
      EXPECT_THAT(fault.what(), testing::ContainsRegex(c.message));
    }
  }
  simt::order = simt::Order::kForward;
  run(Mode::kSyncthreads, random_words());  // and the next launch is none the worse
}

INSTANTIATE_TEST_SUITE_P(
    Memory, Faults,
    testing::Values(FaultCase{Mode::kReadPastEnd,
                              "thread 5: read of 4 bytes out of bounds, byte 4096 of in .*probe.cu"},
                    FaultCase{Mode::kReadBefore, "thread 5: read of 4 bytes out of bounds, byte -4 of in"},
                    FaultCase{Mode::kWritePastEnd, "thread 5: write of 4 bytes out of bounds, byte 4096 of out"},
                    FaultCase{Mode::kMisaligned, "thread 63: misaligned 16-byte"},
                    FaultCase{Mode::kUninitialisedGlobal, "read of uninitialised byte .* of out"},
                    FaultCase{Mode::kUninitialisedShared, "read of uninitialised byte 28 of shared"},
                    FaultCase{Mode::kBeforeWait, "read of uninitialised byte .* of shared"},
                    FaultCase{Mode::kWaitForOneTooFew, "read of uninitialised byte .* of shared"},
                    FaultCase{Mode::kLdmatrixMisaligned, "ldmatrix: misaligned row"},
                    FaultCase{Mode::kLdmatrixGlobal, "shared memory|cvta.to.shared of a pointer elsewhere"},
                    FaultCase{Mode::kCpAsyncToGlobal, "shared memory|cvta.to.shared of a pointer elsewhere"},
                    FaultCase{Mode::kDynamicPastEnd, "write of 4 bytes out of bounds, byte 256 of shared .dynamic."}));
INSTANTIATE_TEST_SUITE_P(
    Order, Faults,
    testing::Values(FaultCase{Mode::kReadAfterWrite, "race on byte .* of shared"},
                    FaultCase{Mode::kWriteAfterRead, "race on byte .* of shared"},
                    FaultCase{Mode::kWriteAfterWrite, "race on byte .* of shared .*: this write and an earlier write"},
                    FaultCase{Mode::kWithinWarp, "race on byte .* of shared"},
                    FaultCase{Mode::kBetweenBlocks, "race on byte .* of out.* by block", {2, 1}},
                    FaultCase{Mode::kPlainAndAtomic, "race on byte .* of out|uninitialised byte .* of out"},
                    FaultCase{Mode::kDivergentBarrier, "divergent barrier"},
                    FaultCase{Mode::kDivergentWarp, "divergent warp"},
                    FaultCase{Mode::kHang, "block 0 hangs: .*wait in ballot"},
                    FaultCase{Mode::kHangAtBarrier, "block 0 hangs: .*__syncthreads"}));

TEST(Launch, RefusesWhatNoDeviceTakes) {
  EXPECT_THROW(run(Mode::kIndices, random_words(), {1, 1}, {33, 1}), simt::Fault);
  EXPECT_THROW(run(Mode::kIndices, random_words(), {1, 1}, {1024, 2}), simt::Fault);
  EXPECT_THROW(run(Mode::kIndices, random_words(), {0, 1}), simt::Fault);
}

TEST(Buffer, KnowsWhatWasWritten) {
  simt::Buffer<uint32_t> buffer("buffer", 4);
  const Words one = {7};
  buffer.copy_in(2, one);
  EXPECT_FALSE(buffer.written(1));
  EXPECT_TRUE(buffer.written(2));
  EXPECT_THROW(buffer.copy_in(4, one), simt::Fault);
}

}  // namespace
}  // namespace simt_probe
