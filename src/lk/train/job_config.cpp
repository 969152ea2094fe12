// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/base/names.h"
#include "lk/lora_tools/adapter_rules.h"
#include "lk/train/job_sections.h"
#include "lk/train/yaml_fields.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr size_t kMaxJobs = 1024;
const int64_t kMaxRank = max_servable_rank();
constexpr int64_t kMaxCount = int64_t{1} << 40;
// Far beyond any memory, and its bytes can still be counted: rows of a block are int32.
constexpr int64_t kMaxBlockTokens = int64_t{1} << 24;

template <class Enum, size_t n>
using Names = std::array<std::pair<Enum, const char*>, n>;
constexpr Names<AdapterKind, 3> kKinds{
    {{AdapterKind::kLora, "lora"}, {AdapterKind::kDora, "dora"}, {AdapterKind::kMultiLora, "multilora"}}};
constexpr Names<LrSchedule, 4> kSchedules{{{LrSchedule::kConstant, "constant"},
                                           {LrSchedule::kLinear, "linear"},
                                           {LrSchedule::kCosine, "cosine"},
                                           {LrSchedule::kInverseSqrt, "inverse_sqrt"}}};
constexpr Names<TrainDtype, 2> kDtypes{{{TrainDtype::kBf16, "bf16"}, {TrainDtype::kF32, "f32"}}};
constexpr Names<std::optional<Checkpointing>, 4> kCheckpointings{{{std::nullopt, "auto"},
                                                                  {Checkpointing::kNone, "none"},
                                                                  {Checkpointing::kSelective, "selective"},
                                                                  {Checkpointing::kFull, "full"}}};
constexpr Names<LongSamples, 3> kPolicies{
    {{LongSamples::kError, "error"}, {LongSamples::kTruncate, "truncate"}, {LongSamples::kDrop, "drop"}}};
constexpr Names<std::optional<RecordFormat>, 6> kFormats{{{std::nullopt, "auto"},
                                                          {RecordFormat::kMessages, "messages"},
                                                          {RecordFormat::kSharegpt, "sharegpt"},
                                                          {RecordFormat::kAlpaca, "alpaca"},
                                                          {RecordFormat::kCompletion, "completion"},
                                                          {RecordFormat::kText, "text"}}};

// Every key of a section, once: read by YamlFields, written by JsonOut.
using Bounds = YamlFields::Bounds;
constexpr Bounds kPositive{.min = 0, .max = 1e6, .above_min = true};
constexpr Bounds kUpToOne{.min = 0, .max = 1, .above_min = true};
constexpr Bounds kShare{.min = 0, .max = 1};
constexpr Bounds kBelowOne{.min = 0, .max = 1 - 1e-9};

