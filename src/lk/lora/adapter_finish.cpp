// SPDX-License-Identifier: Apache-2.0
// AdapterLoader: what is computed from the base weights at load. DoRA norms, and the conversion of
// PiSSA and OLoRA adapters to plain ones: A' = [A; A0], B' = [B, -B0], so that W + s B' A' = (W - s
// B0 A0) + s B A.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iterator>
#include <mutex>

#include "lk/base/sha256.h"
#include "lk/base/thread_pool.h"
#include "lk/io/weights.h"
#include "lk/lora/adapter_loader.h"
#include "lk/lora/conversion_cache.h"
#include "lk/lora/delta_math.h"
#include "lk/lora/values.h"

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

// Multiply-adds of taking the initial factors out of a base weight, roughly.
double conversion_cost(BaseChange change, double out, double in, double rank) {
  const double side = std::min(out, in);
  return change == BaseChange::kPissa ? out * in * side + 9 * side * side * side
                                      : out * rank * rank + 2 * out * in * rank;
}

// Says when a conversion would take too long: at once when no processor could do it in time, else from how long its
// first parts took.
class ConversionClock {
 public:
  ConversionClock(double cost, double max_seconds, int num_threads) : left_(cost), max_seconds_(max_seconds) {
    constexpr double kBestRate = 2e10;  // multiply-adds a second and thread, f64
    estimate_ = cost / (kBestRate * num_threads);
  }
  Status done(double cost) {
    std::lock_guard lock(mutex_);
    done_ += cost;
    left_ -= cost;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    estimate_ = seconds + left_ * seconds / done_;
    return check();
  }
  Status check() const {
    if (max_seconds_ <= 0 || estimate_ <= max_seconds_) return Status();
    return deadline_exceeded(
        "converting this PiSSA or OLoRA adapter would take about {:.0f} s, more than the {:.0f} s allowed; convert the "
        "file once with `lorikeet adapter convert` and serve the result",
        estimate_, max_seconds_);
  }

 private:
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  double left_, done_ = 0, estimate_;
  const double max_seconds_;
};

// Runs f(item) for all items on `num_threads` threads, until one fails.
template <class Items, class F>
Status for_each_item(Items& items, int num_threads, F&& f) {
  std::mutex mutex;
  Status first;
  std::atomic<bool> failed{false};
  ThreadPool pool(std::max(1, num_threads));
  pool.for_each(std::ssize(items), [&](int64_t index) {
    if (failed) return;
    Status status = f(items[static_cast<size_t>(index)]);
    if (status.ok()) return;
    failed = true;
    const std::lock_guard lock(mutex);
    if (first.ok()) first = std::move(status);
  });
  return first;
}

}  // namespace

Status AdapterLoader::finish_deltas() {
  // In PEFT the head's delta acts on rows that were replaced below it; here they are replaced above it.
  if (model_.tie_word_embeddings && adapter_.lm_head && !adapter_.trained_token_ids.empty())
    return unsupported(
        "trainable_token_indices beside an adapter of lm_head, on a base with tied embeddings: save the adapter "
        "merged, "
        "or train the tokens without lm_head among target_modules");
  std::vector<Adapted> all;
  for (size_t layer = 0; layer < adapter_.layers.size(); ++layer) {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      std::optional<LoraDelta>& delta = adapter_.layers[layer][static_cast<size_t>(proj)];
      if (delta) all.push_back({&*delta, ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj))});
    }
  }
  if (adapter_.lm_head) all.push_back({&*adapter_.lm_head, kLmHead});
  if (embedding_magnitude_ != nullptr) LK_RETURN_IF_ERROR(fold_dora_embedding());

  // A saved base_layer.weight is already the changed base that A and B belong to.
  std::vector<Adapted> changed;
  if (config_.base_change != BaseChange::kNone)
    std::ranges::copy_if(all, std::back_inserter(changed),
                         [&](const Adapted& item) { return !adapter_.replaced.of({item.module}).defined(); });
  if (!changed.empty()) LK_RETURN_IF_ERROR(convert_deltas(changed));
  if (config_.use_dora)
    LK_RETURN_IF_ERROR(for_each_item(all, options_.num_threads, [&](const Adapted& item) { return add_dora(item); }));
  for (const Adapted& item : all) {
    if (item.delta->rank > options_.max_rank) {
      return invalid_argument("module '{}': rank {} after conversion exceeds the limit of {}", module_path(item.module),
                              item.delta->rank, options_.max_rank);
    }
    adapter_.max_rank = std::max(adapter_.max_rank, item.delta->rank);
  }
  if (adapter_.embedding) adapter_.max_rank = std::max(adapter_.max_rank, adapter_.embedding->rank);
  return Status();
}

