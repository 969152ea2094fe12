// SPDX-License-Identifier: Apache-2.0
#include "lk/io/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>

#include "lk/base/thread_pool.h"
#include "lk/io/weight_names.h"
#include "lk/tensor/magnitude.h"

namespace lk {
namespace {

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

float largest_magnitude(const TensorView& tensor) {
  return largest_magnitude(tensor.raw(), tensor.dtype(), tensor.num_elements());
}

Status check_magnitude(std::string_view name, float largest) {
  if (largest <= kLargestWeight) return Status();
  if (!std::isfinite(largest))
    return data_loss("tensor '{}' contains NaN or infinity; training diverged or the file is damaged", name);
  return data_loss(
      "tensor '{}' contains a value of magnitude {:.4g}, which is infinite once rounded to bf16; training diverged or "
      "the file is damaged",
      name, largest);
}

Status check_finite(const TensorStore& store, int num_threads) {
  std::vector<const std::pair<const std::string, TensorView>*> items;
  for (const auto& item : store.tensors()) items.push_back(&item);
  std::atomic<int64_t> first_bad{INT64_MAX};
  ThreadPool pool(std::max(1, num_threads));
  pool.for_each(static_cast<int64_t>(items.size()), [&](int64_t item) {
    const TensorView& tensor = items[static_cast<size_t>(item)]->second;
    const float largest = largest_magnitude(tensor);
    store.drop_pages(tensor);  // or the whole file would count as this process's memory
    if (largest <= kLargestWeight) return;
    int64_t seen = first_bad.load();
    while (item < seen && !first_bad.compare_exchange_weak(seen, item)) {
    }
  });
  if (first_bad == INT64_MAX) return Status();
  const auto& [name, tensor] = *items[static_cast<size_t>(first_bad.load())];
  return check_magnitude(name, largest_magnitude(tensor));
}

}  // namespace lk
