// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "lk/kernels/cpu.h"

namespace lk::ref {
namespace {

// Element indices inside a page's K and V (args.h, KvLayer).
int64_t k_index(const KvLayer& kv, int64_t head, int64_t dim, int64_t slot) {
  const int64_t group = kv.dtype == DType::kBF16 ? 2 : 1;
  return ((head * (kv.head_dim / group) + dim / group) * kPageTokens + slot) * group + dim % group;
}
int64_t v_index(const KvLayer& kv, int64_t head, int64_t dim, int64_t slot) {
  return (head * kPageTokens + slot) * kv.head_dim + dim;
}
double get(const std::byte* base, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<double>(reinterpret_cast<const float*>(base)[index]);
  return static_cast<double>(static_cast<float>(reinterpret_cast<const bf16*>(base)[index]));
}
void put(void* base, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF32)
    static_cast<float*>(base)[index] = value;
  else
    static_cast<bf16*>(base)[index] = bf16(value);
}

void attend(const AttentionArgs& args, const AttentionSeq& seq, int64_t row, int64_t head) {
  const KvLayer& kv = args.kv;
  const int64_t kv_head = head / (args.num_heads / kv.num_kv_heads);
  const int64_t end = seq.first_position + row - seq.row_begin + 1;
  const int64_t begin = args.window > 0 ? std::max<int64_t>(0, end - args.window) : 0;
  const float* q = args.q + row * args.q_stride + head * kv.head_dim;
  const auto page = [&](int64_t position) {
    return kv.base + seq.block_table[position / kPageTokens] * kv.page_stride;
  };
  std::vector<double> p;
  double max = -INFINITY, sum = 0;
  for (int64_t position = begin; position < end; ++position) {
    double score = 0;
    for (int64_t d = 0; d < kv.head_dim; ++d) {
      const double qd = static_cast<double>(kv.dtype == DType::kBF16 ? static_cast<float>(bf16(q[d])) : q[d]);
      score += qd * get(page(position), kv.dtype, k_index(kv, kv_head, d, position % kPageTokens));
    }
    p.push_back(score * static_cast<double>(args.scale));
    max = std::max(max, p.back());
  }
  for (double& value : p) sum += value = std::exp(value - max);
  for (int64_t d = 0; d < kv.head_dim; ++d) {
    double out = 0;
    for (int64_t position = begin; position < end; ++position)
      out += p[static_cast<size_t>(position - begin)] *
             get(page(position) + kv.v_offset, kv.dtype, v_index(kv, kv_head, d, position % kPageTokens));
    put(args.y, kv.dtype, row * args.y_stride + head * kv.head_dim + d, static_cast<float>(out / sum));
  }
}

}  // namespace

void store_kv(const StoreKvArgs& args) {
  const KvLayer& kv = args.kv;
  for (int64_t row = 0; row < args.num_rows; ++row) {
    std::byte* page = kv.base + args.slots[row] / kPageTokens * kv.page_stride;
    const int64_t slot = args.slots[row] % kPageTokens;
    for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        put(page, kv.dtype, k_index(kv, head, d, slot), args.k[row * args.k_stride + head * kv.head_dim + d]);
        put(page + kv.v_offset, kv.dtype, v_index(kv, head, d, slot),
            args.v[row * args.v_stride + head * kv.head_dim + d]);
      }
    }
  }
}

void attention(const AttentionArgs& args) {
  for (const AttentionSeq& seq : args.seqs)
    for (int64_t row = seq.row_begin; row < seq.row_end; ++row)
      for (int64_t head = 0; head < args.num_heads; ++head) attend(args, seq, row, head);
}

}  // namespace lk::ref
