// SPDX-License-Identifier: Apache-2.0
#include "lk/train/base_overlay.h"

#include <algorithm>
#include <cmath>

namespace lk {

Result<std::shared_ptr<const BaseOverlay>> BaseOverlay::create(const ModelWeights& weights, Backend& backend,
                                                               std::span<const ModuleId> modules, const Add& add) {
  LK_CHECK(weights.checkpoint != nullptr);
  auto overlay = std::make_shared<BaseOverlay>();
  for (const ModuleId module : modules) {
    LK_CHECK(module.proj().has_value(), "{}", module_path(module));
    const std::string name = weight_name({module});
    const TensorView* base = weights.checkpoint->find(name);
    if (base == nullptr) return data_loss("base tensor '{}' is missing", name);
    const int64_t out = base->dim(0), in = base->dim(1);
    std::vector<float> dense(static_cast<size_t>(out * in));
    base->copy_to(dense.data());
    weights.checkpoint->drop_pages(*base);
    add(module, dense);
    if (!std::ranges::all_of(dense, [](float v) { return std::isfinite(v); }))
      return data_loss("{}: the changed weight is not finite", module_path(module));
    LK_ASSIGN_OR_RETURN(DeviceBuffer buffer, backend.try_allocate(packed_weight_bytes(weights.format(), out, in)));
    const PackedWeight packed{.format = weights.format(), .n = out, .k = in, .data = buffer.data()};
    backend.pack_weight(TensorView(dense.data(), DType::kF32, {out, in}), 0, packed, Workers::kAll);
    overlay->matrices_[module] = packed;
    overlay->storage_.push_back(std::move(buffer));
  }
  return std::shared_ptr<const BaseOverlay>(std::move(overlay));
}

}  // namespace lk
