// SPDX-License-Identifier: Apache-2.0
// SparseMask: a random choice of elements of some weights, the same for all who have its seed; a job may train the
// values on it (sparse fine-tuning) instead of low-rank factors. The positions are computed from (seed, module,
// element), so they are never sent; in memory they are there once, whoever shares them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/weight_names.h"
#include "lk/kernels/sparse_args.h"
#include "lk/ops/backend.h"

namespace lk {

// Values on a mask, by module, in the order of its elements (row by row).
using SparseValues = std::map<ModuleId, std::vector<float>>;

class SparseMask {
 public:
  struct Module {
    int64_t out = 0, in = 0;
    std::vector<int64_t> row_begins;  // [out + 1]
    std::vector<int32_t> columns;     // [nnz]
    int64_t nnz() const { return std::ssize(columns); }
  };

  // Each element with probability `density` in (0, 1], independently; 1 takes all. `modules` are linears of layers.
  static SparseMask draw(std::span<const ModuleId> modules, const ModelShape& shape, double density, uint64_t seed);

  const std::map<ModuleId, Module>& modules() const { return modules_; }
  int64_t nnz() const;
  std::string digest() const;  // SHA-256 of modules and positions, hex: equal exactly for equal masks

  // to [out, in] += values, dense.
  static void add_to(const Module& module, std::span<const float> values, std::span<float> to);

 private:
  std::map<ModuleId, Module> modules_;
};

// The mask in device memory, as the ops read it.
class DeviceMask {
 public:
  static Result<std::shared_ptr<const DeviceMask>> create(const SparseMask& mask, Backend& backend);
  const std::map<ModuleId, SparsePattern>& patterns() const { return patterns_; }

 private:
  std::map<ModuleId, SparsePattern> patterns_;
  std::vector<DeviceBuffer> storage_;
};

}  // namespace lk
