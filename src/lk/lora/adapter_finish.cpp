// SPDX-License-Identifier: Apache-2.0
// AdapterLoader: what is computed from the base weights at load. DoRA norms, and the conversion of
// PiSSA and OLoRA adapters to plain ones: A' = [A; A0], B' = [B, -B0], so that W + s B' A' = (W - s
// B0 A0) + s B A.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

#include "lk/base/thread_pool.h"
#include "lk/lora/adapter_loader.h"
#include "lk/lora/delta_math.h"

namespace lk {
namespace {

// [A; A0] as f32.
void stack_rows(const TensorView& a, const std::vector<float>& a0, float* out) {
  a.copy_to(out);
  std::ranges::copy(a0, out + a.num_elements());
}

// [B, -B0] as f32.
void join_columns(const TensorView& b, const std::vector<float>& b0, float* out) {
  const int64_t rows = b.dim(0), rank = b.dim(1);
  for (int64_t row = 0; row < rows; ++row) {
    float* to = out + row * 2 * rank;
    convert(b.row(row), b.dtype(), to, DType::kF32, rank);
    for (int64_t k = 0; k < rank; ++k) to[rank + k] = -b0[static_cast<size_t>(row * rank + k)];
  }
}

}  // namespace

Status AdapterLoader::finish_deltas() {
  struct Item {
    LoraDelta* delta;
    ModuleId module;
  };
  std::vector<Item> items;
  for (size_t layer = 0; layer < adapter_.layers.size(); ++layer) {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      std::optional<LoraDelta>& delta = adapter_.layers[layer][static_cast<size_t>(proj)];
      if (delta) items.push_back({&*delta, ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj))});
    }
  }
  if (adapter_.lm_head) items.push_back({&*adapter_.lm_head, kLmHead});

  const bool needs_base = config_.use_dora || config_.base_change != BaseChange::kNone;
  if (needs_base && !items.empty()) {
    std::mutex mutex;
    Status first;
    std::atomic<bool> failed{false};
    ThreadPool pool(std::max(1, options_.num_threads));
    pool.for_each(std::ssize(items), [&](int64_t index) {
      if (failed) return;
      const Item& item = items[static_cast<size_t>(index)];
      Status status = finish_delta(*item.delta, item.module, mutex);
      if (status.ok()) return;
      failed = true;
      const std::lock_guard lock(mutex);
      if (first.ok()) first = std::move(status);
    });
    LK_RETURN_IF_ERROR(first);
    if (config_.base_change != BaseChange::kNone) {
      warn(
          fmt::format("init_lora_weights \"{}\": converted to a plain adapter of twice the rank; "
                      "convert the file once to load it faster",
                      config_.base_change == BaseChange::kPissa ? "pissa" : "olora"));
    }
  }
  for (const Item& item : items) {
    if (item.delta->rank > options_.max_rank) {
      return invalid_argument("module '{}': rank {} after conversion exceeds the limit of {}", module_path(item.module),
                              item.delta->rank, options_.max_rank);
    }
    adapter_.max_rank = std::max(adapter_.max_rank, item.delta->rank);
  }
  if (adapter_.embedding) adapter_.max_rank = std::max(adapter_.max_rank, adapter_.embedding->rank);
  return Status();
}

// Runs on several threads; `mutex` guards adapter_.owned.
Status AdapterLoader::finish_delta(LoraDelta& delta, ModuleId module, std::mutex& mutex) {
  const TensorView& replaced = adapter_.replaced.of({module});
  const auto keep = [&](Buffer buffer) {
    const std::lock_guard lock(mutex);
    adapter_.owned.push_back(std::move(buffer));
  };
  // A saved base_layer.weight is already the changed base that A and B belong to.
  if (config_.base_change != BaseChange::kNone && !replaced.defined()) {
    const char* kind = config_.base_change == BaseChange::kPissa ? "PiSSA" : "OLoRA";
    if (delta.scaling <= 0)
      return invalid_argument("{} needs a positive lora_alpha, module '{}' has scaling {}", kind, module_path(module),
                              delta.scaling);
    if (module == kLmHead && model_.tie_word_embeddings) {
      return unsupported("{} on lm_head is not supported on a base with tied embeddings", kind);
    }
    LK_ASSIGN_OR_RETURN(const TensorView* weight, base_weight(module, fmt::format("converting a {} adapter", kind)));
    const int64_t rank = delta.rank, out = weight->dim(0), in = weight->dim(1);
    if (rank > std::min(out, in))
      return invalid_argument("module '{}': rank {} exceeds the weight's {}", module_path(module), rank,
                              weight->shape_string());
    const InitFactors factors = initial_factors(config_.base_change, *weight, rank, delta.scaling);
    LK_ASSIGN_OR_RETURN(Buffer a, Buffer::try_allocate(2 * rank * in * 4));
    LK_ASSIGN_OR_RETURN(Buffer b, Buffer::try_allocate(out * 2 * rank * 4));
    stack_rows(delta.a, factors.a0, a.as<float>());
    join_columns(delta.b, factors.b0, b.as<float>());
    delta.rank = 2 * rank;
    delta.a = TensorView(a.data(), DType::kF32, {2 * rank, in});
    delta.b = TensorView(b.data(), DType::kF32, {out, 2 * rank});
    keep(std::move(a));
    keep(std::move(b));
  }
  if (delta.magnitude.defined()) {
    LK_ASSIGN_OR_RETURN(const TensorView* base_view, base_weight(module, "a DoRA adapter"));
    const TensorView& weight = replaced.defined() ? replaced : *base_view;
    const int64_t out = weight.dim(0);
    LK_ASSIGN_OR_RETURN(Buffer scales, Buffer::try_allocate(out * 4));
    if (!dora_scales(weight, delta, scales.as<float>())) {
      return data_loss(
          "module '{}': a row of W + BA has norm 0, so DoRA's scale is not finite; adapter for "
          "another base?",
          module_path(module));
    }
    delta.dora_scale = TensorView(scales.data(), DType::kF32, {out});
    keep(std::move(scales));
  }
  return Status();
}

}  // namespace lk
