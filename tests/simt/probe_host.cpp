// SPDX-License-Identifier: Apache-2.0
// The kernel for the emulator. Compiled with -fsanitize=thread (simt/host.h says why).
#include "simt/probe.cu"
