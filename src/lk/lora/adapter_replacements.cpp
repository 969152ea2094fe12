// SPDX-License-Identifier: Apache-2.0
// AdapterLoader: full replacements (modules_to_save, saved embeddings) and trained tokens.
#include <algorithm>
#include <cstring>

#include "lk/io/weights.h"
#include "lk/lora/adapter_loader.h"
#include "lk/lora/values.h"

namespace lk {
namespace {

// True when `copy`, rounded to the base's dtype, is the base weight.
bool same_weight(const TensorView& copy, const TensorView& base) {
  if (!std::ranges::equal(copy.shape(), base.shape())) return false;
  if (copy.num_elements() == 0) return true;
  const int64_t row = base.num_elements() / std::max<int64_t>(base.dim(0), 1);
  std::vector<std::byte> rounded(static_cast<size_t>(row * dtype_bytes(base.dtype())));
  for (int64_t index = 0; index < base.dim(0); ++index) {
    const auto* from = static_cast<const std::byte*>(copy.raw()) + index * row * dtype_bytes(copy.dtype());
    const auto* expected = static_cast<const std::byte*>(base.raw()) + index * row * dtype_bytes(base.dtype());
    convert(from, copy.dtype(), rounded.data(), base.dtype(), row);
    if (std::memcmp(rounded.data(), expected, rounded.size()) != 0) return false;
  }
  return true;
}

}  // namespace

Result<const TensorView*> AdapterLoader::base_weight(ModuleId module, std::string_view purpose) const {
  if (base_ == nullptr) {
    return failed_precondition("{} needs the base model's weights, and they are not at hand", purpose);
  }
  const WeightId id{module == kLmHead && model_.tie_word_embeddings ? kEmbedding : module};
  const TensorView* weight = base_->find(weight_name(id));
  if (weight == nullptr) return data_loss("{} needs base tensor '{}', which the base lacks", purpose, weight_name(id));
  if (!std::ranges::equal(weight->shape(), *weight_shape(id, model_))) {
    return data_loss("base tensor '{}' has shape {}, its config says otherwise", weight_name(id),
                     weight->shape_string());
  }
  return weight;
}

Status AdapterLoader::place_replacements() {
  for (const auto& [module, parts] : modules_) {
    for (const auto& [part, source] : parts) {
      if (part == Part::kBaseWeight) {
        LK_RETURN_IF_ERROR(place_frozen_base(module.first, source));
      } else if (part == Part::kWeight || part == Part::kPlainBias) {
        LK_RETURN_IF_ERROR(place_replacement({module.first, part == Part::kPlainBias}, source));
      }
    }
  }
  // A module that was to be saved and is not in the file would silently stay the base's. (A tied head is not among the
  // model's weights: it may follow the embedding.)
  for (const WeightId weight : model_weights(model_)) {
    if (matcher_->is_saved(module_path(weight.module)) && !adapter_.replaced.of(weight).defined()) {
      return data_loss("modules_to_save covers '{}', which is not in adapter_model.safetensors", weight_name(weight));
    }
  }
  return Status();
}

Status AdapterLoader::wrong_vocabulary(const Source& source) const {
  return unsupported(
      "tensor '{}' has {} rows, the base has a vocabulary of {}: the adapter was trained on a resized vocabulary; "
      "resize and save the base the same way, or train with trainable_token_indices",
      source.name, source.view.dim(0), model_.vocab_size);
}

Status AdapterLoader::place_replacement(WeightId weight, const Source& source) {
  const ModuleId module = weight.module;
  const std::vector<int64_t> shape = *weight_shape(weight, model_);
  if (!std::ranges::equal(source.view.shape(), shape)) {
    if (module.is_vocabulary() && source.view.num_dims() == 2 && source.view.dim(0) != model_.vocab_size)
      return wrong_vocabulary(source);
    return wrong_shape(source, fmt::format("[{}]", fmt::join(shape, ", ")));
  }
  if (lora_modules_.contains(module)) {
    return data_loss("'{}' is both a full replacement ({}) and a LoRA module", module_path(module), source.name);
  }
  if (!matcher_->is_saved(module_path(module))) {
    // PEFT writes the embeddings of a base it believes resized; they are the base's own most of the time.
    if (module.is_vocabulary()) return place_frozen_base(module, source);
    warn(fmt::format("tensor '{}' replaces a base weight although modules_to_save does not name it", source.name));
  }
  LK_RETURN_IF_ERROR(check_replacement(weight, source.name, shape, source.largest));
  adapter_.replaced.slot(weight) = source.view;
  return Status();
}

// The embedding matrix as it was during training, written along with the adapter.
Status AdapterLoader::place_frozen_base(ModuleId module, const Source& source) {
  if (!source.view.has_shape({model_.vocab_size, model_.hidden_dim})) {
    if (source.view.num_dims() == 2 && source.view.dim(0) != model_.vocab_size) return wrong_vocabulary(source);
    return wrong_shape(source, fmt::format("[{}, {}]", model_.vocab_size, model_.hidden_dim));
  }
  const ModuleId own = model_.tie_word_embeddings ? kEmbedding : module;
  const TensorView* own_weight = base_ == nullptr ? nullptr : base_->find(weight_name({own}));
  if (own_weight != nullptr && same_weight(source.view, *own_weight)) return Status();
  if (own_weight != nullptr) warn(fmt::format("tensor '{}' differs from the base's and replaces it", source.name));
  LK_RETURN_IF_ERROR(check_replacement({module}, source.name, source.view.shape(), source.largest));
  adapter_.replaced.slot({module}) = source.view;
  // A tied head shares the matrix PEFT would overwrite.
  if (model_.tie_word_embeddings && module == kEmbedding && !adapter_.replaced.lm_head.defined())
    adapter_.replaced.lm_head = source.view;
  return Status();
}

Status AdapterLoader::place_trained_tokens() {
  std::map<ModuleId, std::vector<int64_t>> ids_of;
  for (const auto& [target, ids] : config_.trainable_token_indices) {
    const auto names = [&target = target](ModuleId module) {  // clang 14 captures no bindings by themselves
      const std::string path = module_path(module);
      return path == target || path.ends_with("." + target);
    };
    if (!names(kEmbedding) && !names(kLmHead))
      return unsupported("trainable_token_indices of '{}': only embed_tokens and lm_head are supported", target);
    std::vector<int64_t> sorted = ids;
    std::ranges::sort(sorted);
    if (std::ranges::adjacent_find(sorted) != sorted.end())
      return invalid_argument("trainable_token_indices of '{}' repeats an id", target);
    if (!sorted.empty() && sorted.back() >= model_.vocab_size) {
      return invalid_argument("trainable_token_indices of '{}' has id {}, the base's vocabulary ends at {}", target,
                              sorted.back(), model_.vocab_size - 1);
    }
    ids_of[names(kEmbedding) ? kEmbedding : kLmHead] = ids;
  }
  for (const auto& [module, parts] : modules_) {
    const auto rows = parts.find(Part::kTokenRows);
    if (rows == parts.end()) continue;
    const auto ids = ids_of.find(module.first);
    if (ids == ids_of.end()) {
      return data_loss(
          "tensor '{}' has trained rows, but trainable_token_indices does not say for which tokens "
          "of {}",
          rows->second.name, module_path(module));
    }
    const auto count = static_cast<int64_t>(ids->second.size());
    if (!rows->second.view.has_shape({count, model_.hidden_dim})) {
      return wrong_shape(rows->second, fmt::format("[{}, {}]", count, model_.hidden_dim));
    }
    if (module.first == kLmHead) {
      LK_RETURN_IF_ERROR(place_trained_head_rows(rows->second, ids->second));
      continue;
    }
    LK_RETURN_IF_ERROR(check_embedding(rows->second.name, model_.hidden_dim, rows->second.largest));
    adapter_.trained_token_ids = ids->second;
    adapter_.trained_token_rows = rows->second.view;
  }
  for (const auto& [module, ids] : ids_of) {
    // The rows of a tied head are those of the embedding.
    if (module == kLmHead && model_.tie_word_embeddings && ids_of.contains(kEmbedding)) continue;
    const auto parts = modules_.find({module});
    if (!ids.empty() && (parts == modules_.end() || !parts->second.contains(Part::kTokenRows))) {
      return data_loss(
          "trainable_token_indices names {} tokens of {}, their rows are not in "
          "adapter_model.safetensors",
          ids.size(), module_path(module));
    }
  }
  return Status();
}

// Rows trained for the head alone become a full replacement of the head.
Status AdapterLoader::place_trained_head_rows(const Source& source, const std::vector<int64_t>& ids) {
  if (model_.tie_word_embeddings) {
    return unsupported(
        "tensor '{}': rows trained for lm_head alone are not supported on a base with tied "
        "embeddings",
        source.name);
  }
  if (adapter_.replaced.lm_head.defined())
    return data_loss("lm_head is in modules_to_save and has trained rows ({})", source.name);
  LK_RETURN_IF_ERROR(check_replacement({kLmHead}, source.name, *weight_shape({kLmHead}, model_), source.largest));
  LK_ASSIGN_OR_RETURN(const TensorView* weight, base_weight(kLmHead, "a trained row of lm_head"));
  const int64_t width = model_.hidden_dim, row_bytes = width * dtype_bytes(DType::kF32);
  LK_ASSIGN_OR_RETURN(Buffer * buffer, own(weight->num_elements() * dtype_bytes(DType::kF32)));
  weight->copy_to(buffer->as<float>());
  for (size_t index = 0; index < ids.size(); ++index) {
    convert(source.view.row(static_cast<int64_t>(index)), source.view.dtype(), buffer->data() + ids[index] * row_bytes,
            DType::kF32, width);
  }
  adapter_.replaced.lm_head = TensorView(buffer->data(), DType::kF32, {model_.vocab_size, width});
  return Status();
}

}  // namespace lk
