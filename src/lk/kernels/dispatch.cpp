// SPDX-License-Identifier: Apache-2.0
// Chooses among the instruction sets at run time, and runs ranges on the pool for them.
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>

#include "lk/kernels/cpu/isa.h"
#include "lk/tensor/buffer.h"

namespace lk {

namespace isa_portable {
const IsaTable& table();
}
#if defined(__x86_64__)
namespace isa_avx2 {
const IsaTable& table();
}
namespace isa_avx512 {
const IsaTable& table();
}
namespace isa_avx512_bf16 {
const IsaTable& table();
}
namespace isa_amx_bf16 {
const IsaTable& table();
}
#endif

void for_ranges(ThreadPool& pool, int64_t num_items, int64_t max_range, RangeFn fn, void* ctx) {
  if (num_items <= 0) return;
  if (num_items == 1 || pool.size() == 1) return fn(ctx, 0, num_items);
  std::atomic<int64_t> next{0};
  const int64_t divisor = 4 * pool.size();
  pool.run([&](int) {
    int64_t begin = next.load(std::memory_order_relaxed);
    while (begin < num_items) {
      const int64_t end = begin + std::clamp<int64_t>((num_items - begin) / divisor, 1, max_range);
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      fn(ctx, begin, end);
      begin = next.load(std::memory_order_relaxed);
    }
  });
}

int pool_size(const ThreadPool& pool) { return pool.size(); }

namespace {
Buffer& scratch_of_this_thread() {
  thread_local Buffer scratch;
  return scratch;
}
}  // namespace

std::byte* thread_scratch(int64_t size_bytes) {
  Buffer& scratch = scratch_of_this_thread();
  if (scratch.size_bytes() < size_bytes) scratch = Buffer(size_bytes);
  return scratch.data();
}

int64_t thread_scratch_bytes() { return scratch_of_this_thread().size_bytes(); }

const char* to_string(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
    case CpuIsa::kAmxBf16:
      return "amx_bf16";
  }
  return "?";
}

std::optional<CpuIsa> parse_cpu_isa(std::string_view name) {
  for (const CpuIsa isa : kCpuIsas)
    if (name == to_string(isa)) return isa;
  return std::nullopt;
}

namespace {
#if defined(__x86_64__)
// AMX's tiles are used by a process only after it has asked the system for room to save them; the answer holds for all
// of its threads (https://docs.kernel.org/arch/x86/xstate.html).
bool may_use_tiles() {
  static const bool granted = [] {
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // leaf 7, EDX
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (~d & (kAmxBf16 | kAmxTile)) != 0) return false;
#if defined(__linux__)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }();
  return granted;
}
#endif
}  // namespace

std::vector<CpuIsa> supported_cpu_isas() {
  std::vector<CpuIsa> isas = {CpuIsa::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  // These also test that the operating system saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) isas.push_back(CpuIsa::kAvx2);
  if (avx512) isas.push_back(CpuIsa::kAvx512);
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (avx512_bf16) isas.push_back(CpuIsa::kAvx512Bf16);
  if (avx512_bf16 && may_use_tiles()) isas.push_back(CpuIsa::kAmxBf16);
#endif
  return isas;
}

const IsaTable& isa_table(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return isa_portable::table();
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return isa_avx2::table();
    case CpuIsa::kAvx512:
      return isa_avx512::table();
    case CpuIsa::kAvx512Bf16:
      return isa_avx512_bf16::table();
    case CpuIsa::kAmxBf16:
      return isa_amx_bf16::table();
#else
    default:
      break;
#endif
  }
  check_failed(__FILE__, __LINE__, "isa", "this build has no kernels for the instruction set");
}

const CpuKernels& cpu_kernels(CpuIsa isa) { return isa_table(isa).kernels; }
const TrainKernels& train_kernels(CpuIsa isa) { return isa_table(isa).train; }

}  // namespace lk
