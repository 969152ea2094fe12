// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/relay.h"

#include <algorithm>

namespace lk {
namespace {

using namespace std::chrono_literals;

// Replicas that are asked in vain, without a token in between, before an answer is given up.
constexpr size_t kMostTries = 4;
// How long an answer that has begun waits for any replica that could go on with it.
constexpr auto kPatience = 30s;
constexpr auto kRetryInterval = 250ms;  // meanwhile
// A source whose replica shows no sign of life is silent after this long.
constexpr auto kSilence = 1s;
// One whose replica lives may only wait its turn there; nobody's turn takes this long, and so many of its usual gaps.
constexpr auto kStuck = 10s;
constexpr double kStuckGaps = 10;
constexpr double kGapWeight = 0.1;

}  // namespace

Relay::Source* Relay::find(SourceId id) {
  const auto found = std::ranges::find(sources_, id, &Source::id);
  return found == sources_.end() ? nullptr : &*found;
}

const Relay::Source* Relay::source(SourceId id) const { return const_cast<Relay*>(this)->find(id); }

void Relay::start(const RoutedRequest& request, Time now) {
  request_ = request;
  request_.can_move = options_.streams;
  if (!ask(Why::kFirst, now)) end(&Host::give_up);
}

bool Relay::move(StreamId stream, int replica, Time now) {
  if (over_ || !options_.streams || sources_.size() != 1) return false;
  const Source from = sources_.front();
  if (from.stream != stream || from.replica == replica) return false;
  ++request_.moves;
  if (!ask(Why::kPlanned, now, replica)) {
    --request_.moves;
    return false;
  }
  // What has given nothing has nothing to go on with meanwhile.
  if (!from.gave) drop(from.id);
  return true;
}

bool Relay::ask(Why why, Time now, std::optional<int> planned) {
  std::vector<int> excluded = tried_;
  for (const Source& source : sources_) excluded.push_back(source.replica);
  const bool resumes = !log_.choices().empty();
  const std::optional<int> replica =
      fleet_.pick({.request = request_,
                   .excluded = excluded,
                   .wanted = planned,
                   .numerics = resumes ? std::string_view(numerics_) : std::string_view(),
                   .only = options_.exact_only || planned},
                  now);
  if (!replica) return false;
  const Source source{.id = next_id_++,
                      .replica = *replica,
                      .numerics = fleet_.numerics(*replica),
                      .stream = fleet_.sent(*replica, request_, now),
                      .resumes = resumes,
                      .heard = now};
  sources_.push_back(source);
  fleet_.count(why, resumes, resumes && source.numerics != numerics_);
  host_.send(source, why);
  return true;
}

void Relay::heard(SourceId id, Time now) {
  if (Source* source = find(id)) source->heard = now;
}

void Relay::group(SourceId id, std::string_view events, const AnswerCommit& commit, Time now) {
  Source* source = find(id);
  if (source == nullptr || over_) return;
  source->heard = now;
  const AnswerLog::Verdict verdict = log_.take(commit);
  if (verdict == AnswerLog::Verdict::kKnown) return;
  if (verdict != AnswerLog::Verdict::kNews) {
    ++num_mismatches_;
    return lost(id, now);
  }
  if (last_news_ != Time()) {
    const double gap = std::chrono::duration<double>(now - last_news_).count();
    gap_ = gap_ == 0 ? gap : gap_ + kGapWeight * (gap - gap_);
  }
  last_news_ = now;
  trouble_since_ = {};
  if (id > last_tried_) tried_.clear();
  if (!std::exchange(begun_, true)) numerics_ = source->numerics;
  source->gave = true;
  fleet_.token(source->replica, source->stream, static_cast<int64_t>(commit.tokens.size()));
  host_.show(events, *source);
  if (log_.whole()) {
    drop(id, log_.num_tokens());
    return end(&Host::finish);
  }
  // The one that was asked last has caught up: the others are not needed.
  if (id == sources_.back().id) drop_others(id);
}

void Relay::lost(SourceId id, Time now, bool is_final) {
  const Source* source = find(id);
  if (source == nullptr || over_) return;
  tried_.push_back(source->replica);
  last_tried_ = std::max(last_tried_, id);
  drop(id);
  // Others that are left go on alone.
  if (sources_.empty()) fail_over(now, is_final);
}

void Relay::whole(SourceId id) {
  if (find(id) == nullptr || over_) return;
  drop(id);
  end(&Host::finish);
}

void Relay::fail_over(Time now, bool is_final) {
  if (trouble_since_ == Time()) trouble_since_ = now;
  if (tried_.size() < kMostTries && ask(Why::kLost, now)) return;
  // An answer that has begun is worth waiting for: tick() looks again.
  if (begun_ && !is_final) return;
  end(&Host::give_up);
}

void Relay::drop(SourceId id, std::optional<int64_t> output) {
  const auto found = std::ranges::find(sources_, id, &Source::id);
  if (found == sources_.end()) return;
  fleet_.ended(found->replica, found->stream, output);
  sources_.erase(found);
  host_.cancel(id);
}

void Relay::drop_others(SourceId id) {
  const std::vector<Source> sources = sources_;
  for (const Source& other : sources)
    if (other.id != id) drop(other.id);
}

void Relay::end(void (Host::*how)()) {
  over_ = true;
  drop_others(0);
  (host_.*how)();
}

void Relay::close() {
  over_ = true;
  drop_others(0);
}

void Relay::tick(Time now) {
  if (over_) return;
  if (sources_.empty()) {
    if (now - trouble_since_ > kPatience) return end(&Host::give_up);
    if (now < next_try_) return;
    next_try_ = now + kRetryInterval;
    tried_.clear();  // they may be back
    (void)ask(Why::kLost, now);
    return;
  }
  // While anybody gives a sign of life, it is waited for.
  if (std::ranges::any_of(sources_, [&](const Source& source) { return !is_silent(source, now); })) {
    const bool drains = sources_.size() == 1 && options_.streams && sources_.front().gave &&
                        fleet_.life(sources_.front().replica, now) == FleetView::Life::kDraining;
    if (!drains || now < next_try_) return;
    next_try_ = now + kRetryInterval;
    (void)ask(Why::kDrains, now);
    return;
  }
  if (now < next_try_) return;
  next_try_ = now + kRetryInterval;
  if (sources_.size() > 1) drop(sources_.front().id);
  (void)ask(Why::kSilent, now);
}

bool Relay::is_silent(const Source& source, Time now) const {
  const FleetView::Life life = fleet_.life(source.replica, now);
  if (life == FleetView::Life::kSilent || life == FleetView::Life::kGone) return now - source.heard > kSilence;
  if (!options_.streams || !source.gave) return false;  // before the first token silence is work
  return now - source.heard > std::max<std::chrono::steady_clock::duration>(
                                  kStuck, std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                              std::chrono::duration<double>(kStuckGaps * gap_)));
}

}  // namespace lk
