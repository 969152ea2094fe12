// SPDX-License-Identifier: Apache-2.0
#include "lk/kernels/cpu.h"

namespace lk::ref {
namespace {

double element(const LoraMatrix& m, const std::byte* base, DType dtype, int64_t row, int64_t col) {
  const int64_t chunk = m.num_chunks == 1 ? 0 : col / m.chunk_cols;
  const int64_t in_chunk = col - chunk * m.chunk_cols * (m.num_chunks == 1 ? 0 : 1);
  const std::byte* p = base + m.row_offsets[row * m.num_chunks + chunk];
  if (dtype == DType::kF32) return static_cast<double>(reinterpret_cast<const float*>(p)[in_chunk]);
  return static_cast<double>(static_cast<float>(reinterpret_cast<const bf16*>(p)[in_chunk]));
}

void add_proj(const LoraArgs& args, const LoraSegment& segment, const LoraProj& proj, int64_t row, float* v) {
  for (int64_t r = 0; r < proj.a.num_rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < proj.a.width; ++i) {
      const int64_t at = row * args.x_stride + i;
      const double x = args.act == DType::kF32
                           ? static_cast<double>(static_cast<const float*>(args.x)[at])
                           : static_cast<double>(static_cast<float>(static_cast<const bf16*>(args.x)[at]));
      sum += x * element(proj.a, segment.base, args.act, r, i);
    }
    v[r] = static_cast<float>(static_cast<double>(proj.scaling) * sum);
  }
  const bool has_bias = proj.out_bias.num_rows != 0, has_scale = proj.out_scale.num_rows != 0;
  if (proj.b.num_rows == 0 && !has_bias && !has_scale) return;
  const int64_t width = proj.b.num_rows != 0 ? proj.b.width : has_scale ? proj.out_scale.width : proj.out_bias.width;
  for (int64_t j = 0; j < width; ++j) {
    float& y = args.y[row * args.y_stride + proj.out_begin + j];
    double sum = static_cast<double>(y);
    for (int64_t r = 0; r < proj.b.num_rows; ++r)
      sum += static_cast<double>(v[r]) * element(proj.b, segment.base, args.act, r, j);
    if (has_bias) sum += element(proj.out_bias, segment.base, DType::kF32, 0, j);
    if (has_scale) sum *= element(proj.out_scale, segment.base, DType::kF32, 0, j);
    y = static_cast<float>(sum);
  }
}

}  // namespace

void lora(const LoraArgs& args) {
  for (const LoraSegment& segment : args.segments) {
    for (int64_t row = segment.row_begin; row < segment.row_end; ++row) {
      float* v = args.v + row * args.v_stride;
      for (const LoraProj& proj : segment.projs) {
        add_proj(args, segment, proj, row, v);
        v += proj.a.num_rows;
      }
    }
  }
}

}  // namespace lk::ref
