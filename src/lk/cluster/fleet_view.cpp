// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/fleet_view.h"

#include <algorithm>
#include <set>

namespace lk {
namespace {

constexpr double kFirstGuess = 200;        // tokens of an answer, before any has ended
constexpr double kMeanWeight = 0.01;       // of a new answer in the fleet's mean
constexpr double kAdapterWeight = 0.1;     // and in its adapter's
constexpr double kStuckSteps = 10;         // of its usual length: then its engine is stuck
constexpr size_t kMaxForecasts = 100'000;  // adapters; about 100 bytes each

}  // namespace

Result<std::unique_ptr<FleetView>> FleetView::create(const FleetOptions& options) {
  std::set<std::string> seen;
  for (const std::string& url : options.urls)
    if (!seen.insert(url).second) return invalid_argument("the replica {} is named twice", url);
  LK_ASSIGN_OR_RETURN(std::unique_ptr<Picker> picker, make_picker(options.policy, options.seed));
  std::unique_ptr<FleetView> self(new FleetView(options));
  self->picker_ = std::move(picker);
  self->mean_output_ = kFirstGuess;
  (void)self->set_urls(options.urls);
  return Result<std::unique_ptr<FleetView>>(std::move(self));
}

const FleetView::Replica& FleetView::at(int replica) const {
  static const Replica nobody;
  const auto found = replicas_.find(replica);
  return found == replicas_.end() ? nobody : found->second;
}

FleetView::Replica* FleetView::find(int replica) {
  const auto found = replicas_.find(replica);
  return found == replicas_.end() ? nullptr : &found->second;
}

std::vector<int> FleetView::numbers() const {
  std::lock_guard lock(mutex_);
  std::vector<int> numbers;
  for (const auto& [number, replica] : replicas_) numbers.push_back(number);
  return numbers;
}

int FleetView::listed() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(std::ranges::count_if(replicas_, [](const auto& entry) { return entry.second.listed; }));
}

std::string FleetView::url(int replica) const {
  std::lock_guard lock(mutex_);
  return at(replica).url;
}

std::vector<int> FleetView::set_urls(const std::vector<std::string>& urls) {
  std::lock_guard lock(mutex_);
  for (auto& [number, replica] : replicas_) replica.listed = false;
  std::vector<int> added;
  for (const std::string& url : urls) {
    auto place = std::ranges::find(replicas_, url, [](const auto& entry) { return entry.second.url; });
    if (place == replicas_.end()) {
      added.push_back(next_replica_);
      place = replicas_.try_emplace(next_replica_++).first;
      place->second.url = url;
    }
    place->second.listed = true;
  }
  return added;
}

bool FleetView::drop(int replica) {
  std::lock_guard lock(mutex_);
  const Replica& place = at(replica);
  if (place.listed || place.connected || place.load.own_requests() > 0) return false;
  replicas_.erase(replica);
  return true;
}

Status FleetView::report(int replica, ReplicaReport report, Time now) {
  const auto news = std::make_shared<const ReplicaReport>(std::move(report));
  std::lock_guard lock(mutex_);
  if (find(replica) == nullptr) return not_found("that replica has left");
  Replica& from = *find(replica);
  // One process under two names would be given twice its share, and its streams would «move» to itself.
  for (const auto& [number, other] : replicas_)
    if (&other != &from && other.connected && other.report->id == news->id) {
      from.connected = false;
      from.failure = fmt::format("the same replica as {}", other.url);
      return failed_precondition("{} is {}", from.url, from.failure);
    }
  from.report = news;
  from.load.report(news);
  from.connected = true;
  from.heard = now;
  from.failure.clear();
  return Status();
}

void FleetView::lost(int replica, const Status& reason, bool was_ended) {
  std::lock_guard lock(mutex_);
  Replica* from = find(replica);
  if (from == nullptr) return;
  // What a broken attempt to connect again says of it is no news about how its reports ended.
  if (from->connected) from->last_words = was_ended;
  from->connected = false;
  from->failure = reason.message();
}

void FleetView::refused(int replica, Time until) {
  std::lock_guard lock(mutex_);
  if (Replica* from = find(replica)) from->full_until = until;
}

