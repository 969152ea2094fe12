// SPDX-License-Identifier: Apache-2.0
// The launchers of lora.h on the PTX that nvcc made of lora.cu.
#include "lk/cuda/lora.h"
#include "simt/ptx_launch.h"

namespace lk::cuda {

void shrink_decode(const ShrinkArgs& args, int num_blocks) {
  simt::ptx::launch("shrink_decode_kernel", {static_cast<unsigned>(num_blocks), 1, 1}, {256, 1, 1}, 0, args);
}
void shrink_prefill(const ShrinkArgs& args, int num_blocks) {
  simt::ptx::launch("shrink_prefill_kernel", {static_cast<unsigned>(num_blocks), 1, 1}, {128, 1, 1}, 0, args);
}
void expand(const ExpandArgs& args, int num_blocks) {
  simt::ptx::launch("expand_kernel", {static_cast<unsigned>(num_blocks), 1, 1}, {128, 1, 1}, 0, args);
}

}  // namespace lk::cuda
