// SPDX-License-Identifier: Apache-2.0
#include "simt/probe.h"
#include "simt/ptx_launch.h"

namespace simt_probe {

void probe(const Args& args, Shape grid, Shape block) {
  simt::ptx::launch("probe_kernel", {grid.x, grid.y, 1}, {block.x, block.y, 1}, kDynamicWords * 4, args);
}

}  // namespace simt_probe
