// SPDX-License-Identifier: Apache-2.0
// HostTier: adapters in host memory under a budget, in front of the disk they came from: the middle one of three tiers.
// S-LoRA keeps every adapter in host memory (arXiv:2311.03285 §5); here what has not been wanted for long is dropped
// and read again when somebody wants it.
//
// What goes first: Greedy-Dual-Size (Cao and Irani 1997), priority = clock + seconds of reading / bytes, where the
// clock rises to each victim's priority; so an adapter that takes long to read for its size (DoRA norms, PiSSA
// conversion) stays longer, and among equals the least recently used one goes. A copy somebody uses is not dropped, nor
// one whose source is not what it was.
//
// Thread safety: everything here may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "lk/lora/adapter.h"

namespace lk {

// Where an adapter can be read from, again and again, with the same content each time.
class AdapterSource {
 public:
  virtual ~AdapterSource() = default;
  virtual Result<std::shared_ptr<const Adapter>> read() = 0;
  // Whether read() would probably succeed: one look at the file system, which may take as long as that likes.
  virtual bool available() const = 0;
};

// A PEFT directory. Once it was read, a directory with another content is refused (kDataLoss).
class AdapterDirectory : public AdapterSource {
 public:
  // `model` must outlive this.
  AdapterDirectory(std::string name, std::string directory, const ModelConfig& model,
                   std::shared_ptr<const TensorStore> base, AdapterLoadOptions options);
  Result<std::shared_ptr<const Adapter>> read() override;
  bool available() const override;

 private:
  using Stamp = std::tuple<uint64_t, uint64_t, int64_t, int64_t>;  // device, inode, size, time of the last change in ns
  Stamp stamp() const;                                             // all zero when there is no such file

  const std::string name_, directory_;
  const ModelConfig& model_;
  const std::shared_ptr<const TensorStore> base_;
  const AdapterLoadOptions options_;
  const Stamp stamp_;
  std::mutex mutex_;
  std::string digest_;  // guarded by mutex_; of the first read
};

// Bytes of host memory that an adapter keeps.
int64_t host_bytes_of(const Adapter& adapter);

class HostTier;

// One adapter in the host tier, whether its content is in memory now or not.
class HostAdapter {
 public:
  // In memory for good and in nobody's budget.
  explicit HostAdapter(std::shared_ptr<const Adapter> adapter);
  ~HostAdapter();
  HostAdapter(const HostAdapter&) = delete;
  HostAdapter& operator=(const HostAdapter&) = delete;

  const std::string& name() const { return name_; }
  int64_t bytes() const { return bytes_; }  // of the content, when it is in memory
  bool on_host() const { return on_host_.load(std::memory_order_acquire); }
  double read_seconds_per_byte() const { return seconds_per_byte_; }  // roughly; of the first read
  // Whether get() can be expected to succeed.
  bool recoverable() const { return on_host() || source_->available(); }
  // The content, or null when it would have to be read. Counts as a use.
  std::shared_ptr<const Adapter> try_get();
  // The content, read again when it was dropped; callers that come meanwhile wait for the same read. Fails as the
  // source does.
  Result<std::shared_ptr<const Adapter>> get();
  // Whoever got the content no longer has it: what get() took beyond the budget is dropped again, if nobody else uses
  // it. May look at files: not for the engine thread.
  void let_go();
  // Budget of its tier, in bytes; 0 = none.
  int64_t tier_bytes() const;

 private:
  friend class HostTier;
  using Rank = std::tuple<double, uint64_t, HostAdapter*>;  // priority, time of the last use: first = first to go
  HostAdapter(std::shared_ptr<HostTier> tier, std::shared_ptr<AdapterSource> source,
              std::shared_ptr<const Adapter> adapter, double read_seconds);

  const std::shared_ptr<HostTier> tier_;  // or null
  const std::shared_ptr<AdapterSource> source_;
  const std::string name_;
  const int64_t bytes_;
  const double seconds_per_byte_;
  std::atomic<bool> on_host_{true};      // copy_ is not null; written under the tier's mutex
  std::mutex reading_;                   // one read at a time; before the tier's mutex
  std::shared_ptr<const Adapter> copy_;  // guarded by the tier's mutex, if there is one
  Rank rank_{};                          // guarded likewise; valid while copy_ is set
};

class HostTier : public std::enable_shared_from_this<HostTier> {
 public:
  static std::shared_ptr<HostTier> create(int64_t max_bytes);

  // Reads an adapter of about `expected_bytes` for the first time, after making room for it. kResourceExhausted when
  // there is too little even with everything dropped that can be; for a second it waits for what others are using.
  Result<std::shared_ptr<HostAdapter>> add(std::shared_ptr<AdapterSource> source, int64_t expected_bytes);

  struct Stats {
    int64_t max_bytes = 0, bytes = 0;                            // `bytes` includes what is being read
    int64_t num_drops = 0, num_reads = 0, num_failed_reads = 0;  // reads of what had been dropped
    double read_seconds = 0;
  };
  Stats stats() const;
  int64_t max_bytes() const { return max_bytes_; }
  // Drops everything that can be. For tests, and for giving memory back.
  void drop_all();

 private:
  friend class HostAdapter;
  using Dropped = std::vector<std::shared_ptr<const Adapter>>;  // to be destroyed without the lock

  explicit HostTier(int64_t max_bytes) : max_bytes_(max_bytes) {}
  // Whether something was in use. Lets go of the lock while it asks a source: no file is looked at under the mutex,
  // which whoever starts a load needs.
  bool drop_down_to(int64_t bytes, Dropped& dropped, std::unique_lock<std::mutex>& lock);
  std::set<HostAdapter::Rank>::iterator drop(std::set<HostAdapter::Rank>::iterator it, Dropped& dropped);  // the next
  void trim();  // down to the budget
  enum class Room : uint8_t { kTaken, kInUse, kNone };
  Room reserve(int64_t bytes, bool even_beyond);
  Status reserve_for_new(int64_t bytes);
  void release(int64_t bytes);
  void touch_locked(HostAdapter& adapter);
  void keep(HostAdapter& adapter, std::shared_ptr<const Adapter> copy);  // its bytes are reserved
  void forget(HostAdapter& adapter);

  const int64_t max_bytes_;
  mutable std::mutex mutex_;
  std::set<HostAdapter::Rank> order_;  // of those in memory
  double clock_ = 0;
  uint64_t num_uses_ = 0;
  std::set<const AdapterSource*> asked_;  // by somebody, now
  int64_t num_reserved_ = 0;              // whose bytes are counted, and whose copies are still to come
  Stats stats_;
};

}  // namespace lk
