// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "lk/kernels/ref/elements.h"
#include "lk/kernels/train.h"

namespace lk::ref {

void round_rows(const RoundRowsArgs& a) {
  for (int64_t row = 0; row < a.num_rows; ++row) {
    for (int64_t j = 0; j < a.n; ++j) {
      const auto x = static_cast<float>(get(a.x, a.x_dtype, row * a.x_stride + j));
      put(a.y, a.y_dtype, row * a.y_stride + j, static_cast<double>(a.scale ? x * a.scale[j] : x));
    }
    for (int64_t j = a.n; j < a.padded; ++j) put(a.y, a.y_dtype, row * a.y_stride + j, 0);
  }
}

void rms_norm_backward(const RmsNormBackwardArgs& a) {
  std::vector<double> weight_gradient(static_cast<size_t>(a.dim)), dx(static_cast<size_t>(a.dim));
  for (int64_t vector = 0; vector < a.num_rows * a.heads; ++vector) {
    const int64_t row = vector / a.heads, first = vector % a.heads * a.dim;
    const float* dy = a.dy + row * a.dy_stride + first;
    double squares = 0, product = 0;
    for (int64_t j = 0; j < a.dim; ++j) {
      const double x = get(a.x, a.x_dtype, row * a.x_stride + first + j);
      squares += x * x;
      product += static_cast<double>(a.weight[j]) * static_cast<double>(dy[j]) * x;
    }
    const auto dim = static_cast<double>(a.dim);
    const double rho = 1 / std::sqrt(squares / dim + static_cast<double>(a.eps));
    for (int64_t j = 0; j < a.dim; ++j) {
      const double x = get(a.x, a.x_dtype, row * a.x_stride + first + j), d = static_cast<double>(dy[j]);
      dx[static_cast<size_t>(j)] = rho * (static_cast<double>(a.weight[j]) * d) - rho * rho * rho * x * (product / dim);
      weight_gradient[static_cast<size_t>(j)] += d * x * rho;
    }
    if (!a.dx) continue;
    for (int64_t j = 0; j < a.dim; ++j) {
      float& out = a.dx[row * a.dx_stride + first + j];
      out = static_cast<float>(dx[static_cast<size_t>(j)] + (a.add ? static_cast<double>(out) : 0));
    }
  }
  if (!a.weight_gradient) return;
  for (int64_t j = 0; j < a.dim; ++j)
    a.weight_gradient[j] =
        static_cast<float>(static_cast<double>(a.weight_gradient[j]) + weight_gradient[static_cast<size_t>(j)]);
}

void swiglu_keep(const SwigluKeepArgs& a) {
  for (int64_t row = 0; row < a.num_rows; ++row) {
    const int64_t kept = row * a.kept_stride;
    for (int64_t j = 0; a.x && j < a.padded; ++j) {
      const bool used = j < a.dim || (j >= a.up_offset && j < a.up_offset + a.dim);
      put(a.kept, a.act, kept + j, used ? static_cast<double>(a.x[row * a.x_stride + j]) : 0);
    }
    for (int64_t j = 0; j < a.dim; ++j) {
      const double gate = get(a.kept, a.act, kept + j), up = get(a.kept, a.act, kept + a.up_offset + j);
      put(a.y, a.act, row * a.y_stride + j, gate / (1 + std::exp(-gate)) * up);
    }
  }
}

void swiglu_backward(const SwigluBackwardArgs& a) {
  for (int64_t row = 0; row < a.num_rows; ++row) {
    const int64_t kept = row * a.kept_stride, dx = row * a.dx_stride;
    for (int64_t j = 0; j < a.dim; ++j) {
      const double gate = get(a.kept, a.act, kept + j), up = get(a.kept, a.act, kept + a.up_offset + j);
      const auto dy = static_cast<double>(a.dy[row * a.dy_stride + j]);
      const double sigma = 1 / (1 + std::exp(-gate));
      put(a.dx, a.act, dx + j, dy * up * sigma * (1 + gate * (1 - sigma)));
      put(a.dx, a.act, dx + a.up_offset + j, dy * gate * sigma);
    }
    for (int64_t j = a.dim; j < a.up_offset; ++j) put(a.dx, a.act, dx + j, 0);
    for (int64_t j = a.up_offset + a.dim; j < a.padded; ++j) put(a.dx, a.act, dx + j, 0);
  }
}

void cross_entropy(const CrossEntropyArgs& a) {
  std::vector<double> p(static_cast<size_t>(a.vocab_size));
  for (size_t row = 0; row < a.targets.size(); ++row) {
    const float* logits = a.logits + static_cast<int64_t>(row) * a.logits_stride;
    const auto target = static_cast<int64_t>(a.targets[row]);
    double max = static_cast<double>(logits[0]), sum = 0;
    for (int64_t j = 0; j < a.vocab_size; ++j) max = std::fmax(max, static_cast<double>(logits[j]));
    for (int64_t j = 0; j < a.vocab_size; ++j)
      sum += p[static_cast<size_t>(j)] = std::exp(static_cast<double>(logits[j]) - max);
    const auto of_target = static_cast<double>(logits[target]);
    a.losses[row] = static_cast<float>(max + std::log(sum) - of_target);
    if (a.greedy) a.greedy[row] = of_target >= max ? 1 : 0;
    if (!a.gradient) continue;
    const auto weight = static_cast<double>(a.weights[row]);
    const int64_t out = static_cast<int64_t>(row) * a.gradient_stride;
    for (int64_t j = 0; j < a.vocab_size; ++j)
      put(a.gradient, a.act, out + j, weight * (p[static_cast<size_t>(j)] / sum - (j == target ? 1 : 0)));
    for (int64_t j = a.vocab_size; j < a.padded; ++j) put(a.gradient, a.act, out + j, 0);
  }
}

}  // namespace lk::ref
