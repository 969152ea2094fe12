// SPDX-License-Identifier: Apache-2.0
// The state of the launch that is being emulated: what memory.cpp, launch.cpp and intrinsics.cpp share.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "simt/host.h"

extern "C" char __executable_start, end;  // the program's image: its constants may be read

namespace simt {

// --- Shadow memory ------------------------------------------------------------------------------------------------
// Who touched a byte last. Several readers with no order among them are merged into the smallest group that holds them.
enum class Group : uint8_t { kThread, kWarp, kBlock, kGrid };
struct Access {
  int32_t thread = -1;                       // in the grid; -1: nobody
  uint32_t block_epoch = 0, warp_epoch = 0;  // __syncthreads and __syncwarp passed before
  Group group = Group::kThread;
  const void* pc = nullptr;
};
struct Cell {
  Access write, read, atomic;
  bool initialised = false;
};

constexpr size_t kRedZone = 256, kStackBytes = 256 << 10, kMaxStaticShared = 48 << 10,
                 kMaxShared = 163 << 10;  // of a block on sm_80

enum class State : uint8_t { kReady, kAtWarp, kAtBarrier, kDone };
struct AsyncCopy {
  void* to;
  const void* from;  // null: zeros
  uint32_t group;
};
struct Thread {
  jmp_buf context;
  ucontext_t start;
  std::byte* stack = nullptr;
  int id = 0;  // in the block
  State state = State::kDone;
  bool started = false;
  uint32_t warp_epoch = 0;
  const char* waits_in = "";
  Site site;
  void* request = nullptr;  // of the collective it waits in
  std::vector<AsyncCopy> copies;
  uint32_t copy_group = 0;
};
struct Warp {
  uint32_t arrived = 0;
  const char* op = "";
  Site site;
};

struct Emulator {
  std::vector<Memory*> regions;
  std::map<std::string, std::unique_ptr<Memory>> shared;
  size_t shared_bytes = 0, dynamic_shared = 0;  // static ones so far; of this launch
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  jmp_buf scheduler;
  Dim3 grid, block;
  int block_id = 0, live = 0, at_barrier = 0;
  Site barrier_site;
  uint32_t block_epoch = 0;
  uint64_t launch = 0;
  void (*entry)(void (*)(), const void*) = nullptr;
  void (*kernel)() = nullptr;
  const void* args = nullptr;
  std::string fault;
  const void *fault_pc = nullptr, *earlier_pc = nullptr;
  std::byte* stacks = nullptr;
  size_t num_stacks = 0;
};
extern Emulator g;

struct Checker {
  static Memory* find(const void* p, size_t bytes);
  static std::string nearest(const void* p);
  static void check(const void* p, size_t bytes, Kind kind, const void* pc);
  static void forget(void* p, size_t bytes);  // uninitialised again
  static bool is_shared(const void* p, size_t bytes);

 private:
  static bool before(const Access& a, const Access& b);  // is a ordered before b, which happens now?
  static void merge(Access& a, const Access& b);         // of accesses that need no order among them
  [[noreturn]] static void race(const Memory& m, size_t i, const char* verb, const char* earlier, const Access& a,
                                const void* pc);
};

std::string where(const Site& site);
std::string where(const void* pc);
void yield();            // to the scheduler; comes back when the thread is ready
void release_barrier();  // if all live threads of the block have reached it

}  // namespace simt
