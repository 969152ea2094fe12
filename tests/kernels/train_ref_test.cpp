// SPDX-License-Identifier: Apache-2.0
// The references of the backward passes against the derivatives of the forward ones, by the complex step (Squire and
// Trapp, SIAM Review 40, 1998): d f / d x = Im f(x + i h) / h, to the last digit.
#include <complex>

#include "kernels/kernel_test_util.h"
#include "lk/kernels/train.h"

namespace lk::testing {
namespace {

using Complex = std::complex<double>;
using Values = std::vector<Complex>;

Values complex_of(const std::vector<float>& values) { return {values.begin(), values.end()}; }
Complex dot(const Values& y, const std::vector<float>& dy) {
  Complex sum = 0;
  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * static_cast<double>(dy[i]);
  return sum;
}
// d f / d x for every element of x, which f reads.
template <class F>
std::vector<float> derivative(Values& x, const F& f) {
  std::vector<float> result;
  for (Complex& value : x) {
    value += Complex(0, 1e-30);
    result.push_back(static_cast<float>(f().imag() / 1e-30));
    value = value.real();
  }
  return result;
}
constexpr Tolerance kExact = {1e-12, 1e-6};

TEST(TrainRef, RmsNormBackwardIsTheDerivative) {
  constexpr int64_t kRows = 3, kDim = 7, kHeads = 2, kWidth = kHeads * kDim;
  const auto x = random_values<float>(kRows * kWidth, 1), w = random_values<float>(kDim, 2),
             dy = random_values<float>(kRows * kWidth, 3), dx0 = random_values<float>(kRows * kWidth, 4),
             dw0 = random_values<float>(kDim, 5);
  const float eps = 1e-3f;
  Values cx = complex_of(x), cw = complex_of(w);
  const auto loss = [&] {
    Values y;
    for (int64_t vector = 0; vector < kRows * kHeads; ++vector) {
      const Complex* in = cx.data() + vector * kDim;
      Complex mean = static_cast<double>(eps);
      for (int64_t j = 0; j < kDim; ++j) mean += in[j] * in[j] / static_cast<double>(kDim);
      for (int64_t j = 0; j < kDim; ++j) y.push_back(in[j] / std::sqrt(mean) * cw[static_cast<size_t>(j)]);
    }
    return dot(y, dy);
  };
  auto want_dx = derivative(cx, loss), want_dw = derivative(cw, loss);
  for (const bool add : {true, false}) {
    auto dx = dx0, dw = dw0, want = want_dx, want_w = want_dw;
    for (size_t i = 0; i < dx.size() && add; ++i) want[i] += dx0[i];
    for (size_t i = 0; i < dw.size(); ++i) want_w[i] += dw0[i];
    ref::rms_norm_backward({.x = x.data(),
                            .x_stride = kWidth,
                            .weight = w.data(),
                            .dy = dy.data(),
                            .dy_stride = kWidth,
                            .dx = dx.data(),
                            .dx_stride = kWidth,
                            .add = add,
                            .weight_gradient = dw.data(),
                            .num_rows = kRows,
                            .heads = kHeads,
                            .dim = kDim,
                            .eps = eps});
    expect_close(dx, want, kExact, "dx");
    expect_close(dw, want_w, kExact, "dw");
  }
}

TEST(TrainRef, SwigluBackwardIsTheDerivative) {
  constexpr int64_t kRows = 2, kDim = 5, kUp = 8, kPadded = 16;
  const auto x = random_values<float>(kRows * kPadded, 1, 4), dy = random_values<float>(kRows * kDim, 2);
  Values cx = complex_of(x);
  const auto forward = [&] {
    Values y;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t j = 0; j < kDim; ++j) {
        const Complex gate = cx[static_cast<size_t>(row * kPadded + j)],
                      up = cx[static_cast<size_t>(row * kPadded + kUp + j)];
        y.push_back(gate / (1.0 + std::exp(-gate)) * up);
      }
    }
    return y;
  };
  std::vector<float> kept(x.size(), 9), y(kRows * kDim), dx(x.size(), 9), want_y;
  ref::swiglu_keep({.x = x.data(),
                    .x_stride = kPadded,
                    .up_offset = kUp,
                    .padded = kPadded,
                    .kept = kept.data(),
                    .kept_stride = kPadded,
                    .y = y.data(),
                    .act = DType::kF32,
                    .y_stride = kDim,
                    .num_rows = kRows,
                    .dim = kDim});
  for (const Complex value : forward()) want_y.push_back(static_cast<float>(value.real()));
  expect_close(y, want_y, kExact, "y");
  ref::swiglu_backward({.kept = kept.data(),
                        .kept_stride = kPadded,
                        .up_offset = kUp,
                        .padded = kPadded,
                        .dy = dy.data(),
                        .dy_stride = kDim,
                        .dx = dx.data(),
                        .act = DType::kF32,
                        .dx_stride = kPadded,
                        .num_rows = kRows,
                        .dim = kDim});
  // Columns that belong to nothing have the derivative 0.
  expect_close(dx, derivative(cx, [&] { return dot(forward(), dy); }), kExact, "dx");
}

