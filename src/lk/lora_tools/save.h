// SPDX-License-Identifier: Apache-2.0
// Writing adapters as PEFT reads them, and the functions behind `lorikeet adapter
// inspect|verify|convert|init`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/lora/adapter.h"

namespace lk {

struct SaveOptions {
  std::optional<DType> dtype = {};     // of A, B and bias; absent: as held in memory. PEFT itself writes f32
  std::string base_model_name = {};    // "base_model_name_or_path"; empty: the adapter's own
  std::optional<double> scaling = {};  // of adapters that convert_adapter() takes from other trainers (foreign.h)
};

// Writes directory/adapter_config.json and adapter_model.safetensors. What is written is the
// adapter as it acts: split projections, PiSSA and OLoRA as plain LoRA of twice the rank, a rank
// and alpha for every module.
Status save_adapter(const Adapter& adapter, const ModelConfig& config, const std::string& directory,
                    const SaveOptions& options = {});

// The same, for what is written for a user: kAlreadyExists when the directory holds an adapter, kInvalidArgument,
// before anything is written, when a value leaves the range of options.dtype. What is written was read back.
Status save_new_adapter(const Adapter& adapter, const ModelConfig& config, const std::string& directory,
                        const SaveOptions& options = {});

// Loads and saves, also the formats of foreign.h. out_dir must not hold an adapter yet.
struct ConvertReport {
  int64_t bytes_before = 0, bytes_after = 0;
  double largest_rounding = 0;  // largest |rounded - value| over A, B and bias
  std::vector<std::string> warnings;
};
Result<ConvertReport> convert_adapter(const std::string& in_dir, const ModelConfig& config, const TensorStore* base,
                                      const std::string& out_dir, const SaveOptions& options = {},
                                      const AdapterLoadOptions& load = {});

struct Inspection {
  std::string name, directory, digest, base_model_name, peft_version;
  int64_t file_bytes = 0;
  int64_t parameters = 0;  // of A, B, bias, magnitude, replacements and trained rows
  int64_t max_rank = 0;
  struct Target {
    int64_t num_layers = 0;  // how many layers adapt this projection
    int64_t min_rank = 0, max_rank = 0;
    double min_scaling = 0, max_scaling = 0;
    bool bias = false, dora = false;
  };
  std::map<std::string, Target> targets;         // "q_proj" ... "embed_tokens", "lm_head"
  std::map<std::string, int64_t> tensor_dtypes;  // "f32" -> how many
  std::vector<std::string> replaced;
  std::vector<int64_t> trained_token_ids;
  std::vector<int64_t> invocation_tokens;  // of an activated LoRA
  std::optional<int64_t> own_vocab_size;   // of a resized base
  std::vector<std::string> warnings;
};
Inspection inspect_adapter(const Adapter& adapter);
std::string render_inspection(const Inspection& inspection);

// load_adapter with every check, for its warnings; the failure says what is wrong.
Result<std::vector<std::string>> verify_adapter(const std::string& directory, const ModelConfig& config,
                                                const TensorStore* base, const AdapterLoadOptions& options = {});

// A random adapter, for benchmarks and tests. Equal options give equal bytes.
struct InitOptions {
  int64_t rank = 16;
  std::map<std::string, int64_t> rank_of = {};  // by projection name, "q_proj": other ranks
  std::optional<double> alpha = {};             // absent: 2 * rank
  std::vector<std::string> targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  uint64_t seed = 0;
  // B ~ N(0, (b_scale / sqrt(rank))^2): non-zero, so that the adapter changes outputs. 0 gives
  // LoRA's own start.
  double b_scale = 0.02;
  DType dtype = DType::kF32;
  bool use_rslora = false;
  bool lora_bias = false;
  bool use_dora = false;  // needs `base` for the magnitudes
  std::string base_model_name = {};
};
Status init_adapter(const ModelConfig& config, const InitOptions& options, const std::string& out_dir,
                    const TensorStore* base = nullptr);

}  // namespace lk
