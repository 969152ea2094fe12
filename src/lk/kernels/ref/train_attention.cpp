// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "lk/kernels/ref/elements.h"
#include "lk/kernels/train.h"

namespace lk::ref {
namespace {

// Calls f(sequence's first row, row, head, first attended row) for every query vector.
template <class F>
void for_queries(const BlockAttention& a, const F& f) {
  for (const RowRange& sequence : a.sequences)
    for (int64_t row = sequence.begin; row < sequence.end; ++row)
      for (int64_t head = 0; head < a.num_heads; ++head)
        f(row, head, a.window > 0 ? std::max<int64_t>(sequence.begin, row + 1 - a.window) : sequence.begin);
}

double dot(const BlockAttention& a, int64_t row, int64_t head, int64_t key) {
  const int64_t kv_head = head / (a.num_heads / a.num_kv_heads);
  double sum = 0;
  for (int64_t d = 0; d < a.head_dim; ++d)
    sum += get(a.q, a.act, row * a.q_stride + head * a.head_dim + d) *
           get(a.k, a.act, key * a.k_stride + kv_head * a.head_dim + d);
  return sum * static_cast<double>(a.scale);
}

}  // namespace

void block_attention(const BlockAttentionArgs& args) {
  const BlockAttention& a = args.in;
  for_queries(a, [&](int64_t row, int64_t head, int64_t begin) {
    const int64_t kv_head = head / (a.num_heads / a.num_kv_heads);
    std::vector<double> p;
    for (int64_t key = begin; key <= row; ++key) p.push_back(dot(a, row, head, key));
    const double max = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& value : p) sum += value = std::exp(value - max);
    args.log_sum_exp[row * a.num_heads + head] = static_cast<float>(max + std::log(sum));
    for (int64_t d = 0; d < a.head_dim; ++d) {
      double out = 0;
      for (int64_t key = begin; key <= row; ++key)
        out += p[static_cast<size_t>(key - begin)] * get(a.v, a.act, key * a.v_stride + kv_head * a.head_dim + d);
      put(args.y, a.act, row * args.y_stride + head * a.head_dim + d, out / sum);
    }
  });
}

void block_attention_backward(const BlockAttentionBackwardArgs& args) {
  const BlockAttention& a = args.in;
  const int64_t width = a.num_heads * a.head_dim, kv_width = a.num_kv_heads * a.head_dim;
  const auto num_rows = a.sequences.empty() ? 0 : static_cast<int64_t>(a.sequences.back().end);
  std::vector<double> dq(static_cast<size_t>(num_rows * width)), dk(static_cast<size_t>(num_rows * kv_width)),
      dv(dk.size());
  for_queries(a, [&](int64_t row, int64_t head, int64_t begin) {
    const int64_t kv_head = head / (a.num_heads / a.num_kv_heads);
    const auto dy = [&](int64_t d) {
      return static_cast<double>(args.dy[row * args.dy_stride + head * a.head_dim + d]);
    };
    double dot_y = 0;
    for (int64_t d = 0; d < a.head_dim; ++d)
      dot_y += dy(d) * get(args.y, a.act, row * args.y_stride + head * a.head_dim + d);
    for (int64_t key = begin; key <= row; ++key) {
      const double p =
          std::exp(dot(a, row, head, key) - static_cast<double>(args.log_sum_exp[row * a.num_heads + head]));
      double dp = 0;
      for (int64_t d = 0; d < a.head_dim; ++d)
        dp += dy(d) * get(a.v, a.act, key * a.v_stride + kv_head * a.head_dim + d);
      const double ds = p * (dp - dot_y) * static_cast<double>(a.scale);
      for (int64_t d = 0; d < a.head_dim; ++d) {
        const auto at_q = static_cast<size_t>(row * width + head * a.head_dim + d);
        const auto at_kv = static_cast<size_t>(key * kv_width + kv_head * a.head_dim + d);
        dq[at_q] += ds * get(a.k, a.act, key * a.k_stride + kv_head * a.head_dim + d);
        dk[at_kv] += ds * get(a.q, a.act, row * a.q_stride + head * a.head_dim + d);
        dv[at_kv] += p * dy(d);
      }
    }
  });
  for (const RowRange& sequence : a.sequences) {
    for (int64_t row = sequence.begin; row < sequence.end; ++row) {
      for (int64_t j = 0; j < width; ++j)
        args.dq[row * args.dq_stride + j] = static_cast<float>(dq[static_cast<size_t>(row * width + j)]);
      for (int64_t j = 0; j < kv_width; ++j) {
        args.dk[row * args.dk_stride + j] = static_cast<float>(dk[static_cast<size_t>(row * kv_width + j)]);
        args.dv[row * args.dv_stride + j] = static_cast<float>(dv[static_cast<size_t>(row * kv_width + j)]);
      }
    }
  }
}

}  // namespace lk::ref
