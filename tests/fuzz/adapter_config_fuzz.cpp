// SPDX-License-Identifier: Apache-2.0
// adapter_config.json from arbitrary bytes, then every matching decision it can take.
#include <cstdint>
#include <string_view>

#include "lk/lora/adapter_config.h"
#include "lk/lora/matching.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = lk::parse_adapter_config(text, "fuzz");
  if (!config.ok()) return 0;
  const auto matcher = lk::ModuleMatcher::create(*config);
  if (!matcher.ok()) return 0;
  for (const char* module :
       {"model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "model.embed_tokens"}) {
    (void)matcher->is_targeted(module);
    (void)matcher->is_saved(module);
    (void)matcher->rank_pattern_of(module);
    (void)matcher->alpha_pattern_of(module);
  }
  return 0;
}
