// SPDX-License-Identifier: Apache-2.0
// A launcher over PTX: what NAME_ptx.cpp defines in place of the launchers of NAME.cu. PTX_FILE is the file that nvcc
// made of it; LK_PTX in the environment names another one.
#pragma once

#include <cstdlib>

#include "simt/ptx.h"

namespace simt::ptx {

template <class Args>
void launch(const char* kernel, Dim3 grid, Dim3 block, size_t dynamic_shared, const Args& args) {
  static const Module module(std::getenv("LK_PTX") ? std::getenv("LK_PTX") : PTX_FILE);
  module.launch(kernel, grid, block, dynamic_shared, &args, sizeof args);
}

}  // namespace simt::ptx
