// SPDX-License-Identifier: Apache-2.0
// lorikeet adapter inspect|verify|convert|compose|init and lorikeet merge: PEFT directories in, PEFT or model
// directories out.
#include <charconv>

#include "commands.h"
#include "hub_names.h"
#include "lk/base/thread_pool.h"
#include "lk/infer/text_side.h"
#include "lk/io/checkpoint.h"
#include "lk/lora/adapter.h"
#include "lk/lora_tools/combine.h"
#include "lk/lora_tools/merge.h"
#include "lk/lora_tools/save.h"

namespace lk::apps {
namespace {

// The base model that an adapter is checked against.
struct Base {
  std::string directory;
  ModelConfig config;
  std::shared_ptr<const TensorStore> weights;

  // `written`: a directory, or a name on the hub.
  static Result<Base> open(const std::string& written) {
    Base base{.directory = written};
    LK_RETURN_IF_ERROR(find_model(base.directory));
    LK_ASSIGN_OR_RETURN(Checkpoint checkpoint, open_checkpoint(base.directory));
    base.config = std::move(checkpoint.config);
    base.weights = std::move(checkpoint.weights);
    return base;
  }
};

std::optional<DType> parse_dtype(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    if (name == to_string(dtype)) return dtype;
  return std::nullopt;  // "same"
}

struct Flags {
  std::string base, adapter, out, dtype = "same";
  bool ignore_unknown = false;
  InitOptions init;
  double alpha = 0;
  std::optional<double> scaling;
  std::vector<std::string> ranks{"16"};
  std::string targets = "all", config;

  AdapterLoadOptions load() const {
    return {.ignore_unknown_tensors = ignore_unknown, .num_threads = default_num_threads()};
  }
  std::optional<DType> parsed_dtype() const { return parse_dtype(dtype); }
};

Result<std::shared_ptr<const Adapter>> open_adapter(const Flags& flags, const Base& base) {
  std::string directory = flags.adapter;
  LK_RETURN_IF_ERROR(find_adapter(directory));
  return load_adapter("adapter", directory, base.config, base.weights.get(), flags.load());
}

Status inspect(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const Base base, Base::open(flags.base));
  LK_ASSIGN_OR_RETURN(const auto adapter, open_adapter(flags, base));
  fmt::print("{}", render_inspection(inspect_adapter(*adapter)));
  return Status();
}

Status verify(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const Base base, Base::open(flags.base));
  std::string directory = flags.adapter;
  LK_RETURN_IF_ERROR(find_adapter(directory));
  LK_ASSIGN_OR_RETURN(std::vector<std::string> warnings,
                      verify_adapter(directory, base.config, base.weights.get(), flags.load()));
  LK_ASSIGN_OR_RETURN(const auto text, TextSides::open(base.directory, base.config));
  LK_ASSIGN_OR_RETURN(const std::optional<int64_t> own_vocab_size, read_own_vocab_size(directory, base.config));
  LK_ASSIGN_OR_RETURN(const auto side, text->of_adapter(directory, own_vocab_size));
  if (side != text->base()) warnings.insert(warnings.end(), side->warnings.begin(), side->warnings.end());
  for (const std::string& warning : warnings) fmt::print("warning: {}\n", warning);
  fmt::print("{}: fits {} and can be served{}\n", flags.adapter, flags.base,
             warnings.empty() ? "" : fmt::format(" ({} warnings)", warnings.size()));
  return Status();
}

Status convert(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const Base base, Base::open(flags.base));
  std::string directory = flags.adapter;
  LK_RETURN_IF_ERROR(find_adapter(directory));
  LK_ASSIGN_OR_RETURN(const ConvertReport report,
                      convert_adapter(directory, base.config, base.weights.get(), flags.out,
                                      {.dtype = flags.parsed_dtype(), .scaling = flags.scaling}, flags.load()));
  for (const std::string& warning : report.warnings) fmt::print("warning: {}\n", warning);
  fmt::print("wrote {}: {} -> {}, largest rounding {:.3g}\n", flags.out, format_bytes(report.bytes_before),
             format_bytes(report.bytes_after), report.largest_rounding);
  return Status();
}

