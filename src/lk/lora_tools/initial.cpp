// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/initial.h"

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <utility>

#include "lk/base/rng.h"
#include "lk/lora/delta_math.h"
#include "lk/lora/matching.h"
#include "lk/lora/module_names.h"
#include "lk/lora_tools/adapter_rules.h"

namespace lk {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int64_t kDefaultRank = 8;  // PEFT's

class Builder {
 public:
  Builder(const ModelConfig& model, const AdapterConfig& config, AdapterInit init, int64_t num_modules, uint64_t seed,
          const TensorStore& base)
      : model_(model), config_(config), init_(init), num_modules_(num_modules), seed_(seed), base_(base) {
    adapter_.layers.resize(static_cast<size_t>(model.num_layers));
    adapter_.config = config;
  }

  Result<InitialAdapter> run() {
    LK_RETURN_IF_ERROR(check_kind(traits_));
    LK_ASSIGN_OR_RETURN(const ModuleMatcher matcher, ModuleMatcher::create(config_));
    bool any = false;
    for (const ModuleId module : lora_modules(model_)) {
      LK_ASSIGN_OR_RETURN(const bool targeted, matcher.is_targeted(module_path(module)));
      if (!targeted) continue;
      any = true;
      LK_RETURN_IF_ERROR(add_delta(module, matcher));
    }
    for (const std::string& name : config_.target_modules.names) {
      const bool hit = std::ranges::any_of(lora_modules(model_), [&](ModuleId module) {
        const std::string path = module_path(module);
        return path == name || path.ends_with("." + name);
      });
      if (!hit) return invalid_argument("target module '{}' is not in the model; it has {}", name, known_modules());
    }
    if (!any && config_.target_modules.kind != ModuleSelector::Kind::kNone)
      return invalid_argument("the targets match no module of the model; it has {}", known_modules());
    LK_RETURN_IF_ERROR(check_patterns("rank_pattern", config_.rank_pattern));
    LK_RETURN_IF_ERROR(check_patterns("alpha_pattern", config_.alpha_pattern));
    LK_RETURN_IF_ERROR(add_saved(matcher));
    LK_RETURN_IF_ERROR(add_tokens());
    return InitialAdapter{std::move(adapter_), moves_base(init_)};
  }

 private:
  std::string known_modules() const {
    std::set<std::string> names;
    for (const ModuleId module : lora_modules(model_)) names.insert(short_name(module));
    return fmt::format("{}", fmt::join(names, ", "));
  }

  // A pattern that fits no module is a slip of the pen: what it means would get the common rank.
  template <class Patterns>
  Status check_patterns(const char* what, const Patterns& patterns) const {
    for (const auto& [key, value] : patterns) {
      LK_ASSIGN_OR_RETURN(const PatternKey pattern, PatternKey::compile(key));
      bool hit = false;
      for (const std::string& path : targeted_) {
        LK_ASSIGN_OR_RETURN(const bool matches, pattern.matches(path));
        hit |= matches;
      }
      if (!hit)
        return invalid_argument("{} '{}' matches no module that is adapted; the model has {}", what, key,
                                known_modules());
    }
    return Status();
  }

  Status add_delta(ModuleId module, const ModuleMatcher& matcher) {
    const std::string path = module_path(module);
    LK_ASSIGN_OR_RETURN(const auto rank_key, matcher.rank_pattern_of(path));
    LK_ASSIGN_OR_RETURN(const auto alpha_key, matcher.alpha_pattern_of(path));
    targeted_.push_back(path);
    const int64_t rank = rank_key ? config_.rank_pattern[*rank_key].second : config_.rank.value_or(kDefaultRank);
    const double alpha = alpha_key ? config_.alpha_pattern[*alpha_key].second : config_.alpha;
    LK_RETURN_IF_ERROR(check_rank(traits_, rank, path));
    const double scaling =
        alpha / (config_.use_rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
    if (module == kEmbedding) {
      if (config_.use_dora || multilora_)
        return unsupported("embed_tokens takes plain LoRA only: not DoRA, not MultiLoRA");
      // As PEFT starts an embedding, with the roles of the zero and the random factor exchanged.
      adapter_.embedding = Adapter::EmbeddingDelta{rank, scaling, keep(Matrix::Zero(rank, model_.vocab_size)),
                                                   keep(normal(model_.hidden_dim, rank, 1))};
      return Status();
    }
    LoraDelta delta;
    LK_ASSIGN_OR_RETURN(const TensorView* weight, base_weight(module));
    const int64_t out = weight->dim(0), in = weight->dim(1);
    delta.scaling = scaling;
    LK_RETURN_IF_ERROR(draw(*weight, in, out, rank, delta));
    if (config_.lora_bias) delta.bias = keep(Matrix::Zero(1, out), {out});
    if (config_.use_dora) LK_RETURN_IF_ERROR(add_magnitude(*weight, delta, path));
    base_.drop_pages(*weight);
    if (module == kLmHead)
      adapter_.lm_head = delta;
    else
      adapter_.layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*module.proj())] = delta;
    return Status();
  }

