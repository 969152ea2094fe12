// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/replica_load.h"

#include <algorithm>
#include <cmath>

namespace lk {
namespace {

// Weight of a new sample of a replica's rates; reports come ten times a second.
constexpr double kRateWeight = 0.1;
// Steps of fewer tokens on average take the time that reading the weights takes.
constexpr double kFewTokens = 64;
constexpr double kTypicalWeights = 13e9;  // bytes, of a replica that does not say
// Of what an answer is predicted to come to, the part that is still expected of one that has outgrown its prediction.
constexpr double kLeastLeft = 0.25;
constexpr double kTypicalLeft = 100;  // tokens of what runs, before anything is known of it

double left_of(const RoutedRequest& request, double made) {
  return std::max(request.predicted_output - made, kLeastLeft * request.predicted_output);
}

}  // namespace

void ReplicaLoad::report(std::shared_ptr<const ReplicaReport> news) {
  const ReplicaReport& report = *news;
  if (reported_ && report.id != report_->id) *this = ReplicaLoad();
  if (reported_) {
    const auto steps = static_cast<double>(report.steps - report_->steps);
    const auto tokens = static_cast<double>(report.computed_tokens - report_->computed_tokens);
    const double seconds = report.execute_seconds - report_->execute_seconds;
    if (steps > 0 && seconds > 0) {
      step_seconds_ += kRateWeight * (seconds / steps - step_seconds_);
      if (tokens <= kFewTokens * steps) decode_seconds_ += kRateWeight * (seconds / steps - decode_seconds_);
      // Steps that only make output say little about how fast prompts are computed: the best of late counts.
      const double rate = tokens / seconds;
      tokens_per_second_ = std::max(rate, tokens_per_second_ + kRateWeight / 10 * (rate - tokens_per_second_));
    }
  }
  report_ = std::move(news);
  reported_ = true;
  newer_requests_ = 0;
  idle_adapter_pages_ = 0;
  for (const auto& [name, adapter] : report.adapters)
    if (adapter.on_device && adapter.in_flight == 0 && report.page_bytes > 0)
      idle_adapter_pages_ += static_cast<double>(adapter.bytes) / static_cast<double>(report.page_bytes);
  for (auto& [id, own] : own_) own.newer = false;
}

void ReplicaLoad::sent(StreamId id, const RoutedRequest& request, Time now) {
  own_[id] = {.request = request, .since = now};
  ++own_adapters_[request.adapter];
  ++newer_requests_;
}

void ReplicaLoad::token(StreamId id, int64_t count) {
  if (const auto own = own_.find(id); own != own_.end()) own->second.made += static_cast<double>(count);
}

std::string ReplicaLoad::adapter_of(StreamId id) const {
  const auto own = own_.find(id);
  return own == own_.end() ? std::string() : own->second.request.adapter;
}

void ReplicaLoad::ended(StreamId id) {
  const auto own = own_.find(id);
  if (own == own_.end()) return;
  const auto adapter = own_adapters_.find(own->second.request.adapter);
  if (--adapter->second == 0) own_adapters_.erase(adapter);
  --newer_requests_;  // of one that the last report counted, too: it is there no more
  own_.erase(own);
}

double ReplicaLoad::bytes_per_second() const {
  return (report_->weight_bytes > 0 ? static_cast<double>(report_->weight_bytes) : kTypicalWeights) / decode_seconds_;
}

double ReplicaLoad::row_seconds(double context_tokens) const {
  return context_tokens * static_cast<double>(report_->page_bytes) /
         static_cast<double>(std::max<int64_t>(1, report_->page_tokens)) / bytes_per_second();
}

double ReplicaLoad::requests() const {
  return std::max(static_cast<double>(report_->running + report_->waiting) + newer_requests_,
                  static_cast<double>(own_.size()));
}

double ReplicaLoad::queued_prompt_tokens() const {
  double tokens = 0;
  for (const auto& [id, own] : own_)
    if (own.made == 0) tokens += std::max(0.0, own.request.prompt_tokens - own.request.cached_tokens);
  return tokens;
}

double ReplicaLoad::pages_of(double tokens) const {
  return std::ceil(tokens / static_cast<double>(std::max<int64_t>(1, report_->page_tokens)));
}

double ReplicaLoad::free_pages() const {
  // The report's free pages, less what its own streams will still grow by; of those that have not begun, all.
  double free = static_cast<double>(report_->pages_free) + idle_adapter_pages_;
  for (const auto& [id, own] : own_) {
    const double left = left_of(own.request, own.made);
    free -= pages_of(own.newer || own.made == 0 ? own.request.prompt_tokens + own.made + left : left);
  }
  return free;
}

std::vector<ReplicaLoad::Owned> ReplicaLoad::own() const {
  std::vector<Owned> all;
  all.reserve(own_.size());
  for (const auto& [id, own] : own_)
    all.push_back({.id = id,
                   .request = &own.request,
                   .made = own.made,
                   .left = left_of(own.request, own.made),
                   .since = own.since});
  return all;
}

double ReplicaLoad::place_seconds() const {
  const auto places = static_cast<double>(report_->max_running);
  const double behind = requests() + 1 - places;
  if (places <= 0 || behind <= 0) return 0;
  // Places come free as what runs ends: each after what is left of it, on average.
  double left = 0, running = 0;
  for (const auto& [id, own] : own_)
    if (own.made > 0) left += left_of(own.request, own.made), ++running;
  return behind * (running > 0 ? left / running : kTypicalLeft) * step_seconds_ / places;
}

bool ReplicaLoad::has_copy(const std::string& adapter) const {
  if (holds(adapter)) return true;
  const auto found = report_->adapters.find(adapter);
  return found != report_->adapters.end() && found->second.on_host;
}

bool ReplicaLoad::holds(const std::string& adapter) const {
  if (adapter.empty() || own_adapters_.contains(adapter)) return true;
  const auto found = report_->adapters.find(adapter);
  return found != report_->adapters.end() && found->second.on_device;
}

bool ReplicaLoad::runs(const std::string& adapter) const {
  if (adapter.empty() || own_adapters_.contains(adapter)) return true;
  const auto found = report_->adapters.find(adapter);
  return found != report_->adapters.end() && found->second.in_flight > 0;
}

double ReplicaLoad::adapter_bytes(const std::string& adapter) const {
  const auto found = report_->adapters.find(adapter);
  return found == report_->adapters.end() ? 0 : static_cast<double>(found->second.bytes);
}

double ReplicaLoad::work_seconds() const {
  double prompt = 0, output = 0;
  for (const auto& [id, own] : own_) {
    if (own.made == 0) prompt += own.request.prompt_tokens;
    output += left_of(own.request, own.made);
  }
  // Rows of a step share it.
  const double rows = std::max(1.0, requests());
  return prompt / tokens_per_second_ + output * step_seconds_ / rows;
}

}  // namespace lk
