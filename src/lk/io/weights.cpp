// SPDX-License-Identifier: Apache-2.0
#include "lk/io/weights.h"

#include <algorithm>
#include <atomic>
#include <set>

#include "lk/base/thread_pool.h"
#include "lk/io/weight_names.h"

namespace lk {
namespace {

// An all-ones exponent marks NaN and infinity in every IEEE-like format. No early exit inside a
// block, so that the loop vectorises.
template <class Bits>
bool finite_block(const Bits* values, int64_t n, Bits exponent_mask) {
  bool bad = false;
  for (int64_t i = 0; i < n; ++i) bad |= (values[i] & exponent_mask) == exponent_mask;
  return !bad;
}

template <class Bits>
bool finite(const void* data, int64_t n, Bits exponent_mask) {
  constexpr int64_t kBlock = 1 << 16;
  const Bits* values = static_cast<const Bits*>(data);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    if (!finite_block(values + begin, std::min(kBlock, n - begin), exponent_mask)) return false;
  }
  return true;
}

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

bool harmless_extra(const std::string& name, const ModelConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight");
}

}  // namespace

std::vector<WeightSpec> weight_manifest(const ModelConfig& config) {
  std::vector<WeightSpec> specs;
  for (const WeightId weight : model_weights(config))
    specs.push_back({weight_name(weight), *weight_shape(weight, config)});
  return specs;
}

Status check_weights(const ModelConfig& config, const TensorStore& store, std::vector<std::string>* warnings) {
  std::set<std::string> expected;
  for (WeightSpec& spec : weight_manifest(config)) {
    const TensorView* tensor = store.find(spec.name);
    if (tensor == nullptr) {
      return data_loss("tensor '{}' {} is missing from the checkpoint", spec.name, shape_text(spec.shape));
    }
    if (!std::ranges::equal(tensor->shape(), spec.shape)) {
      return data_loss("tensor '{}' has shape {}, config.json says {}", spec.name, tensor->shape_string(),
                       shape_text(spec.shape));
    }
    expected.insert(std::move(spec.name));
  }
  if (warnings == nullptr) return Status();
  for (const auto& [name, tensor] : store.tensors()) {
    if (!expected.contains(name) && !harmless_extra(name, config)) {
      warnings->push_back(fmt::format("tensor '{}' {} is not part of {} and is ignored", name, tensor.shape_string(),
                                      config.architecture));
    }
  }
  return Status();
}

bool all_finite(const TensorView& tensor) {
  const int64_t n = tensor.num_elements();
  switch (tensor.dtype()) {
    case DType::kF32:
      return finite<uint32_t>(tensor.raw(), n, 0x7f800000u);
    case DType::kBF16:
      return finite<uint16_t>(tensor.raw(), n, 0x7f80u);
    case DType::kF16:
      return finite<uint16_t>(tensor.raw(), n, 0x7c00u);
  }
  return false;
}

Status check_finite(const TensorStore& store, int num_threads) {
  std::vector<const std::pair<const std::string, TensorView>*> items;
  for (const auto& item : store.tensors()) items.push_back(&item);
  std::atomic<int64_t> first_bad{INT64_MAX};
  ThreadPool pool(std::max(1, num_threads));
  pool.for_each(static_cast<int64_t>(items.size()), [&](int64_t item) {
    if (all_finite(items[static_cast<size_t>(item)]->second)) return;
    int64_t seen = first_bad.load();
    while (item < seen && !first_bad.compare_exchange_weak(seen, item)) {
    }
  });
  if (first_bad == INT64_MAX) return Status();
  return data_loss("tensor '{}' contains NaN or infinity; the file is damaged or training diverged",
                   items[static_cast<size_t>(first_bad.load())]->first);
}

}  // namespace lk
