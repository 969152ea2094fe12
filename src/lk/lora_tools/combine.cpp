// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/combine.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "lk/base/rng.h"
#include "lk/lora/values.h"
#include "lk/lora_tools/adapter_rules.h"
#include "lk/lora_tools/delta_svd.h"
#include "lk/tensor/f32_values.h"

namespace lk {
namespace {

const char* to_string(CombineMethod method) {
  return std::ranges::find(kCombineMethods, method, &std::pair<CombineMethod, const char*>::first)->second;
}

bool prunes(CombineMethod method) {
  return method == CombineMethod::kTies || method == CombineMethod::kDareLinear || method == CombineMethod::kDareTies ||
         method == CombineMethod::kMagnitudePrune;
}

// The low-rank change of one module by one adapter.
struct Piece {
  TensorView a, b, bias;  // [rank, in], [out, rank], [out] or undefined
  double scaling = 0;
};
std::optional<Piece> piece_of(const Adapter& adapter, ModuleId module) {
  if (module == kEmbedding) {
    if (!adapter.embedding) return std::nullopt;
    return Piece{adapter.embedding->a, adapter.embedding->b, {}, adapter.embedding->scaling};
  }
  const auto& delta = module == kLmHead
                          ? adapter.lm_head
                          : adapter.layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*module.proj())];
  if (!delta) return std::nullopt;
  return Piece{delta->a, delta->b, delta->bias, delta->scaling};
}

std::vector<ModuleId> adapted_modules(std::span<const WeightedAdapter> parts) {
  std::vector<ModuleId> modules;
  const auto add = [&](ModuleId module) {
    if (std::ranges::any_of(parts, [&](const auto& part) { return piece_of(*part.adapter, module).has_value(); }))
      modules.push_back(module);
  };
  for (size_t layer = 0; layer < parts[0].adapter->layers.size(); ++layer)
    for (int proj = 0; proj < kNumProjs; ++proj)
      add(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)));
  add(kLmHead);
  add(kEmbedding);
  return modules;
}

// scaling b a as a dense matrix [out, in].
std::vector<float> dense_of(const Piece& piece) {
  const std::vector<float> a = f32_values(piece.a), b = f32_values(piece.b);
  const int64_t rank = piece.a.dim(0), in = piece.a.dim(1), out = piece.b.dim(0);
  std::vector<float> dense(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; ++o) {
    float* row = dense.data() + o * in;
    for (int64_t k = 0; k < rank; ++k) {
      const float factor = b[static_cast<size_t>(o * rank + k)];
      const float* from = a.data() + k * in;
      for (int64_t i = 0; i < in; ++i) row[i] += factor * from[i];
    }
    for (int64_t i = 0; i < in; ++i) row[i] *= static_cast<float>(piece.scaling);
  }
  return dense;
}

// The last component of a path or hub id: what a model is called wherever its files lie.
std::string model_name(const std::string& base) {
  std::string name = base;
  while (name.ends_with('/')) name.pop_back();
  return std::filesystem::path(name).filename().string();
}

Status check_bases(std::span<const WeightedAdapter> parts) {
  const Adapter* named = nullptr;
  for (const WeightedAdapter& part : parts) {
    const std::string& base = part.adapter->config.base_model_name;
    if (base.empty()) continue;
    if (named == nullptr) named = part.adapter.get();
    const std::string& first = named->config.base_model_name;
    if (model_name(base) != model_name(first))
      return invalid_argument(
          "{} was made for the base \"{}\" and {} for \"{}\": changes of different weights do not add up. If they are "
          "the "
          "same model, say --mixed-bases",
          named->name, first, part.adapter->name, base);
  }
  return Status();
}

Status check_options(std::span<const WeightedAdapter> parts, const CombineOptions& options) {
  const char* method = to_string(options.method);
  const bool sums = options.method == CombineMethod::kCat || options.method == CombineMethod::kSvd;
  if (options.method == CombineMethod::kLinear && !options.on_factors)
    return invalid_argument(
        "linear adds A and B apart, which is not the sum of the changes: it has products of one adapter's B with "
        "another's A. cat is the exact sum and svd the same in fewer ranks; --peft-compatible gives linear as PEFT has "
        "it");
  if (sums && options.on_factors)
    return invalid_argument("{} is the same in PEFT; --peft-compatible is for methods that work on A and B apart",
                            method);
  if (options.on_factors && options.rank > 0)
    return invalid_argument("on A and B apart the rank stays that of the parts; leave --rank out");
  if (prunes(options.method) && !(options.density > 0 && options.density <= 1))
    return invalid_argument("{} keeps a share of the values: give --density above 0 and at most 1", method);
  if (!prunes(options.method) && options.density != 0)
    return invalid_argument("{} prunes nothing; leave --density out", method);
  const int64_t most = max_servable_rank();
  if (options.rank < 0 || options.rank > most)
    return invalid_argument("--rank is {}, out of range: 1 to {}", options.rank, most);
  for (const WeightedAdapter& part : parts)
    if (!std::isfinite(part.weight))
      return invalid_argument("weight {} of {} is not finite", part.weight, part.adapter->name);
  return options.mixed_bases ? Status() : check_bases(parts);
}