Status AdapterLoader::check_conversion(const Adapted& item) const {
  const char* kind = config_.base_change == BaseChange::kPissa ? "PiSSA" : "OLoRA";
  const LoraDelta& delta = *item.delta;
  if (delta.scaling <= 0)
    return invalid_argument("{} needs a positive lora_alpha, module '{}' has scaling {}", kind,
                            module_path(item.module), delta.scaling);
  LK_ASSIGN_OR_RETURN(const TensorView* weight, base_weight(item.module, fmt::format("converting a {} adapter", kind)));
  if (delta.rank > std::min(weight->dim(0), weight->dim(1)))
    return invalid_argument("module '{}': rank {} exceeds the weight's {}", module_path(item.module), delta.rank,
                            weight->shape_string());
  return Status();
}

Status AdapterLoader::convert_deltas(std::vector<Adapted>& items) {
  const auto cost_of = [&](const Adapted& item) {
    return conversion_cost(config_.base_change, static_cast<double>(item.delta->b.dim(0)),
                           static_cast<double>(item.delta->a.dim(1)), static_cast<double>(item.delta->b.dim(1)));
  };
  double cost = 0;
  for (const Adapted& item : items) {
    LK_RETURN_IF_ERROR(check_conversion(item));
    cost += cost_of(item);
  }
  std::optional<ConversionCache> cache;
  if (!options_.conversion_cache.empty()) {
    cache.emplace(options_.conversion_cache, to_hex(adapter_.file->digest()), base_->content_digest());
    if (take_converted(cache->find(options_.copy_file), items)) return change_tied_embedding(items);
  }
  ConversionClock clock(cost, options_.max_conversion_seconds, std::max(1, options_.num_threads));
  LK_RETURN_IF_ERROR(clock.check());
  LK_RETURN_IF_ERROR(for_each_item(items, options_.num_threads, [&](const Adapted& item) {
    const double own = cost_of(item);  // before its rank is doubled
    LK_RETURN_IF_ERROR(convert_delta(item));
    return clock.done(own);
  }));
  if (cache) {
    std::vector<TensorEntry> tensors;
    for (const Adapted& item : items) {
      tensors.push_back({module_path(item.module) + ".a", item.delta->a});
      tensors.push_back({module_path(item.module) + ".b", item.delta->b});
    }
    cache->put(tensors);
  }
  warn(
      fmt::format("init_lora_weights \"{}\": converted to a plain adapter of twice the rank; convert the file once to "
                  "load it faster",
                  config_.base_change == BaseChange::kPissa ? "pissa" : "olora"));
  return change_tied_embedding(items);
}