template <class Visitor>
void describe(Visitor& v, AdapterSpec& s) {
  v.choice("kind", s.kind, kKinds);
  v.integer("num_modules", s.num_modules, 1, kMaxLoraModules);
  v.integer("rank", s.rank, 1, kMaxRank);
  v.number("alpha", s.alpha, kPositive);
  v.flag("use_rslora", s.use_rslora);
  v.flag("lora_bias", s.lora_bias);
  v.number("dropout", s.dropout, kBelowOne);
  v.strings("target_modules", s.target_modules);
  v.strings("exclude_modules", s.exclude_modules);
  v.integers("layers_to_transform", s.layers_to_transform, 0, 10'000);
  v.map("rank_pattern", s.rank_pattern, 1, kMaxRank);
  v.map("alpha_pattern", s.alpha_pattern, kPositive);
  v.strings("modules_to_save", s.modules_to_save);
  v.integers("trainable_tokens", s.trainable_tokens, 0, INT32_MAX);
  v.strings("freeze", s.freeze);
  v.choice("init", s.init, kAdapterInits);
  v.text("init_from", s.init_from);
  v.alone("init_from", {"dropout", "freeze"});
}
template <class Visitor>
void describe(Visitor& v, DataSpec& s) {
  v.exclusive({"eval_path", "eval_split"});
  v.text("path", s.path);
  v.choice("format", s.format, kFormats);
  v.integer("max_length", s.render.max_length, 2, kMaxCount);
  v.choice("long_samples", s.render.long_samples, kPolicies);
  v.flag("train_on_prompt", s.render.train_on_prompt);
  v.flag("mask_history", s.render.mask_history);
  v.flag("shuffle", s.shuffle);
  v.flag("skip_bad", s.skip_bad);
  v.strings("eval_path", s.eval_path);
  v.number("eval_split", s.eval_split, kBelowOne);
}
template <class Visitor>
void describe(Visitor& v, TrainSpec& s) {
  v.exclusive({"batch_samples", "batch_tokens"});
  v.exclusive({"steps", "epochs"});
  v.exclusive({"warmup_steps", "warmup_ratio"});
  v.integer("batch_samples", s.batch_samples, 1, kMaxCount);
  v.integer("batch_tokens", s.batch_tokens, 1, kMaxCount);
  v.integer("steps", s.steps, 1, kMaxCount);
  v.number("epochs", s.epochs, kPositive);
  v.number("lr", s.lr, kUpToOne);
  v.choice("schedule", s.schedule, kSchedules);
  v.number("min_ratio", s.min_ratio, kShare);
  v.integer("warmup_steps", s.warmup_steps, 0, kMaxCount);
  v.number("warmup_ratio", s.warmup_ratio, kShare);
  v.number("weight_decay", s.weight_decay, {.min = 0, .max = 10});
  double* const betas[] = {&s.beta1, &s.beta2};
  v.numbers("betas", std::span(betas), kBelowOne);
  v.number("eps", s.eps, kUpToOne);
  v.number("clip", s.clip, {.min = 0, .max = 1e6});
  v.number("loraplus_ratio", s.loraplus_ratio, kPositive);
  v.seed("seed", s.seed);
  v.number("weight", s.weight, kPositive);
}
template <class Visitor>
void describe(Visitor& v, EvalSpec& s) {
  v.integer("every", s.every, 0, kMaxCount);
  v.flag("exact_match", s.exact_match);
  v.integer("patience", s.patience, 0, kMaxCount);
  v.number("min_delta", s.min_delta, {.min = 0, .max = 1e6});
  v.flag("keep_best", s.keep_best);
}
template <class Visitor>
void describe(Visitor& v, SaveSpec& s) {
  v.text("dir", s.dir);
  v.integer("every", s.every, 0, kMaxCount);
  v.integer("keep", s.keep, 1, 1000);
  v.choice("dtype", s.dtype, kDtypes);
}

// What YamlFields reads, as JSON.
class JsonOut {
 public:
  void integer(const char* key, int64_t value, int64_t, int64_t) { out[key] = value; }
  void seed(const char* key, uint64_t value) { out[key] = value; }
  void number(const char* key, double value, const Bounds&) { out[key] = value; }
  void number(const char* key, const std::optional<double>& value, const Bounds&) {
    out[key] = value ? json::value(*value) : json::value(nullptr);
  }
  void numbers(const char* key, std::span<double* const> values, const Bounds&) {
    json::array list;
    for (const double* value : values) list.emplace_back(*value);
    out[key] = std::move(list);
  }
  void flag(const char* key, bool value) { out[key] = value; }
  void text(const char* key, const std::string& value) { out[key] = value; }
  void strings(const char* key, const std::vector<std::string>& values) { out[key] = json::value_from(values); }
  void integers(const char* key, const std::vector<int64_t>& values, int64_t, int64_t) {
    out[key] = json::value_from(values);
  }
  template <class Value, class... Limits>
  void map(const char* key, const std::vector<std::pair<std::string, Value>>& values, const Limits&...) {
    json::object object;  // keeps the order
    for (const auto& [name, value] : values) object[name] = value;
    out[key] = std::move(object);
  }
  template <class Enum, class List>
  void choice(const char* key, const Enum& value, const List& names) {
    for (const auto& [known, name] : names)
      if (known == value) out[key] = name;
  }
  void exclusive(const std::vector<std::string>&) {}
  void alone(const char*, const std::set<std::string>&) {}

  json::object out;
};

template <class Spec>
json::object as_json(Spec& spec) {
  JsonOut visitor;
  describe(visitor, spec);
  return std::move(visitor.out);
}

Status check_job(const JobConfig& job) {
  const AdapterSpec& a = job.adapter;
  const auto fail = [&](std::string_view reason) { return invalid_argument("job \"{}\": {}", job.name, reason); };
  if (job.data.path.empty()) return fail("data.path is missing");
  if (a.target_modules.empty() && a.modules_to_save.empty() && a.trainable_tokens.empty() && a.init_from.empty())
    return fail("adapter.target_modules is empty, so there is nothing to train");
  const bool all = std::find(a.target_modules.begin(), a.target_modules.end(), "all-linear") != a.target_modules.end();
  if (all && a.target_modules.size() > 1) return fail("adapter.target_modules: \"all-linear\" stands alone");
  for (const std::string& factor : a.freeze)
    if (factor != "A" && factor != "B") return fail(fmt::format("adapter.freeze: \"{}\" is neither A nor B", factor));
  if (a.freeze.size() > 1 && a.kind != AdapterKind::kMultiLora)
    return fail("adapter.freeze: with A and B frozen nothing is trained");
  const AdapterTraits traits{.num_modules = a.kind == AdapterKind::kMultiLora ? a.num_modules : 0,
                             .dora = a.kind == AdapterKind::kDora,
                             .bias = a.lora_bias,
                             .dropout = a.dropout.value_or(0) > 0,
                             .init = a.init};
  Status fits = check_kind(traits);
  if (fits.ok()) fits = check_rank(traits, a.rank);
  for (const auto& [pattern, rank] : a.rank_pattern)
    if (fits.ok()) fits = check_rank(traits, rank, pattern);
  if (!fits.ok()) return fail("adapter." + std::string(fits.message()));
  if (job.data.render.train_on_prompt && job.data.render.mask_history)
    return fail("data.train_on_prompt and data.mask_history exclude each other");
  std::set<std::string> held;
  for (const std::string& path : job.data.eval_path)
    if (path.empty() || !held.insert(path).second)
      return fail(path.empty() ? "data.eval_path names no file" : fmt::format("data.eval_path names {} twice", path));
  const bool has_eval = !job.data.eval_path.empty() || job.data.eval_split > 0;
  if (!has_eval && (job.eval.every > 0 || job.eval.exact_match || job.eval.patience > 0))
    return fail("eval needs data: give data.eval_path or data.eval_split");
  if (job.eval.patience > 0 && job.eval.every == 0) return fail("eval.patience needs eval.every");
  if (job.train.steps > 0 && job.train.warmup_steps > job.train.steps)
    return fail(fmt::format("train.warmup_steps is {}, train.steps only {}", job.train.warmup_steps, job.train.steps));
  return Status();
}

std::string sweep_label(const YAML::Node& value) {
  std::string text;
  if (value.IsScalar()) text = value.Scalar();
  for (const auto& item : value) {
    if (item.IsScalar()) text += (text.empty() ? "" : "_") + item.Scalar();
  }
  for (char& c : text)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  return text;
}

constexpr std::array<const char*, 5> kSections{"adapter", "data", "train", "eval", "save"};

// Where each key of a job belongs: "lr" -> "train.lr". A key of several sections ("every") is not among them.
std::map<std::string, std::string, std::less<>> homes_of_keys() {
  std::map<std::string, std::string, std::less<>> homes;
  std::set<std::string> several;
  const json::object job = job_config_json(JobConfig());
  for (const char* section : kSections)
    for (const auto& field : job.at(section).as_object()) {
      std::string key(field.key());
      if (!homes.emplace(key, fmt::format("{}.{}", section, key)).second) several.insert(std::move(key));
    }
  for (const std::string& key : several) homes.erase(key);
  return homes;
}

class Parser {
 public:
  explicit Parser(std::string file) : file_(std::move(file)) {}

  Result<RunConfig> parse(const YAML::Node& root) {
    LK_ASSIGN_OR_RETURN(const YamlFields::Layer top, YamlFields::layer_of(root, file_, "the file"));
    YamlFields fields(file_, "", {top});
    RunConfig& run = run_;
    fields.text("base", run.base);
    fields.choice("dtype", run.dtype, kDtypes);
    fields.integer("block_tokens", run.block_tokens, 16, kMaxBlockTokens);
    fields.choice("checkpointing", run.checkpointing, kCheckpointings);
    fields.bytes("memory", run.memory_bytes);
    fields.integer("threads", run.threads, 0, 1024);
    fields.text("output", run.output);
    fields.text("metrics", run.metrics);
    fields.text("tensorboard", run.tensorboard);
    const std::vector<YamlFields::Layer> defaults = fields.sections("defaults");
    const YAML::Node* jobs = fields.find("jobs");
    fields.finish(homes_);
    LK_RETURN_IF_ERROR(fields.status());
    if (run.base.empty()) return invalid_argument("{}: base is missing: the model's directory", file_);
    if (jobs == nullptr || !jobs->IsSequence() || jobs->size() == 0)
      return invalid_argument("{}: jobs must be a list of at least one job", file_);
    for (const auto& job : *jobs) LK_RETURN_IF_ERROR(expand(job, defaults.empty() ? YamlFields::Layer() : defaults[0]));
    LK_RETURN_IF_ERROR(check_all());
    return std::move(run_);
  }

 private:
  struct Variant {
    std::string suffix;
    YamlFields::Layer values;  // dotted keys
  };

  // One job, or one per combination of its sweep.
  Status expand(const YAML::Node& node, const YamlFields::Layer& defaults) {
    LK_ASSIGN_OR_RETURN(const YamlFields::Layer own, YamlFields::layer_of(node, file_, "a job"));
    std::vector<Variant> variants(1);
    for (const YamlFields::Entry& entry : own) {
      if (entry.key != "sweep") continue;
      LK_ASSIGN_OR_RETURN(const YamlFields::Layer axes, YamlFields::layer_of(entry.value, file_, "sweep"));
      for (const YamlFields::Entry& axis : axes) LK_RETURN_IF_ERROR(add_axis(axis, variants));
    }
    for (const Variant& variant : variants) LK_RETURN_IF_ERROR(add_job(node, own, defaults, variant));
    return Status();
  }

  Status add_axis(const YamlFields::Entry& axis, std::vector<Variant>& variants) {
    const std::string where = yaml_place(file_, axis.mark);
    const size_t dot = axis.key.find('.');
    const auto section = std::find(kSections.begin(), kSections.end(), axis.key.substr(0, dot));
    if (dot == std::string::npos || section == kSections.end())
      return invalid_argument("{}: sweep: \"{}\" must be a dotted key such as train.lr; sections: {}", where, axis.key,
                              fmt::join(kSections, ", "));
    if (!axis.value.IsSequence() || axis.value.size() == 0)
      return invalid_argument("{}: sweep: {} must be a list of values", where, axis.key);
    if (variants.size() * axis.value.size() > kMaxJobs)
      return invalid_argument("{}: sweep: more than {} jobs", where, kMaxJobs);
    std::vector<Variant> product;
    for (const Variant& variant : variants)
      for (const auto& value : axis.value) {
        Variant& next = product.emplace_back(variant);
        next.suffix += fmt::format("-{}{}", axis.key.substr(dot + 1), sweep_label(value));
        next.values.push_back({axis.key, value, value.Mark()});
      }
    variants = std::move(product);
    return Status();
  }

  Status add_job(const YAML::Node& node, const YamlFields::Layer& own, const YamlFields::Layer& defaults,
                 const Variant& variant) {
    YamlFields fields(file_, "", {own});
    YamlFields default_fields(file_, "defaults.", {defaults});
    JobConfig job;
    fields.text("name", job.name);
    fields.find("sweep");
    const bool named = !job.name.empty();
    job.name += variant.suffix;
    const auto read = [&](const char* section, auto& spec) {
      YamlFields::Layer swept;
      for (const YamlFields::Entry& entry : variant.values)
        if (entry.key.starts_with(std::string(section) + "."))
          swept.push_back({entry.key.substr(std::string(section).size() + 1), entry.value, entry.mark});
      std::vector<YamlFields::Layer> layers{std::move(swept)};
      for (YamlFields* each : {&fields, &default_fields}) {
        std::vector<YamlFields::Layer> found = each->sections(section);
        layers.push_back(found.empty() ? YamlFields::Layer() : std::move(found[0]));
        if (!each->status().ok()) return each->status();
      }
      YamlFields inner(file_, std::string(section) + ".", std::move(layers));
      describe(inner, spec);
      inner.finish(homes_);
      return inner.status();
    };
    LK_RETURN_IF_ERROR(read("adapter", job.adapter));
    LK_RETURN_IF_ERROR(read("data", job.data));
    LK_RETURN_IF_ERROR(read("train", job.train));
    LK_RETURN_IF_ERROR(read("eval", job.eval));
    LK_RETURN_IF_ERROR(read("save", job.save));
    fields.finish(homes_);
    default_fields.finish(homes_);
    LK_RETURN_IF_ERROR(fields.status());
    LK_RETURN_IF_ERROR(default_fields.status());
    if (job.train.batch_samples == 0 && job.train.batch_tokens == 0) job.train.batch_samples = 8;
    if (job.train.steps == 0 && job.train.epochs == 0) job.train.epochs = 1;
    if (job.save.dir.empty()) job.save.dir = join_path(run_.output, job.name);
    const std::string where = yaml_place(file_, node.Mark());
    if (!named) return invalid_argument("{}: the job has no name", where);
    if (!is_valid_name(job.name))
      return invalid_argument(
          "{}: \"{}\" is no name: letters, digits, '.', '_' and '-', at most 128, a letter or digit "
          "first",
          where, job.name);
    if (job.data.render.max_length == 0) job.data.render.max_length = run_.block_tokens;
    if (job.data.render.max_length > run_.block_tokens)
      return invalid_argument("{}: job \"{}\": data.max_length is {}, block_tokens only {}; a sample must fit a block",
                              where, job.name, job.data.render.max_length, run_.block_tokens);
    LK_RETURN_IF_ERROR(check_job(job).with_context(where));
    run_.jobs.push_back(std::move(job));
    if (run_.jobs.size() > kMaxJobs) return invalid_argument("{}: more than {} jobs", file_, kMaxJobs);
    return Status();
  }

  Status check_all() {
    std::map<std::string, std::string> names, dirs;
    const std::string base = place_of(run_.base);
    for (const JobConfig& job : run_.jobs) {
      if (!names.emplace(job.name, job.name).second)
        return invalid_argument("{}: two jobs are named \"{}\"", file_, job.name);
      const auto [earlier, fresh] = dirs.emplace(place_of(job.save.dir), job.name);
      if (!fresh)
        return invalid_argument(
            "{}: jobs \"{}\" and \"{}\" both write to {}; leave save.dir out and each gets a directory of its name",
            file_, earlier->second, job.name, job.save.dir);
      if (earlier->first == base)
        return invalid_argument("{}: job \"{}\" writes to the base's directory; give it one of its own", file_,
                                job.name);
    }
    // What a run keeps beside its results is its own.
    for (const auto& [dir, job] : dirs)
      for (std::filesystem::path inside = dir; inside.has_relative_path(); inside = inside.parent_path()) {
        const std::string own = inside.filename();
        const auto owner = dirs.find(inside.parent_path());
        if ((own == "best" || own == "checkpoints") && owner != dirs.end())
          return invalid_argument(
              "{}: job \"{}\" writes to {}, where job \"{}\" keeps its {}; give it another directory", file_, job, dir,
              owner->second, own);
      }
    if (std::filesystem::path(run_.metrics).extension() == ".svg")
      return invalid_argument("{}: metrics is a JSONL file; {} is the name of its loss curves", file_, run_.metrics);
    return Status();
  }

  // What a path stands for, whatever it is called: absolute, without links. What is not there yet stays as named.
  static std::string place_of(const std::string& path) {
    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(path.empty() ? "." : path, error);
    std::filesystem::path place = std::filesystem::weakly_canonical(absolute, error);
    if (error) place = absolute.lexically_normal();
    return (place / "x").lexically_normal().parent_path();
  }

  std::string file_;
  RunConfig run_;
  const std::map<std::string, std::string, std::less<>> homes_ = homes_of_keys();
};

}  // namespace

