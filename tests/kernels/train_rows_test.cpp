// SPDX-License-Identifier: Apache-2.0
#include "kernels/kernel_test_util.h"
#include "lk/kernels/train.h"

namespace lk::testing {
namespace {

class TrainRowsTest : public KernelTest {
 protected:
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
  const TrainKernels& train() const { return train_kernels(std::get<0>(GetParam())); }
  Tolerance rounded() const { return tolerance(Op::kSwiglu, act()); }
  Tolerance exact() const { return tolerance(Op::kRowGradient, act()); }
};

// Enough for several threads at the end.
const std::vector<std::pair<int64_t, int64_t>> kShapes = {{0, 5},   {1, 1},   {3, 16},  {2, 33},
                                                          {5, 100}, {3, 257}, {9, 4500}};

TEST_P(TrainRowsTest, RoundRowsMatchesRef) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [rows, n] : kShapes) {
      for (const bool scaled : {false, true}) {
        const int64_t padded = n + n % 5, x_stride = n + 1, y_stride = padded + 2;
        const auto x = random_values<float>(rows * x_stride, 1, 10), scale = random_values<float>(n, 2);
        Guarded<T> got(rows * y_stride), want(rows * y_stride);
        got.fill(T(5.0f));
        want.fill(T(5.0f));
        RoundRowsArgs args{x.data(),   DType::kF32, x_stride, scaled ? scale.data() : nullptr,
                           got.data(), act(),       y_stride, rows,
                           n,          padded};
        train().round_rows(args, pool());
        got.expect_intact("y");
        args.y = want.data();
        ref::round_rows(args);
        EXPECT_TRUE(same_bits(got.data(), want.data(), rows * y_stride)) << rows << " x " << n;
        // In place, from the rounded.
        args.x = args.y = got.data();
        args.x_dtype = act();
        args.x_stride = y_stride;
        train().round_rows(args, pool());
        args.x = args.y = want.data();
        ref::round_rows(args);
        EXPECT_TRUE(same_bits(got.data(), want.data(), rows * y_stride)) << "in place, " << rows << " x " << n;
      }
    }
  });
}

// With a large epsilon: a norm over one element alone has a gradient of almost nothing, all of it cancellation.
TEST_P(TrainRowsTest, RmsNormBackwardMatchesRef) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [rows, dim] : kShapes) {
      for (const int64_t heads : {1, 3}) {
        if (dim > 300 && heads > 1) continue;
        const int64_t width = heads * dim, x_stride = width + 1, dy_stride = width + 2;
        const auto x = random_values<T>(rows * x_stride, 1);
        const auto w = random_values<float>(dim, 2), dy = random_values<float>(rows * dy_stride, 3);
        enum class Mode { kAdd, kOverDy, kWeightOnly };
        for (const Mode mode : {Mode::kAdd, Mode::kOverDy, Mode::kWeightOnly}) {
          for (const bool weight : {false, true}) {
            if (mode == Mode::kWeightOnly && !weight) continue;
            Guarded<float> dx[2] = {Guarded<float>(rows * dy_stride), Guarded<float>(rows * dy_stride)};
            Guarded<float> dw[2] = {Guarded<float>(dim), Guarded<float>(dim)};
            for (const int i : {0, 1}) {
              std::copy(dy.begin(), dy.end(), dx[i].data());
              dw[i].fill(0.25f);
              const RmsNormBackwardArgs args{.x = x.data(),
                                             .x_dtype = act(),
                                             .x_stride = x_stride,
                                             .weight = w.data(),
                                             .dy = mode == Mode::kOverDy ? dx[i].data() : dy.data(),
                                             .dy_stride = dy_stride,
                                             .dx = mode == Mode::kWeightOnly ? nullptr : dx[i].data(),
                                             .dx_stride = dy_stride,
                                             .add = mode != Mode::kOverDy,
                                             .weight_gradient = weight ? dw[i].data() : nullptr,
                                             .num_rows = rows,
                                             .heads = heads,
                                             .dim = dim,
                                             .eps = 0.1f};
              if (i == 0)
                train().rms_norm_backward(args, pool());
              else
                ref::rms_norm_backward(args);
            }
            const std::string what = fmt::format("{} rows of {} x {}", rows, heads, dim);
            dx[0].expect_intact(what);
            dw[0].expect_intact(what);
            expect_close(dx[0].values(), dx[1].values(), exact(), what + ": dx");
            expect_close(dw[0].values(), dw[1].values(), exact(), what + ": dw");
          }
        }
      }
    }
  });
}

