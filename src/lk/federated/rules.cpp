// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/rules.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lk {
namespace {

bool averages_factors(FederatedRule rule) { return rule != FederatedRule::kFlora && rule != FederatedRule::kFlex; }

Status check_finite(const ClientFactors& client) {
  for (const auto& [module, each] : client.factors)
    for (const std::vector<float>* values : {&each.factors.a, &each.factors.b})
      if (!std::ranges::all_of(*values, [](float v) { return std::isfinite(v); }))
        return data_loss("{}: {} holds values that are not finite", client.client, module_path(module));
  return Status();
}

Status check_alike(const ClientFactors& first, const ClientFactors& other, FederatedRule rule) {
  const auto differ = [&](const std::string& what) {
    return invalid_argument("{} and {} {}", first.client, other.client, what);
  };
  for (const auto& [module, mine] : first.factors) {
    const auto found = other.factors.find(module);
    if (found == other.factors.end()) return differ("do not adapt the same modules: " + module_path(module));
    const ScaledFactors& theirs = found->second;
    if (mine.factors.in != theirs.factors.in || mine.factors.out != theirs.factors.out)
      return differ("have different shapes of " + module_path(module));
    if (!averages_factors(rule)) continue;
    if (mine.factors.rank != theirs.factors.rank)
      return differ(fmt::format("have ranks {} and {} at {}, which {} cannot average; flora and flex can",
                                mine.factors.rank, theirs.factors.rank, module_path(module), to_string(rule)));
    if (mine.scaling != theirs.scaling)
      return differ(fmt::format("scale {} by {} and {} (alpha / r), which {} cannot average; flora and flex can",
                                module_path(module), mine.scaling, theirs.scaling, to_string(rule)));
  }
  for (const auto& [module, each] : other.factors)
    if (!first.factors.contains(module)) return differ("do not adapt the same modules: " + module_path(module));
  return Status();
}

Status check_clients(const std::vector<ClientFactors>& clients, const RuleOptions& options) {
  if (clients.empty()) return invalid_argument("there is nothing to aggregate");
  if (!(options.trim >= 0 && options.trim < 0.5))
    return invalid_argument("trim is {}, out of range: at least 0 and below 0.5", options.trim);
  for (size_t index = 0; index < clients.size(); ++index) {
    const ClientFactors& client = clients[index];
    if (!(client.weight > 0) || !std::isfinite(client.weight))
      return invalid_argument("{} has the weight {}; weights are positive", client.client, client.weight);
    if (index > 0 && clients[index - 1].client == client.client)
      return invalid_argument("{} is there twice", client.client);
    LK_RETURN_IF_ERROR(check_finite(client));
    LK_RETURN_IF_ERROR(check_alike(clients[0], client, options.rule));
  }
  return Status();
}

bool all_equal(const std::vector<ClientFactors>& clients, std::vector<float> DeltaFactors::*factor) {
  return std::ranges::all_of(clients, [&](const ClientFactors& client) {
    return std::ranges::all_of(clients[0].factors, [&](const auto& item) {
      return client.factors.at(item.first).factors.*factor == item.second.factors.*factor;
    });
  });
}

// What makes these rules exact is that one factor is the same for all.
Status check_common_factor(const std::vector<ClientFactors>& clients, FederatedRule rule) {
  if (rule != FederatedRule::kFfa && rule != FederatedRule::kRoLora) return Status();
  if (all_equal(clients, &DeltaFactors::a)) return Status();
  if (rule == FederatedRule::kRoLora && all_equal(clients, &DeltaFactors::b)) return Status();
  return invalid_argument("the clients' A{} are not the same, so {} is not what they trained by",
                          rule == FederatedRule::kFfa ? "" : " and B", to_string(rule));
}

// One factor of one module of all clients.
std::vector<float> join(const std::vector<ClientFactors>& clients, ModuleId module,
                        std::vector<float> DeltaFactors::*factor, const RuleOptions& options) {
  std::vector<std::span<const float>> values;
  std::vector<double> weights;
  for (const ClientFactors& client : clients) {
    values.emplace_back(client.factors.at(module).factors.*factor);
    weights.push_back(client.weight);
  }
  if (options.rule == FederatedRule::kMedian) return median_of(values);
  if (options.rule == FederatedRule::kTrimmed) return trimmed_mean(values, options.trim);
  return weighted_mean(values, weights);
}

ModuleFactors join_all(const std::vector<ClientFactors>& clients, const RuleOptions& options) {
  ModuleFactors joined;
  for (const auto& [module, first] : clients[0].factors) {
    ScaledFactors& to = joined[module];
    to.scaling = first.scaling;
    to.factors = {.rank = first.factors.rank, .in = first.factors.in, .out = first.factors.out, .a = {}, .b = {}};
    to.factors.a = join(clients, module, &DeltaFactors::a, options);
    to.factors.b = join(clients, module, &DeltaFactors::b, options);
  }
  return joined;
}

}  // namespace

