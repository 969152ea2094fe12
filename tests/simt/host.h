// SPDX-License-Identifier: Apache-2.0
// lk/cuda/device.h for a CPU: every CUDA thread is a fiber, blocks run one after the other, the last lane to reach a
// collective computes it for the warp. Kernel files are compiled with -fsanitize=thread but linked without its runtime:
// the hooks that the compiler puts before each load and store are defined in host.cpp, which holds a shadow of every
// byte. A launch throws Fault at the first
//   - access outside a Buffer, a shared variable, the parameters or the thread's own stack; misaligned 16-byte access
//   - read of bytes never written, or of a cp.async destination before its wait
//   - race: two accesses of different threads, one a write, without a barrier between (other blocks: none helps)
//   - barrier or collective that not all threads of the block or warp reach at the same place
// Not modelled: the memory model beyond barriers, timing, registers, occupancy.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SIMT_SHARED(type, name) auto& name = *static_cast<type*>(::simt::shared_variable(#name, sizeof(type)))
#define SIMT_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::simt::dynamic_shared())
#define SIMT_UNROLL

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  size_t size() const { return size_t{x} * y * z; }
};

struct Site {  // of a call in the kernel
  const char* file = "";
  unsigned line = 0;
  static Site here(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) { return {file, line}; }
};

class Fault : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- Memory -------------------------------------------------------------------------------------------------------
enum class Space : uint8_t { kGlobal, kShared, kParams };

struct Cell;  // shadow of one byte
class Memory {
 public:
  Memory(std::string name, size_t bytes, Space space);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void copy_in(size_t offset, const void* source, size_t bytes);  // marks the bytes as written
  bool written(size_t offset, size_t bytes) const;
  void forget();  // back to uninitialised
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  friend struct Checker;
  std::string name_;
  size_t size_;
  Space space_;
  std::unique_ptr<std::byte[]> storage_;  // with a red zone on both sides
  std::byte* data_;
  std::vector<Cell> cells_;
  uint64_t launch_ = 0;  // the launch whose accesses the cells hold
};

// Global memory. Elements that were not copied in may not be read before a kernel writes them.
template <class T>
class Buffer {
 public:
  Buffer(std::string name, size_t size) : memory_(std::move(name), size * sizeof(T), Space::kGlobal) {}
  Buffer(std::string name, std::span<const T> values) : Buffer(std::move(name), values.size()) { copy_in(0, values); }
  void copy_in(size_t first, std::span<const T> values) {
    memory_.copy_in(first * sizeof(T), values.data(), values.size_bytes());
  }
  std::vector<T> copy_out() const { return {data(), data() + size()}; }
  bool written(size_t i) const { return memory_.written(i * sizeof(T), sizeof(T)); }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  size_t size() const { return memory_.size() / sizeof(T); }

 private:
  Memory memory_;
};

// --- Launch -------------------------------------------------------------------------------------------------------
enum class Order : uint8_t { kForward, kReverse, kShuffled };
extern Order order;  // in which blocks and ready threads are run; a correct kernel gives the same bits in each

// Runs entry(kernel, args) on every thread, with a copy of the `bytes` of args as the kernel's parameters.
void run_grid(Dim3 grid, Dim3 block, size_t dynamic_shared, void (*entry)(void (*kernel)(), const void* args),
              void (*kernel)(), const void* args, size_t bytes);

template <class Args>
void launch(Dim3 grid, Dim3 block, size_t dynamic_shared, void (*kernel)(Args), const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  run_grid(
      grid, block, dynamic_shared,
      [](void (*k)(), const void* a) { reinterpret_cast<void (*)(Args)>(k)(*static_cast<const Args*>(a)); },
      reinterpret_cast<void (*)()>(kernel), &args, sizeof(Args));
}

// --- What kernels call --------------------------------------------------------------------------------------------
void* shared_variable(const char* name, size_t bytes);
void* dynamic_shared();
uint3 thread_index();
uint3 block_index();
uint3 block_dim();
uint3 grid_dim();
int lane_index();  // within the warp
uint32_t shuffle(uint32_t value, int source_lane, Site site);
uint32_t ballot(bool predicate, Site site);

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here());
void ldmatrix_x4(uint32_t (&d)[4], const void* shared_row, Site site = Site::here());
void ldmatrix_x4_trans(uint32_t (&d)[4], const void* shared_row, Site site = Site::here());
void cp_async_16(void* shared, const void* global, bool valid);
void cp_async_commit();
void cp_async_wait_group(int pending);
template <int kPending>
void cp_async_wait() {
  cp_async_wait_group(kPending);
}
uint4 load_stream_16(const void* p);
uint32_t pack_bf16(float low, float high);

// For ptx.cpp. pc: where in the program, put in words by describe_pc where it knows the address.
enum class Kind : uint8_t { kRead, kWrite, kAtomic };
void check(const void* p, size_t bytes, Kind kind, const void* pc);
[[noreturn]] void fail(std::string text, const void* pc = nullptr, const void* earlier_pc = nullptr);
extern std::string (*describe_pc)(const void* pc);

}  // namespace simt

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dim())
#define gridDim (::simt::grid_dim())

void __syncthreads(simt::Site site = simt::Site::here());
void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::here());
unsigned __byte_perm(unsigned low, unsigned high, unsigned selector);
inline unsigned __ballot_sync(unsigned, bool predicate, simt::Site site = simt::Site::here()) {
  return simt::ballot(predicate, site);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane, simt::Site site = simt::Site::here()) {
  return std::bit_cast<T>(simt::shuffle(std::bit_cast<uint32_t>(value), lane % 32, site));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, simt::Site site = simt::Site::here()) {
  return std::bit_cast<T>(simt::shuffle(std::bit_cast<uint32_t>(value), simt::lane_index() ^ mask, site));
}
float atomicAdd(float* p, float value);
int atomicAdd(int* p, int value);
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
