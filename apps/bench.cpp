// SPDX-License-Identifier: Apache-2.0
// lorikeet bench kernels | engine (serve and merge are in bench_serve.cpp and bench_merge.cpp): figures beside the
// machine's own limits, measured in the same run.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>

#include <boost/json.hpp>

#include "commands.h"
#include "lk/base/json_text.h"
#include "lk/base/rng.h"
#include "lk/kernels/bench.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"

namespace lk::apps {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

json::object machine_json(const MachineLimits& limits, int threads) {
  return {{"threads", threads},
          {"isa", to_string(supported_cpu_isas().back())},
          {"read_gb_s", limits.read_gb_s},
          {"bf16_gflop_s", limits.bf16_gflop_s},
          {"f32_gflop_s", limits.f32_gflop_s}};
}

Status write_json(const std::string& path, const json::object& object) {
  if (path.empty()) return Status();
  return write_file_atomic(path, json_text(object) + "\n");
}

// --- bench kernels

struct KernelFlags {
  std::string json, op, isa = "auto";
  std::vector<std::string> dtypes{"bf16"};
  std::vector<int64_t> rows;
  int threads = 0, samples = 7;
};

Status run_kernels(const KernelFlags& flags) {
  ThreadPool pool(flags.threads > 0 ? flags.threads : default_num_threads());
  KernelBenchOptions options{.op = flags.op, .rows = flags.rows, .num_samples = flags.samples};
  if (flags.isa == "all")
    options.isas = supported_cpu_isas();
  else if (const auto isa = parse_cpu_isa(flags.isa))
    options.isas = {*isa};
  options.dtypes.clear();
  for (const std::string& dtype : flags.dtypes) options.dtypes.push_back(dtype == "f32" ? DType::kF32 : DType::kBF16);
  const MachineLimits limits = measure_machine_limits(pool);
  fmt::print("machine: {} threads, {}, read {:.1f} GB/s, bf16 {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s\n\n", pool.size(),
             to_string(supported_cpu_isas().back()), limits.read_gb_s, limits.bf16_gflop_s, limits.f32_gflop_s);
  fmt::print("{:<18} {:<5} {:<12} {:>5} {:>6} {:>6} {:>5} {:>8} {:>10} {:>8} {:>9} {:>9} {:>9}\n", "op", "dtype", "isa",
             "rows", "k", "n", "rank", "adapters", "time us", "GB/s", "GFLOP/s", "of limit", "at best");
  json::array kernels;
  for (const KernelBenchResult& r : bench_kernels(options, pool)) {
    fmt::print("{:<18} {:<5} {:<12} {:>5} {:>6} {:>6} {:>5} {:>8} {:>10.1f} {:>8.1f} {:>9.1f} {:>9.3f} {:>9.3f}\n",
               r.op, to_string(r.dtype), to_string(r.isa), r.rows, r.k, r.n, r.rank, r.adapters, r.time_us, r.gb_s,
               r.gflop_s, r.fraction_of_limit, r.best_fraction);
    kernels.push_back(json::object{{"op", r.op},
                                   {"dtype", to_string(r.dtype)},
                                   {"isa", to_string(r.isa)},
                                   {"rows", r.rows},
                                   {"k", r.k},
                                   {"n", r.n},
                                   {"rank", r.rank},
                                   {"adapters", r.adapters},
                                   {"time_us", r.time_us},
                                   {"gb_s", r.gb_s},
                                   {"gflop_s", r.gflop_s},
                                   {"fraction_of_limit", r.fraction_of_limit},
                                   {"best_fraction", r.best_fraction}});
  }
  return write_json(flags.json, {{"machine", machine_json(limits, pool.size())}, {"kernels", kernels}});
}

// --- bench engine

struct EngineFlags {
  ModelFlags model;
  int64_t batch = 1, prompt_tokens = 64, output_tokens = 32, adapters = 0, requests = 0;
  std::vector<int64_t> ranks{16};
  std::string targets = "all", assign = "none", json, adapter_dir;
  uint64_t seed = 1;
  int repeat = 1;
  double temperature = 0, top_p = 1;
};

// Which adapter each request uses: -1 = base.
Result<std::vector<int64_t>> assign_adapters(const EngineFlags& flags, int64_t count) {
  std::vector<int64_t> chosen(static_cast<size_t>(count), -1);
  if (flags.assign == "none") return chosen;
  if (flags.adapters < 1) return invalid_argument("--assign {} needs --adapters >= 1", flags.assign);
  if (flags.assign == "same") {
    std::fill(chosen.begin(), chosen.end(), 0);
  } else if (flags.assign == "distinct") {
    for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = static_cast<int64_t>(i) % flags.adapters;
  } else if (flags.assign.starts_with("zipf:")) {
    const double alpha = std::atof(flags.assign.c_str() + 5);
    if (!(alpha > 0 && alpha < 10))
      return invalid_argument("--assign zipf:ALPHA wants ALPHA in (0, 10), got {}", flags.assign);
    std::vector<double> cumulative;
    double total = 0;
    for (int64_t i = 1; i <= flags.adapters; ++i)
      cumulative.push_back(total += std::pow(static_cast<double>(i), -alpha));
    Rng rng(flags.seed + 17);
    for (int64_t& adapter : chosen)
      adapter = std::lower_bound(cumulative.begin(), cumulative.end(), rng.uniform() * total) - cumulative.begin();
  } else {
    return invalid_argument("--assign is none, same, distinct or zipf:ALPHA, got {}", flags.assign);
  }
  return chosen;
}

// Random adapters on disk, kept between runs of the same shape: their files are the host tier, as in service.
Status add_random_adapters(const EngineFlags& flags, TextEngine& engine) {
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> targets, parse_targets(flags.targets));
  for (int64_t i = 0; i < flags.adapters; ++i) {
    const int64_t rank = flags.ranks[static_cast<size_t>(i) % flags.ranks.size()];
    const std::string name = fmt::format("a{}", i);
    const std::string directory = join_path(flags.adapter_dir, fmt::format("{}-r{}-{}", name, rank, flags.targets));
    if (!file_exists(join_path(directory, kAdapterWeightsFile))) {
      LK_RETURN_IF_ERROR(make_directories(flags.adapter_dir));
      LK_RETURN_IF_ERROR(init_adapter(
          engine.config(), {.rank = rank, .targets = targets, .seed = static_cast<uint64_t>(i), .dtype = DType::kBF16},
          directory));
    }
    LK_RETURN_IF_ERROR(engine.add_adapter(name, directory));
  }
  return Status();
}

