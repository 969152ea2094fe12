// SPDX-License-Identifier: Apache-2.0
// The two files of an adapter's directory, as PEFT names them.
#pragma once

namespace lk {

inline constexpr const char* kAdapterConfigFile = "adapter_config.json";
inline constexpr const char* kAdapterWeightsFile = "adapter_model.safetensors";

}  // namespace lk
