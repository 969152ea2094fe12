// SPDX-License-Identifier: Apache-2.0
// A kernel that does one thing at a time: each intrinsic alone, and each kind of fault.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt_probe {

enum class Mode : int {
  // What a kernel may use. Each lane's words of `in` and `out` are said in probe.cu.
  kIndices,
  kMma,
  kLdmatrix,
  kLdmatrixTrans,
  kCpAsync,
  kLoadStream,
  kPack,
  kShuffle,
  kShuffleXor,
  kBallot,
  kBytePerm,
  kAtomicAdd,
  kDynamicShared,
  kSyncwarp,
  kSyncthreads,
  kFma,
  // Faults, one of each kind.
  kReadPastEnd,
  kWritePastEnd,
  kReadBefore,
  kMisaligned,
  kUninitialisedGlobal,
  kUninitialisedShared,
  kBeforeWait,
  kWaitForOneTooFew,
  kReadAfterWrite,
  kWriteAfterRead,
  kWriteAfterWrite,
  kWithinWarp,
  kBetweenBlocks,
  kPlainAndAtomic,
  kDivergentBarrier,
  kDivergentWarp,
  kHang,
  kHangAtBarrier,
  kLdmatrixMisaligned,
  kLdmatrixGlobal,
  kCpAsyncToGlobal,
  kDynamicPastEnd,
};
struct Args {
  Mode mode;
  const uint32_t* in;
  uint32_t* out;
};
struct Shape {
  unsigned x = 1, y = 1;
};
inline constexpr int kThreads = 64, kDynamicWords = 64, kInWords = 1024, kOutWords = 1024;

void probe(const Args& args, Shape grid, Shape block);

}  // namespace simt_probe
