// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/run_config.h"

#include <glob.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/lora_tools/adapter_rules.h"
#include "lk/train/job_sections.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr int64_t kMaxCount = int64_t{1} << 40;
constexpr size_t kMaxClients = 100'000;

// Keys of `rule` that mean something to some rules alone. With another one they would change nothing, and whoever
// wrote them thinks that they do.
struct RuleKey {
  const char* key;
  std::vector<FederatedRule> rules;
};
const std::vector<RuleKey>& rule_keys() {
  using R = FederatedRule;
  static const std::vector<RuleKey> kKeys{{"trim", {R::kTrimmed}},        {"residual_rank", {R::kFlora, R::kFedEx}},
                                          {"stage1_rounds", {R::kSlora}}, {"density", {R::kSlora}},
                                          {"stage1_lr", {R::kSlora}},     {"keep_sparse", {R::kSlora}}};
  return kKeys;
}
bool takes_key(FederatedRule rule, std::string_view key) {
  const auto found = std::ranges::find(rule_keys(), key, &RuleKey::key);
  return found == rule_keys().end() || std::ranges::find(found->rules, rule) != found->rules.end();
}

// Files of a path or pattern, in the order of their names.
Result<std::vector<std::string>> expand(const std::string& pattern) {
  glob_t found{};
  const int error = ::glob(pattern.c_str(), GLOB_NOMAGIC, nullptr, &found);
  std::vector<std::string> paths;
  if (error == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (error != 0) return not_found("clients.data: no file is named {}", pattern);
  return paths;
}

class Parser {
 public:
  explicit Parser(std::string file) : file_(std::move(file)) {}

  Result<FederatedConfig> parse(const YAML::Node& root) {
    LK_ASSIGN_OR_RETURN(const YamlFields::Layer top, YamlFields::layer_of(root, file_, "the file"));
    YamlFields fields(file_, "", {top});
    FederatedConfig& run = run_;
    fields.text("base", run.base);
    read_dtype(fields, "dtype", run.dtype);
    read_dtype(fields, "wire", run.wire);
    fields.seed("seed", run.seed);
    fields.integer("rounds", run.rounds, 1, 1'000'000);
    fields.integer("block_tokens", run.block_tokens, 16, int64_t{1} << 24);
    fields.bytes("memory", run.memory_bytes);
    fields.integer("threads", run.threads, 0, 1024);
    fields.integer("keep", run.keep, 1, 1000);
    fields.map("ranks", run.ranks, 1, max_servable_rank());
    LK_RETURN_IF_ERROR(section(fields, "adapter", [&](YamlFields& f) { read_section(f, run.adapter); }));
    LK_RETURN_IF_ERROR(section(fields, "data", [&](YamlFields& f) { read_section(f, run.data); }));
    LK_RETURN_IF_ERROR(section(fields, "train", [&](YamlFields& f) { read_section(f, run.train); }));
    std::vector<std::string> patterns, names;
    LK_RETURN_IF_ERROR(section(fields, "clients", [&](YamlFields& f) {
      f.exclusive({"data", "names"});
      f.strings("data", patterns);
      f.strings("names", names);
      f.integer("per_round", run.per_round, 1, kMaxClients);
      f.integer("quorum", run.quorum, 1, kMaxClients);
      f.integer("retries", run.retries, 0, 1000);
      f.integer("together", run.together, 1, kMaxClients);
      f.integer("min_examples", run.min_examples, 1, kMaxCount);
      f.number("max_norm", run.max_norm, {.min = 0, .max = 1e30});
    }));
    LK_RETURN_IF_ERROR(section(fields, "rule", [&](YamlFields& f) {
      f.choice("name", run.rule.name, kFederatedRules);
      f.number("proximal", run.rule.proximal, {.min = 0, .max = 1e6});
      f.number("trim", run.rule.trim, {.min = 0, .max = 0.499});
      f.integer("residual_rank", run.rule.residual_rank, 1, 1 << 20);
      f.integer("stage1_rounds", run.rule.stage1_rounds, 1, 1'000'000);
      f.number("density", run.rule.density, {.min = 0, .max = 1, .above_min = true});
      f.number("stage1_lr", run.rule.stage1_lr, {.min = 0, .max = 1, .above_min = true});
      f.flag("keep_sparse", run.rule.keep_sparse);
      for (const RuleKey& each : rule_keys()) {
        if (takes_key(run.rule.name, each.key)) continue;
        std::vector<const char*> rules;
        for (const FederatedRule rule : each.rules) rules.push_back(to_string(rule));
        no_effect(f, "rule.", each.key,
                  fmt::format("is for {}, and the rule is {}", fmt::join(rules, " and "), to_string(run.rule.name)));
      }
    }));
    LK_RETURN_IF_ERROR(section(fields, "privacy", [&](YamlFields& f) { read_privacy(f); }));
    if (run.privacy.on()) {
      YamlFields clients(file_, "clients.", fields.sections("clients"));
      suit_clients_to_privacy(clients);
      LK_RETURN_IF_ERROR(clients.status());
    }
    LK_RETURN_IF_ERROR(section(fields, "eval", [&](YamlFields& f) {
      f.strings("path", run.eval_path);
      f.integer("every", run.eval_every, 1, 1'000'000);
      if (run.eval_path.empty())
        no_effect(f, "eval.", "every", "counts rounds between evaluations, and path is missing");
    }));
    fields.finish();
    LK_RETURN_IF_ERROR(fields.status());
    LK_RETURN_IF_ERROR(add_clients(patterns, names));
    LK_RETURN_IF_ERROR(check().with_context(file_));
    return std::move(run_);
  }

 private:
  template <class Read>
  Status section(YamlFields& fields, const char* name, const Read& read) {
    YamlFields inner(file_, std::string(name) + ".", fields.sections(name));
    LK_RETURN_IF_ERROR(fields.status());
    read(inner);
    inner.finish();
    return inner.status();
  }

  // A key that is there has an effect, or is refused.
  static void no_effect(YamlFields& fields, const char* section, const char* key, const std::string& why) {
    if (const YAML::Node* node = fields.find(key)) fields.fail(node->Mark(), fmt::format("{}{} {}", section, key, why));
  }

  void read_privacy(YamlFields& f) {
    PrivacySpec& privacy = run_.privacy;
    f.number("clip", privacy.clip, {.min = 0, .max = 1e6, .above_min = true});
    f.number("noise", privacy.noise, {.min = 0.05, .max = 1000});
    f.number("delta", privacy.delta, {.min = 0, .max = 1, .above_min = true});
    f.number("max_epsilon", privacy.max_epsilon, {.min = 0, .max = 1e6, .above_min = true});
    f.choice("sampling", privacy.sampling, kPrivacySamplings);
    for (const char* key : {"noise", "delta", "max_epsilon", "sampling"})
      if (!privacy.on()) no_effect(f, "privacy.", key, "needs privacy.clip, the longest update");
  }

  void suit_clients_to_privacy(YamlFields& clients) {
    no_effect(clients, "clients.", "max_norm", "is not for privacy, which cuts longer updates to privacy.clip");
    if (run_.privacy.sampling != PrivacySampling::kPoisson) return;
    for (const char* key : {"quorum", "retries"})
      no_effect(clients, "clients.", key,
                "is not for Poisson sampling, where a round is over with whoever was drawn, be it nobody");
    run_.quorum = run_.retries = 0;
  }

  Status check_privacy() const {
    const PrivacySpec& privacy = run_.privacy;
    if (!privacy.on()) return Status();
    if (privacy.noise == 0)
      return invalid_argument("privacy.noise is missing: the noise of a sum of updates, in lengths of privacy.clip");
    if (!linear_in_updates(run_.rule.name))
      return invalid_argument(
          "privacy: what {} makes of updates is not linear in them, so a bound on their lengths does not bound what "
          "one "
          "client changes; fedavg, ffa, rolora and slora are linear",
          to_string(run_.rule.name));
    if (privacy.delta * static_cast<double>(run_.clients.size()) >= 1)
      return invalid_argument(
          "privacy.delta is {}; of {} clients it allows that one is shown as it is: take it well below 1 / clients",
          privacy.delta, run_.clients.size());
    return Status();
  }

  Status add_clients(const std::vector<std::string>& patterns, const std::vector<std::string>& names) {
    if (patterns.empty() && names.empty())
      return invalid_argument(
          "{}: clients.data is missing: one file of records per client, or clients.names of those who have theirs "
          "elsewhere",
          file_);
    for (const std::string& name : names) {
      LK_RETURN_IF_ERROR(check_name("client", name).with_context(file_));
      run_.clients.push_back({name, ""});
    }
    for (const std::string& pattern : patterns) {
      Result<std::vector<std::string>> paths = expand(pattern);
      if (!paths.ok()) return paths.status().with_context(file_);
      for (const std::string& path : *paths) {
        const std::string name = std::filesystem::path(path).stem();
        LK_RETURN_IF_ERROR(check_name("client", name).with_context(file_));
        run_.clients.push_back({name, path});
      }
    }
    std::ranges::sort(run_.clients, {}, &ClientSpec::name);
    const auto twice = std::ranges::adjacent_find(run_.clients, {}, &ClientSpec::name);
    if (twice != run_.clients.end())
      return invalid_argument("{}: two clients are called {}; a client is named after its file", file_, twice->name);
    if (run_.clients.size() > kMaxClients) return invalid_argument("{}: more than {} clients", file_, kMaxClients);
    return Status();
  }

  Status check_adapter() const {
    const AdapterSpec& a = run_.adapter;
    const auto refuse = [](const char* key) {
      return unsupported(
          "adapter.{}: federated rules average low-rank changes of linears with one rank and scaling; leave it out",
          key);
    };
    if (a.kind != AdapterKind::kLora) return refuse("kind");
    if (a.lora_bias) return refuse("lora_bias");
    if (!a.rank_pattern.empty()) return refuse("rank_pattern");
    if (!a.alpha_pattern.empty()) return refuse("alpha_pattern");
    if (!a.modules_to_save.empty()) return refuse("modules_to_save");
    if (!a.trainable_tokens.empty()) return refuse("trainable_tokens");
    if (!a.freeze.empty()) return refuse("freeze");
    if (a.init != AdapterInit::kDefault) return refuse("init");
    if (!a.init_from.empty()) return refuse("init_from");
    if (run_.rule.name == FederatedRule::kSlora && a.dropout.value_or(0) > 0) return refuse("dropout");
    return check_rank({}, a.rank);
  }

  Status check() {
    if (run_.base.empty()) return invalid_argument("base is missing: the model's directory");
    LK_RETURN_IF_ERROR(check_adapter());
    if (!run_.data.path.empty() || !run_.data.eval_path.empty() || run_.data.eval_split > 0)
      return invalid_argument("data.path and data.eval_*: records are those of clients.data and eval.path");
    TrainSpec& train = run_.train;
    if (train.steps == 0 || train.epochs > 0)
      return invalid_argument("train.steps is missing: optimiser steps of a client in a round");
    if (train.batch_samples == 0 && train.batch_tokens == 0) train.batch_samples = 8;
    if (train.weight != 1) return invalid_argument("train.weight: clients share a batch alike; leave it out");
    if (train.seed != 0) return invalid_argument("train.seed: all draws come from seed; leave it out");
    const auto clients = static_cast<int64_t>(run_.clients.size());
    if (run_.per_round == 0) run_.per_round = clients;
    if (run_.per_round > clients)
      return invalid_argument("clients.per_round is {}, and there are {} clients", run_.per_round, clients);
    if (run_.quorum > run_.per_round)
      return invalid_argument("clients.quorum is {}, more than the {} that are asked", run_.quorum, run_.per_round);
    if (run_.data.render.max_length == 0) run_.data.render.max_length = run_.block_tokens;
    if (run_.data.render.max_length > run_.block_tokens)
      return invalid_argument("data.max_length is {}, block_tokens only {}; a sample must fit a block",
                              run_.data.render.max_length, run_.block_tokens);
    const RuleSpec& rule = run_.rule;
    if (!run_.ranks.empty() && !takes_any_ranks(rule.name))
      return invalid_argument("ranks: {} needs one rank; flora and flex take any", to_string(rule.name));
    for (const auto& [pattern, rank] : run_.ranks)
      if (std::ranges::none_of(run_.clients, [&](const ClientSpec& c) { return glob_match(pattern, c.name); }))
        return invalid_argument("ranks: \"{}\" matches no client's name", pattern);
    for (auto it = run_.ranks.begin(); it != run_.ranks.end(); ++it)
      if (std::ranges::none_of(run_.clients, [&](const ClientSpec& c) { return run_.rank_pattern_of(c.name) == &*it; }))
        return invalid_argument(
            "ranks: an earlier pattern matches every client that \"{}\" does, and the first one counts", it->first);
    if (rule.name == FederatedRule::kSlora && rule.stage1_rounds > run_.rounds)
      return invalid_argument("rule.stage1_rounds is {}, rounds only {}", rule.stage1_rounds, run_.rounds);
    return check_privacy();
  }

  std::string file_;
  FederatedConfig run_;
};

}  // namespace