FleetView::Life FleetView::life_of(const Replica& replica, Time now) const {
  if (replica.heard == Time()) return Life::kUnknown;
  // One that drains ends its reports before it has ended its answers.
  if (!replica.connected) return replica.report->draining && replica.last_words ? Life::kDraining : Life::kGone;
  if (now - replica.heard > options_.silence) return Life::kSilent;
  // Its engine does nothing, although it has work, for longer than its steps take.
  const double silence = std::chrono::duration<double>(options_.silence).count();
  if (replica.report->stalled_seconds > std::max(silence, kStuckSteps * replica.load.step_seconds()))
    return Life::kSilent;
  if (replica.report->draining) return Life::kDraining;
  return replica.report->ready ? Life::kReady : Life::kStarting;
}

FleetView::Life FleetView::life(int replica, Time now) const {
  std::lock_guard lock(mutex_);
  return life_of(at(replica), now);
}

const char* FleetView::to_string(Life life) {
  switch (life) {
    case Life::kUnknown:
      return "unknown";
    case Life::kGone:
      return "gone";
    case Life::kSilent:
      return "silent";
    case Life::kStarting:
      return "starting";
    case Life::kDraining:
      return "draining";
    case Life::kReady:
      return "ready";
  }
  return "?";
}

bool FleetView::any_ready(Time now) const {
  std::lock_guard lock(mutex_);
  return std::ranges::any_of(replicas_, [&](const auto& r) { return life_of(r.second, now) == Life::kReady; });
}

std::string FleetView::numerics(int replica) const {
  std::lock_guard lock(mutex_);
  return at(replica).report->numerics;
}

int64_t FleetView::context() const {
  std::lock_guard lock(mutex_);
  int64_t longest = 0;
  for (const auto& [number, replica] : replicas_) longest = std::max(longest, replica.report->context);
  return longest;
}

std::vector<std::string> FleetView::routers(Time now) const {
  std::lock_guard lock(mutex_);
  std::set<std::string> names;
  for (const auto& [number, replica] : replicas_)
    if (const Life life = life_of(replica, now); life == Life::kReady || life == Life::kStarting)
      names.insert(replica.report->routers.begin(), replica.report->routers.end());
  return {names.begin(), names.end()};
}

std::optional<int> FleetView::pick(const Wish& wish, Time now) {
  std::lock_guard lock(mutex_);
  std::vector<Candidate> all, full;
  const std::string& adapter = wish.request.adapter;
  for (const auto& [number, replica] : replicas_) {
    if (life_of(replica, now) != Life::kReady || std::ranges::count(wish.excluded, number) > 0) continue;
    (replica.full_until > now ? full : all)
        .push_back({.index = number,
                    .key = replica.url,
                    .load = &replica.load,
                    .is_home = placement_->is_home(adapter, replica.url)});
  }
  if (all.empty()) all = std::move(full);  // it may have room by now; else it says so
  const auto keep_if_any = [&](auto&& wanted) {
    std::vector<Candidate> kept;
    std::ranges::copy_if(all, std::back_inserter(kept), wanted);
    if (!kept.empty()) all = std::move(kept);
  };
  if (!wish.numerics.empty()) {
    const auto alike = [&](const Candidate& c) { return at(c.index).report->numerics == wish.numerics; };
    if (wish.only)
      std::erase_if(all, [&](const Candidate& c) { return !alike(c); });
    else
      keep_if_any(alike);
  }
  if (wish.wanted) {
    const auto found = std::ranges::find(all, *wish.wanted, &Candidate::index);
    if (found == all.end()) return std::nullopt;
    picker_->moved(adapter, *found);
    return found->index;
  }
  if (all.empty()) return std::nullopt;
  RoutedRequest request = wish.request;
  for (const auto& [number, replica] : replicas_)
    request.adapter_bytes = std::max(request.adapter_bytes, replica.load.adapter_bytes(adapter));
  return all[picker_->pick(request, all)].index;
}

double FleetView::predicted_output(const std::string& adapter) const {
  std::lock_guard lock(mutex_);
  const auto found = outputs_.find(adapter);
  return found == outputs_.end() ? mean_output_ : found->second;
}

StreamId FleetView::sent(int replica, const RoutedRequest& request, Time now) {
  std::lock_guard lock(mutex_);
  if (Replica* to = find(replica)) to->load.sent(next_stream_, request, now);
  return next_stream_++;
}

