// SPDX-License-Identifier: Apache-2.0
// lorikeet bench merge: what a step costs unmerged, mixed and exclusive, and what the choosers make of it.
#include "bench_merge.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "commands.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/rng.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"
#include "lk/ops/cpu_backend.h"

namespace lk::apps {
namespace {

namespace json = boost::json;

// 8 layers of the width where a rank still matters; 150 M parameters, ten times the last-level cache of most machines.
constexpr const char* kShape =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816,
  "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "bfloat16"})";

// With one kernel thread its processor time, which other programs on the machine disturb less; otherwise the wall
// clock.
double clock_seconds(Engine& engine) {
  struct timespec time {};
  ::clock_gettime(engine.backend().num_host_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// One step that can be run again and again: it writes the same positions each time.
class FixedStep {
 public:
  // `rows` rows in `num_items` items: decoding (one row each, after 64 tokens of context) or prompt chunks.
  FixedStep(MergeBench& bench, UnifiedPool& pool, int64_t num_items, int64_t rows_each, int64_t context, double share) {
    Rng rng(3);
    const auto num_hot = static_cast<int64_t>(std::lround(share * static_cast<double>(num_items)));
    requests_.resize(static_cast<size_t>(num_items));
    tokens_.resize(requests_.size());
    pages_.resize(requests_.size());
    for (int64_t i = 0; i < num_items; ++i) {
      const auto at = static_cast<size_t>(i);
      const auto others = static_cast<int64_t>(bench.adapters.size()) - 1;
      requests_[at].adapter = bench.adapters[static_cast<size_t>(i < num_hot ? 0 : 1 + i % others)];
      requests_[at].sampling.temperature = 0;
      for (int64_t t = 0; t < context + rows_each; ++t)
        tokens_[at].push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(bench.weights->config.vocab_size))));
      requests_[at].prompt = tokens_[at];
      for (int64_t t = 0; t < context + rows_each; t += kPageTokens) pages_[at].push_back(*pool.alloc_kv());
      StepItem item{.request = &requests_[at],
                    .tokens = tokens_[at],
                    .begin = context,
                    .end = context + rows_each,
                    .block_table = pages_[at],
                    .sample = true};
      (i < num_hot ? hot_ : others_).push_back(item);
    }
  }
  double seconds(Engine& engine, bool with_hot, bool with_others, AdapterId merged) const {
    StepPlan plan{.merged = merged};
    if (with_hot) plan.items.insert(plan.items.end(), hot_.begin(), hot_.end());
    if (with_others) plan.items.insert(plan.items.end(), others_.begin(), others_.end());
    for (const StepItem& item : plan.items) plan.num_tokens += item.end - item.begin;
    const double begin = clock_seconds(engine);
    (void)engine.execute(plan);
    return clock_seconds(engine) - begin;
  }
  size_t num_hot() const { return hot_.size(); }
  size_t num_others() const { return others_.size(); }

