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
  if (!std::ranges::equal(weight->shape(), *weight_shape(id, base_model_))) {
    return data_loss("base tensor '{}' has shape {}, its config says otherwise", weight_name(id),
                     weight->shape_string());
  }
  return weight;
}

Status AdapterLoader::place_replacements() {
  for (const auto& [module, parts] : modules_) {
    for (const bool bias : {false, true}) {
      const WeightId weight{module.first, bias};
      if (const Source* source = use(parts, bias ? Part::kPlainBias : Part::kWeight))
        LK_RETURN_IF_ERROR(place_replacement(weight, *source));
      const Source* copy = use(parts, bias ? Part::kBaseBias : Part::kBaseWeight);
      if (copy != nullptr && bias)
        LK_RETURN_IF_ERROR(place_replacement(weight, *copy));
      else if (copy != nullptr)
        LK_RETURN_IF_ERROR(place_base_copy(module.first, *copy));
    }
  }
  LK_RETURN_IF_ERROR(tie_saved_ends());
  apply_base_copies();
  // A module that was to be saved and is not in the file would silently stay the base's. (A tied head is not among the
  // model's weights: it may follow the embedding.)
  for (const WeightId weight : model_weights(model_)) {
    if (is_saved(weight.module) && !adapter_.replaced.of(weight).defined()) {
      return data_loss("modules_to_save covers '{}', which is not in adapter_model.safetensors", weight_name(weight));
    }
  }
  return Status();
}

// With ensure_weight_tying the ends of a tied model have one saved matrix, whichever of them modules_to_save names.
bool AdapterLoader::is_saved(ModuleId module) const {
  if (matcher_->is_saved(path_of({module}))) return true;
  return module.is_vocabulary() && ties_ends() &&
         (matcher_->is_saved(path_of({kEmbedding})) || matcher_->is_saved(path_of({kLmHead})));
}

// Before the base's copies get what is left: the matrix is written under the names of both ends, or of one.
Status AdapterLoader::tie_saved_ends() {
  if (!ties_ends() || !is_saved(kEmbedding)) return Status();
  TensorView &embedding = adapter_.replaced.embedding, &head = adapter_.replaced.lm_head;
  if (embedding.defined() && head.defined() && !same_values(embedding, head))
    return data_loss("ensure_weight_tying is true, and the saved values of '{}' and '{}' differ",
                     module_path(kEmbedding), module_path(kLmHead));
  if (!head.defined()) head = embedding;
  embedding = head;
  return Status();
}

// Rows that resizing made are nowhere but in the adapter, and those that it left need one matrix with them.
Status AdapterLoader::check_own_vocabulary() const {
  if (!adapter_.own_vocab_size) return Status();
  for (const ModuleId module : {kEmbedding, kLmHead})
    if (weight_shape({module}, model_) && !adapter_.replaced.of({module}).defined())
      return unsupported(
          "the adapter was trained on a vocabulary resized from {} to {} tokens, and the file has no whole {} of that "
          "size: save it again with model.save_pretrained(..., save_embedding_layers=True)",
          base_model_.vocab_size, model_.vocab_size, module_path(module));
  return Status();
}

