// SPDX-License-Identifier: Apache-2.0
// The back-end that engine tests run on.
#pragma once

#include "lk/ops/cpu_backend.h"

namespace lk::testing {

inline std::unique_ptr<Backend> make_backend(const CpuBackendOptions& options = {}) {
  return make_cpu_backend(options).value();
}

}  // namespace lk::testing