 private:
  std::vector<Request> requests_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<std::vector<PageId>> pages_;
  std::vector<StepItem> hot_, others_;
};

// Loads every adapter and builds the hot one's merged weights; the build's result.
Result<MergeResult> prepare(MergeBench& bench, UnifiedPool& pool) {
  for (AdapterId id : bench.adapters) {
    if (!pool.begin_load(id, bench.engine->footprint(id)))
      return resource_exhausted("the pool of the benchmark is too small");
    bench.engine->start_load(id, pool.adapter_pages(id));
    for (const LoadResult& load : bench.engine->take_finished_loads(true)) {
      LK_RETURN_IF_ERROR(load.status);
      pool.finish_load(load.adapter, true);
      pool.pin(load.adapter);
    }
  }
  const AdapterId hot = bench.adapters[0];
  LK_ASSIGN_OR_RETURN(const MergeFootprint footprint, bench.engine->merge_footprint(hot));
  if (!pool.begin_merge(hot, footprint.num_pages, 0))
    return resource_exhausted("the pool of the benchmark is too small");
  bench.engine->start_merge(hot, pool.merge_pages(hot));
  for (;;) {
    const std::vector<MergeResult> results = bench.engine->take_finished_merges();
    if (!results.empty()) {
      LK_RETURN_IF_ERROR(results[0].status);
      return results[0];
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

json::object measure(const MergeBenchFlags& flags, MergeBench& bench, UnifiedPool& pool, bool prefill, double share) {
  // Prompts of 32 tokens, so that shares are exact enough.
  const FixedStep step = prefill ? FixedStep(bench, pool, flags.prefill_tokens / 32, 32, 0, share)
                                 : FixedStep(bench, pool, flags.decode_batch, 1, 64, share);
  const AdapterId hot = bench.adapters[0];
  struct Mode {
    const char* name;
    bool with_hot, with_others;
    AdapterId merged;
    std::vector<double> ms = {};
  };
  std::vector<Mode> modes = {{"unmerged", true, true, kBaseModel},
                             {"mixed", true, true, hot},
                             {"exclusive", true, false, hot},
                             {"others", false, true, kBaseModel}};
  if (step.num_others() == 0)
    std::erase_if(modes, [](const Mode& mode) { return std::string_view(mode.name) == "others"; });
  for (int sample = -1; sample < flags.samples; ++sample)  // interleaved; the first round is not counted
    for (Mode& mode : modes) {
      const double ms = step.seconds(*bench.engine, mode.with_hot, mode.with_others, mode.merged) * 1e3;
      if (sample >= 0) mode.ms.push_back(ms);
    }
  json::object out{{"shape", prefill ? "prefill" : "decode"},
                   {"share", share},
                   {"hot", step.num_hot()},
                   {"others", step.num_others()}};
  for (const Mode& mode : modes) {
    out[std::string(mode.name) + "_ms"] = median_of(mode.ms);
    out[std::string(mode.name) + "_best_ms"] = *std::min_element(mode.ms.begin(), mode.ms.end());
  }
  return out;
}

}  // namespace

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<long>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Result<MergeBench> make_merge_bench(const MergeBenchFlags& flags, int64_t rank,
                                    std::shared_ptr<const ModelWeights> weights) {
  MergeBench bench{.weights = std::move(weights)};
  LK_ASSIGN_OR_RETURN(auto backend, make_cpu_backend({.num_threads = flags.threads}));
  if (!bench.weights) {
    std::string text = kShape;
    if (!flags.dummy.empty()) {
      LK_ASSIGN_OR_RETURN(text, read_file(flags.dummy));
    }
    LK_ASSIGN_OR_RETURN(const ModelConfig config,
                        parse_model_config(text, flags.dummy.empty() ? "built-in shape" : flags.dummy));
    bench.weights = make_dummy_weights(config, DType::kBF16, flags.seed, *backend);
  }
  const ModelConfig& config = bench.weights->config;
  LK_ASSIGN_OR_RETURN(bench.engine,
                      Engine::create({.max_step_tokens = std::max<int64_t>(flags.prefill_tokens, 512),
                                      .memory_bytes = 3 * bench.weights->packed_bytes + (int64_t{1} << 30)},
                                     bench.weights, std::move(backend)));
  const std::string root =
      !flags.adapter_dir.empty()
          ? flags.adapter_dir
          : (std::filesystem::temp_directory_path() /
             fmt::format("lorikeet-merge-{}x{}x{}", config.num_layers, config.hidden_dim, flags.b_scale))
                .string();
  for (int64_t i = 0; i < flags.adapters; ++i) {
    const std::string directory = join_path(root, fmt::format("a{}-r{}", i, rank));
    if (!file_exists(join_path(directory, kAdapterWeightsFile))) {
      LK_RETURN_IF_ERROR(make_directories(root));
      LK_RETURN_IF_ERROR(init_adapter(
          config, {.rank = rank, .seed = static_cast<uint64_t>(i), .b_scale = flags.b_scale, .dtype = DType::kBF16},
          directory));
    }
    LK_ASSIGN_OR_RETURN(auto adapter, load_adapter(fmt::format("a{}", i), directory, config, nullptr));
    LK_ASSIGN_OR_RETURN(auto prepared, bench.engine->prepare_adapter(std::move(adapter)));
    bench.adapters.push_back(bench.engine->register_adapter(std::move(prepared)));
  }
  return bench;
}

Result<json::array> bench_merge_modes(const MergeBenchFlags& flags) {
  json::array rows;
  std::shared_ptr<const ModelWeights> weights;
  fmt::print(
      "{:>5} {:<8} {:>6} {:>10} {:>10} {:>10} {:>10}   ms per step (medians), loss and build of the merged "
      "weights\n",
      "rank", "shape", "share", "unmerged", "mixed", "exclusive", "others");
  for (int64_t rank : flags.ranks) {
    LK_ASSIGN_OR_RETURN(MergeBench bench, make_merge_bench(flags, rank, weights));
    weights = bench.weights;
    UnifiedPool pool(bench.engine->num_pages());
    LK_ASSIGN_OR_RETURN(const MergeResult built, prepare(bench, pool));
    for (const bool prefill : {true, false}) {
      for (double share : flags.shares) {
        json::object row = measure(flags, bench, pool, prefill, share);
        row["rank"] = rank;
        row["build_ms"] = static_cast<double>(built.build_time) / 1e3;
        row["rounding_loss"] = built.rounding_loss;
        row["worst_rounding_loss"] = built.worst_rounding_loss;
        const auto ms = [&](const char* mode) { return row.contains(mode) ? row[mode].to_number<double>() : 0.0; };
        fmt::print("{:>5} {:<8} {:>6.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}   loss {:.4f}, build {:.0f} ms\n",
                   rank, prefill ? "prefill" : "decode", share, ms("unmerged_ms"), ms("mixed_ms"), ms("exclusive_ms"),
                   ms("others_ms"), built.rounding_loss, static_cast<double>(built.build_time) / 1e3);
        std::fflush(stdout);
        rows.push_back(std::move(row));
      }
    }
    bench.engine->drop_merge(bench.adapters[0]);
  }
  return rows;
}

void add_bench_merge(CLI::App& bench, int& exit_code) {
  auto flags = std::make_shared<MergeBenchFlags>();
  CLI::App* command =
      bench.add_subcommand("merge", "Dynamic merging: step times of each mode, runs under each chooser");
  command->add_option("--dummy", flags->dummy,
                      "config.json: seeded random weights of this shape (default: 150 M parameters)");
  command->add_option("--rank", flags->ranks, "ranks")->delimiter(',')->capture_default_str();
  command->add_option("--share", flags->shares, "shares of the hot adapter")->delimiter(',')->capture_default_str();
  command->add_option("--adapters", flags->adapters, "adapters in all; the first is the hot one")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();
  command->add_option("--decode-batch", flags->decode_batch, "requests in a decoding step")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  command->add_option("--prefill-tokens", flags->prefill_tokens, "rows of a prefill step")
      ->check(CLI::Range(32, 4096))
      ->capture_default_str();
  command->add_option("--part", flags->part, "what to measure")
      ->check(CLI::IsMember({"all", "modes", "choosers"}))
      ->capture_default_str();
  command->add_option("--requests", flags->requests, "requests of a run under a chooser")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--samples", flags->samples, "steps per mode, interleaved; medians are shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--repeat", flags->repeat,
                   "most rounds of a cell, in each of which every chooser runs once with the same requests")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--spread", flags->spread,
                   "fewer rounds are enough when the ratio of cost to the better of never and always has this standard "
                   "error (processor time)")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--chooser", flags->choosers, "choosers to compare")
      ->delimiter(',')
      ->check(CLI::IsMember({"never", "always", "exclusive", "dlora", "cost"}))
      ->capture_default_str();
  command->add_option("--shape", flags->shape, "of the requests under a chooser")
      ->check(CLI::IsMember({"both", "prefill", "decode"}))
      ->capture_default_str();
  command->add_option("--b-scale", flags->b_scale, "size of the random adapters' B")->capture_default_str();
  command->add_option("--threads", flags->threads, "0 = every core")->capture_default_str();
  command->add_option("--adapter-dir", flags->adapter_dir,
                      "where the random adapters are kept (default: a temporary directory)");
  command->add_option("--seed", flags->seed, "of weights and prompts")->capture_default_str();
  command->add_option("--json", flags->json, "also write the figures to this file");
  command->callback([flags, &exit_code] {
    json::object out;
    const auto run = [&](const char* part, auto function) -> Status {
      if (flags->part != "all" && flags->part != part) return Status();
      Result<json::array> rows = function(*flags);
      if (!rows.ok()) return rows.status();
      out[part] = std::move(*rows);
      return Status();
    };
    Status status = run("modes", bench_merge_modes);
    if (status.ok()) status = run("choosers", bench_merge_choosers);
    if (status.ok() && !flags->json.empty()) status = write_file_atomic(flags->json, json_text(out) + "\n");
    if (!status.ok()) exit_code = fail(status);
  });
}

}  // namespace lk::apps