TEST(TrainRef, CrossEntropyGradientIsTheDerivative) {
  constexpr int64_t kRows = 3, kVocab = 6, kPadded = 8;
  const auto logits = random_values<float>(kRows * kVocab, 1, 5);
  const std::vector<int32_t> targets = {0, 5, 3};
  const std::vector<float> weights = {0.5f, 0.0f, 2.0f};
  Values cx = complex_of(logits), losses;
  const auto loss = [&] {
    losses.clear();
    Complex total = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const Complex* in = cx.data() + row * kVocab;
      Complex sum = 0;
      for (int64_t j = 0; j < kVocab; ++j) sum += std::exp(in[j]);
      losses.push_back(std::log(sum) - in[targets[static_cast<size_t>(row)]]);
      total += losses.back() * static_cast<double>(weights[static_cast<size_t>(row)]);
    }
    return total;
  };
  std::vector<float> got(kRows), gradient(kRows * kPadded, 9), want, want_losses;
  std::vector<uint8_t> greedy(kRows);
  ref::cross_entropy({.logits = logits.data(),
                      .logits_stride = kVocab,
                      .vocab_size = kVocab,
                      .padded = kPadded,
                      .targets = targets,
                      .weights = weights,
                      .losses = got.data(),
                      .greedy = greedy.data(),
                      .gradient = gradient.data(),
                      .act = DType::kF32,
                      .gradient_stride = kPadded});
  const auto flat = derivative(cx, loss);
  (void)loss();
  for (int64_t row = 0; row < kRows; ++row) {
    want_losses.push_back(static_cast<float>(losses[static_cast<size_t>(row)].real()));
    for (int64_t j = 0; j < kPadded; ++j) want.push_back(j < kVocab ? flat[static_cast<size_t>(row * kVocab + j)] : 0);
    const float* in = logits.data() + row * kVocab;
    EXPECT_EQ(greedy[static_cast<size_t>(row)],
              std::max_element(in, in + kVocab) - in == targets[static_cast<size_t>(row)] ? 1 : 0);
  }
  expect_close(got, want_losses, kExact, "losses");
  expect_close(gradient, want, kExact, "gradient");
}

TEST(TrainRef, BlockAttentionBackwardIsTheDerivative) {
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 6, kRows = 11, kWidth = kHeads * kDim, kKvWidth = kKvHeads * kDim;
  const std::vector<RowRange> sequences = {{1, 6}, {6, 7}, {8, 11}};
  for (const int64_t window : {0, 2}) {
    const auto q = random_values<float>(kRows * kWidth, 1, 2), k = random_values<float>(kRows * kKvWidth, 2, 2),
               v = random_values<float>(kRows * kKvWidth, 3), dy = random_values<float>(kRows * kWidth, 4);
    Values cq = complex_of(q), ck = complex_of(k), cv = complex_of(v);
    const auto forward = [&] {
      Values y(kRows * kWidth);
      for (const RowRange& s : sequences) {
        for (int64_t row = s.begin; row < s.end; ++row) {
          for (int64_t head = 0; head < kHeads; ++head) {
            const int64_t kv_head = head / 2;
            Complex sum = 0;
            Values out(kDim);
            for (int64_t key = s.begin; key <= row; ++key) {
              if (window > 0 && row - key >= window) continue;
              Complex score = 0;
              for (int64_t d = 0; d < kDim; ++d)
                score += cq[static_cast<size_t>(row * kWidth + head * kDim + d)] *
                         ck[static_cast<size_t>(key * kKvWidth + kv_head * kDim + d)];
              const Complex p = std::exp(0.25 * score);
              sum += p;
              for (int64_t d = 0; d < kDim; ++d)
                out[static_cast<size_t>(d)] += p * cv[static_cast<size_t>(key * kKvWidth + kv_head * kDim + d)];
            }
            for (int64_t d = 0; d < kDim; ++d)
              y[static_cast<size_t>(row * kWidth + head * kDim + d)] = out[static_cast<size_t>(d)] / sum;
          }
        }
      }
      return y;
    };
    const auto loss = [&] { return dot(forward(), dy); };
    const BlockAttention in = {q.data(), k.data(), v.data(), DType::kF32, kWidth, kKvWidth, kKvWidth,
                               kHeads,   kKvHeads, kDim,     0.25f,       window, sequences};
    std::vector<float> y(kRows * kWidth), lse(kRows * kHeads), dq(y.size()), dk(kRows * kKvWidth), dv(dk.size()), want;
    ref::block_attention({in, y.data(), kWidth, lse.data()});
    for (const Complex value : forward()) want.push_back(static_cast<float>(value.real()));
    expect_close(y, want, kExact, "y");
    ref::block_attention_backward({in, y.data(), kWidth, lse.data(), dy.data(), kWidth, dq.data(), dk.data(), dv.data(),
                                   kWidth, kKvWidth, kKvWidth});
    expect_close(dq, derivative(cq, loss), kExact, "dq");
    expect_close(dk, derivative(ck, loss), kExact, "dk");
    expect_close(dv, derivative(cv, loss), kExact, "dv");
  }
}

}  // namespace
}  // namespace lk::testing
