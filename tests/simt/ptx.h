// SPDX-License-Identifier: Apache-2.0
// Runs the PTX that nvcc wrote, on the emulator's fibers and under its checks: what the host build of a kernel cannot
// show - inline PTX, nvcc's own reading of the source, its optimiser - and kernels whose source is not of this project.
// Also found here: reads of registers never set. Unknown instructions are a Fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "simt/host.h"

namespace simt::ptx {

struct Kernel;

class Module {
 public:
  explicit Module(const std::string& path);  // made with nvcc -ptx; with -lineinfo, faults name the source line
  ~Module();
  // The one kernel whose mangled name holds `name`.
  void launch(const std::string& name, Dim3 grid, Dim3 block, size_t dynamic_shared, const void* params,
              size_t bytes) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace simt::ptx
