// SPDX-License-Identifier: Apache-2.0
// lorikeet bench train: optimiser steps of several jobs over one base, beside the limit that the frozen products set: 4
// P FLOP a token (forward and the input's gradient), P being the weights of all linears and of the head.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>

#include <boost/json.hpp>

#include "commands.h"
#include "lk/base/json_text.h"
#include "lk/base/rng.h"
#include "lk/kernels/bench.h"
#include "lk/lora_tools/initial.h"
#include "lk/ops/cpu_backend.h"
#include "lk/train/train_pass.h"

namespace lk::apps {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

struct TrainBenchFlags {
  std::string dummy, dtype = "bf16", targets = "all", checkpointing = "none", json, kind = "lora";
  int64_t tokens = 2048, sample_tokens = 512, rank = 16;
  std::vector<int64_t> jobs{1};
  bool apart = false;
  int threads = 0, repeat = 3;
};

struct Measured {
  int64_t jobs = 0;
  bool apart = false;
  std::vector<double> seconds, fractions;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// FLOP of one token through all linears and the head.
double token_flops(const ModelConfig& c) {
  double weights = static_cast<double>(c.hidden_dim) * static_cast<double>(c.vocab_size);
  for (int p = 0; p < kNumProjs; ++p)
    weights += static_cast<double>(c.num_layers) * static_cast<double>(in_dim(static_cast<Proj>(p), c)) *
               static_cast<double>(out_dim(static_cast<Proj>(p), c));
  return 2 * weights;
}

Adapter random_start(const ModelConfig& c, const TrainBenchFlags& flags, const std::vector<std::string>& targets,
                     uint64_t seed) {
  Adapter adapter;
  adapter.layers.resize(static_cast<size_t>(c.num_layers));
  const auto draw = [&](std::initializer_list<int64_t> shape, double bound) {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    Buffer buffer(n * 4);
    const uint64_t own = mix64(seed + adapter.owned.size());
    for (int64_t i = 0; i < n; ++i)
      buffer.as<float>()[i] = static_cast<float>(bound * (2 * random_uniform(own, static_cast<uint64_t>(i)) - 1));
    const TensorView view(buffer.data(), DType::kF32, shape);
    adapter.owned.push_back(std::move(buffer));
    return view;
  };
  for (auto& layer : adapter.layers) {
    for (int p = 0; p < kNumProjs; ++p) {
      const Proj proj = static_cast<Proj>(p);
      if (std::ranges::find(targets, short_name(ModuleId::of(0, proj))) == targets.end()) continue;
      const int64_t in = in_dim(proj, c), out = out_dim(proj, c);
      LoraDelta delta{.rank = flags.rank, .scaling = 2};
      delta.a = draw({flags.rank, in}, 1 / std::sqrt(static_cast<double>(in)));
      delta.b = draw({out, flags.rank}, 1e-3);
      if (flags.kind == "dora") delta.magnitude = draw({out}, 1);
      layer[static_cast<size_t>(p)] = delta;
    }
  }
  return adapter;
}

Status run_train(const TrainBenchFlags& flags) {
  const DType act = flags.dtype == "f32" ? DType::kF32 : DType::kBF16;
  LK_ASSIGN_OR_RETURN(const ModelConfig config, TextEngine::read_config("", flags.dummy));
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, make_cpu_backend({.num_threads = flags.threads}));
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> targets, parse_targets(flags.targets));
  const auto weights = make_dummy_weights(config, act, 1, *backend);
  Checkpointing level = Checkpointing::kNone;
  for (Checkpointing candidate : {Checkpointing::kSelective, Checkpointing::kFull})
    if (flags.checkpointing == to_string(candidate)) level = candidate;
  const int64_t most = *std::ranges::max_element(flags.jobs);
  std::vector<std::unique_ptr<TrainableAdapter>> adapters;
  PassNeeds needs{.lowest_layer = INT64_MAX};
  for (int64_t job = 0; job < most; ++job) {
    const Adapter start = random_start(config, flags, targets, static_cast<uint64_t>(job));
    LK_ASSIGN_OR_RETURN(auto adapter,
                        TrainableAdapter::create(start, *weights, *backend,
                                                 {.num_modules = flags.kind == "multilora" ? int64_t{2} : int64_t{0}}));
    needs = needs.include(adapter->needs());
    adapters.push_back(std::move(adapter));
  }
  const TrainPassOptions options{
      .max_rows = flags.tokens, .longest_sample = flags.sample_tokens, .needs = needs, .checkpointing = level};
  LK_ASSIGN_OR_RETURN(const auto pass, TrainPass::create(weights, *backend, options));
  const auto make_block = [&](int64_t job, int64_t tokens, TokenBlock& block) {
    Rng rng(static_cast<uint64_t>(job) + 1);
    for (int64_t done = 0; done < tokens;) {
      const int64_t length = std::min(tokens - done, flags.sample_tokens);
      std::vector<int32_t> ids(static_cast<size_t>(length));
      for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size)));
      block.add(ids, std::vector<float>(ids.size(), 1.0f), 0, adapters[static_cast<size_t>(job)].get());
      done += length;
    }
  };
  const auto run = [&](int64_t jobs, bool apart) {
    const auto start = Clock::now();
    TokenBlock block;
    for (int64_t job = 0; job < jobs; ++job) {
      make_block(job, flags.tokens / jobs, block);
      if (!apart && job + 1 < jobs) continue;
      pass->forward_backward(block);
      for (int64_t own = apart ? job : 0; own <= job; ++own)
        adapters[static_cast<size_t>(own)]->step({.rate = 1e-4, .clip = 1}, static_cast<double>(flags.tokens / jobs));
      block = {};
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  };

  std::vector<Measured> sides;
  for (int64_t jobs : flags.jobs) {
    sides.push_back({.jobs = jobs, .apart = false, .seconds = {}, .fractions = {}});
    if (flags.apart && jobs > 1) sides.push_back({.jobs = jobs, .apart = true, .seconds = {}, .fractions = {}});
  }
  ThreadPool pool(backend->num_host_threads());
  run(1, false);  // touches the memory
  MachineLimits limits;
  std::vector<double> peaks, reads;
  for (int i = 0; i < flags.repeat; ++i) {
    for (size_t s = 0; s < sides.size(); ++s) {
      Measured& side = sides[i % 2 == 0 ? s : sides.size() - 1 - s];
      const MachineLimits before = measure_machine_limits(pool);
      side.seconds.push_back(run(side.jobs, side.apart));
      const MachineLimits after = measure_machine_limits(pool);
      const double peak = act == DType::kF32 ? (before.f32_gflop_s + after.f32_gflop_s) / 2
                                             : (before.bf16_gflop_s + after.bf16_gflop_s) / 2;
      peaks.push_back(peak);
      reads.push_back((before.read_gb_s + after.read_gb_s) / 2);
      side.fractions.push_back(2 * token_flops(config) * static_cast<double>(flags.tokens) / (peak * 1e9) /
                               side.seconds.back());
    }
  }
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  const int64_t pass_bytes = TrainPass::memory_bytes(weights, *backend, options);
  fmt::print("{} tokens a step, samples of {}, rank {} on {}, {}, checkpointing {}, {} threads\n", flags.tokens,
             flags.sample_tokens, flags.rank, flags.targets, flags.dtype, flags.checkpointing, pool.size());
  fmt::print("machine    read {:.1f} GB/s, {} {:.0f} GFLOP/s\n", median(reads), flags.dtype, median(peaks));
  fmt::print("memory     base {}, activations {} ({:.3f} MiB a token), state {} a job, peak RSS {}\n",
             format_bytes(weights->packed_bytes), format_bytes(pass_bytes),
             static_cast<double>(pass_bytes) / static_cast<double>(flags.tokens) / (1 << 20),
             format_bytes(adapters[0]->state_bytes()), format_bytes(usage.ru_maxrss * 1024));
  json::array rows;
  for (const Measured& side : sides) {
    const double tokens_s = static_cast<double>(flags.tokens) / median(side.seconds);
    fmt::print("{:2} {} {:8.1f} tok/s   step {:.3f} s [{:.3f}..{:.3f}]   {:.3f} of the limit\n", side.jobs,
               side.apart ? "jobs apart   " : "jobs together", tokens_s, median(side.seconds),
               *std::ranges::min_element(side.seconds), *std::ranges::max_element(side.seconds),
               median(side.fractions));
    rows.push_back(json::object{{"jobs", side.jobs},
                                {"apart", side.apart},
                                {"tokens_s", tokens_s},
                                {"seconds", json::value_from(side.seconds)},
                                {"fractions", json::value_from(side.fractions)}});
  }
  if (flags.json.empty()) return Status();
  return write_file_atomic(flags.json, json_text(json::object{{"tokens", flags.tokens},
                                                              {"sample_tokens", flags.sample_tokens},
                                                              {"rank", flags.rank},
                                                              {"checkpointing", flags.checkpointing},
                                                              {"dtype", flags.dtype},
                                                              {"gflop_s", median(peaks)},
                                                              {"read_gb_s", median(reads)},
                                                              {"activation_bytes", pass_bytes},
                                                              {"peak_rss_bytes", usage.ru_maxrss * 1024},
                                                              {"sides", std::move(rows)}}) +
                                           "\n");
}

}  // namespace

