// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/server.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "lk/base/plain_text.h"
#include "lk/base/rng.h"
#include "lk/lora_tools/adapter_rules.h"
#include "lk/lora_tools/initial.h"
#include "lk/train/job_start.h"

namespace lk {
namespace {

// Draws that have nothing to do with each other.
enum class Stream : uint64_t { kInitial = 1, kSampling, kMask, kFresh };
uint64_t seed_of(uint64_t seed, Stream stream, uint64_t a = 0, uint64_t b = 0) {
  return mix64(mix64(mix64(seed ^ mix64(static_cast<uint64_t>(stream))) + a) ^ mix64(b + 0x5851f42d4c957f2dull));
}

// The first `rank` ranks.
ModuleFactors first_ranks(const ModuleFactors& factors, int64_t rank) {
  ModuleFactors result;
  for (const auto& [module, each] : factors) {
    const DeltaFactors& f = each.factors;
    const int64_t kept = std::min(rank, f.rank);
    DeltaFactors cut{.rank = kept, .in = f.in, .out = f.out, .a = {}, .b = {}};
    cut.a.assign(f.a.begin(), f.a.begin() + kept * f.in);
    for (int64_t o = 0; o < f.out; ++o)
      cut.b.insert(cut.b.end(), f.b.begin() + o * f.rank, f.b.begin() + o * f.rank + kept);
    result[module] = {std::move(cut), each.scaling};
  }
  return result;
}

// start + added, in f64.
std::vector<float> plus(const std::vector<float>& start, const std::vector<float>& added) {
  std::vector<float> sum(start.size());
  for (size_t i = 0; i < sum.size(); ++i)
    sum[i] = static_cast<float>(static_cast<double>(start[i]) + static_cast<double>(added[i]));
  return sum;
}

Status check_values(const std::string& what, std::span<const float> values, float most) {
  for (const float v : values) {
    if (!std::isfinite(v)) return data_loss("{} holds values that are not finite", what);
    if (std::abs(v) > most)
      return invalid_argument("{} changes a value by {:.3g}, more than any training does (at most {:.3g})", what, v,
                              most);
  }
  return Status();
}

Status check_finite(const ModuleFactors& factors, float most = std::numeric_limits<float>::infinity()) {
  for (const auto& [module, each] : factors)
    for (const std::vector<float>* values : {&each.factors.a, &each.factors.b})
      LK_RETURN_IF_ERROR(check_values(module_path(module), *values, most));
  return Status();
}

Status check_finite(const FederatedState& state) {
  LK_RETURN_IF_ERROR(check_finite(state.global));
  LK_RETURN_IF_ERROR(check_finite(state.overlay));
  for (const auto& [client, own] : state.personal) LK_RETURN_IF_ERROR(check_finite(own));
  for (const auto& [module, values] : state.sparse)
    LK_RETURN_IF_ERROR(check_values(module_path(module), values, std::numeric_limits<float>::infinity()));
  return Status();
}

float largest_of(const ClientUpdate& update) {
  float largest = 0;
  for (const auto& [name, values] : update.tensors)
    for (const float v : values) largest = std::max(largest, std::abs(v));
  return largest;
}

}  // namespace

Result<std::unique_ptr<FederatedServer>> FederatedServer::create(const FederatedConfig& config,
                                                                 const ModelConfig& model, const TensorStore& base) {
  std::unique_ptr<FederatedServer> server(new FederatedServer(config, model));
  server->base_ = &base;
  LK_ASSIGN_OR_RETURN(ModuleFactors initial, server->draw(config.adapter.rank, seed_of(config.seed, Stream::kInitial)));
  for (const auto& [module, each] : initial) {
    if (!module.proj())
      return unsupported("adapter.target_modules: {} is no linear of a layer; federated rules change those",
                         module_path(module));
    server->modules_.push_back(module);
  }
  FederatedState state;
  const bool later = config.rule.name == FederatedRule::kFlora || config.rule.name == FederatedRule::kSlora;
  if (!later) state.global = std::move(initial);
  if (config.rule.name == FederatedRule::kFlex && !config.ranks.empty()) {
    int64_t largest = config.adapter.rank;
    for (const auto& [pattern, rank] : config.ranks) largest = std::max(largest, rank);
    LK_ASSIGN_OR_RETURN(state.global, server->draw(largest, seed_of(config.seed, Stream::kInitial)));
  }
  if (config.rule.name == FederatedRule::kSlora)
    for (const auto& [id, module] : server->mask().modules())
      state.sparse[id].resize(static_cast<size_t>(module.nnz()));
  LK_RETURN_IF_ERROR(server->restore(std::move(state)));
  return server;
}

// The default initialisation at this rank: A random, B zero, at the run's scaling.
Result<ModuleFactors> FederatedServer::draw(int64_t rank, uint64_t seed) const {
  AdapterConfig config = peft_config(config_.adapter, config_.base);
  config.rank = rank;
  config.use_rslora = false;
  LK_ASSIGN_OR_RETURN(const InitialAdapter made,
                      make_initial_adapter(model_, config, AdapterInit::kDefault, 0, seed, *base_));
  LK_ASSIGN_OR_RETURN(ModuleFactors factors, factors_of(made.adapter));
  for (auto& [module, each] : factors) each.scaling = config_.scaling();
  return factors;
}

Status FederatedServer::restore(FederatedState state) {
  const std::set<ModuleId> modules(modules_.begin(), modules_.end());
  const auto check = [&](const ModuleFactors& factors) {
    for (const auto& [module, each] : factors)
      if (!modules.contains(module))
        return failed_precondition("the state adapts {}, which the configuration does not", module_path(module));
    return Status();
  };
  LK_RETURN_IF_ERROR(check(state.global));
  LK_RETURN_IF_ERROR(check(state.overlay));
  for (const auto& [module, values] : state.sparse) {
    const auto found = mask().modules().find(module);
    if (found == mask().modules().end() || found->second.nnz() != std::ssize(values))
      return failed_precondition("the state's values of {} are not on the configuration's mask", module_path(module));
  }
  state_ = std::move(state);
  if (config_.rule.name != FederatedRule::kFlora) return Status();
  int64_t largest = config_.adapter.rank;
  for (const auto& [pattern, rank] : config_.ranks) largest = std::max(largest, rank);
  LK_ASSIGN_OR_RETURN(fresh_, draw(largest, seed_of(config_.seed, Stream::kFresh, static_cast<uint64_t>(round()))));
  return Status();
}

std::string update_tensor_name(ModuleId module, const char* what) {
  return fmt::format("base_model.model.{}.{}", module_path(module), what);
}

// --- The mask

bool FederatedServer::sparse_stage() const {
  return config_.rule.name == FederatedRule::kSlora && round() <= config_.rule.stage1_rounds;
}

double FederatedServer::density() const {
  if (config_.rule.density > 0) return config_.rule.density;
  double factors = 0, elements = 0;
  for (const ModuleId module : modules_) {
    const auto in = static_cast<double>(in_dim(*module.proj(), model_)),
               out = static_cast<double>(out_dim(*module.proj(), model_));
    factors += static_cast<double>(config_.adapter.rank) * (in + out);
    elements += in * out;
  }
  return std::min(1.0, factors / elements);
}

const SparseMask& FederatedServer::mask() {
  if (!mask_) mask_ = SparseMask::draw(modules_, model_.shape(), density(), seed_of(config_.seed, Stream::kMask));
  return *mask_;
}

// --- Rounds

std::vector<std::string> FederatedServer::sample_of(int64_t round, const std::vector<std::string>& eligible,
                                                    int64_t attempt) const {
  std::vector<std::string> clients = eligible;
  std::ranges::sort(clients);
  if (config_.privacy.unseen()) {
    LK_CHECK(privacy_, "a secret draw needs the run's secrets");
    std::erase_if(clients, [&](const std::string& client) { return !privacy_->sampled(round, client); });
    return clients;
  }
  const auto count = std::min<size_t>(clients.size(), static_cast<size_t>(config_.per_round));
  const uint64_t seed =
      seed_of(config_.seed, Stream::kSampling, static_cast<uint64_t>(round), static_cast<uint64_t>(attempt));
  for (size_t k = 0; k < count; ++k)
    std::swap(clients[k], clients[k + static_cast<size_t>(random_bits(seed, k) % (clients.size() - k))]);
  clients.resize(count);
  std::ranges::sort(clients);
  return clients;
}

// FedSA: the common A with the client's own B.
ModuleFactors FederatedServer::own_factors(const std::string& client) const {
  ModuleFactors own = state_.global;
  const auto found = state_.personal.find(client);
  for (auto& [module, each] : own) {
    if (found == state_.personal.end())
      std::ranges::fill(each.factors.b, 0.0f);
    else
      each.factors.b = found->second.at(module).factors.b;
  }
  return own;
}

LocalTask FederatedServer::task_of(const std::string& client) const {
  LocalTask task{.round = round(), .start = state_.global};
  switch (config_.rule.name) {
    case FederatedRule::kFfa:
      task.freeze_a = true;
      break;
    case FederatedRule::kRoLora:
      (round() % 2 == 1 ? task.freeze_a : task.freeze_b) = true;
      break;
    case FederatedRule::kFlora:
      task.start = first_ranks(fresh_, config_.rank_of(client));
      break;
    case FederatedRule::kFlex:
      task.start = first_ranks(state_.global, config_.rank_of(client));
      break;
    case FederatedRule::kFedSa:
      task.start = own_factors(client);
      break;
    case FederatedRule::kSlora:
      task.sparse = sparse_stage();
      break;
    default:
      break;
  }
  return task;
}

std::map<std::string, int64_t> FederatedServer::expected(const LocalTask& task) {
  std::map<std::string, int64_t> sizes;
  if (task.sparse)
    for (const auto& [id, module] : mask().modules())
      if (module.nnz() > 0) sizes[update_tensor_name(id, kUpdateSparse)] = module.nnz();
  const bool sends_b = !task.freeze_b && config_.rule.name != FederatedRule::kFedSa;
  for (const auto& [module, each] : task.start) {
    if (!task.freeze_a) sizes[update_tensor_name(module, kUpdateA)] = std::ssize(each.factors.a);
    if (sends_b) sizes[update_tensor_name(module, kUpdateB)] = std::ssize(each.factors.b);
  }
  return sizes;
}

int64_t FederatedServer::upload_bytes(const LocalTask& task) {
  int64_t elements = 0;
  for (const auto& [name, size] : expected(task)) elements += size;
  return elements * (config_.wire == TrainDtype::kF32 ? 4 : 2);
}

// What is frozen and drawn from the seed is not sent; flora's clients get the others' ranks to merge.
int64_t FederatedServer::download_bytes(const LocalTask& task) {
  int64_t elements = 0;
  for (const auto& [name, size] : expected(task)) elements += size;
  if (config_.rule.name == FederatedRule::kFlora) elements *= std::max<int64_t>(config_.per_round, 1);
  return round() == 1 ? 0 : elements * 4;
}

Status FederatedServer::check(const ClientUpdate& update) {
  const auto refuse = [&](Status status) { return status.with_context(update.client); };
  if (std::ranges::find(config_.clients, update.client, &ClientSpec::name) == config_.clients.end())
    return refuse(invalid_argument("no client of this run has that name"));
  if (update.round != round())
    return refuse(failed_precondition("the update is of round {}, and this is round {}", update.round, round()));
  if (update.num_examples < 1) return refuse(invalid_argument("an update of {} examples", update.num_examples));
  const std::map<std::string, int64_t> sizes = expected(task_of(update.client));
  for (const auto& [name, size] : sizes) {
    const auto found = update.tensors.find(name);
    if (found == update.tensors.end()) return refuse(invalid_argument("the update has no tensor {}", name));
    if (std::ssize(found->second) != size)
      return refuse(invalid_argument("{} has {} values, expected {}", name, found->second.size(), size));
  }
  constexpr float kAny = std::numeric_limits<float>::infinity();
  double squares = 0;
  for (const auto& [name, values] : update.tensors) {
    if (!sizes.contains(name))
      return refuse(
          invalid_argument("the update has a tensor {} that this round does not train", printable(name, 200)));
    if (Status status = check_values(name, values, kAny); !status.ok()) return refuse(std::move(status));
    for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
  }
  if (Status status = check_finite(update.personal); !status.ok()) return refuse(std::move(status));
  if (config_.max_norm > 0 && std::sqrt(squares) > config_.max_norm)
    return refuse(invalid_argument("the update has the norm {:.4g}, more than max_norm {:.4g}", std::sqrt(squares),
                                   config_.max_norm));
  if (config_.privacy.on()) return Status();
  for (const auto& [name, values] : update.tensors)
    if (Status status = check_values(name, values, kLargestChange); !status.ok()) return refuse(std::move(status));
  return Status();
}

Result<ModuleFactors> FederatedServer::trained(const ClientUpdate& update) const {
  ModuleFactors factors = task_of(update.client).start;
  for (auto& [module, each] : factors) {
    const auto add = [&](const char* what, std::vector<float>& values) {
      if (const auto found = update.tensors.find(update_tensor_name(module, what)); found != update.tensors.end())
        values = plus(values, found->second);
    };
    add(kUpdateA, each.factors.a);
    add(kUpdateB, each.factors.b);
    if (const auto own = update.personal.find(module); own != update.personal.end())
      each.factors.b = own->second.factors.b;
  }
  return factors;
}

Result<RoundReport> FederatedServer::close(std::vector<ClientUpdate> updates) {
  FederatedState before = state_;
  Result<RoundReport> report = close_all(std::move(updates));
  Status status = report.status();
  if (status.ok()) status = check_finite(state_).with_context(fmt::format("round {}", report->round));
  if (status.ok()) return report;
  LK_RETURN_IF_ERROR(restore(std::move(before)));
  return status;
}

Result<std::optional<RoundReport>> FederatedServer::close_what_can_be(std::vector<ClientUpdate> updates,
                                                                      const OnDropped& on_dropped) {
  while (std::ssize(updates) >= config_.quorum) {
    Result<RoundReport> report = close(updates);
    if (report.ok()) return std::optional<RoundReport>(std::move(*report));
    if (report.status().code() != StatusCode::kDataLoss || updates.empty()) return report.status();
    const auto largest = std::ranges::max_element(updates, {}, largest_of);
    LK_RETURN_IF_ERROR(on_dropped(largest->client, report.status().message()));
    updates.erase(largest);
  }
  return std::optional<RoundReport>();
}

Result<RoundReport> FederatedServer::close_all(std::vector<ClientUpdate> updates) {
  std::ranges::sort(updates, {}, &ClientUpdate::client);
  const auto twice = std::ranges::adjacent_find(updates, {}, &ClientUpdate::client);
  if (twice != updates.end()) return invalid_argument("{} sent two updates", twice->client);
  if (config_.privacy.on()) return close_private(updates);
  if (updates.empty()) return invalid_argument("a round without updates");
  if (sparse_stage()) return close_sparse(updates);
  RoundReport report{.round = round()};
  std::vector<ClientFactors> clients;
  for (const ClientUpdate& update : updates) {
    report.clients.push_back(update.client);
    LK_ASSIGN_OR_RETURN(ModuleFactors factors, trained(update));
    clients.push_back({update.client, static_cast<double>(update.num_examples), std::move(factors)});
  }
  const RuleSpec& rule = config_.rule;
  int64_t flex_rank = 0;
  for (const auto& [module, each] : state_.global) flex_rank = std::max(flex_rank, each.factors.rank);
  LK_ASSIGN_OR_RETURN(Aggregate result,
                      aggregate_factors(clients, {.rule = rule.name, .max_rank = flex_rank, .trim = rule.trim}));
  report.aggregate = result.report;
  FederatedState next = state_;
  next.global = std::move(result.global);
  const int64_t below = rule.residual_rank > 0 ? rule.residual_rank : INT64_MAX;
  const auto move_below = [&](const ModuleFactors& change) -> Status {
    const WeightedFactors parts[] = {{&next.overlay, 1}, {&change, 1}};
    double energy = 0, dropped = 0;
    LK_ASSIGN_OR_RETURN(next.overlay, truncate_factors(stack_factors(parts), below, 1, &energy, &dropped));
    report.overlay_dropped = energy > 0 ? dropped / energy : 0;
    return Status();
  };
  if (rule.name == FederatedRule::kFlora) {
    LK_RETURN_IF_ERROR(move_below(next.global));
    next.global.clear();
  }
  if (rule.name == FederatedRule::kFedEx) LK_RETURN_IF_ERROR(move_below(result.residual));
  if (rule.name == FederatedRule::kFlex) {  // back to the scaling that clients train with
    LK_ASSIGN_OR_RETURN(next.global, truncate_factors(next.global, flex_rank, config_.scaling(), nullptr, nullptr));
  }
  if (rule.name == FederatedRule::kFedSa)
    for (ClientUpdate& update : updates)
      if (!update.personal.empty()) next.personal[update.client] = std::move(update.personal);
  ++next.round;
  LK_RETURN_IF_ERROR(restore(std::move(next)));
  return report;
}

Result<RoundReport> FederatedServer::adopt(ModuleFactors global, std::vector<std::string> clients) {
  const FederatedRule rule = config_.rule.name;
  if (rule != FederatedRule::kFedAvg && rule != FederatedRule::kFfa && rule != FederatedRule::kRoLora)
    return unsupported("{}: only with fedavg, ffa and rolora is the adapter all that a round makes", to_string(rule));
  if (config_.privacy.on())
    return unsupported("privacy: what others made of updates has no bound and no noise of this run");
  FederatedState next = state_;
  next.global = std::move(global);
  ++next.round;
  RoundReport report{.round = next.round, .clients = std::move(clients)};
  LK_RETURN_IF_ERROR(restore(std::move(next)));
  return report;
}

// To the values on the mask; after the first stage's last round they become factors.
Status FederatedServer::add_to_sparse(const NamedValues& change, RoundReport& report) {
  for (auto& [module, values] : state_.sparse)
    if (!values.empty()) values = plus(values, change.at(update_tensor_name(module, kUpdateSparse)));
  if (round() == config_.rule.stage1_rounds) LK_RETURN_IF_ERROR(hand_over(report));
  ++state_.round;
  return Status();
}

Result<RoundReport> FederatedServer::close_sparse(const std::vector<ClientUpdate>& updates) {
  RoundReport report{.round = round()};
  std::vector<double> weights;
  for (const ClientUpdate& update : updates) {
    report.clients.push_back(update.client);
    weights.push_back(static_cast<double>(update.num_examples));
  }
  NamedValues mean;
  for (const auto& [name, size] : expected(task_of(report.clients[0]))) {
    std::vector<std::span<const float>> added;
    for (const ClientUpdate& update : updates) added.emplace_back(update.tensors.at(name));
    mean[name] = weighted_mean(added, weights);
  }
  LK_RETURN_IF_ERROR(add_to_sparse(mean, report));
  return report;
}

// Rules that are linear in the updates (linear_in_updates): the next state is the old one and the mean of what was
// sent, here with bounds, noise and a denominator that does not tell how many answered.
Result<RoundReport> FederatedServer::close_private(const std::vector<ClientUpdate>& updates) {
  if (!privacy_) return failed_precondition("privacy: the run has no ledger to say what is released");
  RoundReport report{.round = round()};
  const LocalTask task = task_of(config_.clients[0].name);  // all are alike
  PrivateSum sum(config_.privacy.clip, config_.privacy.noise, expected(task));
  for (const ClientUpdate& update : updates) {
    report.clients.push_back(update.client);
    sum.add(update.tensors);
  }
  LK_ASSIGN_OR_RETURN(const SecretKey key, privacy_->record(round(), report.clients, sum.digest()));
  const NamedValues change = sum.release(key, config_.per_round);
  report.epsilon = privacy_->epsilon();
  if (task.sparse) {
    LK_RETURN_IF_ERROR(add_to_sparse(change, report));
    return report;
  }
  for (auto& [module, each] : state_.global)
    for (const auto& [what, values] : {std::pair(kUpdateA, &each.factors.a), std::pair(kUpdateB, &each.factors.b)})
      if (const auto found = change.find(update_tensor_name(module, what)); found != change.end())
        *values = plus(*values, found->second);
  ++state_.round;
  return report;
}

// The values as the closest factors of this rank.
Result<ModuleFactors> FederatedServer::sparse_as_factors(int64_t rank, double scaling, double* energy,
                                                         double* dropped) {
  ModuleFactors factors;
  for (const auto& [id, module] : mask().modules()) {
    std::vector<float> dense(static_cast<size_t>(module.out * module.in));
    if (const auto values = state_.sparse.find(id); values != state_.sparse.end())
      SparseMask::add_to(module, values->second, dense);
    Result<TruncatedDelta> cut = truncate_matrix(dense, module.out, module.in, rank);
    if (!cut.ok()) return cut.status().with_context(module_path(id));
    *energy += cut->energy;
    *dropped += cut->dropped;
    const auto root = static_cast<float>(1 / std::sqrt(scaling));
    for (std::vector<float>* side : {&cut->factors.a, &cut->factors.b})
      for (float& v : *side) v *= root;
    factors[id] = {std::move(cut->factors), scaling};
  }
  return factors;
}

// From values to factors. A direction without length would never learn, for both of its factors are zero: it begins as
// in LoRA.
Status FederatedServer::hand_over(RoundReport& report) {
  double energy = 0, dropped = 0;
  LK_ASSIGN_OR_RETURN(state_.global, sparse_as_factors(config_.adapter.rank, config_.scaling(), &energy, &dropped));
  report.handover = true;
  report.handover_dropped = energy > 0 ? dropped / energy : 0;
  LK_ASSIGN_OR_RETURN(const ModuleFactors fresh, draw(config_.adapter.rank, seed_of(config_.seed, Stream::kInitial)));
  for (auto& [module, each] : state_.global) {
    DeltaFactors& f = each.factors;
    const std::vector<float>& drawn = fresh.at(module).factors.a;
    for (int64_t k = 0; k < f.rank; ++k) {
      const auto row = f.a.begin() + k * f.in;
      if (std::all_of(row, row + f.in, [](float v) { return v == 0; }))
        std::copy_n(drawn.begin() + k * f.in, f.in, row);
    }
  }
  if (!config_.rule.keep_sparse) {
    state_.sparse.clear();
    return Status();
  }
  const WeightedFactors taken[] = {{&state_.global, -1}};
  state_.overlay = stack_factors(taken);
  return Status();
}

// --- What others see

Result<FederatedServer::Published> FederatedServer::publish() {
  Published published;
  const int64_t most = max_servable_rank();
  double energy = 0, dropped = 0;
  ModuleFactors sparse;
  if (!state_.sparse.empty()) {
    // Within the first stage what it would hand over now; behind it, where the factors are what was handed over, all.
    const int64_t rank = state_.global.empty() ? config_.adapter.rank : most;
    LK_ASSIGN_OR_RETURN(sparse, sparse_as_factors(rank, 1, &energy, &dropped));
  }
  ModuleFactors whole = state_.global;
  if (!state_.overlay.empty() || !sparse.empty()) {
    const WeightedFactors parts[] = {{&state_.global, 1}, {&state_.overlay, 1}, {&sparse, 1}};
    whole = stack_factors(parts);
  }
  const bool cut = std::ranges::any_of(whole, [&](const auto& item) { return item.second.factors.rank > most; });
  if (cut) {
    energy = dropped = 0;
    LK_ASSIGN_OR_RETURN(whole, truncate_factors(whole, most, 1, &energy, &dropped));
  }
  published.dropped = energy > 0 ? dropped / energy : 0;
  if (whole.empty()) whole = fresh_;  // flora before its first round: no change
  published.adapter = adapter_of(whole, model_, "global");
  published.adapter->config.base_model_name = config_.base;
  return published;
}

std::shared_ptr<Adapter> FederatedServer::personal_adapter(const std::string& client) const {
  auto adapter = adapter_of(own_factors(client), model_, client);
  adapter->config.base_model_name = config_.base;
  return adapter;
}

}  // namespace lk