TEST_P(TrainRowsTest, NormWeightsGradientIsOneChainOverTheRows) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kRows = 40, kDim = 600, kHeads = 2, kWidth = kHeads * kDim;
    const auto x = random_values<T>(kRows * kWidth, 1);
    const auto w = random_values<float>(kDim, 2), dy = random_values<float>(kRows * kWidth, 3);
    ThreadPool one(1), many(7);
    const auto add = [&](int64_t begin, int64_t end, std::vector<float>& dw, std::vector<float>& dx, ThreadPool& pool) {
      train().rms_norm_backward({.x = x.data() + begin * kWidth,
                                 .x_dtype = act(),
                                 .x_stride = kWidth,
                                 .weight = w.data(),
                                 .dy = dy.data() + begin * kWidth,
                                 .dy_stride = kWidth,
                                 .dx = dx.data() + begin * kWidth,
                                 .dx_stride = kWidth,
                                 .weight_gradient = dw.data(),
                                 .num_rows = end - begin,
                                 .heads = kHeads,
                                 .dim = kDim,
                                 .eps = 1e-5f},
                                pool);
    };
    std::vector<float> whole(kDim, 1), parts = whole, dx(kRows * kWidth), dx_parts = dx;
    add(0, kRows, whole, dx, one);
    add(0, 7, parts, dx_parts, many);
    add(7, 8, parts, dx_parts, many);
    add(8, kRows, parts, dx_parts, many);
    EXPECT_TRUE(same_bits(whole.data(), parts.data(), kDim));
    EXPECT_TRUE(same_bits(dx.data(), dx_parts.data(), kRows * kWidth));
  });
}

TEST_P(TrainRowsTest, SwigluMatchesRef) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [rows, dim] : kShapes) {
      const int64_t up = dim + dim % 7, padded = up + dim + dim % 4, stride = padded + 3, y_stride = dim + 1;
      const auto x = random_values<float>(rows * stride, 1, 20), dy = random_values<float>(rows * y_stride, 2);
      const std::string what = fmt::format("{} rows of {}", rows, dim);
      Guarded<T> kept[2] = {Guarded<T>(rows * stride), Guarded<T>(rows * stride)};
      Guarded<T> y[2] = {Guarded<T>(rows * y_stride), Guarded<T>(rows * y_stride)};
      Guarded<T> dx[2] = {Guarded<T>(rows * stride), Guarded<T>(rows * stride)};
      std::vector<float> y_again;
      for (const int i : {0, 1}) {
        for (auto* out : {&kept[i], &y[i], &dx[i]}) out->fill(T(5.0f));
        SwigluKeepArgs keep{x.data(), stride,   up,   padded, kept[i].data(), stride, y[i].data(),
                            act(),    y_stride, rows, dim};
        SwigluBackwardArgs back{kept[i].data(), stride, up,     padded, dy.data(), y_stride,
                                dx[i].data(),   act(),  stride, rows,   dim};
        if (i == 1) {
          ref::swiglu_keep(keep);
          ref::swiglu_backward(back);
          continue;
        }
        train().swiglu_keep(keep, pool());
        const std::vector<T> first = y[i].values();
        y[i].fill(T(5.0f));
        keep.x = nullptr;  // from what was kept
        train().swiglu_keep(keep, pool());
        EXPECT_TRUE(same_bits(first.data(), y[i].data(), rows * y_stride)) << what;
        train().swiglu_backward(back, pool());
        kept[i].expect_intact(what);
        y[i].expect_intact(what);
        dx[i].expect_intact(what);
      }
      EXPECT_TRUE(same_bits(kept[0].data(), kept[1].data(), rows * stride)) << what;
      expect_close(as_floats(y[0].values()), as_floats(y[1].values()), rounded(), what + ": y");
      expect_close(as_floats(dx[0].values()), as_floats(dx[1].values()), rounded(), what + ": dx");
      // In place.
      train().swiglu_backward(
          {kept[0].data(), stride, up, padded, dy.data(), y_stride, kept[0].data(), act(), stride, rows, dim}, pool());
      EXPECT_TRUE(same_bits(kept[0].data(), dx[0].data(), rows * stride)) << what;
    }
  });
}