Result<RunConfig> load_run_config(const std::string& path) {
  LK_ASSIGN_OR_RETURN(const std::string yaml, read_file(path, kMaxFileBytes));
  return parse_run_config(yaml, path);
}

Result<RunConfig> parse_run_config(const std::string& yaml, const std::string& where) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(yaml);
    if (documents.size() > 1) return invalid_argument("{}: {} documents; a jobs file is one", where, documents.size());
    return Parser(where).parse(documents.empty() ? YAML::Node() : documents[0]);
  } catch (const YAML::Exception& error) {
    return invalid_argument("{}:{}: {}", where, error.mark.line + 1, error.msg);
  }
}

Result<RunConfig> parse_job_flags(const JobFlags& flags) {
  YAML::Node run, job;
  job["name"] = flags.name;
  run["base"] = flags.base;
  for (const std::string& item : flags.set) {
    const size_t equals = item.find('='), dot = item.find('.');
    if (equals == std::string::npos || equals == 0)
      return invalid_argument("--set wants KEY=VALUE, for example train.lr=1e-4, got \"{}\"", item);
    const std::string key = item.substr(0, equals);
    for (const auto& [taken, flag] :
         {std::pair("base", "--model"), std::pair("name", "--name"), std::pair("output", "--output"),
          std::pair("save.dir", "--output"), std::pair("data.path", "--data"), std::pair("threads", "--threads")})
      if (key == taken) return invalid_argument("--set {}: that is {}", key, flag);
    if (key == "jobs" || key == "defaults" || key.starts_with("sweep"))
      return invalid_argument("--set {}: flags are one job; several need a jobs file", key);
    YAML::Node value;
    try {
      value = YAML::Load(item.substr(equals + 1));
    } catch (const YAML::Exception& error) {
      return invalid_argument("--set {}: the value is not YAML: {}", key, error.msg);
    }
    if (dot < equals && std::ranges::find(kSections, item.substr(0, dot)) == kSections.end())
      return invalid_argument("--set {}: sections are {}", key, fmt::join(kSections, ", "));
    if (dot < equals)
      job[item.substr(0, dot)][item.substr(dot + 1, equals - dot - 1)] = value;
    else
      run[key] = value;
  }
  job["data"]["path"] = flags.data;
  job["save"]["dir"] = flags.output;
  run["jobs"].push_back(job);
  try {
    LK_ASSIGN_OR_RETURN(RunConfig config, Parser("--set").parse(run));
    if (config.metrics.empty()) config.metrics = join_path(flags.output, "metrics.jsonl");
    return config;
  } catch (const YAML::Exception& error) {
    return invalid_argument("--set: {}", error.msg);
  }
}

