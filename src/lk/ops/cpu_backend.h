// SPDX-License-Identifier: Apache-2.0
// The back-end whose device is this machine's processors. Device addresses are host addresses; every call has taken
// effect when it returns.
#pragma once

#include <memory>
#include <optional>

#include "lk/kernels/cpu.h"
#include "lk/ops/backend.h"

namespace lk {

struct CpuBackendOptions {
  int num_threads = 0;        // 0 = default_num_threads()
  std::optional<CpuIsa> isa;  // default: the best supported
};
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options = {});

}  // namespace lk