Status AdapterLoader::place_replacement(WeightId weight, const Source& source) {
  const ModuleId module = weight.module;
  const std::vector<int64_t> shape = *weight_shape(weight, model_);
  if (!std::ranges::equal(source.view.shape(), shape))
    return wrong_shape(source, fmt::format("[{}]", fmt::join(shape, ", ")));
  const bool saved = is_saved(module);
  if (weight.bias) {
    if (!saved && !config_.trained_biases) {
      if (base_ != nullptr && base_->find(weight_name(weight)) != nullptr &&
          same_weight(source.view, *base_->find(weight_name(weight))))
        return Status();
      warn(fmt::format("tensor '{}' replaces a bias of the base although \"bias\" is \"none\"", source.name));
    }
  } else if (lora_modules_.contains(module)) {
    return data_loss("'{}' is both a full replacement ({}) and a LoRA module", module_path(module), source.name);
  } else if (!saved) {
    // PEFT writes the embeddings of a base it believes resized; they are the base's own most of the time.
    if (module.is_vocabulary()) return place_base_copy(module, source);
    warn(fmt::format("tensor '{}' replaces a base weight although modules_to_save does not name it", source.name));
  }
  LK_RETURN_IF_ERROR(check_replacement(weight, source.name, shape, source.largest));
  TensorView& slot = adapter_.replaced.slot(weight);
  if (slot.defined() && !same_values(slot, source.view))
    return data_loss("tensor '{}' and another one for '{}' differ", source.name, weight_name(weight));
  slot = source.view;
  return Status();
}

// A weight of the base as it was during training, written along with the adapter. What PEFT loads it into is shared by
// both ends of a tied model.
Status AdapterLoader::place_base_copy(ModuleId module, const Source& source) {
  const std::vector<int64_t> shape = *weight_shape({module}, model_);
  if (!std::ranges::equal(source.view.shape(), shape))
    return wrong_shape(source, fmt::format("[{}]", fmt::join(shape, ", ")));
  const ModuleId own = module == kLmHead && model_.tie_word_embeddings ? kEmbedding : module;
  const TensorView* own_weight = base_ == nullptr ? nullptr : base_->find(weight_name({own}));
  if (own_weight != nullptr && same_weight(source.view, *own_weight)) return Status();
  LK_RETURN_IF_ERROR(check_replacement({module}, source.name, shape, source.largest));
  const auto [at, added] = base_copies_.emplace(own, &source);
  if (!added && !same_values(at->second->view, source.view))
    return data_loss("tensors '{}' and '{}' stand for the same weight and differ", at->second->name, source.name);
  return Status();
}

// What modules_to_save replaces does not see the base's weight, so its copy does not matter.
void AdapterLoader::apply_base_copies() {
  for (const auto& [own, source] : base_copies_) {
    bool matters = false;
    const auto apply = [&](ModuleId module) {
      TensorView& slot = adapter_.replaced.slot({module});
      if (slot.defined()) return;
      slot = source->view;
      matters = true;
    };
    apply(own);
    if (own == kEmbedding && model_.tie_word_embeddings) apply(kLmHead);
    const bool resized = own.is_vocabulary() && adapter_.own_vocab_size;
    if (matters && base_ != nullptr && !resized)
      warn(fmt::format("tensor '{}' differs from the base's and replaces it", source->name));
  }
}