void read_section(YamlFields& fields, AdapterSpec& spec) { describe(fields, spec); }
void read_section(YamlFields& fields, DataSpec& spec) { describe(fields, spec); }
void read_section(YamlFields& fields, TrainSpec& spec) { describe(fields, spec); }
void read_dtype(YamlFields& fields, const char* key, TrainDtype& dtype) { fields.choice(key, dtype, kDtypes); }

json::object section_json(AdapterSpec spec) { return as_json(spec); }
json::object section_json(DataSpec spec) { return as_json(spec); }
json::object section_json(TrainSpec spec) { return as_json(spec); }

AdamwStep dials_of(const TrainSpec& spec) {
  return {.beta1 = spec.beta1,
          .beta2 = spec.beta2,
          .eps = spec.eps,
          .decay = spec.weight_decay,
          .b_rate_ratio = spec.loraplus_ratio,
          .clip = spec.clip};
}

json::object job_config_json(const JobConfig& job) {
  JobConfig copy = job;
  json::object out{{"name", job.name}};
  const auto section = [&](const char* name, auto& spec) { out[name] = as_json(spec); };
  section("adapter", copy.adapter);
  section("data", copy.data);
  section("train", copy.train);
  section("eval", copy.eval);
  section("save", copy.save);
  return out;
}

