// SPDX-License-Identifier: Apache-2.0
// AdapterLoader: full replacements (modules_to_save, saved embeddings) and trained tokens.
#include <algorithm>
#include <cstring>

#include "lk/io/weights.h"
#include "lk/lora/adapter_loader.h"

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

bool is_vocabulary(const std::string& module) { return module == kEmbedTokens || module == kLmHead; }

}  // namespace

Result<const TensorView*> AdapterLoader::base_weight(const std::string& module, std::string_view purpose) const {
  if (base_ == nullptr) {
    return failed_precondition("{} needs the base model's weights, and they are not at hand", purpose);
  }
  const bool tied = module == kLmHead && model_.tie_word_embeddings;
  const std::string name = (tied ? std::string(kEmbedTokens) : module) + ".weight";
  const TensorView* weight = base_->find(name);
  if (weight == nullptr) return data_loss("{} needs base tensor '{}', which the base lacks", purpose, name);
  const auto shape = base_shapes_.find(name);
  if (shape == base_shapes_.end() || !std::ranges::equal(weight->shape(), shape->second)) {
    return data_loss("base tensor '{}' has shape {}, its config says otherwise", name, weight->shape_string());
  }
  return weight;
}

Status AdapterLoader::place_replacements() {
  std::vector<std::string> unknown;
  for (const auto& [module, parts] : modules_) {
    for (const auto& [part, source] : parts) {
      if (part == Part::kBaseWeight) {
        LK_RETURN_IF_ERROR(place_frozen_base(module, source));
        continue;
      }
      if (part != Part::kWeight && part != Part::kPlainBias) continue;
      const std::string name = module + (part == Part::kWeight ? ".weight" : ".bias");
      if (!base_shapes_.contains(name)) {
        unknown.push_back(source.name);
        continue;
      }
      LK_RETURN_IF_ERROR(place_replacement(module, part, source));
    }
  }
  if (!unknown.empty()) {
    const std::string names = fmt::format(
        "{}{}", fmt::join(unknown.begin(), unknown.begin() + std::min<ptrdiff_t>(5, std::ssize(unknown)), ", "),
        unknown.size() > 5 ? ", ..." : "");
    if (!options_.ignore_unknown_tensors) {
      return invalid_argument(
          "tensors that match nothing in this {} model ({} layers): {}; adapter for another base "
          "or of "
          "another kind?",
          model_.architecture, model_.num_layers, names);
    }
    warn(fmt::format("ignored tensors that match nothing in this model: {}", names));
  }
  // A module that was to be saved and is not in the file would silently stay the base's.
  for (const auto& [name, shape] : base_shapes_) {
    if (model_.tie_word_embeddings && name == "lm_head.weight") continue;  // may follow the embedding
    if (matcher_->is_saved(name.substr(0, name.rfind('.'))) && !adapter_.replaced.contains(name)) {
      return data_loss("modules_to_save covers '{}', which is not in adapter_model.safetensors", name);
    }
  }
  return Status();
}

Status AdapterLoader::place_replacement(const std::string& module, Part part, const Source& source) {
  const std::string name = module + (part == Part::kWeight ? ".weight" : ".bias");
  const std::vector<int64_t>& shape = base_shapes_.at(name);
  if (!std::ranges::equal(source.view.shape(), shape)) {
    if (is_vocabulary(module) && source.view.num_dims() == 2 && source.view.dim(0) != model_.vocab_size) {
      return unsupported(
          "tensor '{}' has {} rows, the base has a vocabulary of {}: the adapter was trained on a "
          "resized "
          "vocabulary; resize and save the base the same way, or train with "
          "trainable_token_indices",
          source.name, source.view.dim(0), model_.vocab_size);
    }
    return wrong_shape(source, fmt::format("[{}]", fmt::join(shape, ", ")));
  }
  if (lora_modules_.contains(module)) {
    return data_loss("'{}' is both a full replacement ({}) and a LoRA module", module, source.name);
  }
  if (!matcher_->is_saved(module)) {
    // PEFT writes the embeddings of a base it believes resized; they are the base's own most of the
    // time.
    if (is_vocabulary(module)) return place_frozen_base(module, source);
    warn(fmt::format("tensor '{}' replaces a base weight although modules_to_save does not name it", source.name));
  }
  adapter_.replaced[name] = source.view;
  return Status();
}

