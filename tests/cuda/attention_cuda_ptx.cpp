// SPDX-License-Identifier: Apache-2.0
// The launcher of attention.h on the PTX that nvcc made of attention.cu.
#include "lk/cuda/attention.h"

#include <fmt/format.h>

#include "simt/ptx_launch.h"

namespace lk::cuda {

void attention(const AttentionArgs& args, int head_dim, int row_tiles, int num_blocks) {
  simt::ptx::launch(fmt::format("attention_kernelILi{}ELi{}E", head_dim, row_tiles).c_str(),
                    {static_cast<unsigned>(num_blocks), 1, 1}, {128, 1, 1}, 0, args);
}

}  // namespace lk::cuda
