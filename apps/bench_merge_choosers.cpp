// SPDX-License-Identifier: Apache-2.0
// lorikeet bench merge, second part: the same closed-loop workload under each chooser on the real engine.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "bench_merge.h"
#include "lk/base/rng.h"
#include "lk/merging/controller.h"
#include "lk/sched/scheduler.h"
#include "lk/sim/merging.h"

namespace lk::apps {
namespace {

namespace json = boost::json;

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

Result<RunResult> run_once(const MergeBenchFlags& flags, MergeBench& bench, const Shape& shape, double share,
                           const char* chooser, uint64_t seed) {
  using Clock = std::chrono::steady_clock;
  UnifiedPool pool(bench.engine->num_pages());
  std::unique_ptr<MergeController> merging;
  if (std::unique_ptr<MergeChooser> made = sim::make_chooser(sim::parse_merging(chooser).value()))
    merging = std::make_unique<MergeController>(std::move(made), pool, *bench.engine);
  for (AdapterId id : bench.adapters)
    if (merging) merging->allow(id);
  Scheduler scheduler(
      {.max_step_tokens = flags.prefill_tokens, .max_running = flags.decode_batch, .prefix_cache = false}, pool,
      *bench.engine, merging.get());
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
      Request request{.id = submitted++,
                      .adapter = bench.adapters[rng.uniform() < share ? 0 : 1 + rng.below(others)],
                      .max_tokens = shape.output};
      for (int64_t i = 0; i < shape.prompt; ++i)
        request.prompt.push_back(
            static_cast<int32_t>(rng.below(static_cast<uint64_t>(bench.weights->config.vocab_size))));
      request.sampling.temperature = 0;
      result.tokens += shape.prompt + shape.output;
      LK_RETURN_IF_ERROR(scheduler.submit(std::move(request)));
    }
    const std::span<RequestEvent> events = scheduler.step();
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
  if (merging) result.stats = merging->stats();
  return result;
}

// Ratio of two choosers' times round by round: what slowed a whole round is in both.
struct Ratio {
  double median = 0, error = 0;  // standard error of the median, from the quartiles
  static Ratio of(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const auto n = static_cast<double>(values.size());
    const auto quartile = [&](double q) { return values[static_cast<size_t>(q * (n - 1) + 0.5)]; };
    return {median_of(values), 1.253 * (quartile(0.75) - quartile(0.25)) / 1.349 / std::sqrt(n)};
  }
};

// The runs of one cell: every chooser once a round, in an order that moves on, with the same requests.
class Rounds {
 public:
  explicit Rounds(const MergeBenchFlags& flags) : flags_(flags) {}
  Status run(MergeBench& bench, const Shape& shape, double share) {
    const Shape warm{shape.name, shape.prompt, shape.output, std::min<int64_t>(shape.requests, flags_.decode_batch)};
    LK_RETURN_IF_ERROR(run_once(flags_, bench, warm, share, "never", flags_.seed).status());
    for (int round = 0; round < flags_.repeat && (round < kLeastRounds || error() > flags_.spread); ++round)
      for (size_t i = 0; i < flags_.choosers.size(); ++i) {
        const std::string& chooser = flags_.choosers[(i + static_cast<size_t>(round)) % flags_.choosers.size()];
        LK_ASSIGN_OR_RETURN(RunResult result, run_once(flags_, bench, shape, share, chooser.c_str(),
                                                       flags_.seed + static_cast<uint64_t>(round)));
        runs_[chooser].push_back(result);
      }
    return Status();
  }
  const std::vector<RunResult>& of(const std::string& chooser) const { return runs_.at(chooser); }
  double median(const std::string& chooser, double RunResult::*field) const {
    std::vector<double> values;
    for (const RunResult& run : of(chooser)) values.push_back(run.*field);
    return median_of(values);
  }
  // Time of the better pure policy / time of `chooser`: above 1 it is ahead.
  Ratio gain(const std::string& chooser, double RunResult::*field) const {
    std::string better;
    for (const char* pure : {"never", "always"})
      if (runs_.contains(pure) && (better.empty() || median(pure, field) < median(better, field))) better = pure;
    if (better.empty()) return {};
    std::vector<double> values;
    for (size_t i = 0; i < of(chooser).size(); ++i) values.push_back(of(better)[i].*field / (of(chooser)[i].*field));
    return Ratio::of(values);
  }

