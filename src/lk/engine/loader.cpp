// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/loader.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "lk/base/guarded.h"
#include "lk/lora/shard.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;

Micros now() { return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count(); }

}  // namespace

void Loader::start(Load load) {
  const AdapterId adapter = load.adapter;
  const auto loading = std::make_shared<Loading>(Loading{.load = std::move(load)});
  LK_CHECK(loading_.emplace(adapter, loading).second, "adapter {} is loaded twice", adapter);
  HostAdapter& host = *loading->load.host;
  if (std::shared_ptr<const Adapter> content = host.try_get())
    copy(loading, std::move(content));
  else
    loading->read = reader_.read(loading->load.host, Workshop::Priority::kUrgent,
                                 [this, loading](AdapterReader::Content read) -> Workshop::Finish {
                                   if (!read.ok())
                                     return [this, adapter = loading->load.adapter, status = read.status()] {
                                       end({.adapter = adapter, .status = status, .residents = {}});
                                     };
                                   copy(loading, std::move(read).value());
                                   return nullptr;
                                 });
  unstage(adapter);  // its read, if it has not ended, is this load's now
}

std::vector<std::shared_ptr<const ResidentAdapter>> Loader::fill(const Load& load,
                                                                 const std::shared_ptr<const Adapter>& content) const {
  std::vector<std::shared_ptr<const ResidentAdapter>> residents;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const RankMemory& rank = ranks_[r];
    const AdapterLayout& layout = *load.layouts[r];
    residents.push_back(fill_adapter(layout, shard_of(content, rank.weights->rank),
                                     std::span(load.pages).first(static_cast<size_t>(layout.num_pages())),
                                     rank.pool_base, *rank.backend));
  }
  return residents;
}

// On the engine thread, or on a reader's before AdapterReader::cancel() knows that the read has ended.
void Loader::copy(const std::shared_ptr<Loading>& loading, std::shared_ptr<const Adapter> content) {
  loading->copy = workshop_.submit(
      kCopierBench, [this, loading, content = std::move(content)](const std::stop_token&) mutable -> Workshop::Finish {
        const Load& load = loading->load;
        const auto begin = Clock::now();
        Done done{.adapter = load.adapter, .status = Status(), .residents = {}};
        done.status = guarded("a load of an adapter", [&] {
          const std::shared_ptr<const Adapter> whole = std::move(content);  // until here: let_go() asks who has it
          done.residents = fill(load, whole);
        });
        const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        const double measured = seconds / static_cast<double>(std::max<int64_t>(load.host->bytes(), 1));
        load.host->let_go();
        return [this, done = std::move(done), measured] {
          double& average = copy_seconds_per_byte_;
          average = average == 0 ? measured : average + 0.1 * (measured - average);
          failed_stages_.forget(done.adapter);
          end(done);
        };
      });
}

void Loader::end(Done done) {
  loading_.erase(done.adapter);
  done_.push_back(std::move(done));
}

std::vector<Loader::Done> Loader::take_finished(bool wait) {
  workshop_.collect();
  while (wait && done_.empty()) workshop_.collect(true);  // something else may end first
  return std::exchange(done_, {});
}

void Loader::abandon() {
  std::erase_if(loading_, [&](const auto& entry) {
    const Loading& loading = *entry.second;
    if (!reader_.cancel(loading.read) && !workshop_.cancel(loading.copy)) return false;
    done_.push_back({.adapter = entry.first, .status = unavailable("loading was given up"), .residents = {}});
    return true;
  });
}

void Loader::stage(AdapterId adapter, const std::shared_ptr<HostAdapter>& host) {
  if (host->on_host() || !failed_stages_.allows(adapter, now())) return;
  const auto is_lost = [&](AdapterId other) {
    const HostAdapter& staged = *staged_.at(other)->host;
    return !reader_.reads(staged) && !staged.on_host();  // in this order: what was just read is there
  };
  if (!budget_.stage(adapter, host->bytes(), host->tier_bytes(), is_lost)) return;
  const auto staged = std::make_shared<Staged>(Staged{.host = host});
  staged_[adapter] = staged;
  staged->read = reader_.read(
      host, Workshop::Priority::kIdle,
      [this, adapter, weak = std::weak_ptr(staged)](const AdapterReader::Content& read) -> Workshop::Finish {
        if (read.ok()) return nullptr;
        // Whoever loads it is told why. Until then it is tried again now and then, and takes nobody's place.
        return [this, adapter, weak] {
          if (weak.expired()) return;
          failed_stages_.failed(adapter, now());
          unstage(adapter);
        };
      });
}

void Loader::unstage(AdapterId adapter) {
  const auto it = staged_.find(adapter);
  if (it == staged_.end()) return;
  reader_.cancel(it->second->read);
  staged_.erase(it);
  budget_.done(adapter);
}

void Loader::forget(AdapterId adapter) {
  unstage(adapter);
  failed_stages_.forget(adapter);
}

double Loader::relative_cost(const HostAdapter& adapter) const {
  constexpr double kMost = 100;  // one slow read should not keep an adapter for ever
  if (adapter.on_host() || copy_seconds_per_byte_ <= 0) return 1;
  return std::min(kMost, 1 + adapter.read_seconds_per_byte() / copy_seconds_per_byte_);
}

}  // namespace lk