// Whose rows were trained, by module.
Result<std::map<ModuleId, std::vector<int64_t>>> AdapterLoader::trained_ids() const {
  std::map<ModuleId, std::vector<int64_t>> ids_of;
  for (const auto& [target, ids] : config_.trainable_token_indices) {
    const auto names = [&target = target](ModuleId module) {  // clang 14 captures no bindings by themselves
      const std::string path = module_path(module), wanted = text_model_path(target);
      return path == wanted || path.ends_with("." + wanted);
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
  return ids_of;
}

Status AdapterLoader::place_trained_tokens() {
  LK_ASSIGN_OR_RETURN(auto ids_of, trained_ids());
  const auto rows_of = [&](ModuleId module) -> const Source* {
    const auto parts = modules_.find({module});
    return parts == modules_.end() ? nullptr : use(parts->second, Part::kTokenRows);
  };
  const Source* const embedding_rows = rows_of(kEmbedding);
  const Source* head_rows = rows_of(kLmHead);
  // A tied head has the embedding's rows; newer files list them twice.
  if (model_.tie_word_embeddings && embedding_rows != nullptr && head_rows != nullptr && !ids_of.contains(kLmHead)) {
    if (!same_values(embedding_rows->view, head_rows->view))
      return data_loss("tensors '{}' and '{}' differ on a base with tied embeddings", embedding_rows->name,
                       head_rows->name);
    head_rows = nullptr;
  }
  if (model_.tie_word_embeddings && embedding_rows != nullptr && matcher_->is_saved(path_of({kLmHead})))
    return unsupported(
        "trained rows of the embedding beside lm_head in modules_to_save, on a base with tied embeddings "
        "(PEFT cannot run them either)");
  for (const auto& [module, rows] : {std::pair(kEmbedding, embedding_rows), {kLmHead, head_rows}}) {
    const auto ids = ids_of.find(module);
    if (rows == nullptr) {
      // The rows of a tied head are those of the embedding.
      if (ids == ids_of.end() || ids->second.empty() ||
          (module == kLmHead && model_.tie_word_embeddings && embedding_rows != nullptr))
        continue;
      return data_loss(
          "trainable_token_indices names {} tokens of {}, their rows are not in "
          "adapter_model.safetensors",
          ids->second.size(), module_path(module));
    }
    if (ids == ids_of.end()) {
      return data_loss(
          "tensor '{}' has trained rows, but trainable_token_indices does not say for which tokens "
          "of {}",
          rows->name, module_path(module));
    }
    const auto count = static_cast<int64_t>(ids->second.size());
    if (!rows->view.has_shape({count, model_.hidden_dim}))
      return wrong_shape(*rows, fmt::format("[{}, {}]", count, model_.hidden_dim));
    LK_RETURN_IF_ERROR(check_embedding(rows->name, model_.hidden_dim, rows->largest));
    // The engine's trained rows are those of both ends of a tied model.
    const bool own_head = model_.tie_word_embeddings && head_rows != nullptr;
    if (module == kLmHead || own_head) {
      LK_RETURN_IF_ERROR(replace_rows(module, *rows, ids->second));
    } else {
      adapter_.trained_token_ids = ids->second;
      adapter_.trained_token_rows = rows->view;
    }
  }
  const ReplacedWeights& replaced = adapter_.replaced;
  if (!model_.tie_word_embeddings || adapter_.trained_token_ids.empty() || !replaced.lm_head.defined() ||
      replaced.lm_head.raw() != replaced.embedding.raw())
    return Status();
  // One matrix for both ends of a tied model, and these are rows of it.
  LK_RETURN_IF_ERROR(replace_rows(kEmbedding, *embedding_rows, adapter_.trained_token_ids));
  adapter_.replaced.lm_head = adapter_.replaced.embedding;
  adapter_.trained_token_ids.clear();
  adapter_.trained_token_rows = {};
  return Status();
}

// Rows of one end alone become a full replacement of it.
Status AdapterLoader::replace_rows(ModuleId module, const Source& source, const std::vector<int64_t>& ids) {
  LK_RETURN_IF_ERROR(check_replacement({module}, source.name, *weight_shape({module}, model_), source.largest));
  TensorView& slot = adapter_.replaced.slot({module});
  if (slot.defined() && matcher_->is_saved(path_of({module})))
    return data_loss("{} is in modules_to_save and has trained rows ({})", module_path(module), source.name);
  TensorView weight = slot;
  if (!weight.defined()) {
    LK_ASSIGN_OR_RETURN(const TensorView* base, base_weight(module, "a trained row"));
    weight = *base;
  }
  const int64_t width = model_.hidden_dim, row_bytes = width * dtype_bytes(DType::kF32);
  LK_ASSIGN_OR_RETURN(Buffer * buffer, own(weight.num_elements() * dtype_bytes(DType::kF32)));
  weight.copy_to(buffer->as<float>());
  for (size_t index = 0; index < ids.size(); ++index) {
    convert(source.view.row(static_cast<int64_t>(index)), source.view.dtype(), buffer->data() + ids[index] * row_bytes,
            DType::kF32, width);
  }
  slot = TensorView(buffer->data(), DType::kF32, {model_.vocab_size, width});
  return Status();
}

}  // namespace lk