 private:
  double error() const { return runs_.contains("cost") ? gain("cost", &RunResult::cpu_s).error : 1; }
  static constexpr int kLeastRounds = 3;
  const MergeBenchFlags& flags_;
  std::map<std::string, std::vector<RunResult>> runs_;
};

}  // namespace

Result<json::array> bench_merge_choosers(const MergeBenchFlags& flags) {
  const Shape shapes[] = {{"prefill", 192, 8, flags.requests}, {"decode", 16, 96, flags.requests}};
  json::array rows;
  std::shared_ptr<const ModelWeights> weights;
  fmt::print(
      "{:>5} {:<8} {:>6} {:<10} {:>7} {:>8} {:>8} {:>16} {:>16} {:>7} {:>7} {:>7}   medians; ahead: the better of "
      "never and always / it, round by round\n",
      "rank", "shape", "share", "chooser", "rounds", "wall s", "cpu s", "ahead, wall", "ahead, cpu", "gap ms", "builds",
      "merged");
  for (int64_t rank : flags.ranks) {
    for (const Shape& shape : shapes) {
      if (flags.shape != "both" && flags.shape != shape.name) continue;
      for (double share : flags.shares) {
        LK_ASSIGN_OR_RETURN(MergeBench bench, make_merge_bench(flags, rank, weights));
        weights = bench.weights;
        Rounds rounds(flags);
        LK_RETURN_IF_ERROR(rounds.run(bench, shape, share));
        for (const std::string& chooser : flags.choosers) {
          const RunResult& last = rounds.of(chooser).back();
          const double wall = rounds.median(chooser, &RunResult::wall_s),
                       cpu = rounds.median(chooser, &RunResult::cpu_s);
          const double gap = 1e3 * rounds.median(chooser, &RunResult::longest_gap_s);
          const Ratio ahead_wall = rounds.gain(chooser, &RunResult::wall_s),
                      ahead_cpu = rounds.gain(chooser, &RunResult::cpu_s);
          fmt::print(
              "{:>5} {:<8} {:>6.2f} {:<10} {:>7} {:>8.2f} {:>8.2f} {:>7.3f} +- {:>5.3f} {:>7.3f} +- {:>5.3f} {:>7.0f} "
              "{:>7} {:>7}\n",
              rank, shape.name, share, chooser, rounds.of(chooser).size(), wall, cpu, ahead_wall.median,
              ahead_wall.error, ahead_cpu.median, ahead_cpu.error, gap, last.stats.num_builds,
              last.stats.num_merged_steps);
          std::fflush(stdout);
          rows.push_back(json::object{{"rank", rank},
                                      {"shape", shape.name},
                                      {"share", share},
                                      {"chooser", chooser},
                                      {"rounds", rounds.of(chooser).size()},
                                      {"wall_s", wall},
                                      {"cpu_s", cpu},
                                      {"ahead_wall", ahead_wall.median},
                                      {"ahead_wall_error", ahead_wall.error},
                                      {"ahead_cpu", ahead_cpu.median},
                                      {"ahead_cpu_error", ahead_cpu.error},
                                      {"tokens", last.tokens},
                                      {"longest_gap_ms", gap},
                                      {"builds", last.stats.num_builds},
                                      {"merged_steps", last.stats.num_merged_steps},
                                      {"exclusive_steps", last.stats.num_exclusive_steps}});
        }
      }
    }
  }
  return rows;
}

}  // namespace lk::apps
