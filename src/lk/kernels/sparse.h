// SPDX-License-Identifier: Apache-2.0
// The kernels of sparse_args.h: the same code and the same bits on every instruction set and number of threads.
#pragma once

#include "lk/base/thread_pool.h"
#include "lk/kernels/sparse_args.h"

namespace lk {

void sparse_product(const SparseProductArgs&, ThreadPool&);
void sparse_input_gradient(const SparseInputGradientArgs&, ThreadPool&);
void sparse_gradient(const SparseGradientArgs&, ThreadPool&);
void proximal_gradient(const ProximalArgs&, ThreadPool&);

}  // namespace lk
