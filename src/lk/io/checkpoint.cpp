// SPDX-License-Identifier: Apache-2.0
#include "lk/io/checkpoint.h"

#include <algorithm>
#include <optional>

#include "lk/io/weight_names.h"
#include "lk/io/weights.h"

namespace lk {
namespace {

// Assigns every tensor of the files to a weight, or to the rest.
class Ledger {
 public:
  explicit Ledger(Checkpoint& checkpoint) : checkpoint_(checkpoint), config_(checkpoint.config) {}

  Status run() {
    for (const UnreadTensor& tensor : checkpoint_.files->unread()) {
      if (find_weight(tensor.name, config_)) return unsupported("tensor '{}' {}", tensor.name, tensor.why);
      rest_.push_back(tensor.name);
    }
    for (const auto& [name, view] : checkpoint_.files->tensors()) {
      const std::optional<WeightId> weight = find_weight(name, config_);
      if (!weight) {
        rest_.push_back(name);
        continue;
      }
      const auto [at, added] = names_.emplace(*weight, name);
      if (!added) return data_loss("tensors '{}' and '{}' stand for the same weight", at->second, name);
    }
    settle_head();
    LK_RETURN_IF_ERROR(check_head());
    std::map<std::string, TensorView> tensors;
    bool renamed = names_.size() != checkpoint_.files->tensors().size();
    for (const auto& [weight, name] : names_) {
      const std::string own = weight_name(weight);
      renamed |= own != name;
      checkpoint_.file_names[own] = name;
      tensors.emplace(own, *checkpoint_.files->find(name));
    }
    checkpoint_.weights = renamed ? TensorStore::renamed(checkpoint_.files, std::move(tensors)) : checkpoint_.files;
    name_rest();
    return check_weights(config_, *checkpoint_.weights);
  }

 private:
  const TensorView* view_of(ModuleId module) const {
    const auto found = names_.find({module});
    return found == names_.end() ? nullptr : checkpoint_.files->find(found->second);
  }

  // transformers 5: two matrices that differ are not tied, whatever the config says; of two that are tied, one is
  // enough, be it the head.
  void settle_head() {
    const TensorView* embedding = view_of(kEmbedding);
    const TensorView* head = view_of(kLmHead);
    const bool tied = config_.tie_word_embeddings;
    if (tied && embedding != nullptr && head != nullptr && !same_values(*embedding, *head)) {
      config_.tie_word_embeddings = false;
      checkpoint_.warnings.push_back(
          fmt::format("config.json ties the lm_head to the embedding, but '{}' and '{}' differ: they are not tied",
                      names_.at({kEmbedding}), names_.at({kLmHead})));
    } else if (tied && embedding == nullptr && head != nullptr) {
      names_.emplace(WeightId{kEmbedding}, names_.at({kLmHead}));
      names_.erase({kLmHead});
    } else if (tied && head != nullptr) {
      names_.erase({kLmHead});  // a copy of the embedding
    } else if (!tied && head == nullptr && config_.bare) {
      config_.has_lm_head = false;
    }
  }

  Status check_head() const {
    if (config_.tie_word_embeddings || !config_.has_lm_head || view_of(kLmHead) != nullptr) return Status();
    return data_loss(
        "tensor '{}' is missing from the checkpoint and tie_word_embeddings is false; transformers would begin a "
        "random "
        "one. If the head is the embedding, set tie_word_embeddings to true; if the model has no head, say so by its "
        "architecture (\"{}Model\")",
        weight_name({kLmHead}), config_.architecture.substr(0, config_.architecture.find("ForCausalLM")));
  }

  // Warnings that say which tensors are not used: by kind, layer numbers aside.
  void name_rest() {
    struct Kind {
      int64_t count = 0;
      std::string example;
    };
    std::map<std::string, Kind> kinds;
    for (const std::string& name : rest_) {
      if (name.ends_with("rotary_emb.inv_freq")) continue;  // computed from config.json
      Kind& kind = kinds[kind_of(name)];
      if (kind.count++ == 0) kind.example = name;
    }
    constexpr size_t kMostKinds = 20;
    size_t said = 0, more = 0;
    for (const auto& [key, kind] : kinds) {
      if (++said > kMostKinds)
        ++more;
      else if (kind.count == 1)
        checkpoint_.warnings.push_back(
            fmt::format("tensor '{}' is not part of this {} and is ignored", kind.example, config_.architecture));
      else
        checkpoint_.warnings.push_back(fmt::format("{} tensors such as '{}' are not part of this {} and are ignored",
                                                   kind.count, kind.example, config_.architecture));
    }
    if (more > 0) checkpoint_.warnings.push_back(fmt::format("tensors of {} more kinds are ignored", more));
  }

  // Numbers do not tell kinds apart; of other parts of a multimodal model one line each is enough.
  static std::string kind_of(const std::string& name) {
    if (const std::string_view part = other_modality(name); !part.empty()) return std::string(part);
    std::string kind;
    for (const char c : name) {
      const bool digit = c >= '0' && c <= '9';
      if (!digit)
        kind += c;
      else if (kind.empty() || kind.back() != '#')
        kind += '#';
    }
    return kind;
  }

  Checkpoint& checkpoint_;
  ModelConfig& config_;
  std::map<WeightId, std::string> names_;  // of the files
  std::vector<std::string> rest_;
};

}  // namespace

std::string Checkpoint::file_name(const std::string& weight_name) const {
  if (const auto found = file_names.find(weight_name); found != file_names.end()) return found->second;
  // The embedding beside the final norm, the head at the top.
  const std::string embedding = lk::weight_name({kEmbedding}), norm = lk::weight_name({kFinalNorm});
  const auto beside = file_names.find(norm);
  if (weight_name != embedding || beside == file_names.end()) return weight_name;
  constexpr std::string_view kNorm = "norm.weight";
  return beside->second.substr(0, beside->second.size() - kNorm.size()) + "embed_tokens.weight";
}

Result<Checkpoint> open_checkpoint(const std::string& directory) {
  Checkpoint checkpoint;
  LK_ASSIGN_OR_RETURN(checkpoint.config, load_model_config(directory));
  LK_ASSIGN_OR_RETURN(checkpoint.files, TensorStore::open_model(directory));
  if (Status status = Ledger(checkpoint).run(); !status.ok()) return status.with_context(directory);
  return checkpoint;
}

}  // namespace lk
