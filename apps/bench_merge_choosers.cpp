// SPDX-License-Identifier: Apache-2.0
// lorikeet bench merge, second part: the same closed-loop workload under each chooser on the real engine.
#include <time.h>

#include <algorithm>
#include <chrono>

#include "bench_merge.h"
#include "lk/base/rng.h"
#include "lk/sched/scheduler.h"

namespace lk::apps {
namespace {

namespace json = boost::json;

constexpr const char* kChoosers[] = {"never", "always", "exclusive", "dlora", "cost"};

double process_cpu_seconds() {
  struct timespec time {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

struct Shape {
  const char* name;
  int64_t prompt, output, requests;
};

struct RunResult {
  double wall_s = 0, cpu_s = 0, longest_gap_s = 0;
  int64_t tokens = 0;
  MergeStats stats;
};

Result<RunResult> run_once(const MergeBenchFlags& flags, MergeBench& bench, const Shape& shape, double share, const char* chooser, uint64_t seed) {
  using Clock = std::chrono::steady_clock;
  UnifiedPool pool(bench.engine->num_pages());
  Scheduler scheduler({.max_step_tokens = flags.prefill_tokens, .max_running = flags.decode_batch, .prefix_cache = false}, pool, *bench.engine);
  scheduler.enable_merging({.max_pool_share = 0.8}, make_merge_chooser(chooser));
  for (AdapterId id : bench.adapters) scheduler.merging()->set_allowed(id, true);
  Rng rng(seed);
  RunResult result;
  std::unordered_map<RequestId, Clock::time_point> last;
  int64_t submitted = 0, finished = 0;
  const auto begin = Clock::now();
  const double cpu_begin = process_cpu_seconds();
  while (finished < shape.requests) {
    // A closed loop: half as many waiting as run.
    while (submitted < shape.requests && submitted - finished < flags.decode_batch + flags.decode_batch / 2) {
      const auto others = static_cast<uint64_t>(bench.adapters.size()) - 1;
      Request request{.id = submitted++, .adapter = bench.adapters[rng.uniform() < share ? 0 : 1 + rng.below(others)], .max_tokens = shape.output};
      for (int64_t i = 0; i < shape.prompt; ++i)
        request.prompt.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(bench.weights->config.vocab_size))));
      request.sampling.temperature = 0;
      result.tokens += shape.prompt + shape.output;
      LK_RETURN_IF_ERROR(scheduler.submit(std::move(request)));
    }
    const std::vector<RequestEvent> events = scheduler.step();
    const auto now = Clock::now();
    for (const RequestEvent& event : events) {
      if (const auto it = last.find(event.id); it != last.end())
        result.longest_gap_s = std::max(result.longest_gap_s, std::chrono::duration<double>(now - it->second).count());
      last[event.id] = now;
      if (event.finish == FinishReason::kNone) continue;
      if (event.finish == FinishReason::kError) return event.error;
      ++finished;
      last.erase(event.id);
    }
  }
  result.wall_s = std::chrono::duration<double>(Clock::now() - begin).count();
  result.cpu_s = process_cpu_seconds() - cpu_begin;
  result.stats = scheduler.merging()->stats();
  return result;
}

}  // namespace

Result<json::array> bench_merge_choosers(const MergeBenchFlags& flags) {
  const Shape shapes[] = {{"prefill", 192, 8, flags.requests}, {"decode", 16, 96, flags.requests}};
  json::array rows;
  std::shared_ptr<const ModelWeights> weights;
  fmt::print("{:>5} {:<8} {:>6} {:<10} {:>9} {:>9} {:>8} {:>9} {:>7} {:>7}   medians of {} runs\n", "rank", "shape", "share", "chooser", "wall s",
             "cpu s", "tok/s", "gap ms", "builds", "merged", flags.repeat);
  for (int64_t rank : flags.ranks) {
    for (const Shape& shape : shapes) {
      for (double share : flags.shares) {
        LK_ASSIGN_OR_RETURN(MergeBench bench, make_merge_bench(flags, rank, weights));
        weights = bench.weights;
        std::map<std::string, std::vector<RunResult>> results;
        for (int repeat = 0; repeat < flags.repeat; ++repeat)  // interleaved
          for (const char* chooser : kChoosers) {
            LK_ASSIGN_OR_RETURN(RunResult result, run_once(flags, bench, shape, share, chooser, flags.seed + static_cast<uint64_t>(repeat)));
            results[chooser].push_back(result);
          }
        for (const char* chooser : kChoosers) {
          const std::vector<RunResult>& runs = results[chooser];
          const auto median = [&](auto value) {
            std::vector<double> values;
            for (const RunResult& run : runs) values.push_back(value(run));
            return median_of(values);
          };
          const double wall = median([](const RunResult& r) { return r.wall_s; }), cpu = median([](const RunResult& r) { return r.cpu_s; });
          const double gap = median([](const RunResult& r) { return r.longest_gap_s * 1e3; });
          const RunResult& last = runs.back();
          fmt::print("{:>5} {:<8} {:>6.2f} {:<10} {:>9.2f} {:>9.2f} {:>8.0f} {:>9.0f} {:>7} {:>7}\n", rank, shape.name, share, chooser, wall, cpu,
                     static_cast<double>(last.tokens) / wall, gap, last.stats.num_builds, last.stats.num_merged_steps);
          std::fflush(stdout);
          rows.push_back(json::object{{"rank", rank}, {"shape", shape.name}, {"share", share}, {"chooser", chooser}, {"wall_s", wall}, {"cpu_s", cpu},
                                      {"tokens", last.tokens}, {"longest_gap_ms", gap}, {"builds", last.stats.num_builds},
                                      {"merged_steps", last.stats.num_merged_steps}, {"exclusive_steps", last.stats.num_exclusive_steps}});
        }
      }
    }
  }
  return rows;
}

}  // namespace lk::apps
