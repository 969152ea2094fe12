// SPDX-License-Identifier: Apache-2.0
// What kernels call. The last lane to reach a collective computes it for its warp.
#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <utility>

#include "simt/state.h"

namespace simt {

// --- What kernels call --------------------------------------------------------------------------------------------
static uint3 within(size_t i, const Dim3& n) {
  return {static_cast<unsigned>(i % n.x), static_cast<unsigned>(i / n.x % n.y), static_cast<unsigned>(i / n.x / n.y)};
}
uint3 thread_index() { return within(static_cast<size_t>(g.current->id), g.block); }
uint3 block_index() { return within(static_cast<size_t>(g.block_id), g.grid); }
uint3 block_dim() { return {g.block.x, g.block.y, g.block.z}; }
uint3 grid_dim() { return {g.grid.x, g.grid.y, g.grid.z}; }
int lane_index() { return g.current->id % 32; }

static Memory& shared_memory(const std::string& name, size_t bytes) {
  auto& memory = g.shared[name];
  if (!memory) memory = std::make_unique<Memory>("shared " + name, bytes, Space::kShared);
  if (memory->size() != bytes) fail(fmt::format("shared {}: two of this name", name));
  return *memory;
}
void* shared_variable(const char* name, size_t bytes) {
  if (!g.shared.count(name)) {
    g.shared_bytes += bytes;
    if (g.shared_bytes > kMaxStaticShared || g.shared_bytes + g.dynamic_shared > kMaxShared)
      fail(fmt::format("shared {}: past what a block can have", name));
  }
  return shared_memory(name, bytes).data();
}
void* dynamic_shared() { return shared_memory("(dynamic)", g.dynamic_shared).data(); }

// The last of the 32 lanes to arrive runs `run` over the requests of all.
static void collective(const char* op, const Site& site, void* request, void (*run)(void* const (&)[32])) {
  Thread& me = *g.current;
  Warp& warp = g.warps[static_cast<size_t>(me.id) / 32];
  if (!warp.arrived) {
    warp.op = op;
    warp.site = site;
  } else if (warp.op != op || warp.site.line != site.line) {
    fail(fmt::format("divergent warp: {} at {}, other lanes in {} at {}", op, where(site), warp.op, where(warp.site)));
  }
  me.request = request;
  warp.arrived |= 1u << (me.id % 32);
  if (~warp.arrived) {
    me.state = State::kAtWarp;
    me.waits_in = op;
    me.site = site;
    yield();
    return;
  }
  warp.arrived = 0;
  Thread* lanes = &me - me.id % 32;
  void* requests[32];
  for (int i = 0; i < 32; ++i) {
    requests[i] = lanes[i].request;
    lanes[i].state = State::kReady;
  }
  run(requests);
}

struct Shuffle {
  uint32_t value, result;
  int source;
};
uint32_t shuffle(uint32_t value, int source_lane, Site site) {
  Shuffle mine{value, 0, source_lane};
  collective("shuffle", site, &mine, [](void* const(&lanes)[32]) {
    for (void* lane : lanes) {
      auto& s = *static_cast<Shuffle*>(lane);
      s.result = static_cast<Shuffle*>(lanes[s.source & 31])->value;
    }
  });
  return mine.result;
}
uint32_t ballot(bool predicate, Site site) {
  Shuffle mine{predicate, 0, 0};
  collective("ballot", site, &mine, [](void* const(&lanes)[32]) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<Shuffle*>(lanes[i])->value << i;
    for (void* lane : lanes) static_cast<Shuffle*>(lane)->result = bits;
  });
  return mine.result;
}

struct Mma {
  float* d;
  const uint32_t *a, *b;
};
// Fragment layouts as the PTX ISA gives them: g = lane / 4, t = lane % 4. The products of bf16 are exact in f32; the
// hardware does not document the order and rounding of the sum, here it is: k ascending, in f64, rounded once.
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Mma mine{d, a, b};
  collective("mma", site, &mine, [](void* const(&lanes)[32]) {
    double a_tile[16][16], b_tile[16][8];
    const auto element = [](uint32_t word, int i) { return std::bit_cast<float>(i ? word & 0xffff0000u : word << 16); };
    for (int lane = 0; lane < 32; ++lane) {
      const auto& m = *static_cast<Mma*>(lanes[lane]);
      const int group = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = (i / 2) % 2 ? group + 8 : group, k = 2 * t + i % 2 + (i >= 4 ? 8 : 0);
        a_tile[row][k] = element(m.a[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) b_tile[2 * t + i % 2 + (i >= 2 ? 8 : 0)][group] = element(m.b[i / 2], i % 2);
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* out = static_cast<Mma*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i >= 2 ? 8 : 0), col = 2 * (lane % 4) + i % 2;
        double sum = out[i];
        for (int k = 0; k < 16; ++k) sum += a_tile[row][k] * b_tile[k][col];
        out[i] = static_cast<float>(sum);
      }
    }
  });
}

