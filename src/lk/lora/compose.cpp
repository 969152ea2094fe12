// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/compose.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "lk/base/sha256.h"
#include "lk/io/weights.h"
#include "lk/lora/values.h"

namespace lk {
namespace {

// One low-rank delta of one component, with its weight.
struct Part {
  const TensorView* a;     // [rank, in], or [rank, vocab] of an embedding
  const TensorView* b;     // [out, rank]
  const TensorView* bias;  // undefined: none
  double scale;            // weight * scaling
  int64_t rank;
};

// One block for all tensors of a sum: with one each, every tensor would be rounded up to a page, unseen by the bound on
// cached sums, and want of memory would end the program. First pass: without memory, adds up what is needed; second
// pass: hands it out.
class Block {
 public:
  Status allocate() {
    LK_ASSIGN_OR_RETURN(memory_, Buffer::try_allocate(used_));
    used_ = 0;
    return Status();
  }
  TensorView take(std::initializer_list<int64_t> shape) {
    int64_t bytes = dtype_bytes(DType::kF32);
    for (const int64_t dim : shape) bytes *= dim;
    std::byte* at = memory_.data() ? memory_.data() + used_ : nullptr;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at ? TensorView(at, DType::kF32, shape) : TensorView();
  }
  bool counting() const { return memory_.data() == nullptr; }
  Buffer release() { return std::move(memory_); }

