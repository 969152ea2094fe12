// SPDX-License-Identifier: Apache-2.0
// The one header that a kernel includes beside its own. nvcc compiles the kernel for the device; a plain C++ compiler
// compiles the same source for the emulator (tests/simt). Besides the language itself (threadIdx, __syncthreads,
// __shfl_xor_sync, ...) a kernel uses:
//   SIMT_SHARED(type, name);          a __shared__ variable; name an array type with `using` first
//   SIMT_DYNAMIC_SHARED(type, name);  a pointer to the shared memory whose size the launch gives
//   SIMT_UNROLL                       before a loop over registers
//   simt::mma_bf16                    mma.sync.m16n8k16, bf16 x bf16 + f32
//   simt::ldmatrix_x4[_trans]         four 8x8 b16 matrices from shared memory
//   simt::cp_async_16 / _commit / _wait<n>
//   simt::load_stream_16              16 bytes, read once: not kept in L1
//   simt::pack_bf16                   two floats to packed bf16, round to nearest even
// Every collective takes the full warp. All inline PTX stands here.
#pragma once

#ifndef __CUDACC__
#include "simt/host.h"
#else
#include <cstddef>
#include <cstdint>

#define SIMT_SHARED(type, name) __shared__ __align__(16) type name
#define SIMT_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#define SIMT_UNROLL _Pragma("unroll")

namespace simt {

// volatile: a pure asm may be moved into a branch that not all lanes take.
// d += a * b.  a: 16x16, b: 16x8, d: 16x8 (fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16").
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Lane 8i + r passes the address of row r of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void* shared_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&d)[4], const void* shared_row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

// Copies 16 bytes, or writes 16 zero bytes when !valid (then `global` is not read).
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint4 load_stream_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
template <class Args>
void launch(Dim3 grid, Dim3 block, size_t dynamic_shared, void (*kernel)(Args), const Args& args) {
  // clang-format off
  kernel<<<dim3(grid.x, grid.y, grid.z), dim3(block.x, block.y, block.z), dynamic_shared>>>(args);
  // clang-format on
}

}  // namespace simt
#endif
