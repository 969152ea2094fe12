// SPDX-License-Identifier: Apache-2.0
#include "lk/model/weights.h"

#include <algorithm>
#include <cmath>

#include "lk/base/rng.h"
#include "lk/io/checkpoint.h"
#include "lk/io/weights.h"

namespace lk {
namespace {

const float* store_vector(ModelWeights& weights, Backend& backend, std::span<const float> values) {
  DeviceBuffer& buffer = weights.storage.emplace_back(backend.allocate(static_cast<int64_t>(values.size_bytes())));
  backend.upload(buffer.as<float>(), values);
  return buffer.as<float>();
}

// Gathers named tensors of a checkpoint into packed matrices and f32 vectors.
class Packer {
 public:
  Packer(ModelWeights& weights, Backend& backend, void (*progress)(int64_t, int64_t) = nullptr)
      : weights_(weights), backend_(backend), progress_(progress), total_(weights.checkpoint->size_bytes()) {}

  // Requires: a tensor of open_checkpoint(), which is there in the shape of the config.
  const TensorView& tensor(const std::string& name) {
    const TensorView* view = weights_.checkpoint->find(name);
    LK_CHECK(view, "no tensor {}", name);
    done_ += view->num_bytes();
    if (progress_) progress_(std::min(done_, total_), total_);
    return *view;
  }

  const float* vector(const std::string& name) {
    const TensorView& view = tensor(name);
    std::vector<float> values(static_cast<size_t>(view.num_elements()));
    view.copy_to(values.data());
    weights_.checkpoint->drop_pages(view);
    return store_vector(weights_, backend_, values);
  }

  // What this rank has of one layer's projections that share a matrix.
  PackedWeight group(const std::string& prefix, ProjGroup group) {
    const ModelShape& shape = weights_.shape;
    return matrix(group_columns(group, shape), in_dim(projs_of(group)[0], shape), [&](const PackedWeight& packed) {
      for (const Proj proj : projs_of(group)) {
        std::vector<Buffer> owned;
        const TensorView& whole = tensor(prefix + hf_name(proj) + ".weight");
        backend_.pack_weight(rank_weight(whole, proj, weights_.rank, owned), group_column(proj, shape), packed,
                             Workers::kAll);
        weights_.checkpoint->drop_pages(whole);  // so that the base is never in memory twice
      }
    });
  }
  const float* group_bias(const std::string& prefix, ProjGroup group) {
    std::vector<float> bias(static_cast<size_t>(group_columns(group, weights_.shape)));
    for (const Proj proj : projs_of(group))
      rank_outputs(tensor(prefix + hf_name(proj) + ".bias"), proj, weights_.rank)
          .copy_to(bias.data() + group_column(proj, weights_.shape));
    return store_vector(weights_, backend_, bias);
  }
  PackedWeight head(const std::string& name) {
    return matrix(weights_.config.vocab_size, weights_.config.hidden_dim, [&](const PackedWeight& packed) {
      const TensorView& whole = tensor(name);
      backend_.pack_weight(whole, 0, packed, Workers::kAll);
      weights_.checkpoint->drop_pages(whole);
    });
  }

 private:
  template <class Fill>
  PackedWeight matrix(int64_t n, int64_t k, const Fill& fill) {
    const int64_t bytes = packed_weight_bytes(weights_.format(), n, k);
    DeviceBuffer& buffer = weights_.storage.emplace_back(backend_.allocate(bytes));
    const PackedWeight packed{.format = weights_.format(), .n = n, .k = k, .data = buffer.data()};
    fill(packed);
    weights_.packed_bytes += bytes;
    return packed;
  }