// The embedding matrix as it was during training, written along with the adapter.
Status AdapterLoader::place_frozen_base(const std::string& module, const Source& source) {
  const std::string name = module + ".weight";
  if (!source.view.has_shape({model_.vocab_size, model_.hidden_dim})) {
    if (source.view.num_dims() == 2 && source.view.dim(0) != model_.vocab_size) {
      return unsupported(
          "tensor '{}' has {} rows, the base has a vocabulary of {}: the adapter was trained on a "
          "resized "
          "vocabulary; resize and save the base the same way, or train with "
          "trainable_token_indices",
          source.name, source.view.dim(0), model_.vocab_size);
    }
    return wrong_shape(source, fmt::format("[{}, {}]", model_.vocab_size, model_.hidden_dim));
  }
  const std::string tied_name = model_.tie_word_embeddings ? std::string(kEmbedTokens) + ".weight" : name;
  const TensorView* own_weight = base_ == nullptr ? nullptr : base_->find(tied_name);
  if (own_weight != nullptr && same_weight(source.view, *own_weight)) return Status();
  if (own_weight != nullptr) warn(fmt::format("tensor '{}' differs from the base's and replaces it", source.name));
  adapter_.replaced[name] = source.view;
  // A tied head shares the matrix PEFT would overwrite.
  if (model_.tie_word_embeddings && module == kEmbedTokens) adapter_.replaced.emplace("lm_head.weight", source.view);
  return Status();
}

Status AdapterLoader::place_trained_tokens() {
  std::map<std::string, std::vector<int64_t>> ids_of;  // by module path
  for (const auto& [target, ids] : config_.trainable_token_indices) {
    const auto names = [&target = target](std::string_view path) {  // clang 14 captures no bindings by themselves
      return path == target || path.ends_with(std::string(".") + target);
    };
    const std::string module = names(kEmbedTokens) ? kEmbedTokens : names(kLmHead) ? kLmHead : target;
    if (!is_vocabulary(module))
      return unsupported("trainable_token_indices of '{}': only embed_tokens and lm_head are supported", target);
    std::vector<int64_t> sorted = ids;
    std::ranges::sort(sorted);
    if (std::ranges::adjacent_find(sorted) != sorted.end())
      return invalid_argument("trainable_token_indices of '{}' repeats an id", target);
    if (!sorted.empty() && sorted.back() >= model_.vocab_size) {
      return invalid_argument("trainable_token_indices of '{}' has id {}, the base's vocabulary ends at {}", target,
                              sorted.back(), model_.vocab_size - 1);
    }
    ids_of[module] = ids;
  }
  for (const auto& [module, parts] : modules_) {
    const auto rows = parts.find(Part::kTokenRows);
    if (rows == parts.end()) continue;
    const auto ids = ids_of.find(module);
    if (ids == ids_of.end()) {
      return data_loss(
          "tensor '{}' has trained rows, but trainable_token_indices does not say for which tokens "
          "of {}",
          rows->second.name, module);
    }
    const auto count = static_cast<int64_t>(ids->second.size());
    if (!rows->second.view.has_shape({count, model_.hidden_dim})) {
      return wrong_shape(rows->second, fmt::format("[{}, {}]", count, model_.hidden_dim));
    }
    if (module == kLmHead) {
      LK_RETURN_IF_ERROR(place_trained_head_rows(rows->second, ids->second));
      continue;
    }
    adapter_.trained_token_ids = ids->second;
    adapter_.trained_token_rows = rows->second.view;
  }
  for (const auto& [module, ids] : ids_of) {
    // The rows of a tied head are those of the embedding.
    if (module == kLmHead && model_.tie_word_embeddings && ids_of.contains(kEmbedTokens)) continue;
    const auto parts = modules_.find(module);
    if (!ids.empty() && (parts == modules_.end() || !parts->second.contains(Part::kTokenRows))) {
      return data_loss(
          "trainable_token_indices names {} tokens of {}, their rows are not in "
          "adapter_model.safetensors",
          ids.size(), module);
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
  if (adapter_.replaced.contains("lm_head.weight"))
    return data_loss("lm_head is in modules_to_save and has trained rows ({})", source.name);
  LK_ASSIGN_OR_RETURN(const TensorView* weight, base_weight(kLmHead, "a trained row of lm_head"));
  const int64_t width = model_.hidden_dim, row_bytes = width * dtype_bytes(DType::kF32);
  LK_ASSIGN_OR_RETURN(Buffer * buffer, own(weight->num_elements() * dtype_bytes(DType::kF32)));
  weight->copy_to(buffer->as<float>());
  for (size_t index = 0; index < ids.size(); ++index) {
    convert(source.view.row(static_cast<int64_t>(index)), source.view.dtype(), buffer->data() + ids[index] * row_bytes,
            DType::kF32, width);
  }
  adapter_.replaced["lm_head.weight"] = TensorView(buffer->data(), DType::kF32, {model_.vocab_size, width});
  return Status();
}

}  // namespace lk
