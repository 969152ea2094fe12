// SPDX-License-Identifier: Apache-2.0
#include "lk/io/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "lk/base/thread_pool.h"
#include "lk/io/weight_names.h"
#include "lk/tensor/magnitude.h"

namespace lk {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

}  // namespace

std::vector<WeightSpec> weight_manifest(const ModelConfig& config) {
  std::vector<WeightSpec> specs;
  for (const WeightId weight : model_weights(config))
    specs.push_back({weight_name(weight), *weight_shape(weight, config)});
  return specs;
}

Status check_weights(const ModelConfig& config, const TensorStore& store) {
  for (const WeightSpec& spec : weight_manifest(config)) {
    const TensorView* tensor = store.find(spec.name);
    if (tensor == nullptr) {
      return data_loss("tensor '{}' {} is missing from the checkpoint", spec.name, shape_text(spec.shape));
    }
    if (!std::ranges::equal(tensor->shape(), spec.shape)) {
      return data_loss("tensor '{}' has shape {}, config.json says {}", spec.name, tensor->shape_string(),
                       shape_text(spec.shape));
    }
  }
  return Status();
}

bool same_values(const TensorView& a, const TensorView& b) {
  if (!std::ranges::equal(a.shape(), b.shape())) return false;
  if (a.raw() == b.raw() && a.dtype() == b.dtype()) return true;
  constexpr int64_t kBlock = 1 << 16;
  std::vector<float> left(kBlock), right(kBlock);
  const auto read = [](const TensorView& view, int64_t begin, int64_t n, std::vector<float>& out) {
    convert(static_cast<const std::byte*>(view.raw()) + begin * dtype_bytes(view.dtype()), view.dtype(), out.data(),
            DType::kF32, n);
  };
  for (int64_t begin = 0; begin < a.num_elements(); begin += kBlock) {
    const int64_t n = std::min(kBlock, a.num_elements() - begin);
    read(a, begin, n, left);
    read(b, begin, n, right);
    if (!std::equal(left.begin(), left.begin() + n, right.begin())) return false;
  }
  return true;
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
