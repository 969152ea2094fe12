// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/backend.h"

#include "lk/tensor/limits.h"

namespace lk {
namespace {

void check_kv(const KvLayer& kv) {
  LK_CHECK(kv.base && kv.num_kv_heads > 0, "no KV pages");
  LK_CHECK(kv.head_dim > 0 && kv.head_dim % 2 == 0 && kv.head_dim <= kMaxHeadDim, "head_dim {}", kv.head_dim);
}

}  // namespace

void Backend::gemm(const GemmArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.x && a.y && a.w.data && a.num_rows > 0 && a.x_stride >= a.w.k && a.y_stride >= a.w.n);
  do_gemm(a);
}

void Backend::lora(const LoraArgs& a) {
  if (a.segments.empty()) return;
  int32_t end = 0;
  for (const LoraSegment& segment : a.segments) {
    LK_CHECK(segment.row_begin >= end && segment.row_begin < segment.row_end,
             "segments must be ascending and disjoint");
    end = segment.row_end;
    int64_t sum_ranks = 0;
    for (const LoraProj& proj : segment.projs) {
      LK_CHECK(proj.a.num_rows == proj.b.num_rows && proj.a.width <= a.x_stride &&
               proj.out_begin + proj.b.width <= a.y_stride);
      sum_ranks += proj.a.num_rows;
    }
    LK_CHECK(sum_ranks <= a.v_stride);
  }
  do_lora(a);
}

void Backend::store_kv(const StoreKvArgs& a) {
  if (a.num_rows == 0) return;
  check_kv(a.kv);
  const int64_t width = a.kv.num_kv_heads * a.kv.head_dim;
  LK_CHECK(a.k && a.v && a.slots && a.k_stride >= width && a.v_stride >= width);
  do_store_kv(a);
}

void Backend::attention(const AttentionArgs& a) {
  if (a.seqs.empty()) return;
  check_kv(a.kv);
  const int64_t width = a.num_heads * a.kv.head_dim;
  LK_CHECK(a.q && a.y && a.num_heads % a.kv.num_kv_heads == 0 && a.q_stride >= width && a.y_stride >= width);
  do_attention(a);
}

void Backend::rms_norm(const RmsNormArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.x && a.weight && a.y && a.x_stride >= a.dim && a.y_stride >= a.dim);
  do_rms_norm(a);
}

void Backend::rope(const RopeArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.x && a.cos && a.sin && a.x_stride >= a.num_heads * a.head_dim && a.head_dim % 2 == 0);
  do_rope(a);
}

void Backend::swiglu(const SwigluArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.x && a.y && a.y_stride >= a.dim && a.up_offset >= a.dim && a.x_stride >= a.up_offset + a.dim);
  do_swiglu(a);
}

void Backend::add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n) {
  if (num_rows == 0) return;
  LK_CHECK(y && bias && y_stride >= n);
  do_add_bias(y, y_stride, bias, num_rows, n);
}

void Backend::add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n) {
  if (num_rows == 0) return;
  LK_CHECK(y && x && y_stride >= n && x_stride >= n);
  do_add(y, y_stride, x, x_stride, num_rows, n);
}

void Backend::merge_panel(const MergeArgs& a, int64_t panel, ThreadPool& one_thread, MergeSums* sums) const {
  LK_CHECK(a.w.data && a.out && a.out != a.w.data && a.a_transposed && a.b.data && sums && one_thread.size() == 1);
  LK_CHECK(a.b.format == a.w.format && a.b.k > 0 && a.out_begin % kPanelCols == 0 && panel >= 0 &&
               panel * kPanelCols < a.b.n && a.out_begin + a.b.n <= a.w.n,
           "columns {} + {} of {}, panel {}", a.out_begin, a.b.n, a.w.n, panel);
  do_merge_panel(a, panel, one_thread, sums);
}

}  // namespace lk