  ModelWeights& weights_;
  Backend& backend_;
  void (*progress_)(int64_t, int64_t);
  int64_t done_ = 0, total_;
};

bool has_bias(ProjGroup group, const ModelConfig& c) {
  return group == ProjGroup::kQkv ? c.qkv_bias : group == ProjGroup::kO ? c.o_bias : c.mlp_bias;
}

void pack_layer(Packer& packer, ModelWeights& weights, int64_t index) {
  const ModelConfig& c = weights.config;
  const std::string prefix = fmt::format("model.layers.{}.", index);
  LayerWeights& layer = weights.layers[static_cast<size_t>(index)];
  for (const ProjGroup group : {ProjGroup::kQkv, ProjGroup::kO, ProjGroup::kGateUp, ProjGroup::kDown}) {
    const auto g = static_cast<size_t>(group);
    layer.linear[g] = packer.group(prefix, group);
    if (has_bias(group, c)) layer.bias[g] = packer.group_bias(prefix, group);
  }
  layer.input_norm = packer.vector(prefix + "input_layernorm.weight");
  layer.post_norm = packer.vector(prefix + "post_attention_layernorm.weight");
  if (!c.qk_norm) return;
  layer.q_norm = packer.vector(prefix + "self_attn.q_norm.weight");
  layer.k_norm = packer.vector(prefix + "self_attn.k_norm.weight");
}

// All but the embedding.
void pack_all(Packer& packer, ModelWeights& weights) {
  const ModelConfig& c = weights.config;
  weights.layers.resize(static_cast<size_t>(c.num_layers));
  for (int64_t layer = 0; layer < c.num_layers; ++layer) pack_layer(packer, weights, layer);
  weights.final_norm = packer.vector("model.norm.weight");
  if (c.has_lm_head && weights.rank.leads())
    weights.lm_head = packer.head(c.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
}

// Uniform values of standard deviation 0.02: the usual initialiser, cheap to make. Blocks are made by the calling
// threads and uploaded one by one, so that a matrix never lies in host memory too.
void fill_random(Backend& backend, std::byte* dst, DType dtype, int64_t n, uint64_t seed, ThreadPool& pool) {
  constexpr int64_t kBlock = 1 << 16;
  constexpr float kWidth = 0.02f * 3.4641016f;
  const int64_t elem = dtype_bytes(dtype);
  pool.for_each((n + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t begin = block * kBlock, count = std::min(n - begin, kBlock);
    std::vector<float> values(static_cast<size_t>(count));
    uint64_t state = random_bits(seed, static_cast<uint64_t>(block)) | 1;
    for (float& value : values) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      value = (static_cast<float>(state >> 40) * 0x1.0p-24f - 0.5f) * kWidth;
    }
    std::vector<std::byte> converted(static_cast<size_t>(count * elem));
    convert(values.data(), DType::kF32, converted.data(), dtype, count);
    backend.upload(dst + begin * elem, converted.data(), count * elem);
  });
}

}  // namespace

ProjGroup group_of(Proj proj) {
  switch (proj) {
    case Proj::kQ:
    case Proj::kK:
    case Proj::kV:
      return ProjGroup::kQkv;
    case Proj::kO:
      return ProjGroup::kO;
    case Proj::kGate:
    case Proj::kUp:
      return ProjGroup::kGateUp;
    case Proj::kDown:
      return ProjGroup::kDown;
  }
  check_failed(__FILE__, __LINE__, "proj", "not a Proj");
}

std::span<const Proj> projs_of(ProjGroup group) {
  static constexpr Proj kAll[] = {Proj::kQ, Proj::kK, Proj::kV, Proj::kO, Proj::kGate, Proj::kUp, Proj::kDown};
  switch (group) {
    case ProjGroup::kQkv:
      return std::span(kAll).subspan(0, 3);
    case ProjGroup::kO:
      return std::span(kAll).subspan(3, 1);
    case ProjGroup::kGateUp:
      return std::span(kAll).subspan(4, 2);
    case ProjGroup::kDown:
      return std::span(kAll).subspan(6, 1);
  }
  check_failed(__FILE__, __LINE__, "group", "not a ProjGroup");
}

int64_t group_column(Proj proj, const ModelShape& shape) {
  int64_t column = 0;
  for (Proj other : projs_of(group_of(proj))) {
    if (other == proj) break;
    column += align_panel(out_dim(other, shape));
  }
  return column;
}

int64_t group_columns(ProjGroup group, const ModelShape& shape) {
  int64_t columns = 0;
  for (Proj proj : projs_of(group)) columns += align_panel(out_dim(proj, shape));
  return columns;
}

Result<std::shared_ptr<const ModelWeights>> load_weights(const std::string& directory, DType act, Backend& backend,
                                                         void (*progress)(int64_t, int64_t), int num_ranks) {
  LK_CHECK(act == DType::kBF16 || act == DType::kF32);
  auto weights = std::make_shared<ModelWeights>();
  weights->act = act;
  LK_ASSIGN_OR_RETURN(Checkpoint checkpoint, open_checkpoint(directory));
  weights->config = std::move(checkpoint.config);
  weights->checkpoint = std::move(checkpoint.weights);
  weights->warnings = std::move(checkpoint.warnings);
  LK_RETURN_IF_ERROR(check_num_ranks(weights->config.shape(), num_ranks));
  weights->rank = {0, num_ranks};
  weights->shape = rank_share(weights->config.shape(), num_ranks);
  LK_RETURN_IF_ERROR(check_finite(*weights->checkpoint, backend.num_host_threads()).with_context(directory));
  Packer packer(*weights, backend, progress);
  const TensorView& embedding = packer.tensor("model.embed_tokens.weight");
  // A copy: a row of the mapped file may be gone from memory, and a step would wait for the disk.
  auto table = std::make_shared<DeviceBuffer>(backend.allocate(embedding.num_bytes()));
  backend.upload(table->data(), embedding.row(0), embedding.num_bytes());
  weights->checkpoint->drop_pages(embedding);
  weights->embedding = TensorView(table->data(), embedding.dtype(), embedding.shape());
  weights->embedding_rows = std::move(table);
  pack_all(packer, *weights);
  return std::shared_ptr<const ModelWeights>(std::move(weights));
}

std::shared_ptr<const ModelWeights> load_rank(const ModelWeights& first, int rank, Backend& backend) {
  LK_CHECK(first.checkpoint && first.rank.leads() && rank > 0 && rank < first.rank.size);
  auto weights = std::make_shared<ModelWeights>();
  weights->config = first.config;
  weights->shape = first.shape;
  weights->rank = {rank, first.rank.size};
  weights->act = first.act;
  weights->checkpoint = first.checkpoint;
  weights->embedding = first.embedding;
  weights->embedding_rows = first.embedding_rows;
  Packer packer(*weights, backend);
  pack_all(packer, *weights);
  return weights;
}

std::shared_ptr<const ModelWeights> make_dummy_weights(const ModelConfig& config, DType act, uint64_t seed,
                                                       Backend& backend, RankId rank) {
  auto weights = std::make_shared<ModelWeights>();
  weights->config = config;
  weights->rank = rank;
  weights->shape = rank_share(config.shape(), rank.size);
  const ModelShape& shape = weights->shape;
  weights->act = act;
  ThreadPool pool(backend.num_host_threads());
  const auto matrix = [&](int64_t n, int64_t k) {
    const int64_t bytes = packed_weight_bytes(weights->format(), n, k);
    DeviceBuffer& buffer = weights->storage.emplace_back(backend.allocate(bytes));
    fill_random(backend, buffer.data(), act, bytes / dtype_bytes(act), seed + weights->storage.size(), pool);
    weights->packed_bytes += bytes;
    return PackedWeight{.format = weights->format(), .n = n, .k = k, .data = buffer.data()};
  };
  const auto vector = [&](int64_t n, float value) {
    return store_vector(*weights, backend, std::vector<float>(static_cast<size_t>(n), value));
  };
  for (int64_t index = 0; index < shape.num_layers; ++index) {
    LayerWeights layer;
    for (const ProjGroup group : {ProjGroup::kQkv, ProjGroup::kO, ProjGroup::kGateUp, ProjGroup::kDown}) {
      const auto g = static_cast<size_t>(group);
      layer.linear[g] = matrix(group_columns(group, shape), in_dim(projs_of(group)[0], shape));
      if (has_bias(group, config)) layer.bias[g] = vector(group_columns(group, shape), 0.01f);
    }
    layer.input_norm = vector(shape.hidden_dim, 1);
    layer.post_norm = vector(shape.hidden_dim, 1);
    if (config.qk_norm) layer.q_norm = vector(shape.head_dim, 1), layer.k_norm = vector(shape.head_dim, 1);
    weights->layers.push_back(layer);
  }
  weights->final_norm = vector(shape.hidden_dim, 1);
  if (rank.leads()) weights->lm_head = matrix(shape.vocab_size, shape.hidden_dim);
  const int64_t table = shape.vocab_size * shape.hidden_dim;
  DeviceBuffer& embedding = weights->storage.emplace_back(backend.allocate(table * dtype_bytes(act)));
  fill_random(backend, embedding.data(), act, table, seed + 1, pool);
  weights->embedding = TensorView(embedding.data(), act, {shape.vocab_size, shape.hidden_dim});
  return weights;
}

}  // namespace lk
