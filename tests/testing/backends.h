// SPDX-License-Identifier: Apache-2.0
// The back-end that engine tests run on: the CPU's, or with LK_TEST_BACKEND=late one that is as unlike it as the
// contract allows (testing/late_backend.h). ctest runs the suite on both.
#pragma once

#include <cstdlib>
#include <string_view>

#include "lk/ops/cpu_backend.h"
#include "testing/late_backend.h"

namespace lk::testing {

inline bool is_late_backend() {
  const char* kind = std::getenv("LK_TEST_BACKEND");
  LK_CHECK(kind == nullptr || std::string_view(kind) == "late", "LK_TEST_BACKEND={}", kind);
  return kind != nullptr;
}
inline std::unique_ptr<Backend> make_backend(const CpuBackendOptions& options = {}) {
  std::unique_ptr<Backend> cpu = make_cpu_backend(options).value();
  if (!is_late_backend()) return cpu;
  return std::make_unique<LateBackend>(std::move(cpu));
}

}  // namespace lk::testing
