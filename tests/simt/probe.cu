// SPDX-License-Identifier: Apache-2.0
#include "simt/probe.h"

#include "lk/cuda/device.h"

namespace simt_probe {
namespace {

struct Thread {
  int id, lane;
};

__device__ void intrinsic(const Args& a, const Thread& me, uint32_t* shared, uint32_t* dynamic) {
  const uint32_t* in = a.in;
  const int i = me.id, lane = me.lane;
  switch (a.mode) {
    case Mode::kIndices: {
      const int block = blockIdx.y * gridDim.x + blockIdx.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
      a.out[block * blockDim.x * blockDim.y + thread] =
          threadIdx.x | threadIdx.y << 8 | blockIdx.x << 16 | blockIdx.y << 24;
      break;
    }
    case Mode::kMma: {  // 10 words in: a, b, d; 4 out
      const uint32_t* p = in + 10 * lane;
      float d[4] = {__uint_as_float(p[6]), __uint_as_float(p[7]), __uint_as_float(p[8]), __uint_as_float(p[9])};
      simt::mma_bf16(d, {p[0], p[1], p[2], p[3]}, {p[4], p[5]});
      if (i < 32)
        for (int j = 0; j < 4; ++j) a.out[4 * lane + j] = __float_as_uint(d[j]);
      break;
    }
    case Mode::kLdmatrix:
    case Mode::kLdmatrixTrans: {  // 4 words in, the row that the lane gives; 4 out
      if (i < 32)
        for (int j = 0; j < 4; ++j) shared[4 * lane + j] = in[4 * lane + j];
      __syncthreads();
      uint32_t d[4];
      if (a.mode == Mode::kLdmatrix)
        simt::ldmatrix_x4(d, shared + 4 * lane);
      else
        simt::ldmatrix_x4_trans(d, shared + 4 * lane);
      if (i < 32)
        for (int j = 0; j < 4; ++j) a.out[4 * lane + j] = d[j];
      break;
    }
    case Mode::kCpAsync: {  // every third thread's copy is of zeros; its source is no memory
      const bool valid = i % 3 != 0;
      simt::cp_async_16(shared + 4 * i, valid ? in + 4 * i : nullptr, valid);
      simt::cp_async_commit();
      simt::cp_async_wait<0>();
      __syncthreads();
      for (int j = 0; j < 4; ++j) a.out[4 * i + j] = shared[4 * (kThreads - 1 - i) + j];
      break;
    }
    case Mode::kLoadStream: {
      const uint4 v = simt::load_stream_16(in + 4 * i);
      a.out[4 * i] = v.w, a.out[4 * i + 1] = v.z, a.out[4 * i + 2] = v.y, a.out[4 * i + 3] = v.x;
      break;
    }
    case Mode::kPack:
      a.out[i] = simt::pack_bf16(__uint_as_float(in[2 * i]), __uint_as_float(in[2 * i + 1]));
      break;
    case Mode::kShuffle:
      a.out[i] = __shfl_sync(0xffffffffu, in[i], (lane * 7 + 3) % 32);
      break;
    case Mode::kShuffleXor:
      a.out[i] = __shfl_xor_sync(0xffffffffu, in[i], 5);
      break;
    case Mode::kBallot:
      a.out[i] = __ballot_sync(0xffffffffu, in[i] % 2 != 0);
      break;
    case Mode::kBytePerm:
      a.out[i] = __byte_perm(in[i], in[i + 1], in[i + 2] & 0x7777);
      break;
    case Mode::kAtomicAdd:
      atomicAdd(reinterpret_cast<int*>(a.out), i);
      break;
    case Mode::kDynamicShared:
      dynamic[i] = in[i];
      __syncthreads();
      a.out[i] = dynamic[kDynamicWords - 1 - i];
      break;
    case Mode::kSyncwarp:
      shared[i] = in[i];
      __syncwarp();
      a.out[i] = shared[i ^ 1];
      break;
    case Mode::kSyncthreads:
      shared[i] = in[i];
      __syncthreads();
      a.out[i] = shared[kThreads - 1 - i];
      __syncthreads();
      shared[i] = 0;
      break;
    case Mode::kFma:
      a.out[i] = __float_as_uint(fmaf(__uint_as_float(in[2 * i]), __uint_as_float(in[2 * i + 1]), -1.0f));
      break;
    default:
      break;
  }
}

__device__ void memory_fault(const Args& a, const Thread& me, uint32_t* shared, uint32_t* dynamic) {
  const int i = me.id;
  switch (a.mode) {
    case Mode::kReadPastEnd:
      a.out[i] = a.in[i == 5 ? kInWords : i];
      break;
    case Mode::kReadBefore:
      a.out[i] = a.in[i == 5 ? -1 : i];
      break;
    case Mode::kWritePastEnd:
      a.out[i == 5 ? kOutWords : i] = 1;
      break;
    case Mode::kMisaligned: {
      const uint4 v = simt::load_stream_16(a.in + 4 * i + i / 63);
      a.out[i] = v.x;
      break;
    }
    case Mode::kUninitialisedGlobal:
      a.out[i] = a.out[i + 1] + 1;
      break;
    case Mode::kUninitialisedShared:
      if (i != 7) shared[i] = 1;
      __syncthreads();
      a.out[i] = shared[i];
      break;
    case Mode::kBeforeWait:
    case Mode::kWaitForOneTooFew:
      simt::cp_async_16(shared + 4 * i, a.in + 4 * i, true);
      simt::cp_async_commit();
      if (a.mode == Mode::kWaitForOneTooFew) simt::cp_async_wait<1>();
      __syncthreads();
      a.out[i] = shared[4 * i];
      break;
    case Mode::kLdmatrixMisaligned:
    case Mode::kLdmatrixGlobal: {
      uint32_t d[4];
      for (int j = i; j < 132; j += kThreads) shared[j] = 1;
      __syncthreads();
      if (a.mode == Mode::kLdmatrixMisaligned)
        simt::ldmatrix_x4(d, shared + 4 * me.lane + 1);
      else
        simt::ldmatrix_x4(d, a.in + 4 * me.lane);
      a.out[i] = d[0];
      break;
    }
    case Mode::kCpAsyncToGlobal:
      simt::cp_async_16(a.out + 4 * i, a.in, true);
      break;
    case Mode::kDynamicPastEnd:
      dynamic[i + 1] = 1;
      break;
    default:
      break;
  }
}

__device__ void order_fault(const Args& a, const Thread& me, uint32_t* shared) {
  const int i = me.id;
  if (a.mode == Mode::kReadAfterWrite || a.mode == Mode::kWithinWarp) {  // something to read, whoever comes first
    shared[i] = 0;
    __syncthreads();
  }
  switch (a.mode) {
    case Mode::kReadAfterWrite:
      shared[i] = 1;
      __syncwarp();
      a.out[i] = shared[i ^ 32];
      break;
    case Mode::kWriteAfterRead:
      shared[i] = 1;
      __syncthreads();
      a.out[i] = shared[i ^ 32];
      shared[i] = 2;
      break;
    case Mode::kWriteAfterWrite:
      shared[i % 32] = static_cast<uint32_t>(i);
      break;
    case Mode::kWithinWarp:  // right where lanes run in step, which nothing promises
      shared[i] = 1;
      a.out[i] = shared[i ^ 1];
      break;
    case Mode::kBetweenBlocks:  // no barrier helps
      __syncthreads();
      a.out[i] = blockIdx.x;
      break;
    case Mode::kPlainAndAtomic:
      if (i == 0) a.out[0] = 0;
      __syncwarp();
      atomicAdd(reinterpret_cast<int*>(a.out), 1);
      break;
    case Mode::kDivergentBarrier:
      if (i < 32) {
        shared[i] = 1;
        __syncthreads();
      } else {
        a.out[i] = 1;
        __syncthreads();
      }
      break;
    case Mode::kDivergentWarp:
      if (me.lane < 16)
        a.out[i] = __ballot_sync(0xffffffffu, a.in[i] % 2 != 0);
      else
        a.out[i] = __shfl_xor_sync(0xffffffffu, a.in[i], 1);
      break;
    case Mode::kHang:  // some lanes return
      if (me.lane < 16) a.out[i] = __ballot_sync(0xffffffffu, true);
      break;
    case Mode::kHangAtBarrier:
      if (i == 3) {
        a.out[i] = __ballot_sync(0xffffffffu, true);
      }
      __syncthreads();
      break;
    default:
      break;
  }
}

__global__ void __launch_bounds__(kThreads) probe_kernel(Args a) {
  using Words = uint32_t[4 * kThreads];
  SIMT_SHARED(Words, shared);
  SIMT_DYNAMIC_SHARED(uint32_t, dynamic);
  const int id = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const Thread me{id, id % 32};
  if (a.mode < Mode::kReadPastEnd) intrinsic(a, me, shared, dynamic);
  memory_fault(a, me, shared, dynamic);
  order_fault(a, me, shared);
}

}  // namespace

void probe(const Args& args, Shape grid, Shape block) {
  simt::launch({grid.x, grid.y, 1}, {block.x, block.y, 1}, kDynamicWords * 4, probe_kernel, args);
}

}  // namespace simt_probe
