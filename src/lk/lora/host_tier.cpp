// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/host_tier.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "lk/base/file.h"
#include "lk/lora/adapter_files.h"

namespace lk {
namespace {

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// In powers of four and from a millisecond on: what differs by the machine's mood is equal, and the least recently used
// one goes.
double seconds_per_byte(double seconds, int64_t bytes) {
  const double exact = std::max(seconds, 1e-3) / static_cast<double>(std::max<int64_t>(bytes, 1));
  return std::exp2(2 * std::floor(std::log2(exact) / 2));
}

}  // namespace

int64_t host_bytes_of(const Adapter& adapter) {
  int64_t bytes = adapter.file ? adapter.file->memory_bytes() : 0;
  if (adapter.converted) bytes += adapter.converted->memory_bytes();
  for (const Buffer& buffer : adapter.owned) bytes += buffer.size_bytes();
  return bytes;
}

// --- AdapterDirectory

AdapterDirectory::AdapterDirectory(std::string name, std::string directory, const ModelConfig& model,
                                   std::shared_ptr<const TensorStore> base, AdapterLoadOptions options)
    : name_(std::move(name)),
      directory_(std::move(directory)),
      model_(model),
      base_(std::move(base)),
      options_(options),
      stamp_(stamp()) {}

AdapterDirectory::Stamp AdapterDirectory::stamp() const {
  struct stat s {};
  if (::stat(join_path(directory_, kAdapterWeightsFile).c_str(), &s) != 0) return {};
  return {s.st_dev, s.st_ino, s.st_size, int64_t{s.st_mtim.tv_sec} * 1'000'000'000 + s.st_mtim.tv_nsec};
}

bool AdapterDirectory::available() const { return stamp_ != Stamp{} && stamp() == stamp_; }

Result<std::shared_ptr<const Adapter>> AdapterDirectory::read() {
  Result<std::shared_ptr<const Adapter>> adapter = load_adapter(name_, directory_, model_, base_.get(), options_);
  std::lock_guard lock(mutex_);
  if (adapter.ok() && digest_.empty()) digest_ = (*adapter)->digest;
  if (digest_.empty() || (adapter.ok() && (*adapter)->digest == digest_)) return adapter;
  return data_loss(
      "adapter {}: the files in {} are not what they were when it was loaded ({}); load it again to serve what is "
      "there now",
      name_, directory_, adapter.ok() ? "another digest" : adapter.status().message());
}

// --- HostAdapter

HostAdapter::HostAdapter(std::shared_ptr<const Adapter> adapter)
    : HostAdapter(nullptr, nullptr, std::move(adapter), 0) {}

HostAdapter::HostAdapter(std::shared_ptr<HostTier> tier, std::shared_ptr<AdapterSource> source,
                         std::shared_ptr<const Adapter> adapter, double read_seconds)
    : tier_(std::move(tier)),
      source_(std::move(source)),
      name_(adapter->name),
      bytes_(host_bytes_of(*adapter)),
      seconds_per_byte_(seconds_per_byte(read_seconds, bytes_)),
      copy_(std::move(adapter)) {}

HostAdapter::~HostAdapter() {
  if (tier_) tier_->forget(*this);
}

int64_t HostAdapter::tier_bytes() const { return tier_ ? tier_->max_bytes() : 0; }

std::shared_ptr<const Adapter> HostAdapter::try_get() {
  if (!tier_) return copy_;
  std::lock_guard lock(tier_->mutex_);
  if (copy_) tier_->touch_locked(*this);
  return copy_;
}

Result<std::shared_ptr<const Adapter>> HostAdapter::get() {
  if (auto copy = try_get()) return copy;
  std::lock_guard one_at_a_time(reading_);
  if (auto copy = try_get()) return copy;  // somebody else read it
  // A request waits for it: when everything else is in use, the budget is exceeded for as long as that lasts.
  tier_->reserve(bytes_, true);
  const Stopwatch watch;
  Result<std::shared_ptr<const Adapter>> read = source_->read();
  {
    std::lock_guard lock(tier_->mutex_);
    tier_->stats_.read_seconds += watch.seconds();
    ++(read.ok() ? tier_->stats_.num_reads : tier_->stats_.num_failed_reads);
  }
  if (read.ok())
    tier_->keep(*this, *read);
  else
    tier_->release(bytes_);
  return read;
}

void HostAdapter::let_go() {
  if (tier_) tier_->trim();
}

// --- HostTier

std::shared_ptr<HostTier> HostTier::create(int64_t max_bytes) {
  return std::shared_ptr<HostTier>(new HostTier(max_bytes));
}

Result<std::shared_ptr<HostAdapter>> HostTier::add(std::shared_ptr<AdapterSource> source, int64_t expected_bytes) {
  LK_RETURN_IF_ERROR(reserve_for_new(expected_bytes));
  const Stopwatch watch;
  Result<std::shared_ptr<const Adapter>> adapter = source->read();
  release(expected_bytes);
  if (!adapter.ok()) return adapter.status();
  LK_RETURN_IF_ERROR(reserve_for_new(host_bytes_of(**adapter)));
  std::shared_ptr<HostAdapter> added(new HostAdapter(shared_from_this(), std::move(source), *adapter, watch.seconds()));
  keep(*added, std::move(*adapter));
  return added;
}

Status HostTier::reserve_for_new(int64_t bytes) {
  // Somebody registers what he read, or copies it into pages: that is over soon, and nobody says when.
  constexpr double kPatience = 1;  // seconds
  const Stopwatch watch;
  for (;;) {
    const Room room = reserve(bytes, false);
    if (room == Room::kTaken) return Status();
    if (room == Room::kNone || watch.seconds() > kPatience)
      return resource_exhausted(
          "an adapter of {} bytes does not fit into host memory of {} bytes, of which {} cannot be dropped now: raise "
          "--host-memory",
          bytes, max_bytes_, stats().bytes);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

HostTier::Stats HostTier::stats() const {
  std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.max_bytes = max_bytes_;
  return stats;
}

void HostTier::drop_all() {
  Dropped dropped;
  std::unique_lock lock(mutex_);
  drop_down_to(0, dropped, lock);
}

void HostTier::trim() {
  Dropped dropped;
  std::unique_lock lock(mutex_);
  drop_down_to(max_bytes_, dropped, lock);
}

bool HostTier::drop_down_to(int64_t bytes, Dropped& dropped, std::unique_lock<std::mutex>& lock) {
  bool in_use = false;
  for (auto it = order_.begin(); it != order_.end() && stats_.bytes > bytes;) {
    const HostAdapter::Rank rank = *it;
    const std::shared_ptr<AdapterSource> source = std::get<HostAdapter*>(rank)->source_;
    const auto is_used = [&] { return std::get<HostAdapter*>(rank)->copy_.use_count() > 1; };
    // Somebody who uses it keeps it in memory anyway; and about what somebody else asks for, he decides.
    if (is_used() || !asked_.insert(source.get()).second) {
      in_use = true;
      ++it;
      continue;
    }
    lock.unlock();
    // What is not on disk any more would be lost for those who were promised it.
    const bool available = source->available();
    lock.lock();
    asked_.erase(source.get());
    it = order_.find(rank);
    if (it == order_.end()) {  // used or forgotten meanwhile
      it = order_.upper_bound(rank);
    } else if (!available || is_used() || stats_.bytes <= bytes) {
      in_use |= is_used();
      ++it;
    } else {
      it = drop(it, dropped);
    }
  }
  return in_use;
}

std::set<HostAdapter::Rank>::iterator HostTier::drop(std::set<HostAdapter::Rank>::iterator it, Dropped& dropped) {
  HostAdapter& victim = *std::get<HostAdapter*>(*it);
  clock_ = std::max(clock_, std::get<double>(*it));
  victim.on_host_.store(false, std::memory_order_release);
  dropped.push_back(std::exchange(victim.copy_, nullptr));
  stats_.bytes -= victim.bytes_;
  ++stats_.num_drops;
  return order_.erase(it);
}

HostTier::Room HostTier::reserve(int64_t bytes, bool even_beyond) {
  Dropped dropped;
  std::unique_lock lock(mutex_);
  const bool in_use = drop_down_to(max_bytes_ - bytes, dropped, lock) || num_reserved_ > 0;
  if (stats_.bytes + bytes > max_bytes_ && !even_beyond)
    return in_use && bytes <= max_bytes_ ? Room::kInUse : Room::kNone;
  stats_.bytes += bytes;
  ++num_reserved_;
  return Room::kTaken;
}

void HostTier::release(int64_t bytes) {
  std::lock_guard lock(mutex_);
  stats_.bytes -= bytes;
  --num_reserved_;
}

void HostTier::touch_locked(HostAdapter& adapter) {
  order_.erase(adapter.rank_);
  adapter.rank_ = {clock_ + adapter.seconds_per_byte_, ++num_uses_, &adapter};
  order_.insert(adapter.rank_);
}

void HostTier::keep(HostAdapter& adapter, std::shared_ptr<const Adapter> copy) {
  std::lock_guard lock(mutex_);
  --num_reserved_;
  adapter.copy_ = std::move(copy);
  adapter.on_host_.store(true, std::memory_order_release);
  touch_locked(adapter);
}

void HostTier::forget(HostAdapter& adapter) {
  std::shared_ptr<const Adapter> dropped;  // destroyed without the lock
  std::lock_guard lock(mutex_);
  if (!adapter.copy_) return;
  order_.erase(adapter.rank_);
  dropped = std::move(adapter.copy_);
  stats_.bytes -= adapter.bytes_;
}

}  // namespace lk