  Status draw(const TensorView& weight, int64_t in, int64_t out, int64_t rank, LoraDelta& delta) {
    const double in_bound = 1 / std::sqrt(static_cast<double>(in));
    delta.rank = rank * num_stacked_;
    switch (init_) {
      case AdapterInit::kDefault:
      case AdapterInit::kEva:
        delta.a = keep(uniform(delta.rank, in, in_bound));
        delta.b = keep(multilora_ ? uniform(out, delta.rank, 1 / std::sqrt(static_cast<double>(rank)))
                                  : Matrix::Zero(out, rank));
        return Status();
      case AdapterInit::kGaussian:
        delta.a = keep(normal(rank, in, 1 / static_cast<double>(rank)));
        delta.b = keep(Matrix::Zero(out, rank));
        return Status();
      case AdapterInit::kOrthogonal: {
        const Matrix square = normal(rank, rank, 1);
        const Matrix q = Eigen::HouseholderQR<Matrix>(square).householderQ() * Matrix::Identity(rank, rank);
        Matrix odd(rank / 2, rank), even(rank / 2, rank);
        for (int64_t row = 0; row < rank / 2; ++row) odd.row(row) = q.row(2 * row), even.row(row) = q.row(2 * row + 1);
        delta.a = keep(((normal(in, rank / 2, 0.1) * odd).transpose()).eval());
        delta.b = keep(normal(out, rank / 2, 0.1) * even);
        return Status();
      }
      case AdapterInit::kPissa:
      case AdapterInit::kOlora: {
        if (rank > std::min(in, out))
          return invalid_argument("{} of rank {}: a matrix of {} x {} has not that many directions", to_string(init_),
                                  rank, out, in);
        const InitFactors factors = initial_factors(
            init_ == AdapterInit::kPissa ? BaseChange::kPissa : BaseChange::kOlora, weight, rank, delta.scaling);
        const Eigen::Map<const Matrix> a0(factors.a0.data(), rank, in), b0(factors.b0.data(), out, rank);
        Matrix a(2 * rank, in), b(out, 2 * rank);
        a << a0, a0;
        b << b0, -b0;
        delta.rank = 2 * rank;
        delta.a = keep(a);
        delta.b = keep(b);
        return Status();
      }
    }
    check_failed(__FILE__, __LINE__, "init", "not an AdapterInit");
  }

  // m = ||W + s B A|| per output row, so that the first step is the base's.
  Status add_magnitude(const TensorView& weight, LoraDelta& delta, const std::string& path) {
    const int64_t out = weight.dim(0);
    std::vector<float> ones(static_cast<size_t>(out), 1.0f), scales(ones.size());
    delta.magnitude = TensorView(ones.data(), DType::kF32, {out});
    if (!dora_scales(weight, delta, scales.data()))
      return data_loss("DoRA: a row of {} is zero and has no direction", path);
    Matrix magnitude(1, out);
    for (int64_t row = 0; row < out; ++row) magnitude(0, row) = 1 / scales[static_cast<size_t>(row)];
    delta.magnitude = keep(magnitude, {out});
    delta.dora_scale = keep(Matrix::Ones(1, out), {out});
    return Status();
  }

  // Full copies of norms, head and embedding.
  Status add_saved(const ModuleMatcher& matcher) {
    if (config_.modules_to_save.empty()) return Status();
    std::vector<WeightId> weights = model_weights(model_);
    if (model_.tie_word_embeddings) weights.push_back({kLmHead});
    std::set<std::string> hit;
    for (const WeightId weight : weights) {
      const std::string path = module_path(weight.module);
      if (!matcher.is_saved(path)) continue;
      for (const std::string& name : config_.modules_to_save)
        if (path.ends_with(name)) hit.insert(name);
      if (weight.module.proj())
        return unsupported(
            "modules_to_save '{}': of the linears only lm_head can be trained as a whole; give {} a rank", path,
            short_name(weight.module));
      if (weight.module.layer >= 0) adapter_.replaced.layers.resize(static_cast<size_t>(model_.num_layers));
      LK_ASSIGN_OR_RETURN(const TensorView* view, base_weight(weight.module));
      Buffer copy(std::max<int64_t>(view->num_elements() * 4, 64));
      view->copy_to(copy.as<float>());
      base_.drop_pages(*view);
      adapter_.replaced.slot(weight) = TensorView(copy.data(), DType::kF32, view->shape());
      adapter_.owned.push_back(std::move(copy));
    }
    for (const std::string& name : config_.modules_to_save)
      if (!hit.contains(name)) return invalid_argument("modules_to_save '{}' is not in the model", name);
    return Status();
  }

