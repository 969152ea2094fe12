// SPDX-License-Identifier: Apache-2.0
// ModelConfig: the decoder shape read from a Hugging Face config.json. Everything that would change
// the maths and is not implemented (architecture, rope type, quantisation, activation) is refused
// by name.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/tensor/dtype.h"

namespace lk {

enum class RopeType { kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongrope };

// Rotary embedding parameters; source of each formula: transformers modeling_rope_utils.py.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                        // linear, dynamic, llama3, yarn
  double low_freq_factor = 1.0;               // llama3
  double high_freq_factor = 4.0;              // llama3
  int64_t original_max_positions = 0;         // llama3, yarn, longrope; 0 = max_positions
  double beta_fast = 32.0, beta_slow = 1.0;   // yarn
  double mscale = 0.0, mscale_all_dim = 0.0;  // yarn, 0 = absent
  bool truncate = true;                       // yarn
  double attention_factor = 0.0;              // yarn, longrope; 0 = derive from factor
  // longrope, [head_dim / 2] each: divisors of the frequencies up to original_max_positions, and beyond.
  std::vector<double> short_factor, long_factor;
};

// The sizes of what one process computes: the whole model's, or those of one rank's share of its heads and widths.
struct ModelShape {
  int64_t num_layers = 0;
  int64_t hidden_dim = 0;  // never divided, like head_dim and vocab_size
  int64_t intermediate_dim = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  // Parts in which sums over q_dim and intermediate_dim are added up (docs/design/numerics.md, Shards).
  int64_t num_shards = 1;

  int64_t q_dim() const { return num_heads * head_dim; }
  int64_t kv_dim() const { return num_kv_heads * head_dim; }
};

// What each of `ranks` ranks has of a shape: 1/ranks of its heads, KV heads, intermediate dimension and shards.
// Requires: shape.num_shards % ranks == 0.
ModelShape rank_share(const ModelShape& shape, int64_t ranks);

// What the file says.
struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                             // "Qwen3ForCausalLM"
  std::string model_type;
  int64_t hidden_dim = 0;        // e.g. 2048
  int64_t intermediate_dim = 0;  // e.g. 5632
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  // A bare decoder ("Qwen3Model", embedding models) may lack an lm_head: then it has hidden states, and no tokens.
  bool bare = false;
  bool has_lm_head = true;  // false: there is none, not even a tied one
  bool qkv_bias = false;    // Qwen2; Llama with attention_bias (then o_bias too)
  bool o_bias = false;
  bool mlp_bias = false;              // Llama with mlp_bias
  bool qk_norm = false;               // Qwen3
  std::vector<int64_t> layer_window;  // [num_layers] sliding window in tokens, 0 = full attention
  DType dtype = DType::kBF16;         // torch_dtype / dtype of the checkpoint
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;

  int64_t q_dim() const { return num_heads * head_dim; }
  int64_t kv_dim() const { return num_kv_heads * head_dim; }
  // The longest sequence that the rotary scaling is made for: max_positions, stretched by its factor (of linear,
  // dynamic, yarn and longrope), and never less.
  int64_t context_limit() const;
  // Which frequencies a sequence of this final length rotates by: 0 = the usual ones, otherwise those of
  // make_rope_table() for the returned length (dynamic and longrope, beyond the original context). Sequences that
  // differ in it share no cached keys.
  int64_t rope_length(int64_t sequence_length) const;
  ModelShape shape() const;  // of the whole model
};

// `where` (a path) prefixes errors. Checks ranges: every extent positive and bounded (hidden <=
// 65536, layers <= 1024, vocab <= 4 Mi), num_heads % num_kv_heads == 0, head_dim even and at most kMaxHeadDim.
Result<ModelConfig> parse_model_config(std::string_view json, std::string_view where);
Result<ModelConfig> load_model_config(const std::string& directory);  // directory/config.json

}  // namespace lk