class Combiner {
 public:
  Combiner(std::span<const WeightedAdapter> parts, const CombineOptions& options) : parts_(parts), options_(options) {}

  Result<CombinedAdapter> run() {
    LK_RETURN_IF_ERROR(check_options(parts_, options_));
    // Also the check of all that is no low-rank change.
    LK_ASSIGN_OR_RETURN(sum_, compose_adapters("sum", parts_));
    const std::vector<ModuleId> modules = adapted_modules(parts_);
    if (modules.empty()) return invalid_argument("the adapters change nothing that can be combined");
    if (sum_->max_rank > max_servable_rank() && options_.method == CombineMethod::kCat && options_.rank == 0)
      return invalid_argument("the ranks add up to {}, and at most {} can be served: give --rank", sum_->max_rank,
                              max_servable_rank());
    if (options_.method == CombineMethod::kCat && options_.rank == 0) {
      for (const ModuleId module : modules)
        report_.modules.push_back({module_path(module), piece_of(*sum_, module)->a.dim(0), 0, 0});
      return CombinedAdapter{sum_, std::move(report_)};
    }
    adapter_ = std::make_shared<Adapter>();
    adapter_->name = sum_->name;
    adapter_->config = sum_->config;
    adapter_->layers.resize(sum_->layers.size());
    for (const ModuleId module : modules) {
      const Status status = options_.on_factors ? combine_factors(module) : combine_changes(module);
      LK_RETURN_IF_ERROR(status.with_context(module_path(module)));
    }
    return CombinedAdapter{adapter_, std::move(report_)};
  }

 private:
  uint64_t next_seed() { return mix64(options_.seed ^ mix64(++num_draws_)); }

  // With what pruning leaves of them: the tasks of one module become one.
  std::vector<float> merge(std::vector<std::vector<float>>& tasks, std::span<const float> weights) {
    const CombineMethod method = options_.method;
    for (std::vector<float>& task : tasks) {
      if (method == CombineMethod::kTies || method == CombineMethod::kMagnitudePrune)
        prune_by_magnitude(task, options_.density);
      if (method == CombineMethod::kDareLinear || method == CombineMethod::kDareTies)
        prune_at_random(task, options_.density, next_seed());
    }
    return method == CombineMethod::kTies || method == CombineMethod::kDareTies
               ? merge_by_sign(tasks, weights, options_.election)
               : sum_tasks(tasks, weights);
  }

  Status combine_changes(ModuleId module) {
    const Piece whole = *piece_of(*sum_, module);
    int64_t rank = options_.rank;
    std::vector<std::vector<float>> tasks;
    std::vector<float> weights;
    const bool sums = options_.method == CombineMethod::kCat || options_.method == CombineMethod::kSvd;
    for (const WeightedAdapter& part : parts_) {
      const std::optional<Piece> piece = piece_of(*part.adapter, module);
      if (!piece) continue;
      if (options_.rank == 0) rank = std::max(rank, piece->a.dim(0));
      if (sums) continue;
      if (piece->bias.defined()) return unsupported("{} has a LoRA bias, which is not pruned", part.adapter->name);
      tasks.push_back(dense_of(*piece));
      weights.push_back(static_cast<float>(part.weight));
    }
    const int64_t in = whole.a.dim(1), out = whole.b.dim(0);
    Result<TruncatedDelta> cut =
        sums ? truncate_delta(
                   {.rank = whole.a.dim(0), .in = in, .out = out, .a = f32_values(whole.a), .b = f32_values(whole.b)},
                   rank)
             : truncate_matrix(merge(tasks, weights), out, in, rank);
    LK_RETURN_IF_ERROR(cut.status());
    report_.modules.push_back({module_path(module), cut->factors.rank, cut->energy, cut->dropped});
    report_.energy += cut->energy;
    report_.dropped += cut->dropped;
    return place(module, cut->factors, whole.bias);
  }