static void require(bool ok, const char* what, const void* pc) {
  if (!ok) fail(what, pc);
}
static bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

struct Ldmatrix {
  uint32_t* d;
  const std::byte* row;
};
static void load_matrices(uint32_t (&d)[4], const void* shared_row, const Site& site, const void* pc,
                          void (*run)(void* const (&)[32])) {
  require(aligned(shared_row), "ldmatrix: misaligned row", pc);
  require(Checker::is_shared(shared_row, 16), "ldmatrix: not a row of 16 bytes of shared memory", pc);
  Checker::check(shared_row, 16, Kind::kRead, pc);
  Ldmatrix mine{d, static_cast<const std::byte*>(shared_row)};
  collective("ldmatrix", site, &mine, run);
}
template <bool kTransposed>
static void distribute(void* const (&lanes)[32]) {  // element (r, c) of matrix i: in row r, at lane 8 i + r
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < 2; ++e) {
        const int r = kTransposed ? 2 * (lane % 4) + e : lane / 4, c = kTransposed ? lane / 4 : 2 * (lane % 4) + e;
        std::memcpy(reinterpret_cast<std::byte*>(static_cast<Ldmatrix*>(lanes[lane])->d + i) + 2 * e,
                    static_cast<Ldmatrix*>(lanes[8 * i + r])->row + 2 * c, 2);
      }
}
void ldmatrix_x4(uint32_t (&d)[4], const void* shared_row, Site site) {
  load_matrices(d, shared_row, site, __builtin_return_address(0), distribute<false>);
}
void ldmatrix_x4_trans(uint32_t (&d)[4], const void* shared_row, Site site) {
  load_matrices(d, shared_row, site, __builtin_return_address(0), distribute<true>);
}

// The bytes land at the wait of the thread that issued the copy; until then they are uninitialised.
void cp_async_16(void* shared, const void* global, bool valid) {
  const void* pc = __builtin_return_address(0);
  require(aligned(shared) && (!valid || aligned(global)), "cp.async: misaligned", pc);
  require(Checker::is_shared(shared, 16), "cp.async: the destination is not shared memory", pc);
  if (valid) Checker::check(global, 16, Kind::kRead, pc);
  Checker::check(shared, 16, Kind::kWrite, pc);
  Checker::forget(shared, 16);
  g.current->copies.push_back({shared, valid ? global : nullptr, g.current->copy_group});
}
void cp_async_commit() { ++g.current->copy_group; }
void cp_async_wait_group(int pending) {
  Thread& me = *g.current;
  std::erase_if(me.copies, [&](const AsyncCopy& copy) {
    if (copy.group + static_cast<uint32_t>(pending) >= me.copy_group) return false;
    Checker::check(copy.to, 16, Kind::kWrite, __builtin_return_address(0));
    copy.from ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
    return true;
  });
}

uint4 load_stream_16(const void* p) {
  const void* pc = __builtin_return_address(0);
  require(aligned(p), "misaligned 16-byte load", pc);
  Checker::check(p, 16, Kind::kRead, pc);
  uint4 v;
  std::memcpy(&v, p, 16);
  return v;
}
uint32_t pack_bf16(float low, float high) {
  const auto round = [](float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    return f != f ? 0x7fffu : (u + 0x7fff + (u >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

template <class T>
static T add(T* p, T value, const void* pc) {
  Checker::check(p, sizeof(T), Kind::kAtomic, pc);
  return std::exchange(*p, *p + value);
}
}  // namespace simt

void __syncthreads(simt::Site site) {
  using namespace simt;
  Thread& me = *g.current;
  if (g.at_barrier == 0) {
    g.barrier_site = site;
  } else if (g.barrier_site.line != site.line) {
    fail(
        fmt::format("divergent barrier: __syncthreads at {}, other threads at {}", where(site), where(g.barrier_site)));
  }
  me.state = State::kAtBarrier;
  me.waits_in = "__syncthreads";
  me.site = site;
  ++g.at_barrier;
  release_barrier();
  if (me.state == State::kAtBarrier) yield();
}
void __syncwarp(unsigned, simt::Site site) {
  simt::collective("__syncwarp", site, nullptr, [](void* const(&)[32]) {});
  ++simt::g.current->warp_epoch;
}
unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = low | uint64_t{high} << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
float atomicAdd(float* p, float value) { return simt::add(p, value, __builtin_return_address(0)); }
int atomicAdd(int* p, int value) { return simt::add(p, value, __builtin_return_address(0)); }
