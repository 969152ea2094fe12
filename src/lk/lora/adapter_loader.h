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
      : model_(model), base_(base), options_(options), adapter_(adapter), config_(adapter.config) {}

  // First: which tensor plays which part in which module, by the names in the header of the file. One that plays none
  // is an error, or is taken out.
  Status accept(SafetensorsIndex& index);
  // Then, with adapter.file set: the rest of `adapter`.
  Status run();

 private:
  struct Source {
    std::string name;  // as in the file, for messages
    TensorView view;
    float largest = 0;  // magnitude of any element
  };
  using Parts = std::map<Part, Source>;
  struct Adapted {
    LoraDelta* delta;
    ModuleId module;
  };
  struct Scale {
    int64_t rank = 0;
    double scaling = 0;
  };

  Status read_values();
  Status place_lora();
  Status place_projection(FileModule module, const Parts& parts);
  Status place_lm_head(const Parts& parts);
  Status place_embedding(const Parts& parts);
  Status place_replacements();
  Status place_replacement(WeightId weight, const Source& source);
  Status place_frozen_base(ModuleId module, const Source& source);
  Status wrong_vocabulary(const Source& source) const;
  Status place_trained_tokens();
  Status place_trained_head_rows(const Source& source, const std::vector<int64_t>& ids);
  void tie_head();
  Status finish_deltas();
  Status check_conversion(const Adapted& item) const;
  Status convert_deltas(std::vector<Adapted>& items);
  bool take_converted(std::shared_ptr<const TensorStore> store, std::vector<Adapted>& items);
  Status convert_delta(const Adapted& item);
  Status add_dora(const Adapted& item);
  void keep(Buffer buffer);
  Status cross_check();

  Result<LoraDelta> make_delta(FileModule module, const Parts& parts, int64_t in, int64_t out);
  Result<Scale> scale_of(FileModule module, const Source& a, int64_t tensor_rank);
  Result<const TensorView*> base_weight(ModuleId module, std::string_view purpose) const;
  Result<Buffer*> own(int64_t num_bytes);
  void warn(std::string message) { adapter_.warnings.push_back(std::move(message)); }
  Status wrong_shape(const Source& source, std::string_view expected) const;

  const ModelConfig& model_;
  const TensorStore* base_;
  const AdapterLoadOptions& options_;
  Adapter& adapter_;
  const AdapterConfig& config_;
  std::optional<ModuleMatcher> matcher_;
  std::map<FileModule, Parts> modules_;  // module -> its tensors
  std::set<ModuleId> lora_modules_;      // modules that got a delta (fused ones one by one)
  std::set<size_t> used_rank_keys_, used_alpha_keys_;
  std::mutex owned_mutex_;  // of adapter_.owned, while several threads finish deltas
};

}  // namespace lk
