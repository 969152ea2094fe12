// SPDX-License-Identifier: Apache-2.0
// EngineHarness: a golden model with several of its adapters in one engine under one scheduler, as the server has them.
#pragma once

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/seeded_executor.h"
#include "lk/engine/engine.h"
#include "lk/merging/controller.h"
#include "lk/sched/scheduler.h"
#include "lk/sim/merging.h"
#include "testing/backends.h"
#include "testing/golden.h"

namespace lk::testing {

struct Output {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprob_bits;  // of output and prompt tokens
  bool operator==(const Output&) const = default;
};
inline void PrintTo(const Output& output, std::ostream* out) {
  *out << fmt::format("{} {:x}", fmt::join(output.tokens, " "), fmt::join(output.logprob_bits, " "));
}

struct Setup {
  std::string model;
  std::vector<std::string> adapters;
  DType act;
  std::vector<size_t> merged = {};  // adapters that may be merged: their own last bits may change, nobody else's
  std::optional<CpuIsa> isa = {};   // default: the best of this machine
  int num_ranks = 1;
};

class EngineHarness {
 public:
  // With a seed its loads and merges end when the seed says so (seeded_executor.h), else when they do.
  EngineHarness(const Setup& setup, const SchedulerOptions& options, int64_t num_pages, int num_threads,
                std::optional<uint64_t> seed = {}) {
    std::vector<RankTeam::Setup> ranks;
    for (int rank = 0; rank < setup.num_ranks; ++rank) {
      RankTeam::Setup& own = ranks.emplace_back();
      own.backend = make_backend({.num_threads = num_threads, .isa = setup.isa});
      own.weights = rank == 0 ? load_weights(kGoldenDir + "models/" + setup.model, setup.act, *own.backend, nullptr,
                                             setup.num_ranks)
                                    .value()
                              : load_rank(*ranks[0].weights, rank, *own.backend);
    }
    const std::shared_ptr<const ModelWeights> weights = ranks[0].weights;
    const int64_t page = weights->shape.num_layers * 2 * kPageTokens * weights->shape.kv_dim() * dtype_bytes(setup.act);
    engine =
        Engine::create({.max_step_tokens = options.max_step_tokens, .memory_bytes = num_pages * page}, std::move(ranks))
            .value();
    pool = std::make_unique<UnifiedPool>(engine->num_pages());
    if (seed) seeded = std::make_unique<SeededExecutor>(*engine, *seed);
    Executor& executor = seed ? static_cast<Executor&>(*seeded) : *engine;
    if (!setup.merged.empty())
      merging = std::make_unique<MergeController>(sim::make_chooser(sim::Merging::kAlways), *pool, executor);
    scheduler = std::make_unique<Scheduler>(options, *pool, executor, merging.get());
    // Host memory for the largest or a third of them: what is dropped is read from disk again and again.
    const auto directory = [&](const std::string& name) {
      return kGoldenDir + "adapters/" + setup.model + "__" + name;
    };
    int64_t bytes = 0, largest = 0;
    for (const std::string& name : setup.adapters) {
      const auto own =
          host_bytes_of(*load_adapter(name, directory(name), weights->config, weights->checkpoint.get()).value());
      bytes += own, largest = std::max(largest, own);
    }
    host = HostTier::create(std::max(bytes / 3, largest));
    for (const std::string& name : setup.adapters) {
      auto source = std::make_shared<AdapterDirectory>(name, directory(name), engine->weights().config,
                                                       weights->checkpoint, AdapterLoadOptions{.copy_file = true});
      ids.push_back(engine->register_adapter(engine->prepare_adapter(host->add(std::move(source), 0).value()).value()));
    }
    for (size_t adapter : setup.merged) merging->allow(ids[adapter]);
  }
  int64_t largest_adapter() const {
    int64_t pages = 0;
    for (AdapterId id : ids) pages = std::max(pages, engine->footprint(id));
    return pages;
  }
  // Of the largest merged copy of these, twice over: it may take half of the pool.
  int64_t merged_pages(const std::vector<size_t>& merged) const {
    int64_t pages = 0;
    for (size_t adapter : merged) pages = std::max(pages, 2 * engine->merge_footprint(ids[adapter]).value().num_pages);
    return pages;
  }
  void take_events(std::map<RequestId, Output>& outputs) {
    for (const RequestEvent& event : scheduler->step()) {
      Output& output = outputs[event.id];
      if (event.has_token) {
        output.tokens.push_back(event.token.token);
        output.logprob_bits.push_back(std::bit_cast<uint32_t>(event.token.logprob));
      }
      for (const TokenLogprob& entry : event.prompt_logprobs)
        output.logprob_bits.push_back(std::bit_cast<uint32_t>(entry.logprob));
    }
    pool->check_integrity();
  }
  std::shared_ptr<HostTier> host;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<UnifiedPool> pool;
  std::unique_ptr<SeededExecutor> seeded;
  std::unique_ptr<MergeController> merging;  // null: nothing is merged
  std::unique_ptr<Scheduler> scheduler;
  std::vector<AdapterId> ids;
};

}  // namespace lk::testing
