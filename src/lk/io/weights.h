// SPDX-License-Identifier: Apache-2.0
// What a checkpoint must contain for a model config, and checks of a TensorStore against it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/model_config.h"
#include "lk/io/safetensors.h"

namespace lk {

struct WeightSpec {
  std::string name;            // "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // [out, in], or [dim]
};

// Every tensor a Hugging Face checkpoint of this config must have, in layer order. A tied lm_head
// is not listed.
std::vector<WeightSpec> weight_manifest(const ModelConfig& config);

// Names a missing tensor, or one of the wrong shape with the expected and the found shape. Tensors beyond the manifest
// are open_checkpoint()'s to name.
Status check_weights(const ModelConfig& config, const TensorStore& store);

// True when both have the same shape and the same values, be it in two types.
bool same_values(const TensorView& a, const TensorView& b);

// The largest magnitude of any element; infinity or NaN when there is one.
float largest_magnitude(const TensorView& tensor);

// Weights are kept as bf16 or f32. This is the largest f32 that bf16 rounds to a finite value.
inline constexpr float kLargestWeight = 0x1.fefffep127f;

// kDataLoss when the largest magnitude of a tensor is NaN, infinite, or infinite once rounded to bf16.
Status check_magnitude(std::string_view name, float largest);

// check_magnitude() of every tensor, each read once; the error names the first that fails.
Status check_finite(const TensorStore& store, int num_threads = 1);

}  // namespace lk
