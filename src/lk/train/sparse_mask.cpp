// SPDX-License-Identifier: Apache-2.0
#include "lk/train/sparse_mask.h"

#include "lk/base/rng.h"
#include "lk/base/sha256.h"

namespace lk {

SparseMask SparseMask::draw(std::span<const ModuleId> modules, const ModelShape& shape, double density, uint64_t seed) {
  LK_CHECK(density > 0 && density <= 1);
  SparseMask mask;
  for (const ModuleId id : modules) {
    LK_CHECK(id.proj().has_value());
    Module& module = mask.modules_[id];
    module.out = out_dim(*id.proj(), shape);
    module.in = in_dim(*id.proj(), shape);
    const uint64_t own = mix64(seed ^ mix64(static_cast<uint64_t>(id.layer) * 64 + static_cast<uint64_t>(id.kind)));
    module.row_begins.push_back(0);
    for (int64_t o = 0; o < module.out; ++o) {
      for (int64_t i = 0; i < module.in; ++i)
        if (density >= 1 || random_uniform(own, static_cast<uint64_t>(o * module.in + i)) < density)
          module.columns.push_back(static_cast<int32_t>(i));
      module.row_begins.push_back(module.nnz());
    }
  }
  return mask;
}

int64_t SparseMask::nnz() const {
  int64_t n = 0;
  for (const auto& [id, module] : modules_) n += module.nnz();
  return n;
}

std::string SparseMask::digest() const {
  Sha256 sha;
  for (const auto& [id, module] : modules_) {
    const std::string path = module_path(id);
    sha.update(path.c_str(), path.size() + 1);
    sha.update(module.row_begins.data(), module.row_begins.size() * sizeof(int64_t));
    sha.update(module.columns.data(), module.columns.size() * sizeof(int32_t));
  }
  return to_hex(sha.finish());
}

void SparseMask::add_to(const Module& module, std::span<const float> values, std::span<float> to) {
  LK_CHECK(std::ssize(values) == module.nnz() && std::ssize(to) == module.out * module.in);
  for (int64_t o = 0; o < module.out; ++o)
    for (int64_t k = module.row_begins[static_cast<size_t>(o)]; k < module.row_begins[static_cast<size_t>(o + 1)]; ++k)
      to[static_cast<size_t>(o * module.in + module.columns[static_cast<size_t>(k)])] += values[static_cast<size_t>(k)];
}

Result<std::shared_ptr<const DeviceMask>> DeviceMask::create(const SparseMask& mask, Backend& backend) {
  auto made = std::make_shared<DeviceMask>();
  for (const auto& [id, module] : mask.modules()) {
    SparsePattern& pattern = made->patterns_[id];
    pattern = {.out = module.out, .in = module.in, .nnz = module.nnz()};
    if (pattern.nnz == 0) continue;
    const auto upload = [&](const auto& values) -> Result<const std::byte*> {
      const auto bytes = static_cast<int64_t>(values.size() * sizeof(values[0]));
      LK_ASSIGN_OR_RETURN(DeviceBuffer buffer, backend.try_allocate(bytes));
      backend.upload(buffer.data(), values.data(), bytes);
      made->storage_.push_back(std::move(buffer));
      return made->storage_.back().data();
    };
    LK_ASSIGN_OR_RETURN(const std::byte* begins, upload(module.row_begins));
    LK_ASSIGN_OR_RETURN(const std::byte* columns, upload(module.columns));
    pattern.row_begins = reinterpret_cast<const int64_t*>(begins);
    pattern.columns = reinterpret_cast<const int32_t*>(columns);
  }
  return std::shared_ptr<const DeviceMask>(std::move(made));
}

}  // namespace lk
