// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/cpu_backend.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

// What the config reader refuses does not reach a kernel from elsewhere either.
TEST(BackendDeathTest, HeadsWiderThanTheKernelsArraysStop) {
  const auto backend = make_cpu_backend({.num_threads = 1}).value();
  std::vector<float> q(320), k(320), v(320), y(320), pool(2 * 320 * kPageTokens);
  const int64_t slot = 0;
  const int32_t page = 0;
  const AttentionSeq seq{0, 1, 0, &page};
  for (const int64_t head_dim : {257, 258, 320}) {
    const KvLayer kv{.base = reinterpret_cast<std::byte*>(pool.data()),
                     .v_offset = head_dim * kPageTokens * 4,
                     .dtype = DType::kF32,
                     .num_kv_heads = 1,
                     .head_dim = head_dim};
    EXPECT_DEATH(backend->attention({.q = q.data(),
                                     .q_stride = head_dim,
                                     .y = y.data(),
                                     .y_stride = head_dim,
                                     .num_heads = 1,
                                     .scale = 1,
                                     .seqs = {&seq, 1},
                                     .kv = kv}),
                 "head_dim");
    EXPECT_DEATH(backend->store_kv({.k = k.data(),
                                    .v = v.data(),
                                    .k_stride = head_dim,
                                    .v_stride = head_dim,
                                    .slots = &slot,
                                    .num_rows = 1,
                                    .kv = kv}),
                 "head_dim");
  }
}

}  // namespace
}  // namespace lk
