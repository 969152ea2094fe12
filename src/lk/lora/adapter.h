// SPDX-License-Identifier: Apache-2.0
// Adapter: one PEFT LoRA adapter, checked against the base model and held in host memory (mapped
// file or own buffers). Immutable after load. Nothing here knows pages or kernels; engine/ packs it
// into the pool. PEFT format and matching rules: docs of HF PEFT (LoraConfig, save_pretrained).
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/model_config.h"
#include "lk/io/safetensors.h"
#include "lk/io/weight_names.h"
#include "lk/lora/adapter_config.h"
#include "lk/tensor/buffer.h"

namespace lk {

// delta(x) = scaling * B (A x) + bias; for DoRA the projection's output is magnitude_scale * (W x +
// delta).
struct LoraDelta {
  int64_t rank = 0;
  double scaling = 0;     // alpha / r, or alpha / sqrt(r) for rsLoRA
  TensorView a;           // [rank, in]
  TensorView b;           // [out, rank]
  TensorView bias;        // [out] lora_B.bias, or undefined; contributes scaling * bias
  TensorView magnitude;   // [out] DoRA m, or undefined
  TensorView dora_scale;  // [out] f32 m / ||W + scaling B A||_row, computed at load; defined iff
                          // magnitude is
};

// Weights of the base that an adapter brings its own version of (modules_to_save, saved embeddings). An undefined view
// stands for the base's own weight.
struct ReplacedWeights {
  struct Layer {
    std::array<TensorView, kNumProjs> weight;  // [out, in]
    std::array<TensorView, kNumProjs> bias;    // [out]
    TensorView input_norm, post_norm;          // [hidden_dim]
    TensorView q_norm, k_norm;                 // [head_dim]
  };
  std::vector<Layer> layers;  // [num_layers], or empty: none in any layer
  // The input embedding only: with tied embeddings the lm_head stays the base's unless `lm_head` is here too.
  TensorView embedding, lm_head;  // [vocab_size, hidden_dim]
  TensorView final_norm;          // [hidden_dim]

  const TensorView& of(WeightId weight) const;
  TensorView& slot(WeightId weight);  // requires: the layer is there
  std::vector<WeightId> ids() const;  // of those defined: the embedding, by layer, final norm, lm_head
  bool empty() const { return ids().empty(); }
};

struct Adapter {
  std::string name;
  std::string directory;
  std::string digest;  // SHA-256 of adapter_config.json followed by adapter_model.safetensors, hex
  int64_t file_bytes = 0;
  int64_t max_rank = 0;

  // layers[layer][proj]; absent = that projection is not adapted.
  std::vector<std::array<std::optional<LoraDelta>, kNumProjs>> layers;
  // Input embedding delta for token t: scaling * embed_b [hidden, r] * embed_a[:, t]  (embed_a: [r,
  // vocab]).
  struct EmbeddingDelta {
    int64_t rank = 0;
    double scaling = 0;
    TensorView a, b;
  };
  std::optional<EmbeddingDelta> embedding;
  std::optional<LoraDelta> lm_head;
  // A replaced weight may also carry a delta (embedding, lm_head): the delta is then relative to the replacement.
  // Trained rows are applied last.
  ReplacedWeights replaced;
  // trainable_token_indices: rows that replace rows of the input embedding, and of lm_head when
  // tied. Ids are distinct.
  std::vector<int64_t> trained_token_ids;
  TensorView trained_token_rows;  // [n, hidden]

  // Rows of its embedding and head, where it was trained on a base with a resized vocabulary: both are then among
  // `replaced`, and ids below this are its tokens. Absent: the base's.
  std::optional<int64_t> own_vocab_size;
  int64_t vocab_size(const ModelConfig& base) const { return own_vocab_size.value_or(base.vocab_size); }

  AdapterConfig config;  // as read; ranks and scalings above are what counts
  // Activated LoRA: see AdapterConfig::alora_invocation_tokens.
  bool is_activated() const { return !config.alora_invocation_tokens.empty(); }
  std::vector<std::string> warnings;

  // Backing store of the views above.
  std::shared_ptr<const TensorStore> file;
  std::shared_ptr<const TensorStore> converted;  // from the conversion cache, or null
  std::vector<Buffer> owned;
};

struct AdapterLoadOptions {
  bool ignore_unknown_tensors = false;
  int64_t max_rank = 512;
  int64_t max_bytes = int64_t{16} << 30;
  int num_threads = 1;     // for DoRA norms and conversions
  bool copy_file = false;  // into memory instead of mapping it: safe against files that are changed in place
  // Of converting a PiSSA or OLoRA adapter (a decomposition of every adapted base weight); 0 = no bound. What would
  // take longer is refused as soon as that can be told, kDeadlineExceeded.
  double max_conversion_seconds = 0;
  // Directory for what such conversions gave, so that the next read of the same adapter on the same base does without;
  // made when needed. Empty: none is kept.
  std::string conversion_cache = {};
};

// The largest vocabulary that an adapter of this base may have.
inline int64_t max_own_vocab_size(const ModelConfig& base) { return 2 * base.vocab_size + 65536; }
// Adapter::own_vocab_size of a directory, from the header of its file alone.
Result<std::optional<int64_t>> read_own_vocab_size(const std::string& directory, const ModelConfig& config);

// Reads directory/adapter_config.json and adapter_model.safetensors. `base` gives W where the kind
// needs it (DoRA norms, PiSSA/OLoRA conversion) and may be null otherwise: then those kinds are
// refused.
Result<std::shared_ptr<const Adapter>> load_adapter(const std::string& name, const std::string& directory,
                                                    const ModelConfig& config, const TensorStore* base,
                                                    const AdapterLoadOptions& options = {});

}  // namespace lk
