// SPDX-License-Identifier: Apache-2.0
// BaseOverlay: some linears of the base with a change added, W' = W + dW, packed like the base's own; the base stays as
// it is. Adapters that train on it share it. Never trained.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>

#include "lk/model/weights.h"

namespace lk {

class BaseOverlay {
 public:
  // add(module, w) adds the change to w [out, in], the base's weight in f32: one at a time. kDataLoss when what comes
  // out is not finite.
  using Add = std::function<void(ModuleId module, std::span<float> w)>;
  static Result<std::shared_ptr<const BaseOverlay>> create(const ModelWeights& weights, Backend& backend,
                                                           std::span<const ModuleId> modules, const Add& add);
  const PackedWeight* find(ModuleId module) const {  // null: not changed
    const auto found = matrices_.find(module);
    return found == matrices_.end() ? nullptr : &found->second;
  }

 private:
  std::map<ModuleId, PackedWeight> matrices_;
  std::vector<DeviceBuffer> storage_;
};

}  // namespace lk