 private:
  static constexpr int64_t kAlignment = 64;
  Buffer memory_;
  int64_t used_ = 0;
};

// A = [A_1; A_2; ...], B = [s_1 B_1, s_2 B_2, ...], scaling 1. In the counting pass only the sizes are taken.
LoraDelta stack(Block& block, std::span<const Part> parts) {
  LoraDelta sum{.scaling = 1};
  for (const Part& part : parts) sum.rank += part.rank;
  const int64_t in = parts[0].a->dim(1), out = parts[0].b->dim(0);
  sum.a = block.take({sum.rank, in});
  sum.b = block.take({out, sum.rank});
  if (std::ranges::any_of(parts, [](const Part& part) { return part.bias && part.bias->defined(); }))
    sum.bias = block.take({out});
  if (block.counting()) return sum;
  auto* a = static_cast<float*>(const_cast<void*>(sum.a.raw()));
  auto* b = static_cast<float*>(const_cast<void*>(sum.b.raw()));
  std::vector<float> bias;
  int64_t first = 0;
  for (const Part& part : parts) {
    part.a->copy_to(a + first * in);
    for (int64_t row = 0; row < out; ++row) {
      float* to = b + row * sum.rank + first;
      convert(part.b->row(row), part.b->dtype(), to, DType::kF32, part.rank);
      for (int64_t k = 0; k < part.rank; ++k) to[k] = static_cast<float>(part.scale * static_cast<double>(to[k]));
    }
    if (part.bias && part.bias->defined()) {
      std::vector<float> own(static_cast<size_t>(out));
      part.bias->copy_to(own.data());
      bias.resize(own.size());
      for (size_t i = 0; i < own.size(); ++i) bias[i] += static_cast<float>(part.scale * static_cast<double>(own[i]));
    }
    first += part.rank;
  }
  if (!bias.empty()) std::copy(bias.begin(), bias.end(), static_cast<float*>(const_cast<void*>(sum.bias.raw())));
  return sum;
}

Status check_summable(const Adapter& adapter, const Adapter& first) {
  if (!adapter.replaced.empty())
    return unsupported("adapter {} replaces {}: a weighted sum of replaced modules has no meaning", adapter.name,
                       weight_name(adapter.replaced.ids().front()));
  if (!adapter.trained_token_ids.empty())
    return unsupported("adapter {} has trained token rows, which cannot be summed", adapter.name);
  if (adapter.config.alora_invocation_tokens != first.config.alora_invocation_tokens)
    return unsupported("adapters {} and {} are not activated by the same tokens: their deltas do not act together",
                       first.name, adapter.name);
  const auto dora = [](const std::optional<LoraDelta>& delta) { return delta && delta->magnitude.defined(); };
  bool found = dora(adapter.lm_head);
  for (const auto& layer : adapter.layers)
    for (const auto& delta : layer) found |= dora(delta);
  if (found) return unsupported("adapter {} uses DoRA, whose magnitude is not a sum of deltas", adapter.name);
  return Status();
}

Status check_sum(ModuleId module, const LoraDelta& delta) {
  return check_delta(module_path(module), delta.a.dim(1), delta.rank, delta.scaling, magnitudes_of(delta));
}

}  // namespace

Result<std::shared_ptr<const Adapter>> compose_adapters(const std::string& name,
                                                        std::span<const WeightedAdapter> parts) {
  LK_CHECK(!parts.empty());
  auto sum = std::make_shared<Adapter>();
  sum->name = name;
  sum->config = parts[0].adapter->config;
  sum->config.use_rslora = false;  // scalings are 1, whatever the ranks
  sum->config.base_change = BaseChange::kNone;
  Sha256 digest;
  for (const WeightedAdapter& part : parts) {
    LK_RETURN_IF_ERROR(check_summable(*part.adapter, *parts[0].adapter));
    if (!std::isfinite(part.weight))
      return invalid_argument("weight {} of adapter {} is not finite", part.weight, part.adapter->name);
    digest.update(part.adapter->digest.data(), part.adapter->digest.size());
    digest.update(&part.weight, sizeof part.weight);
    sum->file_bytes += part.adapter->file_bytes;
  }
  sum->digest = to_hex(digest.finish());

  std::vector<Part> chosen;
  const auto collect = [&](const auto& delta_of) {
    chosen.clear();
    for (const WeightedAdapter& part : parts)
      if (const auto& delta = delta_of(*part.adapter); delta)
        chosen.push_back({&delta->a, &delta->b, nullptr, part.weight * delta->scaling, delta->rank});
    return !chosen.empty();
  };
  const auto collect_linear = [&](const auto& delta_of) {
    if (!collect(delta_of)) return false;
    size_t i = 0;
    for (const WeightedAdapter& part : parts)
      if (const auto& delta = delta_of(*part.adapter); delta) chosen[i++].bias = &delta->bias;
    return true;
  };
  sum->layers.resize(parts[0].adapter->layers.size());
  Block block;
  const auto build = [&] {
    for (size_t layer = 0; layer < sum->layers.size(); ++layer)
      for (size_t proj = 0; proj < kNumProjs; ++proj)
        if (collect_linear(
                [&](const Adapter& adapter) -> const std::optional<LoraDelta>& { return adapter.layers[layer][proj]; }))
          sum->layers[layer][proj] = stack(block, chosen);
    if (collect_linear([](const Adapter& adapter) -> const std::optional<LoraDelta>& { return adapter.lm_head; }))
      sum->lm_head = stack(block, chosen);
    if (collect([](const Adapter& adapter) -> const std::optional<Adapter::EmbeddingDelta>& {
          return adapter.embedding;
        })) {
      const LoraDelta delta = stack(block, chosen);
      sum->embedding = Adapter::EmbeddingDelta{.rank = delta.rank, .scaling = 1, .a = delta.a, .b = delta.b};
    }
  };
  build();
  LK_RETURN_IF_ERROR(block.allocate());
  build();
  sum->owned.push_back(block.release());
  for (size_t layer = 0; layer < sum->layers.size(); ++layer)
    for (size_t proj = 0; proj < kNumProjs; ++proj)
      if (const auto& delta = sum->layers[layer][proj]; delta)
        LK_RETURN_IF_ERROR(check_sum(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)), *delta));
  if (sum->lm_head) LK_RETURN_IF_ERROR(check_sum(kLmHead, *sum->lm_head));
  if (sum->embedding)
    LK_RETURN_IF_ERROR(
        check_delta(module_path(kEmbedding), 1, sum->embedding->rank, 1,
                    {.a = largest_magnitude(sum->embedding->a), .b = largest_magnitude(sum->embedding->b)}));
  for (const auto& layer : sum->layers)
    for (const auto& delta : layer)
      if (delta) sum->max_rank = std::max(sum->max_rank, delta->rank);
  if (sum->lm_head) sum->max_rank = std::max(sum->max_rank, sum->lm_head->rank);
  if (sum->embedding) sum->max_rank = std::max(sum->max_rank, sum->embedding->rank);
  return std::shared_ptr<const Adapter>(std::move(sum));
}

}  // namespace lk