Status init(Flags& flags) {
  Base base;
  if (!flags.config.empty()) {
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(flags.config));
    LK_ASSIGN_OR_RETURN(base.config, parse_model_config(text, flags.config));
  } else if (!flags.base.empty()) {
    LK_ASSIGN_OR_RETURN(base, Base::open(flags.base));
  } else {
    return invalid_argument("give --base MODEL, or --config CONFIG.json for a shape without weights");
  }
  LK_ASSIGN_OR_RETURN(flags.init.targets, parse_targets(flags.targets));
  for (const std::string& rank : flags.ranks) {
    const size_t equals = rank.find('=');
    int64_t value = 0;
    const std::string number = equals == std::string::npos ? rank : rank.substr(equals + 1);
    if (std::from_chars(number.data(), number.data() + number.size(), value).ec != std::errc() || value < 1 ||
        value > 512)
      return invalid_argument("--rank wants N or PROJECTION=N with N in [1, 512], got \"{}\"", rank);
    if (equals == std::string::npos)
      flags.init.rank = value;
    else
      flags.init.rank_of[rank.substr(0, equals)] = value;
  }
  if (flags.alpha > 0) flags.init.alpha = flags.alpha;
  flags.init.dtype = flags.parsed_dtype().value_or(DType::kF32);
  LK_RETURN_IF_ERROR(init_adapter(base.config, flags.init, flags.out, base.weights.get()));
  fmt::print("wrote {}: random adapter, rank {}, {} targets\n", flags.out, flags.init.rank, flags.init.targets.size());
  return Status();
}

// --- compose

struct ComposeFlags {
  std::string base, out, dtype = "f32", method = "cat", sign = "total";
  std::vector<std::string> adapters;
  std::vector<double> weights;
  CombineOptions options;
};

Status compose(ComposeFlags& flags) {
  CombineOptions& options = flags.options;
  options.method =
      std::ranges::find_if(kCombineMethods, [&](const auto& item) { return item.second == flags.method; })->first;
  options.election = flags.sign == "frequency" ? SignElection::kFrequency : SignElection::kTotal;
  if (!flags.weights.empty() && flags.weights.size() != flags.adapters.size())
    return invalid_argument("--weights has {} numbers for {} adapters", flags.weights.size(), flags.adapters.size());
  LK_ASSIGN_OR_RETURN(const Base base, Base::open(flags.base));
  std::vector<WeightedAdapter> parts;
  for (size_t index = 0; index < flags.adapters.size(); ++index) {
    std::string directory = flags.adapters[index];
    LK_RETURN_IF_ERROR(find_adapter(directory));
    LK_ASSIGN_OR_RETURN(auto adapter, load_adapter(directory, directory, base.config, base.weights.get(),
                                                   {.num_threads = default_num_threads()}));
    warn(directory, adapter->warnings);
    parts.push_back({std::move(adapter), flags.weights.empty() ? 1.0 : flags.weights[index]});
  }
  LK_ASSIGN_OR_RETURN(const CombinedAdapter combined, combine_adapters(parts, options));
  const SaveOptions save{.dtype = parse_dtype(flags.dtype)};
  LK_RETURN_IF_ERROR(save_new_adapter(*combined.adapter, base.config, flags.out, save));
  fmt::print("{}wrote {}\n", render_combine_report(combined.report), flags.out);
  return Status();
}

Status merge(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const Base base, Base::open(flags.base));
  LK_ASSIGN_OR_RETURN(const auto adapter, open_adapter(flags, base));
  LK_ASSIGN_OR_RETURN(const MergeReport report,
                      merge_adapter(base.directory, *adapter, flags.out, {.dtype = flags.parsed_dtype()}));
  fmt::print("{}wrote {}\n", render_merge_report(report), flags.out);
  return Status();
}

}  // namespace

Result<std::vector<std::string>> parse_targets(const std::string& text) {
  if (text == "all")
    return std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  if (text == "attention") return std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj"};
  std::vector<std::string> targets;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    const std::string target = text.substr(begin, comma - begin);
    if (target.empty())
      return invalid_argument("targets are all, attention or a list such as q_proj,v_proj; got \"{}\"", text);
    targets.push_back(target);
    begin = comma + 1;
  }
  return targets;
}

namespace {

void add_compose(CLI::App& adapter, int& exit_code) {
  auto flags = std::make_shared<ComposeFlags>();
  CLI::App* sub = adapter.add_subcommand("compose", "Add, merge and truncate adapters into one");
  sub->add_option("ADAPTERS", flags->adapters, "PEFT adapter directories, or names on the hub; one alone is truncated")
      ->required();
  sub->add_option("--base", flags->base, "base model directory, or its name on the hub")->required();
  sub->add_option("--out", flags->out, "directory to write")->required();
  sub->add_option("--weights", flags->weights, "one number per adapter, also negative; default 1 each")->delimiter(',');
  std::vector<std::string> methods;
  for (const auto& [method, name] : kCombineMethods) methods.emplace_back(name);
  sub->add_option("--method", flags->method, "cat: exact, ranks add up; svd: the same sum in --rank ranks")
      ->check(CLI::IsMember(methods))
      ->capture_default_str();
  sub->add_option("--rank", flags->options.rank, "of the result; default: all with cat, else the largest of the parts")
      ->check(CLI::PositiveNumber);
  sub->add_option("--density", flags->options.density, "share of values that ties, dare_* and magnitude_prune keep")
      ->check(CLI::PositiveNumber);
  sub->add_option("--sign", flags->sign, "which sign ties and dare_ties elect: of the sum, or of most")
      ->check(CLI::IsMember({"total", "frequency"}))
      ->capture_default_str();
  sub->add_option("--seed", flags->options.seed, "of what dare_* drops")->capture_default_str();
  sub->add_flag("--peft-compatible", flags->options.on_factors,
                "linear, ties, dare_* and magnitude_prune on A and B apart, as PEFT's of these names");
  sub->add_flag("--mixed-bases", flags->options.mixed_bases, "accept adapters whose files name different bases");
  sub->add_option("--dtype", flags->dtype, "of the written tensors")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  sub->callback([flags, &exit_code] {
    if (Status status = compose(*flags); !status.ok()) exit_code = fail(status);
  });
}

}  // namespace