// What the initialisation took out of a tied head it took out of the embedding too, which is the same matrix: for token
// t a delta of -scaling B0[t] A0, the second half of the head's.
Status AdapterLoader::change_tied_embedding(const std::vector<Adapted>& items) {
  const auto head = std::ranges::find(items, kLmHead, &Adapted::module);
  if (head == items.end() || !model_.tie_word_embeddings || adapter_.replaced.embedding.defined()) return Status();
  if (embedding_magnitude_ != nullptr)
    return unsupported("an lm_head that begins with PiSSA or OLoRA beside DoRA on the embedding it is tied to");
  const LoraDelta& delta = *head->delta;
  const int64_t half = delta.rank / 2, vocab = model_.vocab_size, width = model_.hidden_dim;
  const int64_t before = adapter_.embedding ? adapter_.embedding->rank : 0, rank = before + half;
  const double scaling = before > 0 ? adapter_.embedding->scaling : delta.scaling;
  LK_ASSIGN_OR_RETURN(Buffer * a, own(rank * vocab * 4));
  LK_ASSIGN_OR_RETURN(Buffer * b, own(width * rank * 4));
  std::vector<float> head_b(static_cast<size_t>(2 * half * vocab)), old_b(static_cast<size_t>(width * before));
  delta.b.copy_to(head_b.data());
  if (before > 0) {
    adapter_.embedding->a.copy_to(a->as<float>());
    adapter_.embedding->b.copy_to(old_b.data());
  }
  const auto factor = static_cast<float>(delta.scaling / scaling);
  for (int64_t k = 0; k < half; ++k)
    for (int64_t token = 0; token < vocab; ++token)
      a->as<float>()[(before + k) * vocab + token] = factor * head_b[static_cast<size_t>(token * 2 * half + half + k)];
  const TensorView a0 = delta.a.slice(half, 2 * half);
  std::vector<float> rows(static_cast<size_t>(half * width));
  a0.copy_to(rows.data());
  for (int64_t d = 0; d < width; ++d) {
    for (int64_t k = 0; k < before; ++k) b->as<float>()[d * rank + k] = old_b[static_cast<size_t>(d * before + k)];
    for (int64_t k = 0; k < half; ++k) b->as<float>()[d * rank + before + k] = rows[static_cast<size_t>(k * width + d)];
  }
  adapter_.embedding = Adapter::EmbeddingDelta{rank, scaling, TensorView(a->data(), DType::kF32, {rank, vocab}),
                                               TensorView(b->data(), DType::kF32, {width, rank})};
  return Status();
}

// DoRA on the embedding: W' = (W + scaling B A) * m / ||W + scaling B A||, norms along the vocabulary. Every element
// changes, so it becomes a replacement.
Status AdapterLoader::fold_dora_embedding() {
  const Adapter::EmbeddingDelta& delta = *adapter_.embedding;
  TensorView weight = adapter_.replaced.embedding;
  if (!weight.defined()) {
    LK_ASSIGN_OR_RETURN(const TensorView* base, base_weight(kEmbedding, "DoRA on the embedding"));
    weight = *base;
  }
  const int64_t width = model_.hidden_dim;
  LoraDelta linear;
  std::vector<Buffer> scratch;
  linear.rank = delta.rank;
  linear.scaling = delta.scaling;
  linear.a = transposed(delta.b, scratch);
  linear.b = transposed(delta.a, scratch);
  LK_ASSIGN_OR_RETURN(Buffer * folded, own(weight.num_elements() * 4));
  std::vector<double> squares(static_cast<size_t>(width));
  for_each_merged_block(weight, linear, [&](int64_t first, int64_t count, float* rows) {
    std::copy_n(rows, count * width, folded->as<float>() + first * width);
    for (int64_t i = 0; i < count * width; ++i)
      squares[static_cast<size_t>(i % width)] += static_cast<double>(rows[i]) * rows[i];
  });
  std::vector<float> scales(static_cast<size_t>(width));
  embedding_magnitude_->view.copy_to(scales.data());
  for (size_t d = 0; d < scales.size(); ++d) {
    if (squares[d] == 0)
      return data_loss("module '{}': a column of W + BA has norm 0, so DoRA's scale is not finite",
                       module_path(kEmbedding));
    scales[d] = static_cast<float>(scales[d] / std::sqrt(squares[d]));
  }
  for (int64_t i = 0; i < weight.num_elements(); ++i) folded->as<float>()[i] *= scales[static_cast<size_t>(i % width)];
  const TensorView view(folded->data(), DType::kF32, weight.shape());
  LK_RETURN_IF_ERROR(
      check_replacement({kEmbedding}, embedding_magnitude_->name, view.shape(), largest_magnitude(view)));
  adapter_.replaced.embedding = view;
  adapter_.embedding.reset();
  return Status();
}