std::string default_adapter_dir(const ModelConfig& c) {
  const std::string shape = fmt::format("lorikeet-bench-{}x{}x{}", c.num_layers, c.hidden_dim, c.intermediate_dim);
  return (std::filesystem::temp_directory_path() / shape).string();
}

struct Timing {
  Clock::time_point first_token, last_token;
  int64_t num_tokens = 0;
};

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(
      std::min<double>(p / 100 * static_cast<double>(values.size()), static_cast<double>(values.size() - 1)))];
}

json::object percentiles(const std::vector<double>& values) {
  return {{"p50", percentile(values, 50)}, {"p90", percentile(values, 90)}, {"p99", percentile(values, 99)}};
}

// Time spent in steps that only decode, and the rest.
struct RunResult {
  double wall_s = 0, prefill_s = 0, decode_s = 0;
  double decode_sample_s = 0;  // of decode_s
  int64_t prefill_tokens = 0, decode_tokens = 0, decode_steps = 0;
  std::vector<double> ttft_ms, tpot_ms;
};

struct BenchSequence : TextSequence {
  Timing* timing = nullptr;
};

Result<RunResult> run_once(const EngineFlags& flags, TextEngine& engine, const std::vector<int64_t>& assignment,
                           uint64_t salt) {
  RunResult result;
  std::vector<Timing> timings(assignment.size());
  const auto start = Clock::now();
  Rng rng(flags.seed * 1000 + salt);
  size_t submitted = 0, finished = 0;
  const auto batch = static_cast<size_t>(flags.batch);
  int64_t tokens_seen = 0;
  const auto submit_next = [&]() -> Status {
    const size_t index = submitted++;
    TextRequest request{.max_tokens = flags.output_tokens, .ignore_eos = true};
    if (assignment[index] >= 0) request.adapter = fmt::format("a{}", assignment[index]);
    request.sampling.temperature = flags.temperature;
    request.sampling.top_p = flags.top_p;
    request.sampling.seed = flags.seed + index;
    request.sampling.num_logprobs = -1;
    for (int64_t i = 0; i < flags.prompt_tokens; ++i)
      request.token_ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(engine.config().vocab_size))));
    auto sequence = std::make_unique<BenchSequence>();
    sequence->timing = &timings[index];
    const Result<RequestId> id = engine.submit(std::move(request), std::move(sequence));
    return id.ok() ? Status() : id.status();
  };
  // A closed loop: `batch` requests at a time. A step counts as decoding when it computed one token per running
  // request.
  while (finished < assignment.size()) {
    while (submitted < assignment.size() && submitted - finished < batch) LK_RETURN_IF_ERROR(submit_next());
    const int64_t computed = engine.scheduler().stats().num_computed_tokens, seen = tokens_seen;
    const double sample_s = engine.engine().sample_seconds();
    const auto step_start = Clock::now();
    for (const TextUpdate& update : engine.step()) {
      finished += update.ended != nullptr;
      if (update.delta.tokens.empty()) continue;
      Timing& timing = *static_cast<const BenchSequence&>(*update.sequence).timing;
      timing.last_token = Clock::now();
      if (timing.num_tokens++ == 0) timing.first_token = timing.last_token;
      ++tokens_seen;
    }
    const double step_s = seconds_since(step_start);
    const int64_t step_tokens = engine.scheduler().stats().num_computed_tokens - computed;
    if (step_tokens == tokens_seen - seen && step_tokens > 0 && flags.prompt_tokens > 1) {
      result.decode_s += step_s;
      result.decode_sample_s += engine.engine().sample_seconds() - sample_s;
      result.decode_tokens += step_tokens;
      ++result.decode_steps;
    } else {
      result.prefill_s += step_s;
      result.prefill_tokens += step_tokens;
    }
  }
  result.wall_s = seconds_since(start);
  for (const Timing& timing : timings) {
    result.ttft_ms.push_back(std::chrono::duration<double>(timing.first_token - start).count() * 1e3);
    if (timing.num_tokens > 1)
      result.tpot_ms.push_back(std::chrono::duration<double>(timing.last_token - timing.first_token).count() * 1e3 /
                               static_cast<double>(timing.num_tokens - 1));
  }
  return result;
}

