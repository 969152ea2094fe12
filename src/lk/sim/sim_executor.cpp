// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/sim_executor.h"

#include <algorithm>
#include <cmath>

#include "lk/base/check.h"

namespace lk::sim {
namespace {

std::vector<int64_t> ranks_of(std::span<const SimAdapter> adapters) {
  std::vector<int64_t> ranks;
  for (const SimAdapter& adapter : adapters) ranks.push_back(adapter.rank);
  return ranks;
}

}  // namespace

std::vector<SimAdapter> make_adapters(const CostModel& model, int64_t count, std::span<const int64_t> ranks) {
  std::vector<SimAdapter> adapters(static_cast<size_t>(count));
  for (size_t i = 0; i < adapters.size(); ++i) {
    const int64_t rank = ranks[i % ranks.size()];
    adapters[i] = {.rank = rank, .pages = model.pages_of_adapter(rank), .bytes = model.adapter_bytes(rank)};
  }
  return adapters;
}

SimExecutor::SimExecutor(const CostModel& model, std::vector<SimAdapter> adapters, double host_bytes, Faults& faults)
    : model_(model), adapters_(std::move(adapters)), faults_(faults), host_bytes_(host_bytes), shape_(ranks_of(adapters_)) {
  host_place_.assign(adapters_.size(), host_lru_.end());
  // The first ones are on the host already, as a server leaves them that registered all in order.
  for (size_t i = 0; host_bytes_ > 0 && i < adapters_.size() && host_used_ + adapters_[i].bytes <= host_bytes_; ++i)
    touch_host(static_cast<AdapterId>(i));
}

void SimExecutor::expect(RequestId id, int32_t output_length) {
  LK_CHECK(id == static_cast<RequestId>(output_length_.size()), "request {} is not the next one", id);
  output_length_.push_back(output_length);
}

void SimExecutor::advance_to(Micros time) {
  LK_CHECK(time >= now_, "the clock cannot go back from {} to {} us", now_, time);
  now_ = time;
}

std::optional<Micros> SimExecutor::next_load_end() const {
  if (loading_.empty()) return std::nullopt;
  return loads_[loading_.front()].end;
}

AdapterFootprint SimExecutor::footprint(AdapterId adapter) const { return {.num_pages = adapters_[static_cast<size_t>(adapter)].pages}; }

bool SimExecutor::touch_host(AdapterId adapter) {
  if (host_bytes_ <= 0) return true;
  auto& place = host_place_[static_cast<size_t>(adapter)];
  const bool present = place != host_lru_.end();
  if (present) host_lru_.erase(place);
  else host_used_ += adapters_[static_cast<size_t>(adapter)].bytes;
  place = host_lru_.insert(host_lru_.end(), adapter);
  while (host_used_ > host_bytes_ && host_lru_.size() > 1) {
    const AdapterId oldest = host_lru_.front();
    host_used_ -= adapters_[static_cast<size_t>(oldest)].bytes;
    host_place_[static_cast<size_t>(oldest)] = host_lru_.end();
    host_lru_.pop_front();
  }
  return present;
}

void SimExecutor::start_load(AdapterId adapter, const AdapterPages&) {
  const bool warm = touch_host(adapter);
  if (!warm) ++num_cold_loads_;
  const double us = model_.load_us_of(adapters_[static_cast<size_t>(adapter)].bytes, !warm) * faults_.load_factor();
  const Micros begin = std::max(now_, channel_free_);
  channel_free_ = begin + static_cast<Micros>(std::ceil(us));
  loading_.push_back(loads_.size());
  loads_.push_back({.adapter = adapter, .start = now_, .end = channel_free_, .failed = faults_.load_fails()});
}

std::vector<LoadResult> SimExecutor::take_finished_loads(bool wait) {
  LK_CHECK(!wait || !loading_.empty(), "no load to wait for");
  if (wait) now_ = std::max(now_, loads_[loading_.front()].end);
  std::vector<LoadResult> done;
  while (!loading_.empty() && loads_[loading_.front()].end <= now_) {
    const LoadRecord& load = loads_[loading_.front()];
    loading_.pop_front();
    done.push_back({load.adapter, load.failed ? data_loss("adapter {}: the load was made to fail", load.adapter) : Status()});
  }
  return done;
}

std::vector<ItemResult> SimExecutor::execute(const StepPlan& plan) {
  const double us = model_.step_us_of(shape_.build(plan)) * faults_.step_factor();
  busy_us_ += us;
  const double whole = std::floor(us + fraction_us_);
  fraction_us_ += us - whole;
  const Micros end = now_ + static_cast<Micros>(whole);
  if (interlude_) interlude_(end);
  now_ = end;
  std::vector<ItemResult> results(plan.items.size());
  for (size_t i = 0; i < results.size(); ++i) {
    const StepItem& item = plan.items[i];
    if (!item.sample) continue;
    const auto made = static_cast<int64_t>(item.tokens.size() - item.request->prompt.size()) + 1;
    results[i].token.token = made >= output_length_[static_cast<size_t>(item.request->id)] ? kStopToken : kToken;
  }
  return results;
}

}  // namespace lk::sim