// All or nothing: false when `store` (or null) does not fit.
bool AdapterLoader::take_converted(std::shared_ptr<const TensorStore> store, std::vector<Adapted>& items) {
  if (store == nullptr) return false;
  const auto find = [&](const Adapted& item, const char* part, int64_t rows, int64_t columns) {
    const TensorView* view = store->find(module_path(item.module) + part);
    return view != nullptr && view->dtype() == DType::kF32 && view->has_shape({rows, columns}) ? view : nullptr;
  };
  std::vector<std::pair<const TensorView*, const TensorView*>> found;
  for (const Adapted& item : items) {
    const int64_t rank = 2 * item.delta->rank;
    found.emplace_back(find(item, ".a", rank, item.delta->a.dim(1)), find(item, ".b", item.delta->b.dim(0), rank));
    if (found.back().first == nullptr || found.back().second == nullptr) return false;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].delta->rank *= 2;
    items[i].delta->a = *found[i].first;
    items[i].delta->b = *found[i].second;
  }
  adapter_.converted = std::move(store);
  return true;
}

void AdapterLoader::keep(Buffer buffer) {
  const std::lock_guard lock(owned_mutex_);
  adapter_.owned.push_back(std::move(buffer));
}

// On several threads.
Status AdapterLoader::convert_delta(const Adapted& item) {
  LK_ASSIGN_OR_RETURN(const TensorView* weight, base_weight(item.module, "a conversion"));
  LoraDelta& delta = *item.delta;
  const int64_t rank = delta.rank, out = weight->dim(0), in = weight->dim(1);
  const InitFactors factors = initial_factors(config_.base_change, *weight, rank, delta.scaling);
  base_->drop_pages(*weight);
  LK_ASSIGN_OR_RETURN(Buffer a, Buffer::try_allocate(2 * rank * in * 4));
  LK_ASSIGN_OR_RETURN(Buffer b, Buffer::try_allocate(out * 2 * rank * 4));
  stack_rows(delta.a, factors.a0, a.as<float>());
  join_columns(delta.b, factors.b0, b.as<float>());
  delta.rank = 2 * rank;
  delta.a = TensorView(a.data(), DType::kF32, {2 * rank, in});
  delta.b = TensorView(b.data(), DType::kF32, {out, 2 * rank});
  keep(std::move(a));
  keep(std::move(b));
  return check_delta(module_path(item.module), in, delta.rank, delta.scaling, magnitudes_of(delta));
}

// On several threads.
Status AdapterLoader::add_dora(const Adapted& item) {
  LoraDelta& delta = *item.delta;
  const ModuleId module = item.module;
  const TensorView& replaced = adapter_.replaced.of({module});
  LK_ASSIGN_OR_RETURN(const TensorView* base_view, base_weight(module, "a DoRA adapter"));
  const TensorView& weight = replaced.defined() ? replaced : *base_view;
  const int64_t out = weight.dim(0);
  LK_ASSIGN_OR_RETURN(Buffer scales, Buffer::try_allocate(out * 4));
  const bool scaled = dora_scales(weight, delta, scales.as<float>());
  base_->drop_pages(*base_view);
  if (!scaled) {
    return data_loss(
        "module '{}': a row of W + BA has norm 0, so DoRA's scale is not finite; adapter for "
        "another base?",
        module_path(module));
  }
  delta.dora_scale = TensorView(scales.data(), DType::kF32, {out});
  keep(std::move(scales));
  return check_delta(module_path(module), delta.a.dim(1), delta.rank, delta.scaling, magnitudes_of(delta));
}

}  // namespace lk