// FLOPs of one row through all linears (without the head), and of the head.
double row_flops(const ModelConfig& c) {
  double weights = 0;
  for (int p = 0; p < kNumProjs; ++p)
    weights +=
        static_cast<double>(in_dim(static_cast<Proj>(p), c)) * static_cast<double>(out_dim(static_cast<Proj>(p), c));
  return 2 * weights * static_cast<double>(c.num_layers);
}

Status run_engine(EngineFlags& flags) {
  if (flags.batch < 1 || flags.prompt_tokens < 1 || flags.output_tokens < 1)
    return invalid_argument("--batch, --prompt-tokens and --output-tokens must be >= 1");
  flags.model.scheduler.no_prefix_cache = true;
  int64_t& max_running = flags.model.scheduler.options.max_running;
  max_running = std::max(max_running, flags.batch);
  LK_ASSIGN_OR_RETURN(const std::vector<int64_t> assignment,
                      assign_adapters(flags, flags.requests > 0 ? flags.requests : flags.batch));
  LK_ASSIGN_OR_RETURN(std::unique_ptr<TextEngine> engine, flags.model.open());
  if (flags.adapter_dir.empty()) flags.adapter_dir = default_adapter_dir(engine->config());
  if (flags.assign != "none" || flags.adapters > 0) LK_RETURN_IF_ERROR(add_random_adapters(flags, *engine));
  const RankTeam& ranks = engine->engine().ranks();
  ThreadPool pool(engine->engine().backend().num_host_threads() * ranks.size());
  const ModelConfig& c = engine->config();
  double weight_bytes = 0;
  for (size_t rank = 0; rank < static_cast<size_t>(ranks.size()); ++rank)
    weight_bytes += static_cast<double>(ranks[rank].weights->decode_bytes());

  // A short run first loads adapters, touches pages and is not counted.
  EngineFlags short_flags = flags;
  short_flags.prompt_tokens = std::min<int64_t>(flags.prompt_tokens, 16);
  short_flags.output_tokens = std::min<int64_t>(flags.output_tokens, 4);
  if (Result<RunResult> warm_up = run_once(short_flags, *engine, assignment, 99); !warm_up.ok())
    return warm_up.status();
  std::vector<double> output, prefill, decode, limit_prefill, limit_decode, decode_fraction, prefill_fraction, ttft,
      tpot, sample_fraction;
  MachineLimits limits;
  for (int i = 0; i < flags.repeat; ++i) {
    const MachineLimits before = measure_machine_limits(pool);
    LK_ASSIGN_OR_RETURN(const RunResult run, run_once(flags, *engine, assignment, static_cast<uint64_t>(i)));
    const MachineLimits after = measure_machine_limits(pool);
    limits = {.read_gb_s = (before.read_gb_s + after.read_gb_s) / 2,
              .bf16_gflop_s = std::max(before.bf16_gflop_s, after.bf16_gflop_s),
              .f32_gflop_s = std::max(before.f32_gflop_s, after.f32_gflop_s)};
    output.push_back(static_cast<double>(flags.output_tokens) * static_cast<double>(assignment.size()) / run.wall_s);
    const double peak = (flags.model.dtype == "f32" ? limits.f32_gflop_s : limits.bf16_gflop_s) * 1e9;
    if (run.prefill_s > 0 && run.prefill_tokens > 0) {
      prefill.push_back(static_cast<double>(run.prefill_tokens) / run.prefill_s);
      limit_prefill.push_back(peak / row_flops(c));
      prefill_fraction.push_back(prefill.back() / limit_prefill.back());
    }
    if (run.decode_s > 0) {
      decode.push_back(static_cast<double>(run.decode_tokens) / run.decode_s);
      sample_fraction.push_back(run.decode_sample_s / run.decode_s);
      const double rows = static_cast<double>(run.decode_tokens) / static_cast<double>(run.decode_steps);
      const double head_flops = 2.0 * static_cast<double>(c.hidden_dim) * static_cast<double>(c.vocab_size);
      // Roofline of one step: reading all weights once, or the products of all rows.
      const double step_s =
          std::max(weight_bytes / (limits.read_gb_s * 1e9), rows * (row_flops(c) + head_flops) / peak);
      limit_decode.push_back(rows / step_s);
      decode_fraction.push_back(decode.back() / limit_decode.back());
    }
    ttft.insert(ttft.end(), run.ttft_ms.begin(), run.ttft_ms.end());
    tpot.insert(tpot.end(), run.tpot_ms.begin(), run.tpot_ms.end());
  }
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto median = [](const std::vector<double>& values) { return percentile(values, 50); };
  json::object out{{"machine", machine_json(limits, pool.size())},
                   {"batch", flags.batch},
                   {"prompt_tokens", flags.prompt_tokens},
                   {"output_tokens", flags.output_tokens},
                   {"adapters", flags.adapters},
                   {"ranks", json::value_from(flags.ranks)},
                   {"targets", flags.targets},
                   {"assign", flags.assign},
                   {"dtype", flags.model.dtype},
                   {"runs", flags.repeat},
                   {"output_tokens_s", median(output)},
                   {"prefill_tokens_s", median(prefill)},
                   {"decode_tokens_s", median(decode)},
                   {"temperature", flags.temperature},
                   {"top_p", flags.top_p},
                   {"sample_fraction_of_decode", median(sample_fraction)},
                   {"ttft_ms", percentiles(ttft)},
                   {"tpot_ms", percentiles(tpot)},
                   {"peak_rss_bytes", usage.ru_maxrss * 1024},
                   {"limit_prefill_tokens_s", median(limit_prefill)},
                   {"limit_decode_tokens_s", median(limit_decode)},
                   {"prefill_fraction_of_limit", median(prefill_fraction)},
                   {"fraction_of_limit", median(decode_fraction)},
                   {"adapter_loads", engine->scheduler().stats().num_adapter_loads},
                   {"preemptions", engine->scheduler().stats().num_preemptions}};
  fmt::print("batch {}, prompt {}, output {}, {} adapters ({}, ranks {}, targets {})\n", flags.batch,
             flags.prompt_tokens, flags.output_tokens, flags.adapters, flags.assign,
             json_text(json::value_from(flags.ranks)), flags.targets);
  fmt::print("machine    read {:.1f} GB/s, bf16 {:.0f} GFLOP/s\n", limits.read_gb_s, limits.bf16_gflop_s);
  fmt::print("output     {:8.1f} tok/s   prompts included\n", median(output));
  fmt::print("prefill    {:8.1f} tok/s   {:.3f} of the limit\n", median(prefill), median(prefill_fraction));
  fmt::print("decode     {:8.1f} tok/s   {:.3f} of the limit ({:.1f} tok/s)\n", median(decode), median(decode_fraction),
             median(limit_decode));
  fmt::print("sampling   {:8.2f} % of decode, temperature {}, top-p {}\n", 100 * median(sample_fraction),
             flags.temperature, flags.top_p);
  fmt::print("ttft ms    p50 {:.1f}  p90 {:.1f}  p99 {:.1f}\n", percentile(ttft, 50), percentile(ttft, 90),
             percentile(ttft, 99));
  fmt::print("tpot ms    p50 {:.1f}  p90 {:.1f}  p99 {:.1f}\n", percentile(tpot, 50), percentile(tpot, 90),
             percentile(tpot, 99));
  fmt::print("peak RSS   {}\n", format_bytes(usage.ru_maxrss * 1024));
  return write_json(flags.json, out);
}

}  // namespace

