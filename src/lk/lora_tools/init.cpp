// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "lk/base/file.h"
#include "lk/base/rng.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora/delta_math.h"
#include "lk/lora_tools/save.h"

namespace lk {
namespace {

class Initializer {
 public:
  Initializer(const ModelConfig& config, const InitOptions& options, const TensorStore* base)
      : config_(config), options_(options), base_(base) {
    adapter_.layers.resize(static_cast<size_t>(config.num_layers));
    adapter_.config.use_rslora = options.use_rslora;
    adapter_.config.use_dora = options.use_dora;
  }

  Result<Adapter> run() {
    LK_RETURN_IF_ERROR(check());
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int index = 0; index < kNumProjs; ++index) {
        const Proj proj = static_cast<Proj>(index);
        const ModuleId module = ModuleId::of(layer, proj);
        if (!targeted(module)) continue;
        LK_ASSIGN_OR_RETURN(adapter_.layers[static_cast<size_t>(layer)][static_cast<size_t>(index)],
                            delta(module, in_dim(proj, config_), out_dim(proj, config_)));
      }
    }
    if (targeted(kLmHead)) {
      LK_ASSIGN_OR_RETURN(adapter_.lm_head, delta(kLmHead, config_.hidden_dim, config_.vocab_size));
    }
    if (targeted(kEmbedding)) {
      const int64_t rank = rank_of(short_name(kEmbedding));
      // As PEFT starts an embedding, with the roles of the zero and the random factor.
      adapter_.embedding = Adapter::EmbeddingDelta{
          rank, scaling(rank), random({rank, config_.vocab_size}, options_.b_scale / std::sqrt(rank), true),
          random({config_.hidden_dim, rank}, 1.0, true)};
    }
    return std::move(adapter_);
  }

 private:
  bool targeted(ModuleId module) const { return targeted(short_name(module)); }
  bool targeted(const std::string& name) const {
    return std::ranges::find(options_.targets, name) != options_.targets.end();
  }
  int64_t rank_of(const std::string& name) const {
    const auto found = options_.rank_of.find(name);
    return found == options_.rank_of.end() ? options_.rank : found->second;
  }
  double scaling(int64_t rank) const {
    const double alpha = options_.alpha.value_or(2.0 * static_cast<double>(rank));
    return alpha / (options_.use_rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
  }

  Status check() const {
    std::vector<std::string> known = {short_name(kEmbedding), short_name(kLmHead)};
    for (int proj = 0; proj < kNumProjs; ++proj) known.push_back(short_name(ModuleId::of(0, static_cast<Proj>(proj))));
    const auto is_known = [&](const std::string& name) { return std::ranges::find(known, name) != known.end(); };
    for (const std::string& name : options_.targets) {
      if (!is_known(name)) return invalid_argument("target '{}' is not one of {}", name, fmt::join(known, ", "));
      if (rank_of(name) < 1 || rank_of(name) > 65536)
        return invalid_argument("rank {} of '{}' is out of range", rank_of(name), name);
    }
    for (const auto& [name, rank] : options_.rank_of) {
      if (!targeted(name)) return invalid_argument("a rank is given for '{}', which is not a target", name);
    }
    if (options_.targets.empty())
      return invalid_argument("no targets: name at least one of {}", fmt::join(known, ", "));
    if (options_.lora_bias && options_.use_dora) return invalid_argument("lora_bias and DoRA exclude each other");
    if (options_.use_dora && base_ == nullptr)
      return invalid_argument("DoRA magnitudes are norms of base weights: the base is needed");
    if (options_.use_dora && targeted(kEmbedding)) return unsupported("DoRA on embed_tokens is not supported");
    return Status();
  }

  // normal: N(0, spread^2), otherwise U(-spread, spread).
  TensorView random(std::initializer_list<int64_t> shape, double spread, bool normal) {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    const uint64_t seed = mix64(options_.seed ^ mix64(static_cast<uint64_t>(++num_tensors_)));
    std::vector<float> values(static_cast<size_t>(n));
    for (int64_t index = 0; index < n; ++index) {
      const auto counter = static_cast<uint64_t>(index);
      const double draw = normal ? random_normal(seed, counter) : 2 * random_uniform(seed, counter) - 1;
      values[static_cast<size_t>(index)] = static_cast<float>(spread * draw);
    }
    Buffer buffer(std::max<int64_t>(n * dtype_bytes(options_.dtype), 64));
    convert(values.data(), DType::kF32, buffer.data(), options_.dtype, n);
    const TensorView view(buffer.data(), options_.dtype, shape);
    adapter_.owned.push_back(std::move(buffer));
    return view;
  }

  Result<LoraDelta> delta(ModuleId module, int64_t in, int64_t out) {
    const int64_t rank = rank_of(short_name(module));
    const double b_spread = options_.b_scale / std::sqrt(static_cast<double>(rank));
    LoraDelta delta;
    delta.rank = rank;
    delta.scaling = scaling(rank);
    delta.a = random({rank, in}, 1.0 / std::sqrt(static_cast<double>(in)),
                     false);  // kaiming_uniform(a = sqrt 5)
    delta.b = random({out, rank}, b_spread, true);
    if (options_.lora_bias) delta.bias = random({out}, options_.b_scale, true);
    if (options_.use_dora) LK_RETURN_IF_ERROR(add_magnitude(module, delta));
    return delta;
  }

  // m = ||W + s B A|| per row, a little off so that DoRA's scale is not 1.
  Status add_magnitude(ModuleId module, LoraDelta& delta) {
    const std::string base_name = weight_name({module == kLmHead && config_.tie_word_embeddings ? kEmbedding : module});
    const TensorView* weight = base_->find(base_name);
    const int64_t out = delta.b.dim(0), in = delta.a.dim(1);
    if (weight == nullptr || !weight->has_shape({out, in}))
      return data_loss("base tensor '{}' is missing or misshapen", base_name);
    Buffer ones(out * 4), norms(out * 4), magnitudes(out * 4);
    std::fill_n(ones.as<float>(), out, 1.0f);
    delta.magnitude = TensorView(ones.data(), DType::kF32, {out});
    if (!dora_scales(*weight, delta, norms.as<float>())) return data_loss("a row of '{}' is zero", base_name);
    for (int64_t row = 0; row < out; ++row) {
      const double factor = 1 + options_.b_scale * (2 * random_uniform(options_.seed, static_cast<uint64_t>(row)) - 1);
      magnitudes.as<float>()[row] = static_cast<float>(factor) / norms.as<float>()[row];
    }
    delta.magnitude = TensorView(magnitudes.data(), DType::kF32, {out});
    adapter_.owned.push_back(std::move(magnitudes));
    return Status();
  }

  const ModelConfig& config_;
  const InitOptions& options_;
  const TensorStore* base_;
  Adapter adapter_;
  int64_t num_tensors_ = 0;
};

}  // namespace

Status init_adapter(const ModelConfig& config, const InitOptions& options, const std::string& out_dir,
                    const TensorStore* base) {
  if (file_exists(join_path(out_dir, kAdapterWeightsFile))) {
    return already_exists("{} holds an adapter already; name another directory", out_dir);
  }
  LK_ASSIGN_OR_RETURN(const Adapter adapter, Initializer(config, options, base).run());
  SaveOptions save;
  save.base_model_name = options.base_model_name;
  return save_adapter(adapter, config, out_dir, save);
}

}  // namespace lk