  // PEFT's _generalized_task_arithmetic_weighted_adapter: the weight's root goes to both factors, its sign to A.
  Status combine_factors(ModuleId module) {
    std::vector<std::vector<float>> as, bs;
    std::vector<float> a_weights, b_weights;
    int64_t rank = 0, in = 0, out = 0;
    for (const WeightedAdapter& part : parts_) {
      const std::optional<Piece> piece = piece_of(*part.adapter, module);
      if (!piece) continue;
      if (piece->bias.defined()) return unsupported("{} has a LoRA bias, which has no place here", part.adapter->name);
      if (rank != 0 && rank != piece->a.dim(0))
        return invalid_argument(
            "ranks {} and {} (of {}): A and B of different ranks cannot be added; leave "
            "--peft-compatible out, or use cat or svd",
            rank, piece->a.dim(0), part.adapter->name);
      rank = piece->a.dim(0), in = piece->a.dim(1), out = piece->b.dim(0);
      const double weight = part.weight * piece->scaling, root = std::sqrt(std::abs(weight));
      a_weights.push_back(static_cast<float>(weight >= 0 ? root : -root));
      b_weights.push_back(static_cast<float>(root));
      as.push_back(f32_values(piece->a));
      bs.push_back(f32_values(piece->b));
    }
    DeltaFactors factors{.rank = rank, .in = in, .out = out, .a = merge(as, a_weights), .b = {}};
    factors.b = merge(bs, b_weights);
    report_.modules.push_back({module_path(module), rank, 0, 0});
    return place(module, factors, {});
  }

  TensorView keep(std::span<const float> values, std::initializer_list<int64_t> shape) {
    Buffer buffer(std::max<int64_t>(static_cast<int64_t>(values.size_bytes()), 64));
    std::ranges::copy(values, buffer.as<float>());
    const TensorView view(buffer.data(), DType::kF32, shape);
    adapter_->owned.push_back(std::move(buffer));
    return view;
  }

  Status place(ModuleId module, const DeltaFactors& factors, const TensorView& bias) {
    LoraDelta delta{.rank = factors.rank, .scaling = 1};
    delta.a = keep(factors.a, {factors.rank, factors.in});
    delta.b = keep(factors.b, {factors.out, factors.rank});
    if (bias.defined()) delta.bias = keep(f32_values(bias), {factors.out});
    LK_RETURN_IF_ERROR(
        check_delta(module_path(module), module == kEmbedding ? 1 : factors.in, factors.rank, 1, magnitudes_of(delta)));
    adapter_->max_rank = std::max(adapter_->max_rank, factors.rank);
    if (module == kEmbedding)
      adapter_->embedding = Adapter::EmbeddingDelta{.rank = delta.rank, .scaling = 1, .a = delta.a, .b = delta.b};
    else if (module == kLmHead)
      adapter_->lm_head = delta;
    else
      adapter_->layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*module.proj())] = delta;
    return Status();
  }

  const std::span<const WeightedAdapter> parts_;
  const CombineOptions& options_;
  std::shared_ptr<const Adapter> sum_;
  std::shared_ptr<Adapter> adapter_;
  CombineReport report_;
  uint64_t num_draws_ = 0;
};

}  // namespace

double CombineReport::relative_error(double energy, double dropped) {
  return energy > 0 ? std::sqrt(dropped / energy) : 0.0;
}

Result<CombinedAdapter> combine_adapters(std::span<const WeightedAdapter> parts, const CombineOptions& options) {
  LK_CHECK(!parts.empty());
  return Combiner(parts, options).run();
}

std::string render_combine_report(const CombineReport& report) {
  int64_t least = INT64_MAX, most = 0;
  const CombineReport::Module* worst = nullptr;
  const auto error = [](const CombineReport::Module& m) { return CombineReport::relative_error(m.energy, m.dropped); };
  for (const CombineReport::Module& module : report.modules) {
    least = std::min(least, module.rank);
    most = std::max(most, module.rank);
    if (worst == nullptr || error(module) > error(*worst)) worst = &module;
  }
  std::string text = fmt::format("{} modules, rank {}\n", report.modules.size(),
                                 least == most ? std::to_string(most) : fmt::format("{}-{}", least, most));
  if (report.energy == 0 || worst == nullptr) return text;
  return text + fmt::format("dropped {:.3g} % of the energy (relative error {:.3g}); most of {}: {:.3g} %\n",
                            100 * report.dropped / report.energy,
                            CombineReport::relative_error(report.energy, report.dropped), worst->path,
                            worst->energy > 0 ? 100 * worst->dropped / worst->energy : 0.0);
}

}  // namespace lk
