// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "kernels/kernel_test_util.h"
#include "lk/kernels/train.h"

namespace lk::testing {
namespace {

class BlockAttentionTest : public KernelTest {
 protected:
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
  const TrainKernels& train() const { return train_kernels(std::get<0>(GetParam())); }
};

struct Shape {
  int64_t heads, kv_heads, dim, window;
};

// Inputs of T for num_rows rows, and what comes out of them.
template <class T>
struct Case {
  Shape shape;
  int64_t num_rows, width, kv_width, q_stride, kv_stride;
  std::vector<T> q, k, v;
  std::vector<float> dy;

  Case(Shape s, int64_t rows)
      : shape(s),
        num_rows(rows),
        width(s.heads * s.dim),
        kv_width(s.kv_heads * s.dim),
        q_stride(width + 3),
        kv_stride(kv_width + 5),
        q(random_values<T>(rows * q_stride, 1, 3)),
        k(random_values<T>(rows * kv_stride, 2, 3)),
        v(random_values<T>(rows * kv_stride, 3)),
        dy(random_values<float>(rows * q_stride, 4)) {}

  struct Out {
    std::vector<float> y, lse, dq, dk, dv;
  };
  // Rows from `first` on, as if they were all there are.
  Out run(const TrainKernels* kernels, ThreadPool& pool, const std::vector<RowRange>& sequences,
          int64_t first = 0) const {
    const int64_t rows = num_rows - first;
    const BlockAttention in{q.data() + first * q_stride,
                            k.data() + first * kv_stride,
                            v.data() + first * kv_stride,
                            dtype_of<T>(),
                            q_stride,
                            kv_stride,
                            kv_stride,
                            shape.heads,
                            shape.kv_heads,
                            shape.dim,
                            0.7f / std::sqrt(static_cast<float>(shape.dim)),
                            shape.window,
                            sequences};
    Guarded<T> y(rows * width);
    Guarded<float> lse(rows * shape.heads), dq(rows * q_stride), dk(rows * kv_stride), dv(rows * kv_stride);
    y.fill(T(7.0f));
    for (auto* out : {&lse, &dq, &dk, &dv}) out->fill(7);
    const BlockAttentionArgs args{in, y.data(), width, lse.data()};
    if (kernels)
      kernels->block_attention(args, pool);
    else
      ref::block_attention(args);
    const BlockAttentionBackwardArgs backward{in,        y.data(),  width,     lse.data(), dy.data() + first * q_stride,
                                              q_stride,  dq.data(), dk.data(), dv.data(),  q_stride,
                                              kv_stride, kv_stride};
    if (kernels)
      kernels->block_attention_backward(backward, pool);
    else
      ref::block_attention_backward(backward);
    y.expect_intact("y");
    lse.expect_intact("lse");
    dq.expect_intact("dq");
    dk.expect_intact("dk");
    dv.expect_intact("dv");
    return {as_floats(y.values()), lse.values(), dq.values(), dk.values(), dv.values()};
  }
};

TEST_P(BlockAttentionTest, MatchesRef) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    const Tolerance forward = tolerance(Op::kAttention, act()), lse = tolerance(Op::kAttention, DType::kF32);
    const Tolerance backward = tolerance(Op::kAttentionBackward, act());
    for (const Shape& shape : std::vector<Shape>{{1, 1, 2, 0},
                                                 {4, 2, 64, 0},
                                                 {8, 1, 64, 0},
                                                 {3, 3, 6, 0},
                                                 {6, 2, 80, 0},
                                                 {2, 1, 256, 0},
                                                 {70, 1, 4, 0},
                                                 {4, 2, 32, 5},
                                                 {2, 2, 16, 70},
                                                 {3, 1, 34, 1}}) {
      const Case<T> c(shape, 300);
      // Gaps between and around: their rows stay as they are.
      const std::vector<RowRange> sequences = {{1, 2}, {2, 4}, {4, 9}, {10, 75}, {75, 139}, {140, 273}, {290, 299}};
      const auto got = c.run(&train(), pool(), sequences), want = c.run(nullptr, pool(), sequences);
      const std::string what =
          fmt::format("{} over {} heads of {}, window {}", shape.heads, shape.kv_heads, shape.dim, shape.window);
      expect_close(got.y, want.y, forward, what + ": y");
      expect_close(got.lse, want.lse, lse, what + ": log_sum_exp");
      expect_close(got.dq, want.dq, backward, what + ": dq");
      expect_close(got.dk, want.dk, backward, what + ": dk");
      expect_close(got.dv, want.dv, backward, what + ": dv");
    }
  });
}

