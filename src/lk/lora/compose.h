// SPDX-License-Identifier: Apache-2.0
// A weighted sum of adapters as one adapter: delta = sum of w_i * delta_i, by stacking ranks (as PEFT's
// add_weighted_adapter with combination_type="cat"), so the sum is exact, unlike adding A and B separately.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "lk/lora/adapter.h"

namespace lk {

struct WeightedAdapter {
  std::shared_ptr<const Adapter> adapter;
  double weight = 1;
};

// kUnsupported, naming the component, where a sum has no meaning: DoRA, replaced modules, trained token rows.
Result<std::shared_ptr<const Adapter>> compose_adapters(const std::string& name,
                                                        std::span<const WeightedAdapter> parts);

}  // namespace lk