const std::pair<std::string, int64_t>* FederatedConfig::rank_pattern_of(const std::string& client) const {
  const auto found = std::ranges::find_if(ranks, [&](const auto& each) { return glob_match(each.first, client); });
  return found == ranks.end() ? nullptr : &*found;
}

int64_t FederatedConfig::rank_of(const std::string& client) const {
  const auto* const pattern = rank_pattern_of(client);
  return pattern ? pattern->second : adapter.rank;
}

double FederatedConfig::scaling() const {
  const auto rank = static_cast<double>(adapter.rank);
  return adapter.alpha / (adapter.use_rslora ? std::sqrt(rank) : rank);
}

Result<FederatedConfig> load_federated_config(const std::string& path) {
  LK_ASSIGN_OR_RETURN(const std::string yaml, read_file(path, size_t{1} << 20));
  return parse_federated_config(yaml, path);
}

Result<FederatedConfig> parse_federated_config(const std::string& yaml, const std::string& where) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(yaml);
    if (documents.size() != 1) return invalid_argument("{}: {} documents; a run file is one", where, documents.size());
    return Parser(where).parse(documents[0]);
  } catch (const YAML::Exception& error) {
    return invalid_argument("{}:{}: {}", where, error.mark.line + 1, error.msg);
  }
}