TEST_P(BlockAttentionTest, BitsOfASequenceDependOnItAlone) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    ThreadPool one(1), many(5);
    for (const Shape& shape : std::vector<Shape>{{6, 2, 24, 0}, {4, 2, 64, 33}}) {
      // The last one is longer than all others: on many threads its heads are cut into parts.
      const Case<T> c(shape, 640);
      const std::vector<RowRange> sequences = {{0, 7}, {7, 107}, {107, 108}, {110, 640}};
      const auto all = c.run(&train(), many, sequences);
      for (const RowRange& s : sequences) {
        const auto alone = c.run(&train(), one, {{0, s.end - s.begin}}, s.begin);
        const int64_t rows = s.end - s.begin;
        const auto same = [&](const std::vector<float>& a, const std::vector<float>& b, int64_t stride) {
          return same_bits(a.data() + s.begin * stride, b.data(), rows * stride);
        };
        EXPECT_TRUE(same(all.y, alone.y, c.width));
        EXPECT_TRUE(same(all.lse, alone.lse, shape.heads));
        EXPECT_TRUE(same(all.dq, alone.dq, c.q_stride));
        EXPECT_TRUE(same(all.dk, alone.dk, c.kv_stride));
        EXPECT_TRUE(same(all.dv, alone.dv, c.kv_stride));
      }
    }
  });
}

// A sequence's first rows are those of its beginning alone: causal, to the last bit.
TEST_P(BlockAttentionTest, RowsDoNotSeeLaterOnes) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    const Case<T> c({6, 2, 24, 0}, 150);
    const auto all = c.run(&train(), pool(), {{0, 150}});
    for (const int32_t rows : {1, 63, 64, 65, 100}) {
      const auto part = c.run(&train(), pool(), {{0, rows}});
      EXPECT_TRUE(same_bits(all.y.data(), part.y.data(), rows * c.width)) << rows;
      EXPECT_TRUE(same_bits(all.lse.data(), part.lse.data(), rows * 6)) << rows;
      EXPECT_TRUE(same_bits(all.dq.data(), part.dq.data(), rows * c.q_stride)) << rows;
    }
  });
}

// A forecast of memory counts what threads keep: exactly what a sequence took on a thread that did nothing else.
TEST_P(BlockAttentionTest, ScratchIsKnownBeforehand) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Shape& shape : std::vector<Shape>{{4, 2, 64, 0}, {1, 1, 2, 0}, {8, 1, 80, 5}}) {
      const Case<T> c(shape, 530);
      const std::vector<RowRange> sequences = {{0, 3}, {5, 530}};
      int64_t kept = 0;
      std::thread([&] {
        ThreadPool own(1);
        c.run(&train(), own, sequences);
        kept = thread_scratch_bytes();
      }).join();
      const BlockAttention in{.act = act(),
                              .num_heads = shape.heads,
                              .num_kv_heads = shape.kv_heads,
                              .head_dim = shape.dim,
                              .sequences = sequences};
      EXPECT_EQ(train().block_attention_scratch(in), kept) << shape.dim;
    }
  });
}

TEST_P(BlockAttentionTest, NanStaysInItsSequence) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    Case<T> c({2, 1, 16, 0}, 40);
    for (int64_t j = 0; j < c.q_stride; ++j) c.q[static_cast<size_t>(25 * c.q_stride + j)] = T(NAN);
    const BlockAttention in{c.q.data(),  c.k.data(), c.v.data(), act(), c.q_stride, c.kv_stride,
                            c.kv_stride, 2,          1,          16,    0.25f,      0};
    BlockAttention sequences = in;
    const std::vector<RowRange> ranges = {{0, 20}, {20, 30}, {30, 40}};
    sequences.sequences = ranges;
    std::vector<T> y(static_cast<size_t>(40 * c.width));
    std::vector<float> lse(80);
    train().block_attention({sequences, y.data(), c.width, lse.data()}, pool());
    const std::vector<float> values = as_floats(y);
    for (int64_t row = 0; row < 40; ++row)
      for (int64_t j = 0; j < c.width; ++j)
        EXPECT_EQ(std::isnan(values[static_cast<size_t>(row * c.width + j)]), row == 25) << row;
  });
}

LK_INSTANTIATE_KERNEL_TESTS(BlockAttentionTest);

}  // namespace
}  // namespace lk::testing