void add_adapter(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("adapter", "Inspect, verify, convert, compose and make PEFT adapters");
  command->require_subcommand(1);
  const auto add = [&](const std::string& name, const std::string& help, Status (*run)(const Flags&), bool writes) {
    auto flags = std::make_shared<Flags>();
    CLI::App* sub = command->add_subcommand(name, help);
    sub->add_option("ADAPTER", flags->adapter, "PEFT adapter directory, or its name on the hub")->required();
    sub->add_option("--base", flags->base, "base model directory, or its name on the hub")->required();
    sub->add_flag("--ignore-unknown", flags->ignore_unknown, "skip tensors that match nothing in the base");
    if (writes) {
      sub->add_option("--out", flags->out, "directory to write")->required();
      sub->add_option("--dtype", flags->dtype, "of the written tensors")
          ->check(CLI::IsMember({"same", "f32", "bf16", "f16"}))
          ->capture_default_str();
      sub->add_option("--scaling", flags->scaling,
                      "factor of the change, for mistral-finetune's and mlx-lm's files that do not say it");
    }
    sub->callback([flags, run, &exit_code] {
      if (Status status = run(*flags); !status.ok()) exit_code = fail(status);
    });
  };
  add("inspect", "Show ranks, targets, scalings, sizes and the content digest", inspect, false);
  add("verify", "Check that an adapter fits a base and can be served", verify, false);
  add("convert",
      "Write a plain PEFT adapter: other dtype, split fused projections, PiSSA/OLoRA on the untouched base; also of "
      "mlx-lm's and mistral-finetune's files",
      convert, true);

  add_compose(*command, exit_code);
  auto flags = std::make_shared<Flags>();
  CLI::App* sub = command->add_subcommand("init", "Make a random adapter, for benchmarks and tests");
  sub->add_option("OUT", flags->out, "directory to write")->required();
  sub->add_option("--base", flags->base, "base model directory, or its name on the hub");
  sub->add_option("--config", flags->config, "config.json, instead of --base");
  sub->add_option("--rank", flags->ranks, "N, or PROJECTION=N; repeatable")->delimiter(',')->capture_default_str();
  sub->add_option("--targets", flags->targets, "all, attention, or a list of projections")->capture_default_str();
  sub->add_option("--alpha", flags->alpha, "0 = twice the rank")->capture_default_str();
  sub->add_option("--seed", flags->init.seed, "of the random values")->capture_default_str();
  sub->add_option("--b-scale", flags->init.b_scale, "size of B; 0 = a no-op adapter")->capture_default_str();
  sub->add_option("--dtype", flags->dtype, "of the written tensors")->check(CLI::IsMember({"f32", "bf16", "f16"}));
  sub->add_flag("--rslora", flags->init.use_rslora, "scaling alpha / sqrt(rank)");
  sub->add_flag("--dora", flags->init.use_dora, "with DoRA magnitudes (needs --base)");
  sub->callback([flags, &exit_code] {
    if (Status status = init(*flags); !status.ok()) exit_code = fail(status);
  });
}

void add_merge(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("merge", "Bake one adapter into a new model directory and report the rounding loss");
  command->add_option("MODEL", flags->base, "base model directory, or its name on the hub")->required();
  command->add_option("ADAPTER", flags->adapter, "PEFT adapter directory, or its name on the hub")->required();
  command->add_option("OUT", flags->out, "directory to write; must not exist or be empty")->required();
  command->add_option("--dtype", flags->dtype, "of the written tensors")
      ->check(CLI::IsMember({"same", "f32", "bf16", "f16"}))
      ->capture_default_str();
  command->callback([flags, &exit_code] {
    if (Status status = merge(*flags); !status.ok()) exit_code = fail(status);
  });
}

}  // namespace lk::apps
