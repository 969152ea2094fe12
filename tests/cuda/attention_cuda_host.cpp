// SPDX-License-Identifier: Apache-2.0
// The kernels for the emulator. Compiled with -fsanitize=thread (simt/host.h says why).
#include "lk/cuda/attention.cu"
