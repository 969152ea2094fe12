// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/cpu_backend.h"

#include <gtest/gtest.h>

#include "lk/ops/train_ops.h"

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
    const RowRange rows{0, 1};
    EXPECT_DEATH(backend->train_ops().block_attention({.in = {.q = q.data(),
                                                              .k = k.data(),
                                                              .v = v.data(),
                                                              .act = DType::kF32,
                                                              .q_stride = head_dim,
                                                              .k_stride = head_dim,
                                                              .v_stride = head_dim,
                                                              .num_heads = 1,
                                                              .num_kv_heads = 1,
                                                              .head_dim = head_dim,
                                                              .sequences = {&rows, 1}},
                                                       .y = y.data(),
                                                       .y_stride = head_dim,
                                                       .log_sum_exp = v.data()}),
                 "head_dim");
  }
}

TEST(BackendDeathTest, TargetsAndTokensOutsideTheVocabularyStop) {
  const auto backend = make_cpu_backend({.num_threads = 1}).value();
  std::vector<float> x(8);
  const float weight = 1;
  for (const int32_t token : {-1, 4}) {
    EXPECT_DEATH(backend->train_ops().cross_entropy({.logits = x.data(),
                                                     .logits_stride = 4,
                                                     .vocab_size = 4,
                                                     .targets = {&token, 1},
                                                     .weights = {&weight, 1},
                                                     .losses = x.data()}),
                 "target");
    EXPECT_DEATH(backend->train_ops().embedding_delta_backward({.dy = x.data(),
                                                                .dy_stride = 1,
                                                                .tokens = {&token, 1},
                                                                .a = x.data(),
                                                                .b = x.data(),
                                                                .a_gradient = x.data(),
                                                                .b_gradient = x.data(),
                                                                .rank = 1,
                                                                .vocab_size = 4,
                                                                .dim = 1}),
                 "token");
  }
}

}  // namespace
}  // namespace lk
