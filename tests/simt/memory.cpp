// SPDX-License-Identifier: Apache-2.0
// The shadow of every byte: who wrote it, who read it, and whether it holds anything. Not compiled with
// -fsanitize=thread: it is what that instrumentation calls.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "simt/state.h"

namespace simt {

Memory* Checker::find(const void* p, size_t bytes) {
  const auto* b = static_cast<const std::byte*>(p);
  for (size_t i = 0; i < g.regions.size(); ++i) {
    Memory* m = g.regions[i];
    if (b < m->data_ || b + bytes > m->data_ + m->size_) continue;
    if (i) std::swap(g.regions[i], g.regions[i - 1]);  // what is used much moves to the front
    return m;
  }
  return nullptr;
}
std::string Checker::nearest(const void* p) {
  const auto* b = static_cast<const std::byte*>(p);
  for (const Memory* m : g.regions)
    if (b + kRedZone >= m->data_ && b < m->data_ + m->size_ + kRedZone)
      return fmt::format("byte {} of {} ({} bytes)", b - m->data_, m->name_, m->size_);
  return fmt::format("{}", p);
}

bool Checker::before(const Access& a, const Access& b) {  // is a ordered before b, which happens now?
  if (a.thread < 0 || (a.group == Group::kThread && a.thread == b.thread)) return true;
  const int block_threads = static_cast<int>(g.threads.size());
  if (a.group == Group::kGrid || a.thread / block_threads != b.thread / block_threads) return false;
  if (a.block_epoch < b.block_epoch) return true;
  return a.group != Group::kBlock && a.thread / 32 == b.thread / 32 && a.warp_epoch < b.warp_epoch;
}
void Checker::merge(Access& a, const Access& b) {
  if (before(a, b)) {
    a = b;
    return;
  }
  const int block_threads = static_cast<int>(g.threads.size());
  const Group group = a.thread / block_threads != b.thread / block_threads ? Group::kGrid
                      : a.thread / 32 != b.thread / 32                     ? Group::kBlock
                                                                           : Group::kWarp;
  a.group = std::max(a.group, group);
  a.block_epoch = std::max(a.block_epoch, b.block_epoch);
  a.warp_epoch = std::max(a.warp_epoch, b.warp_epoch);
}

void Checker::check(const void* p, size_t bytes, Kind kind, const void* pc) {
  if (!g.current) return;  // host code of an instrumented file
  const auto* b = static_cast<const std::byte*>(p);
  if (b >= g.current->stack && b < g.current->stack + kStackBytes) return;
  Memory* m = find(p, bytes);
  const char* verb = kind == Kind::kRead ? "read" : "write";
  if (!m) {
    const auto* c = static_cast<const char*>(p);
    if (kind == Kind::kRead && c >= &__executable_start && c < &end) return;
    fail(fmt::format("{} of {} bytes out of bounds, {}", verb, bytes, nearest(p)), pc);
  }
  if (kind != Kind::kRead && m->space_ == Space::kParams) fail("write to the kernel's parameters", pc);
  if (m->launch_ != g.launch) {  // a launch is ordered after the one before
    m->launch_ = g.launch;
    for (Cell& cell : m->cells_) cell.write = cell.read = cell.atomic = Access{};
  }
  const Access now{static_cast<int32_t>(g.block_id * static_cast<int>(g.threads.size()) + g.current->id), g.block_epoch,
                   g.current->warp_epoch, Group::kThread, pc};
  const size_t first = static_cast<size_t>(b - m->data_);
  for (size_t i = first; i < first + bytes; ++i) {
    Cell& cell = m->cells_[i];
    if (kind != Kind::kWrite && !cell.initialised)
      fail(fmt::format("read of uninitialised byte {} of {}", i, m->name_), pc);
    if (!before(cell.write, now)) race(*m, i, verb, "write", cell.write, pc);
    if (kind != Kind::kAtomic && !before(cell.atomic, now)) race(*m, i, verb, "atomic", cell.atomic, pc);
    if (kind == Kind::kRead) {
      merge(cell.read, now);
      continue;
    }
    if (!before(cell.read, now)) race(*m, i, verb, "read", cell.read, pc);
    if (kind == Kind::kAtomic)
      merge(cell.atomic, now);
    else
      cell.write = now;
    cell.initialised = true;
  }
}
void Checker::race(const Memory& m, size_t i, const char* verb, const char* earlier, const Access& a, const void* pc) {
  const int block_threads = static_cast<int>(g.threads.size());
  fail(fmt::format("race on byte {} of {}: this {} and an earlier {} by block {} thread {}", i, m.name_, verb, earlier,
                   a.thread / block_threads, a.thread % block_threads),
       pc, a.pc);
}
void Checker::forget(void* p, size_t bytes) {
  Memory* m = find(p, bytes);
  for (size_t i = 0; i < bytes; ++i)
    m->cells_[static_cast<size_t>(static_cast<std::byte*>(p) - m->data_) + i].initialised = false;
}
bool Checker::is_shared(const void* p, size_t bytes) {
  const Memory* m = find(p, bytes);
  return m && m->space_ == Space::kShared;
}

void check(const void* p, size_t bytes, Kind kind, const void* pc) { Checker::check(p, bytes, kind, pc); }

Memory::Memory(std::string name, size_t bytes, Space space)
    : name_(std::move(name)),
      size_(bytes),
      space_(space),
      storage_(new std::byte[bytes + 3 * kRedZone]),
      cells_(bytes) {
  void* p = storage_.get() + kRedZone;
  size_t room = bytes + 2 * kRedZone;
  data_ = static_cast<std::byte*>(std::align(kRedZone, bytes, p, room));
  forget();
  g.regions.push_back(this);
}
Memory::~Memory() { std::erase(g.regions, this); }
void Memory::forget() {
  std::memset(data_, 0xff, size_);  // a NaN in every type
  std::fill(cells_.begin(), cells_.end(), Cell{});
}
void Memory::copy_in(size_t offset, const void* source, size_t bytes) {
  if (offset + bytes > size_) throw Fault("copy past the end of " + name_);
  if (bytes) std::memcpy(data_ + offset, source, bytes);
  for (size_t i = offset; i < offset + bytes; ++i) cells_[i].initialised = true;
}
bool Memory::written(size_t offset, size_t bytes) const {
  return std::all_of(cells_.begin() + static_cast<ptrdiff_t>(offset),
                     cells_.begin() + static_cast<ptrdiff_t>(offset + bytes),
                     [](const Cell& c) { return c.initialised; });
}

}  // namespace simt

// --- The compiler's hooks -----------------------------------------------------------------------------------------
#define HOOK(name, bytes, kind) \
  void name(void* p) { simt::Checker::check(p, bytes, simt::Kind::kind, __builtin_return_address(0)); }
#define HOOKS(bytes)                               \
  HOOK(__tsan_read##bytes, bytes, kRead)           \
  HOOK(__tsan_write##bytes, bytes, kWrite)         \
  HOOK(__tsan_unaligned_read##bytes, bytes, kRead) \
  HOOK(__tsan_unaligned_write##bytes, bytes, kWrite)
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16) void __tsan_read_range(void* p, size_t bytes) {
  simt::Checker::check(p, bytes, simt::Kind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  simt::Checker::check(p, bytes, simt::Kind::kWrite, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
