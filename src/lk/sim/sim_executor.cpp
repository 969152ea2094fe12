// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/sim_executor.h"

#include <algorithm>
#include <cmath>

#include "lk/base/check.h"

namespace lk::sim {
namespace {

constexpr double kBuilderShare = 1.0 / 3;  // of the machine, beside a step

std::vector<int64_t> ranks_of(std::span<const SimAdapter> adapters) {
  std::vector<int64_t> ranks;
  for (const SimAdapter& adapter : adapters) ranks.push_back(adapter.rank);
  return ranks;
}

}  // namespace

std::vector<SimAdapter> make_adapters(const CostModel& model, int64_t count, std::span<const int64_t> ranks,
                                      double matrix_share, double matrix_bytes) {
  std::vector<SimAdapter> adapters(static_cast<size_t>(count));
  for (size_t i = 0; i < adapters.size(); ++i) {
    const int64_t rank = ranks[i % ranks.size()];
    adapters[i] = {.rank = rank, .pages = model.pages_of_adapter(rank), .bytes = model.adapter_bytes(rank)};
    const auto at = static_cast<double>(i);
    if (std::floor((at + 1) * matrix_share) == std::floor(at * matrix_share)) continue;
    adapters[i].pages += static_cast<int64_t>(std::ceil(matrix_bytes / model.page_bytes()));
    adapters[i].bytes += matrix_bytes;
  }
  return adapters;
}

SimExecutor::SimExecutor(const CostModel& model, std::vector<SimAdapter> adapters, double host_bytes, Faults& faults)
    : model_(model),
      adapters_(std::move(adapters)),
      faults_(faults),
      host_bytes_(host_bytes),
      shape_(ranks_of(adapters_)) {
  resident_.assign(adapters_.size(), false);
  host_place_.assign(adapters_.size(), host_lru_.end());
  host_ready_.assign(adapters_.size(), 0);
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
  if (Merge* merge = building()) merge->left_us = std::max(0.0, merge->left_us - static_cast<double>(time - now_));
  now_ = time;
}

std::optional<Micros> SimExecutor::next_load_end() const {
  if (loading_.empty()) return std::nullopt;
  return loads_[loading_.front()].end;
}

int64_t SimExecutor::footprint(AdapterId adapter) const { return adapters_[static_cast<size_t>(adapter)].pages; }

void SimExecutor::evicted(AdapterId adapter) {
  LK_CHECK(resident_[static_cast<size_t>(adapter)], "adapter {} was evicted and is not resident", adapter);
  resident_[static_cast<size_t>(adapter)] = false;
}

void SimExecutor::touch_host(AdapterId adapter) {
  auto& place = host_place_[static_cast<size_t>(adapter)];
  if (place != host_lru_.end())
    host_lru_.erase(place);
  else
    host_used_ += adapters_[static_cast<size_t>(adapter)].bytes;
  place = host_lru_.insert(host_lru_.end(), adapter);
  while (host_used_ > host_bytes_ && host_lru_.size() > 1) {
    const AdapterId oldest = host_lru_.front();
    host_used_ -= adapters_[static_cast<size_t>(oldest)].bytes;
    host_place_[static_cast<size_t>(oldest)] = host_lru_.end();
    host_lru_.pop_front();
  }
}

double SimExecutor::reload_cost(AdapterId adapter) const {
  const double bytes = adapters_[static_cast<size_t>(adapter)].bytes;
  return on_host(adapter) ? 1 : 1 + model_.read_us_of(bytes) / model_.load_us_of(bytes);
}

Micros SimExecutor::read(AdapterId adapter, double factor) {
  Micros& reader = *std::min_element(reader_free_.begin(), reader_free_.end());
  reader = std::max(now_, reader) +
           static_cast<Micros>(std::ceil(model_.read_us_of(adapters_[static_cast<size_t>(adapter)].bytes) * factor));
  ++num_disk_reads_;
  return host_ready_[static_cast<size_t>(adapter)] = reader;
}

void SimExecutor::stage(AdapterId adapter) {
  if (on_host(adapter)) return;
  const auto bytes = static_cast<int64_t>(adapters_[static_cast<size_t>(adapter)].bytes);
  if (!staged_.stage(adapter, bytes, static_cast<int64_t>(host_bytes_), [&](AdapterId id) { return !on_host(id); }))
    return;
  read(adapter, 1);
  touch_host(adapter);
}

void SimExecutor::start_load(AdapterId adapter, std::span<const PageId> pages) {
  LK_CHECK(static_cast<int64_t>(pages.size()) == footprint(adapter) && !resident_[static_cast<size_t>(adapter)],
           "adapter {} is loaded twice, or into {} pages", adapter, pages.size());
  const double factor = faults_.load_factor();
  staged_.done(adapter);
  Micros ready = now_;
  if (host_bytes_ > 0) {
    ready = on_host(adapter) ? std::max(now_, host_ready_[static_cast<size_t>(adapter)]) : read(adapter, factor);
    touch_host(adapter);
  }
  Micros end =
      static_cast<Micros>(std::ceil(model_.load_us_of(adapters_[static_cast<size_t>(adapter)].bytes) * factor));
  if (ready > now_) {
    end += ready;
    ++num_cold_loads_;
  } else {
    end += std::max(now_, channel_free_);
    channel_free_ = end;
  }
  const auto later = std::ranges::upper_bound(loading_, end, {}, [&](size_t load) { return loads_[load].end; });
  loading_.insert(later, loads_.size());
  loads_.push_back({.adapter = adapter, .start = now_, .end = end, .failed = faults_.load_fails()});
}

std::vector<LoadResult> SimExecutor::take_finished_loads(bool wait) {
  LK_CHECK(!wait || !loading_.empty(), "no load to wait for");
  if (wait) advance_to(std::max(now_, loads_[loading_.front()].end));
  std::vector<LoadResult> done;
  while (!loading_.empty() && loads_[loading_.front()].end <= now_) {
    const LoadRecord& load = loads_[loading_.front()];
    loading_.pop_front();
    resident_[static_cast<size_t>(load.adapter)] = !load.failed;
    done.push_back(
        {load.adapter, load.failed ? data_loss("adapter {}: the load was made to fail", load.adapter) : Status()});
  }
  return done;
}

std::span<ItemResult> SimExecutor::execute(const StepPlan& plan) {
  LK_CHECK(plan.merged == kBaseModel || (merges_.contains(plan.merged) && merges_.at(plan.merged).left_us <= 0),
           "adapter {} runs merged and is not", plan.merged);
  for (const StepItem& item : plan.items)
    LK_CHECK(item.request->adapter == kBaseModel || resident_[static_cast<size_t>(item.request->adapter)],
             "request {} runs with adapter {}, which is not resident", item.request->id, item.request->adapter);
  const StepShape& shape = shape_.build(plan);
  const double factor = faults_.step_factor();
  double us = model_.step_us_of(shape) * factor;
  if (Merge* merge = building()) {
    const double done = std::min(merge->left_us, us * kBuilderShare / (1 - kBuilderShare));
    merge->left_us -= done;
    us += done;
  }
  times_ = {.total = std::llround(us), .lora = std::llround(model_.adapter_us_of(shape) * factor)};
  busy_us_ += us;
  const double whole = std::floor(us + fraction_us_);
  fraction_us_ += us - whole;
  const Micros end = now_ + static_cast<Micros>(whole);
  if (interlude_) interlude_(end);
  now_ = end;
  results_.assign(plan.items.size(), {});
  for (size_t i = 0; i < results_.size(); ++i) {
    const StepItem& item = plan.items[i];
    if (!item.sample) continue;
    const auto made = static_cast<int64_t>(item.tokens.size() - item.request->prompt.size()) + 1;
    results_[i].token.token = made >= output_length_[static_cast<size_t>(item.request->id)] ? kStopToken : kToken;
  }
  return results_;
}

SimExecutor::Merge* SimExecutor::building() {
  for (auto& [adapter, merge] : merges_)
    if (merge.left_us > 0) return &merge;
  return nullptr;
}

Result<MergeFootprint> SimExecutor::merge_footprint(AdapterId adapter) const {
  if (!(model_.flops_per_token > 0 && model_.weight_bytes > 0))
    return failed_precondition("cost model \"{}\" has no linears to merge into", model_.name);
  const auto rank = static_cast<double>(adapters_[static_cast<size_t>(adapter)].rank);
  const auto pages = static_cast<int64_t>(std::ceil(model_.merged_share() * model_.weight_bytes / model_.page_bytes()));
  return MergeFootprint{.num_pages = pages,
                        .relative_cost = rank * model_.adapter_flops_per_rank / model_.flops_per_token,
                        .build_cost_rows = rank * model_.merged_share()};
}

void SimExecutor::start_merge(AdapterId adapter, std::span<const PageId>) {
  const double us = model_.merge_us_of(adapters_[static_cast<size_t>(adapter)].rank) * faults_.merge_factor();
  LK_CHECK(!building() &&
               merges_.emplace(adapter, Merge{.left_us = us, .begun = now_, .fails = faults_.merge_fails()}).second,
           "adapter {} is built beside another, or twice", adapter);
}

std::vector<MergeResult> SimExecutor::take_finished_merges() {
  std::vector<MergeResult> done;
  for (auto& [adapter, merge] : merges_) {
    if (merge.left_us > 0 || std::exchange(merge.reported, true)) continue;
    const int64_t rank = adapters_[static_cast<size_t>(adapter)].rank;
    done.push_back({.adapter = adapter,
                    .status = !merge.fails ? Status()
                              : merge.begun % 2 == 0
                                  ? failed_precondition("adapter {}: the merge was made to fail", adapter)
                                  : data_loss("adapter {}: reading it was made to fail", adapter),
                    .build_time = now_ - merge.begun,
                    .engine_time = std::llround(model_.merge_us_of(rank)),
                    .build_cost_rows = static_cast<double>(rank) * model_.merged_share()});
  }
  return done;
}

void SimExecutor::drop_merge(AdapterId adapter) { merges_.erase(adapter); }

}  // namespace lk::sim