double learning_rate_at(const TrainSpec& spec, int64_t step, int64_t total_steps) {
  const int64_t warmup = spec.warmup_ratio > 0
                             ? static_cast<int64_t>(std::ceil(static_cast<double>(total_steps) * spec.warmup_ratio))
                             : spec.warmup_steps;
  if (step < warmup) return spec.lr * static_cast<double>(step) / static_cast<double>(std::max<int64_t>(warmup, 1));
  const double progress = std::min(
      1.0, static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(total_steps - warmup, 1)));
  switch (spec.schedule) {
    case LrSchedule::kConstant:
      return spec.lr;
    case LrSchedule::kLinear:
      return spec.lr * ((1 - spec.min_ratio) * (1 - progress) + spec.min_ratio);
    case LrSchedule::kCosine: {
      const double share = 0.5 * (1 + std::cos(3.14159265358979323846 * progress));
      return spec.lr * ((1 - spec.min_ratio) * share + spec.min_ratio);
    }
    case LrSchedule::kInverseSqrt: {
      constexpr int64_t kTimescale = 10'000;  // transformers', where there is no warm-up
      const auto scale = static_cast<double>(warmup > 0 ? warmup : kTimescale);
      const double decay = 1 / std::sqrt((static_cast<double>(step - warmup) + scale) / scale);
      return spec.lr * std::max(decay, spec.min_ratio);
    }
  }
  return spec.lr;
}

}  // namespace lk
