// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/factors.h"

#include <algorithm>
#include <cmath>

#include "lk/tensor/f32_values.h"

namespace lk {
namespace {

Status check_plain(const Adapter& adapter) {
  const auto refuse = [&](const char* what) {
    return unsupported("{} has {}: federated rules average low-rank changes of linears", adapter.name, what);
  };
  if (!adapter.replaced.empty()) return refuse("replaced modules");
  if (!adapter.trained_token_ids.empty()) return refuse("trained token rows");
  if (adapter.embedding) return refuse("a change of the embedding");
  if (adapter.is_activated()) return refuse("invocation tokens (activated LoRA)");
  const auto check = [&](const std::optional<LoraDelta>& delta) {
    if (delta && delta->magnitude.defined()) return refuse("DoRA magnitudes");
    if (delta && delta->bias.defined()) return refuse("LoRA biases");
    return Status();
  };
  for (const auto& layer : adapter.layers)
    for (const auto& delta : layer) LK_RETURN_IF_ERROR(check(delta));
  return check(adapter.lm_head);
}

}  // namespace

Result<ModuleFactors> factors_of(const Adapter& adapter) {
  LK_RETURN_IF_ERROR(check_plain(adapter));
  ModuleFactors result;
  const auto add = [&](ModuleId module, const std::optional<LoraDelta>& delta) {
    if (!delta) return;
    result[module] = {{.rank = delta->rank,
                       .in = delta->a.dim(1),
                       .out = delta->b.dim(0),
                       .a = f32_values(delta->a),
                       .b = f32_values(delta->b)},
                      delta->scaling};
  };
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer)
    for (int proj = 0; proj < kNumProjs; ++proj)
      add(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)),
          adapter.layers[layer][static_cast<size_t>(proj)]);
  add(kLmHead, adapter.lm_head);
  return result;
}

std::shared_ptr<Adapter> adapter_of(const ModuleFactors& factors, const ModelConfig& config, const std::string& name) {
  auto adapter = std::make_shared<Adapter>();
  adapter->name = name;
  adapter->layers.resize(static_cast<size_t>(config.num_layers));
  const auto keep = [&](std::span<const float> values, std::initializer_list<int64_t> shape) {
    Buffer buffer(std::max<int64_t>(static_cast<int64_t>(values.size_bytes()), 64));
    std::ranges::copy(values, buffer.as<float>());
    const TensorView view(buffer.data(), DType::kF32, shape);
    adapter->owned.push_back(std::move(buffer));
    return view;
  };
  for (const auto& [module, each] : factors) {
    const DeltaFactors& f = each.factors;
    if (f.rank == 0) continue;
    LoraDelta delta{.rank = f.rank, .scaling = each.scaling};
    delta.a = keep(f.a, {f.rank, f.in});
    delta.b = keep(f.b, {f.out, f.rank});
    adapter->max_rank = std::max(adapter->max_rank, f.rank);
    if (module == kLmHead)
      adapter->lm_head = delta;
    else
      adapter->layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*module.proj())] = delta;
  }
  return adapter;
}

ModuleFactors stack_factors(std::span<const WeightedFactors> parts) {
  ModuleFactors stacked;
  for (const WeightedFactors& part : parts)
    for (const auto& [module, each] : *part.factors) {
      DeltaFactors& to = stacked[module].factors;
      LK_CHECK(to.rank == 0 || (to.in == each.factors.in && to.out == each.factors.out));
      to.rank += each.factors.rank;
      to.in = each.factors.in, to.out = each.factors.out;
    }
  std::map<ModuleId, int64_t> filled;
  for (auto& [module, each] : stacked) each.factors.b.resize(static_cast<size_t>(each.factors.out * each.factors.rank));
  for (const WeightedFactors& part : parts)
    for (const auto& [module, each] : *part.factors) {
      DeltaFactors& to = stacked[module].factors;
      const DeltaFactors& from = each.factors;
      int64_t& first = filled[module];
      to.a.insert(to.a.end(), from.a.begin(), from.a.end());
      const double scale = part.weight * each.scaling;
      for (int64_t row = 0; row < from.out; ++row)
        for (int64_t k = 0; k < from.rank; ++k)
          to.b[static_cast<size_t>(row * to.rank + first + k)] =
              static_cast<float>(scale * static_cast<double>(from.b[static_cast<size_t>(row * from.rank + k)]));
      first += from.rank;
    }
  return stacked;
}

Result<ModuleFactors> truncate_factors(const ModuleFactors& factors, int64_t rank, double scaling, double* energy,
                                       double* dropped) {
  ModuleFactors result;
  const auto root = static_cast<float>(1 / std::sqrt(scaling));
  for (const auto& [module, each] : factors) {
    if (each.factors.rank == 0) continue;
    Result<TruncatedDelta> cut = truncate_delta(each.factors, rank);
    if (!cut.ok()) return cut.status().with_context(module_path(module));
    const double scaled = each.scaling * each.scaling;
    if (energy) *energy += scaled * cut->energy;
    if (dropped) *dropped += scaled * cut->dropped;
    const auto own = static_cast<float>(std::sqrt(each.scaling)) * root;
    LK_CHECK(each.scaling > 0 && scaling > 0);
    for (std::vector<float>* values : {&cut->factors.a, &cut->factors.b})
      for (float& v : *values) v *= own;
    result[module] = {std::move(cut->factors), scaling};
  }
  return result;
}

Result<double> energy_of(const ModuleFactors& factors) {
  double energy = 0;
  for (const auto& [module, each] : factors) {
    if (each.factors.rank == 0) continue;
    Result<TruncatedDelta> cut = truncate_delta(each.factors, 1);
    if (!cut.ok()) return cut.status().with_context(module_path(module));
    energy += each.scaling * each.scaling * cut->energy;
  }
  return energy;
}

}  // namespace lk
