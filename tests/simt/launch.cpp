// SPDX-License-Identifier: Apache-2.0
// Blocks one after the other, their threads as fibers.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <random>
#include <utility>

#include "simt/state.h"

namespace simt {

Emulator g;
Order order = Order::kForward;

std::string where(const Site& site) { return fmt::format("{}:{}", site.file, site.line); }
std::string (*describe_pc)(const void* pc) = nullptr;
std::string where(const void* pc) {
  if (describe_pc)
    if (std::string text = describe_pc(pc); !text.empty()) return text;
  std::array<char, 512> line{};
  const auto command = fmt::format("addr2line -s -e /proc/{}/exe {:#x} 2>/dev/null", getpid(),
                                   static_cast<const char*>(pc) - &__executable_start - 1);
  if (FILE* pipe = popen(command.c_str(), "r")) {
    if (!fgets(line.data(), line.size(), pipe)) line[0] = 0;
    pclose(pipe);
  }
  std::string text(line.data());
  return text.substr(0, text.find_first_of(" \n"));
}

[[noreturn]] void fail(std::string text, const void* pc, const void* earlier_pc) {
  if (!g.current) throw Fault(text);
  g.fault = fmt::format("block {} thread {}: {}", g.block_id, g.current->id, std::move(text));
  g.fault_pc = pc;
  g.earlier_pc = earlier_pc;
  _longjmp(g.scheduler, 1);
}
void yield() {
  if (!_setjmp(g.current->context)) _longjmp(g.scheduler, 1);
}

// --- Fibers -------------------------------------------------------------------------------------------------------
void release_barrier() {
  if (g.live == 0 || g.at_barrier < g.live) return;
  g.at_barrier = 0;
  ++g.block_epoch;
  for (Thread& t : g.threads)
    if (t.state == State::kAtBarrier) t.state = State::kReady;
}
static void fiber_main() {
  g.entry(g.kernel, g.args);
  g.current->state = State::kDone;
  --g.live;
  release_barrier();
  _longjmp(g.scheduler, 1);
}
static void resume(Thread& t) {
  g.current = &t;
  if (!_setjmp(g.scheduler)) {
    if (t.started) _longjmp(t.context, 1);
    t.started = true;
    setcontext(&t.start);
  }
  g.current = nullptr;
}
static void throw_if_failed() {
  if (g.fault.empty()) return;
  std::string text = std::exchange(g.fault, {});
  if (g.fault_pc) text += " at " + where(g.fault_pc);
  if (g.earlier_pc) text += ", the earlier one at " + where(g.earlier_pc);
  throw Fault(text);
}

static void run_block(std::mt19937_64& random) {
  for (auto& [name, memory] : g.shared) memory->forget();
  g.block_epoch = 0;
  g.at_barrier = 0;
  g.live = static_cast<int>(g.threads.size());
  std::fill(g.warps.begin(), g.warps.end(), Warp{});
  for (Thread& t : g.threads) {
    t.state = State::kReady;
    t.started = false;
    t.warp_epoch = t.copy_group = 0;
    t.copies.clear();
    getcontext(&t.start);
    t.start.uc_stack = {t.stack, 0, kStackBytes};
    t.start.uc_link = nullptr;
    makecontext(&t.start, fiber_main, 0);
  }
  std::vector<Thread*> turn;
  for (Thread& t : g.threads) turn.push_back(&t);
  if (order == Order::kReverse) std::reverse(turn.begin(), turn.end());
  while (g.live > 0) {
    if (order == Order::kShuffled) std::shuffle(turn.begin(), turn.end(), random);
    bool progress = false;
    for (Thread* t : turn) {
      if (t->state != State::kReady) continue;
      progress = true;
      resume(*t);
      throw_if_failed();
    }
    if (progress) continue;
    std::map<std::string, int> waiting;
    for (const Thread& t : g.threads)
      ++waiting[t.state == State::kDone ? std::string("returned")
                                        : fmt::format("wait in {} at {}", t.waits_in, where(t.site))];
    std::string text = fmt::format("block {} hangs:", g.block_id);
    for (const auto& [what, count] : waiting) text += fmt::format(" {} threads {};", count, what);
    throw Fault(text);
  }
}

// A stack for every thread of a block, kept for the next launch.
static void reserve_stacks(size_t num_threads) {
  if (g.num_stacks >= num_threads) return;
  if (g.stacks) munmap(g.stacks, g.num_stacks * kStackBytes);
  void* p = mmap(nullptr, num_threads * kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  g.stacks = static_cast<std::byte*>(p);
  g.num_stacks = num_threads;
}

void run_grid(Dim3 grid, Dim3 block, size_t dynamic_shared, void (*entry)(void (*)(), const void*), void (*kernel)(),
              const void* args, size_t bytes) {
  const size_t num_threads = block.size();
  if (num_threads == 0 || num_threads % 32 || num_threads > 1024)
    throw Fault("a block is 32 to 1024 threads, whole warps");
  if (grid.size() == 0) throw Fault("a grid has at least one block");
  if (dynamic_shared > kMaxShared) throw Fault("more shared memory than a block can have");
  reserve_stacks(num_threads);
  g.threads.assign(num_threads, Thread{});
  g.warps.assign(num_threads / 32, Warp{});
  for (size_t i = 0; i < num_threads; ++i) {
    g.threads[i].id = static_cast<int>(i);
    g.threads[i].stack = g.stacks + i * kStackBytes;
  }
  Memory params("the kernel's parameters", bytes, Space::kParams);
  params.copy_in(0, args, bytes);
  g.grid = grid;
  g.block = block;
  g.dynamic_shared = dynamic_shared;
  g.entry = entry;
  g.kernel = kernel;
  g.args = params.data();
  g.shared.clear();
  g.shared_bytes = 0;
  ++g.launch;
  std::mt19937_64 random(1);
  std::vector<int> blocks(grid.size());
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order == Order::kReverse) std::reverse(blocks.begin(), blocks.end());
  if (order == Order::kShuffled) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const int id : blocks) {
    g.block_id = id;
    run_block(random);
  }
}

}  // namespace simt