const char* to_string(FederatedRule rule) {
  return std::ranges::find(kFederatedRules, rule, &std::pair<FederatedRule, const char*>::first)->second;
}

bool takes_any_ranks(FederatedRule rule) { return !averages_factors(rule); }

// Not fedsa: the mean of the B that clients keep is neither sent nor bounded.
bool linear_in_updates(FederatedRule rule) {
  return rule == FederatedRule::kFedAvg || rule == FederatedRule::kFfa || rule == FederatedRule::kRoLora ||
         rule == FederatedRule::kSlora;
}

std::vector<float> weighted_mean(std::span<const std::span<const float>> values, std::span<const double> weights) {
  LK_CHECK(!values.empty() && values.size() == weights.size());
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> sum(values[0].size());
  for (size_t k = 0; k < values.size(); ++k) {
    LK_CHECK(values[k].size() == sum.size());
    const double share = weights[k] / total;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += share * static_cast<double>(values[k][i]);
  }
  return {sum.begin(), sum.end()};
}

std::vector<float> trimmed_mean(std::span<const std::span<const float>> values, double trim) {
  LK_CHECK(!values.empty() && trim >= 0 && trim < 0.5);
  const size_t n = values.size();
  size_t cut = static_cast<size_t>(trim * static_cast<double>(n));
  if (trim > 0 && n >= 3) cut = std::max<size_t>(cut, 1);
  std::vector<float> result(values[0].size()), column(n);
  for (size_t i = 0; i < result.size(); ++i) {
    for (size_t k = 0; k < n; ++k) column[k] = values[k][i];
    std::ranges::sort(column);
    double sum = 0;
    for (size_t k = cut; k < n - cut; ++k) sum += static_cast<double>(column[k]);
    result[i] = static_cast<float>(sum / static_cast<double>(n - 2 * cut));
  }
  return result;
}

// All but the middle one, or the two in the middle.
std::vector<float> median_of(std::span<const std::span<const float>> values) {
  const auto n = static_cast<double>(values.size());
  return trimmed_mean(values, values.size() < 3 ? 0 : (std::floor((n - 1) / 2) + 0.25) / n);
}

Result<Aggregate> aggregate_factors(std::vector<ClientFactors> clients, const RuleOptions& options) {
  std::ranges::sort(clients, {}, &ClientFactors::client);
  LK_RETURN_IF_ERROR(check_clients(clients, options));
  LK_RETURN_IF_ERROR(check_common_factor(clients, options.rule));
  double total = 0;
  for (const ClientFactors& client : clients) total += client.weight;
  std::vector<WeightedFactors> parts;
  for (const ClientFactors& client : clients) parts.push_back({&client.factors, client.weight / total});
  const ModuleFactors mean = stack_factors(parts);  // of the changes, exactly

  Aggregate result;
  LK_ASSIGN_OR_RETURN(result.report.energy, energy_of(mean));
  if (options.rule == FederatedRule::kFlora) {
    result.global = mean;
  } else if (options.rule == FederatedRule::kFlex) {
    int64_t rank = options.max_rank;
    if (rank == 0)
      for (const ClientFactors& client : clients)
        for (const auto& [module, each] : client.factors) rank = std::max(rank, each.factors.rank);
    double energy = 0;
    LK_ASSIGN_OR_RETURN(result.global, truncate_factors(mean, rank, 1, &energy, &result.report.dropped));
  } else {
    result.global = join_all(clients, options);
  }
  if (options.rule == FederatedRule::kFedEx) {
    std::vector<WeightedFactors> lacking = parts;
    lacking.push_back({&result.global, -1});
    const ModuleFactors residual = stack_factors(lacking);
    // Without loss no more ranks than the sides of the weight: the QR decompositions see to that.
    const int64_t rank = options.residual_rank > 0 ? options.residual_rank : INT64_MAX;
    double energy = 0;
    LK_ASSIGN_OR_RETURN(result.residual, truncate_factors(residual, rank, 1, &energy, &result.report.dropped));
  }
  std::vector<WeightedFactors> difference = parts;
  difference.push_back({&result.global, -1});
  if (!result.residual.empty()) difference.push_back({&result.residual, -1});
  LK_ASSIGN_OR_RETURN(const double missing, energy_of(stack_factors(difference)));
  result.report.error = result.report.energy > 0 ? std::sqrt(missing / result.report.energy) : 0;
  return result;
}

}  // namespace lk
