// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/merger.h"

#include "lk/base/guarded.h"
#include "lk/lora/shard.h"

#include <time.h>

#include <chrono>

namespace lk {
namespace {

Micros thread_cpu_time() {
  struct timespec time {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<Micros>(time.tv_sec) * 1000000 + time.tv_nsec / 1000;
}

}  // namespace

void Merger::start(Merge merge) {
  LK_CHECK(!has(merge.adapter), "adapter {} is merged or being merged already", merge.adapter);
  const auto started =
      std::make_shared<Started>(Started{.merge = std::move(merge), .begin = std::chrono::steady_clock::now()});
  started_.emplace(started->merge.adapter, started);
  if (std::shared_ptr<const Adapter> content = started->merge.host->try_get())
    return build(started, std::move(content));
  started->read =
      reader_.read(started->merge.host, Workshop::Priority::kIdle,
                   [this, weak = std::weak_ptr(started)](AdapterReader::Content content) -> Workshop::Finish {
                     return [this, content = std::move(content), weak] {
                       if (const std::shared_ptr<Started> wanted = weak.lock()) build(wanted, content);
                     };
                   });
}

void Merger::build(const std::shared_ptr<Started>& started, AdapterReader::Content content) {
  if (!content.ok()) {
    done_.push_back({.result = {.adapter = started->merge.adapter, .status = content.status()}, .weights = {}});
    return;
  }
  started->job = workshop_.submit(
      kMergerBench, [this, started, content = std::move(content).value()](const std::stop_token& stop) {
        return Workshop::Finish([this, done = run_build(*started, content, stop), weak = std::weak_ptr(started)] {
          if (!weak.expired()) done_.push_back(done);
        });
      });
}

std::vector<Merger::Done> Merger::take_finished() {
  workshop_.collect();
  return std::exchange(done_, {});
}

void Merger::drop(AdapterId adapter) {
  const auto it = started_.find(adapter);
  if (it == started_.end()) return;
  const std::shared_ptr<Started> started = std::move(it->second);
  started_.erase(it);
  // A read goes on without us, however long it takes: it does not touch the pages.
  reader_.cancel(started->read);
  if (!workshop_.cancel(started->job)) workshop_.wait_until_idle(started->job);
  std::erase_if(done_, [&](const Done& done) { return done.result.adapter == adapter; });
}

Result<std::vector<std::shared_ptr<const MergedWeights>>> Merger::build_ranks(
    const Merge& merge, const std::shared_ptr<const Adapter>& content, const std::function<bool()>& stop,
    RoundingLoss* loss) const {
  std::vector<std::shared_ptr<const Adapter>> shards;
  std::vector<MergeLayout::Target> targets;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const RankMemory& rank = ranks_[r];
    shards.push_back(shard_of(content, rank.weights->rank));
    targets.push_back({.layout = *merge.layouts[r],
                       .shard = *shards.back(),
                       .base = *rank.weights,
                       .pool_base = rank.pool_base,
                       .backend = *rank.backend});
  }
  return MergeLayout::build(targets, merge.pages, stop, loss);
}

// On a thread of the workshop.
Merger::Done Merger::run_build(const Started& started, const std::shared_ptr<const Adapter>& content,
                               const std::stop_token& stop) {
  const Merge& merge = started.merge;
  const Micros cpu_begin = thread_cpu_time();
  const std::function<bool()> stopped = [&] { return stop.stop_requested(); };
  RoundingLoss loss;
  Result<std::vector<std::shared_ptr<const MergedWeights>>> weights =
      guarded("a merge", [&] { return build_ranks(merge, content, stopped, &loss); });
  Done done;
  done.result = {.adapter = merge.adapter,
                 .status = weights.status(),
                 .build_time = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() -
                                                                                     started.begin)
                                   .count(),
                 .engine_time = (thread_cpu_time() - cpu_begin) / ranks_[0].backend->num_host_threads(),
                 .build_cost_rows = merge.build_cost_rows,
                 .rounding_loss = loss.total,
                 .worst_rounding_loss = loss.worst,
                 .worst_module = loss.worst_module};
  if (weights.ok()) done.weights = std::move(*weights);
  return done;
}

}  // namespace lk
