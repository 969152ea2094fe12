// SPDX-License-Identifier: Apache-2.0
// AdapterLoader: the steps of load_adapter after the files are open. Private to lora/.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lk/lora/adapter.h"
#include "lk/lora/matching.h"
#include "lk/lora/module_names.h"

namespace lk {

class AdapterLoader {
 public:
  // Requires: adapter.config is set.
  AdapterLoader(const ModelConfig& model, const TensorStore* base, const AdapterLoadOptions& options, Adapter& adapter)
      : base_model_(model), model_(model), base_(base), options_(options), adapter_(adapter), config_(adapter.config) {}

  // First: which tensor plays which part in which module, by the names in the header of the file. One that plays none
  // is an error, or is taken out.
  Status accept(SafetensorsIndex& index);
  // Then, with adapter.file set: the rest of `adapter`.
  Status run();

 private:
  // A tensor of the file. Whoever acts on it marks it; one that nobody did is an error in the end, so that nothing of
  // an adapter is dropped in silence.
  struct Source {
    std::string name;  // as in the file, for messages
    TensorView view;
    float largest = 0;  // magnitude of any element
    mutable bool used = false;
  };
  using Parts = std::map<Part, Source>;
  static const Source* use(const Parts& parts, Part part) {
    const auto found = parts.find(part);
    if (found == parts.end()) return nullptr;
    found->second.used = true;
    return &found->second;
  }
  struct Adapted {
    LoraDelta* delta;
    ModuleId module;
  };
  struct Scale {
    int64_t rank = 0;
    double scaling = 0;
  };

  Status read_values();
  // The module by the name that adapter_config.json is made for.
  std::string path_of(FileModule module) const;
  // What is done to one end of the model is done to both.
  bool ties_ends() const { return config_.ensure_weight_tying && model_.tie_word_embeddings; }
  bool is_saved(ModuleId module) const;
  Status place_lora();
  Status place_projection(FileModule module, const Parts& parts);
  Status place_lm_head(const Parts& parts);
  Status place_embedding(const Parts& parts);
  Status place_replacements();
  Status place_replacement(WeightId weight, const Source& source);
  Status place_base_copy(ModuleId module, const Source& source);
  Status tie_saved_ends();
  void apply_base_copies();
  Status check_own_vocabulary() const;
  Status place_trained_tokens();
  Result<std::map<ModuleId, std::vector<int64_t>>> trained_ids() const;
  Status replace_rows(ModuleId module, const Source& source, const std::vector<int64_t>& ids);
  Status tie_head();
  Status finish_deltas();
  Status check_conversion(const Adapted& item) const;
  Status convert_deltas(std::vector<Adapted>& items);
  bool take_converted(std::shared_ptr<const TensorStore> store, std::vector<Adapted>& items);
  Status convert_delta(const Adapted& item);
  Status change_tied_embedding(const std::vector<Adapted>& items);
  Status fold_dora_embedding();
  Status add_dora(const Adapted& item);
  void keep(Buffer buffer);
  Status cross_check();

  Result<LoraDelta> make_delta(FileModule module, const Parts& parts, int64_t in, int64_t out);
  Result<Scale> scale_of(FileModule module, const Source& a, int64_t tensor_rank);
  Result<const TensorView*> base_weight(ModuleId module, std::string_view purpose) const;
  Result<Buffer*> own(int64_t num_bytes);
  void warn(std::string message) { adapter_.warnings.push_back(std::move(message)); }
  Status wrong_shape(const Source& source, std::string_view expected) const;

  const ModelConfig& base_model_;
  ModelConfig model_;  // the base's, with the adapter's vocabulary
  const TensorStore* base_;
  const AdapterLoadOptions& options_;
  Adapter& adapter_;
  const AdapterConfig& config_;
  std::optional<ModuleMatcher> matcher_;
  std::map<FileModule, Parts> modules_;  // module -> its tensors
  // Tensors that stand for a weight of modules_ once more, and must have its values.
  std::vector<std::pair<const Source*, Source>> duplicates_;
  std::map<FileModule, std::string> paths_;  // of modules_, as the file has them
  std::string root_ = "model.";              // what stands before "layers." in the file
  // Weights of the base as they were during training, where they differ from this base's. The embedding's stands for a
  // tied head, too.
  std::map<ModuleId, const Source*> base_copies_;
  const Source* embedding_magnitude_ = nullptr;  // DoRA on the embedding
  std::set<ModuleId> lora_modules_;              // modules that got a delta (fused ones one by one)
  std::set<size_t> used_rank_keys_, used_alpha_keys_;
  std::mutex owned_mutex_;  // of adapter_.owned, while several threads finish deltas
};

}  // namespace lk