  Status add_tokens() {
    for (const auto& [module, ids] : config_.trainable_token_indices) {
      if (module != "embed_tokens" && !module.ends_with(".embed_tokens"))
        return unsupported("trainable tokens of '{}': only those of embed_tokens can be trained", module);
      if (adapter_.replaced.embedding.defined() || adapter_.embedding)
        return invalid_argument("trainable tokens beside an embedding that is trained otherwise: choose one");
      LK_ASSIGN_OR_RETURN(const TensorView* table, base_weight(kEmbedding));
      std::vector<int64_t> sorted = ids;
      std::ranges::sort(sorted);
      if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
        return invalid_argument("trainable token {} is given twice", *twice);
      Matrix rows(static_cast<int64_t>(ids.size()), model_.hidden_dim);
      for (size_t index = 0; index < ids.size(); ++index) {
        if (ids[index] < 0 || ids[index] >= model_.vocab_size)
          return invalid_argument("trainable token {} is outside the vocabulary of {}", ids[index], model_.vocab_size);
        table->slice(ids[index], ids[index] + 1).copy_to(rows.data() + static_cast<int64_t>(index) * model_.hidden_dim);
      }
      base_.drop_pages(*table);
      adapter_.trained_token_ids = ids;
      adapter_.trained_token_rows = keep(rows);
    }
    return Status();
  }

  Result<const TensorView*> base_weight(ModuleId module) const {
    const ModuleId stored = module == kLmHead && model_.tie_word_embeddings ? kEmbedding : module;
    const std::string name = weight_name({stored});
    const TensorView* view = base_.find(name);
    if (!view) return data_loss("base tensor '{}' is missing", name);
    return view;
  }

  Matrix normal(int64_t rows, int64_t cols, double spread) {
    const uint64_t seed = next_seed();
    Matrix matrix(rows, cols);
    for (int64_t i = 0; i < matrix.size(); ++i)
      matrix.data()[i] = static_cast<float>(spread * random_normal(seed, static_cast<uint64_t>(i)));
    return matrix;
  }
  Matrix uniform(int64_t rows, int64_t cols, double bound) {
    const uint64_t seed = next_seed();
    Matrix matrix(rows, cols);
    for (int64_t i = 0; i < matrix.size(); ++i)
      matrix.data()[i] = static_cast<float>(bound * (2 * random_uniform(seed, static_cast<uint64_t>(i)) - 1));
    return matrix;
  }
  uint64_t next_seed() { return mix64(seed_ ^ mix64(++num_draws_)); }

  TensorView keep(const Matrix& matrix) { return keep(matrix, {matrix.rows(), matrix.cols()}); }
  TensorView keep(const Matrix& matrix, std::initializer_list<int64_t> shape) {
    Buffer buffer(std::max<int64_t>(matrix.size() * 4, 64));
    std::copy_n(matrix.data(), matrix.size(), buffer.as<float>());
    const TensorView view(buffer.data(), DType::kF32, shape);
    adapter_.owned.push_back(std::move(buffer));
    return view;
  }

  const ModelConfig& model_;
  const AdapterConfig& config_;
  const AdapterInit init_;
  const int64_t num_modules_;
  const bool multilora_ = num_modules_ > 0;
  const AdapterTraits traits_{.num_modules = num_modules_,
                              .dora = config_.use_dora,
                              .bias = config_.lora_bias,
                              .dropout = config_.dropout > 0,
                              .init = init_};
  const int64_t num_stacked_ = std::max<int64_t>(num_modules_, 1);
  const uint64_t seed_;
  std::vector<std::string> targeted_;  // paths of the modules that get a delta
  const TensorStore& base_;
  Adapter adapter_;
  uint64_t num_draws_ = 0;
};

}  // namespace

const char* to_string(AdapterInit init) {
  return std::ranges::find(kAdapterInits, init, &std::pair<AdapterInit, const char*>::first)->second;
}

Result<InitialAdapter> make_initial_adapter(const ModelConfig& model, const AdapterConfig& config, AdapterInit init,
                                            int64_t num_modules, uint64_t seed, const TensorStore& base) {
  return Builder(model, config, init, num_modules, seed, base).run();
}

}  // namespace lk