namespace {

// A run file has one of these or none; JSON with all defaults would have both.
void erase_empty(json::object& section, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const json::value* value = section.if_contains(key);
    if (!value) continue;
    const bool zero = value->is_number() && value->to_number<double>() == 0;
    if (zero || (value->is_string() && value->get_string().empty())) section.erase(key);
  }
}

}  // namespace

std::string federated_identity(const FederatedConfig& config) {
  json::object adapter = section_json(config.adapter), data = section_json(config.data),
               train = section_json(config.train), ranks;
  for (const char* key : {"path", "eval_path", "eval_split"}) data.erase(key);
  erase_empty(adapter, {"init_from"});
  erase_empty(train, {"batch_samples", "batch_tokens", "epochs", "warmup_steps", "warmup_ratio"});
  for (const auto& [pattern, rank] : config.ranks) ranks[pattern] = rank;
  json::array clients;
  for (const ClientSpec& client : config.clients) clients.emplace_back(client.name);
  const RuleSpec& rule = config.rule;
  json::object rules{
      {"name", to_string(rule.name)},        {"proximal", rule.proximal},           {"trim", rule.trim},
      {"residual_rank", rule.residual_rank}, {"stage1_rounds", rule.stage1_rounds}, {"density", rule.density},
      {"stage1_lr", rule.stage1_lr},         {"keep_sparse", rule.keep_sparse}};
  erase_empty(rules, {"residual_rank", "density", "stage1_lr"});
  for (const RuleKey& each : rule_keys())
    if (!takes_key(rule.name, each.key)) rules.erase(each.key);
  json::object sampling{{"names", std::move(clients)},
                        {"per_round", config.per_round},
                        {"quorum", config.quorum},
                        {"min_examples", config.min_examples},
                        {"max_norm", config.max_norm}};
  const PrivacySpec& own = config.privacy;
  json::object privacy;
  if (own.on()) {
    privacy = {{"clip", own.clip},
               {"noise", own.noise},
               {"delta", own.delta},
               {"max_epsilon", own.max_epsilon},
               {"sampling", own.sampling == PrivacySampling::kPoisson ? "poisson" : "fixed"}};
    erase_empty(privacy, {"max_epsilon"});
    sampling.erase("max_norm");
    if (own.sampling == PrivacySampling::kPoisson) sampling.erase("quorum");
  }
  return json_text(json::object{{"seed", config.seed},
                                {"rounds", config.rounds},
                                {"block_tokens", std::max<int64_t>(16, config.data.render.max_length)},
                                {"dtype", config.dtype == TrainDtype::kF32 ? "f32" : "bf16"},
                                {"wire", config.wire == TrainDtype::kF32 ? "f32" : "bf16"},
                                {"adapter", std::move(adapter)},
                                {"data", std::move(data)},
                                {"train", std::move(train)},
                                {"clients", std::move(sampling)},
                                {"ranks", std::move(ranks)},
                                {"rule", std::move(rules)},
                                {"privacy", std::move(privacy)}});
}

}  // namespace lk