void add_bench_train(CLI::App& bench, int& exit_code) {
  auto flags = std::make_shared<TrainBenchFlags>();
  CLI::App* command = bench.add_subcommand("train", "Optimiser steps of several jobs over one base, against the limit");
  command->add_option("--dummy", flags->dummy, "config.json: seeded random weights of this shape")->required();
  command->add_option("--dtype", flags->dtype, "compute type")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  command->add_option("--tokens", flags->tokens, "of one step, all jobs together")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--sample-tokens", flags->sample_tokens, "of one sample")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--jobs", flags->jobs, "numbers of jobs that share the tokens, measured in turn")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_flag("--apart", flags->apart, "also the same jobs one after the other");
  command->add_option("--rank", flags->rank, "of every module")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--targets", flags->targets, "all, attention, or a list of projections")->capture_default_str();
  command->add_option("--kind", flags->kind, "lora, dora or multilora (of two modules)")
      ->check(CLI::IsMember({"lora", "dora", "multilora"}))
      ->capture_default_str();
  command->add_option("--checkpointing", flags->checkpointing, "none, selective or full")
      ->check(CLI::IsMember({"none", "selective", "full"}))
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "0 = every core")->capture_default_str();
  command->add_option("--repeat", flags->repeat, "steps of each; medians are reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--json", flags->json, "also write the figures to this file");
  command->callback([flags, &exit_code] {
    if (Status status = run_train(*flags); !status.ok()) exit_code = fail(status);
  });
}

}  // namespace lk::apps