void add_bench(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("bench", "Measure kernels, the engine or a server");
  command->require_subcommand(1);

  auto kernel = std::make_shared<KernelFlags>();
  CLI::App* kernels = command->add_subcommand("kernels", "Every kernel: time, GB/s, GFLOP/s, fraction of the roofline");
  kernels->add_option("--json", kernel->json, "also write the figures to this file");
  kernels->add_option("--op", kernel->op,
                      "only ops that start with this: gemm, lora, attention, rms_norm, swiglu, rope, sample; of "
                      "training block_attention, outer, cross_entropy and others");
  kernels->add_option("--isa", kernel->isa, "instruction set, or all")
      ->check(CLI::IsMember(isa_choices({"auto", "all"})))
      ->capture_default_str();
  kernels->add_option("--dtype", kernel->dtypes, "bf16, f32 or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  kernels->add_option("--rows", kernel->rows, "only these row counts")->delimiter(',');
  kernels->add_option("--threads", kernel->threads, "0 = every core")->capture_default_str();
  kernels->add_option("--samples", kernel->samples, "medians of this many")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  kernels->callback([kernel, &exit_code] {
    if (Status status = run_kernels(*kernel); !status.ok()) exit_code = fail(status);
  });

  auto flags = std::make_shared<EngineFlags>();
  CLI::App* engine =
      command->add_subcommand("engine", "End-to-end prefill and decode, with adapters, against the limit");
  flags->model.add_to(*engine, false);
  engine->add_option("--batch", flags->batch, "requests in flight")->capture_default_str();
  engine->add_option("--requests", flags->requests, "requests in all (closed loop); 0 = one batch")
      ->capture_default_str();
  engine->add_option("--prompt-tokens", flags->prompt_tokens, "per request")->capture_default_str();
  engine->add_option("--output-tokens", flags->output_tokens, "per request")->capture_default_str();
  engine->add_option("--adapters", flags->adapters, "random adapters registered")->capture_default_str();
  engine->add_option("--rank", flags->ranks, "ranks, taken in turn by the adapters")
      ->delimiter(',')
      ->capture_default_str();
  engine->add_option("--targets", flags->targets, "all, attention, or a list of projections")->capture_default_str();
  engine->add_option("--assign", flags->assign, "none, same, distinct or zipf:ALPHA")->capture_default_str();
  engine->add_option("--adapter-dir", flags->adapter_dir,
                     "where the random adapters are kept (default: a temporary directory)");
  engine->add_option("--repeat", flags->repeat, "runs; medians are reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  engine->add_option("--seed", flags->seed, "of prompts, assignment and draws")->capture_default_str();
  engine->add_option("--temperature", flags->temperature, "0 = greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  engine->add_option("--top-p", flags->top_p, "with a temperature")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  engine->add_option("--json", flags->json, "also write the figures to this file");
  engine->callback([flags, &exit_code] {
    if (Status status = run_engine(*flags); !status.ok()) exit_code = fail(status);
  });
  add_bench_serve(*command, exit_code);
  add_bench_calibrate(*command, exit_code);
  add_bench_merge(*command, exit_code);
  add_bench_train(*command, exit_code);
}

}  // namespace lk::apps