TEST_P(TrainRowsTest, CrossEntropyMatchesRef) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const auto& [rows, vocab] : kShapes) {
      const int64_t padded = vocab + vocab % 5, stride = padded + 1;
      const auto logits = random_values<float>(rows * stride, 1, 8);
      std::vector<int32_t> targets;
      std::vector<float> weights;
      for (int64_t row = 0; row < rows; ++row) {
        const float* x = logits.data() + row * stride;
        targets.push_back(static_cast<int32_t>(row % 2 == 0 ? std::max_element(x, x + vocab) - x : row * 31 % vocab));
        weights.push_back(static_cast<float>(row % 3) * 0.7f);
      }
      const std::string what = fmt::format("{} rows of {}", rows, vocab);
      Guarded<float> losses[2] = {Guarded<float>(rows), Guarded<float>(rows)};
      Guarded<uint8_t> greedy[2] = {Guarded<uint8_t>(rows), Guarded<uint8_t>(rows)};
      Guarded<T> gradient[2] = {Guarded<T>(rows * stride), Guarded<T>(rows * stride)};
      CrossEntropyArgs args{logits.data(), stride, vocab, padded, targets, weights};
      args.act = act();
      args.gradient_stride = stride;
      for (const int i : {0, 1}) {
        gradient[i].fill(T(5.0f));
        args.losses = losses[i].data();
        args.greedy = greedy[i].data();
        args.gradient = gradient[i].data();
        if (i == 0)
          train().cross_entropy(args, pool());
        else
          ref::cross_entropy(args);
      }
      losses[0].expect_intact(what);
      greedy[0].expect_intact(what);
      gradient[0].expect_intact(what);
      EXPECT_EQ(greedy[0].values(), greedy[1].values()) << what;
      expect_close(losses[0].values(), losses[1].values(), exact(), what + ": losses");
      expect_close(as_floats(gradient[0].values()), as_floats(gradient[1].values()),
                   act() == DType::kF32 ? exact() : rounded(), what + ": gradient");
      // Over the logits themselves, without the other results.
      std::vector<float> own = logits;
      args.logits = own.data();
      args.greedy = nullptr;
      args.gradient = own.data();
      args.gradient_stride = stride * 4 / dtype_bytes(act());
      train().cross_entropy(args, pool());
      for (int64_t row = 0; row < rows; ++row)
        EXPECT_TRUE(same_bits(static_cast<const T*>(static_cast<const void*>(own.data())) + row * args.gradient_stride,
                              gradient[0].data() + row * stride, padded))
            << what;
      args.gradient = nullptr;
      Guarded<float> again(rows);
      args.logits = logits.data();
      args.losses = again.data();
      train().cross_entropy(args, pool());
      EXPECT_TRUE(same_bits(again.data(), losses[0].data(), rows)) << what;
    }
  });
}

// A loss near zero keeps its digits, and a row that is not finite says so, weighted or not.
TEST_P(TrainRowsTest, CrossEntropyAtItsEnds) {
  const float inf = INFINITY;
  const std::vector<float> logits = {30, 20, 19, 18, /**/ 1, 2, 3, NAN, /**/ 1, inf, 0, 0, /**/ -inf, 0, 1, -inf};
  const std::vector<int32_t> targets = {0, 0, 0, 2};
  const std::vector<float> weights = {1, 0, 1, 1};
  std::vector<float> losses(4), gradient(16);
  train().cross_entropy(
      {logits.data(), 4, 4, 4, targets, weights, losses.data(), nullptr, gradient.data(), DType::kF32, 4}, pool());
  const double want = std::log1p(std::exp(-10.0) + std::exp(-11.0) + std::exp(-12.0));
  EXPECT_NEAR(static_cast<double>(losses[0]), want, 0.01 * want);
  EXPECT_TRUE(std::isnan(losses[1]));
  EXPECT_FALSE(std::isfinite(losses[2]));
  EXPECT_NEAR(static_cast<double>(losses[3]), std::log1p(std::exp(-1.0)), 1e-6);
  EXPECT_EQ((std::vector<float>(gradient.begin() + 4, gradient.begin() + 8)), std::vector<float>(4)) << "weight 0";
  EXPECT_TRUE(std::isnan(gradient[9]));
  EXPECT_EQ(gradient[12], 0.0f);
}

LK_INSTANTIATE_KERNEL_TESTS(TrainRowsTest);

}  // namespace
}  // namespace lk::testing