void FleetView::token(int replica, StreamId id, int64_t count) {
  std::lock_guard lock(mutex_);
  if (Replica* from = find(replica)) from->load.token(id, count);
}

void FleetView::ended(int replica, StreamId id, std::optional<int64_t> output) {
  std::lock_guard lock(mutex_);
  Replica* from = find(replica);
  if (from == nullptr) return;
  const std::string adapter = from->load.adapter_of(id);
  from->load.ended(id);
  if (!output) return;
  const auto tokens = static_cast<double>(*output);
  mean_output_ += kMeanWeight * (tokens - mean_output_);
  if (outputs_.size() >= kMaxForecasts && !outputs_.contains(adapter)) outputs_.clear();
  const auto [forecast, is_new] = outputs_.try_emplace(adapter, tokens);
  if (!is_new) forecast->second += kAdapterWeight * (tokens - forecast->second);
}

bool FleetView::is_base(std::string_view model) const {
  if (model.empty() || model == "base") return true;
  std::lock_guard lock(mutex_);
  return std::ranges::any_of(replicas_, [&](const auto& entry) { return entry.second.report->model == model; });
}

bool FleetView::others_know(int replica, const std::string& adapter) const {
  std::lock_guard lock(mutex_);
  return std::ranges::any_of(replicas_, [&](const auto& entry) {
    return entry.first != replica && entry.second.connected && entry.second.report->adapters.contains(adapter);
  });
}

void FleetView::count(Why why, bool in_mid_answer, bool is_inexact) {
  std::lock_guard lock(mutex_);
  if (is_inexact) ++counts_.inexact;
  switch (why) {
    case Why::kFirst:
      return;
    case Why::kLost:
      ++(in_mid_answer ? counts_.continued : counts_.retried);
      return;
    case Why::kSilent:
      ++counts_.hedged;
      return;
    case Why::kPlanned:
      ++counts_.planned;
      return;
    case Why::kDrains:
      ++counts_.moved;
      return;
  }
}

FleetView::Counts FleetView::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

std::vector<FleetView::Shown> FleetView::show(Time now) const {
  std::lock_guard lock(mutex_);
  std::vector<Shown> shown;
  for (const auto& [number, replica] : replicas_) {
    shown.push_back({.url = replica.url,
                     .failure = replica.failure,
                     .listed = replica.listed,
                     .life = life_of(replica, now),
                     .report = replica.report,
                     .own_requests = replica.load.own_requests(),
                     .step_seconds = replica.load.step_seconds(),
                     .tokens_per_second = replica.load.tokens_per_second()});
  }
  return shown;
}

FleetPicture FleetView::picture(Time now) const {
  FleetPicture picture;
  std::lock_guard lock(mutex_);
  for (const auto& [number, replica] : replicas_) {
    const Life life = life_of(replica, now);
    if (life != Life::kReady && life != Life::kDraining) continue;
    const auto position = static_cast<int>(picture.replicas.size());
    picture.replicas.push_back({.number = number,
                                .url = replica.url,
                                .takes = life == Life::kReady && replica.full_until <= now,
                                .report = replica.report,
                                .requests = replica.load.requests(),
                                .free_pages = replica.load.free_pages(),
                                .step_seconds = replica.load.step_seconds(),
                                .tokens_per_second = replica.load.tokens_per_second()});
    for (const ReplicaLoad::Owned& own : replica.load.own())
      picture.requests.push_back({.stream = own.id,
                                  .at = position,
                                  .request = *own.request,
                                  .made = own.made,
                                  .left = own.left,
                                  .age_seconds = std::chrono::duration<double>(now - own.since).count()});
  }
  // In an order of its own, so that equal fleets are planned for alike.
  std::ranges::sort(picture.requests, {}, &FleetPicture::Request::stream);
  return picture;
}

void FleetView::set_placement(std::shared_ptr<const Placement> placement) {
  std::lock_guard lock(mutex_);
  placement_ = std::move(placement);
}

std::shared_ptr<const Placement> FleetView::placement() const {
  std::lock_guard lock(mutex_);
  return placement_;
}

}  // namespace lk
