// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/backend.h"

#include "lk/tensor/limits.h"

namespace lk {
namespace {

void check_kv(const KvLayer& kv) {
  LK_CHECK(kv.base && kv.num_kv_heads > 0, "no KV pages");
  LK_CHECK(kv.head_dim > 0 && kv.head_dim % 2 == 0 && kv.head_dim <= kMaxHeadDim, "head_dim {}", kv.head_dim);
}

void check_weight(const PackedWeight& w) {
  LK_CHECK(w.data, "a weight without memory");
  LK_CHECK(!w.pages || (w.page_bytes > 0 && w.page_bytes % kPanelStepBytes == 0 && w.begin % kPanelStepBytes == 0),
           "pages of {} bytes, a matrix at byte {}", w.page_bytes, w.begin);
}
bool same_shape(const PackedWeight& a, const PackedWeight& b) {
  return a.format == b.format && a.n == b.n && a.k == b.k;
}

}  // namespace

// --- Memory

Result<DeviceBuffer> Backend::try_allocate(int64_t size_bytes) {
  LK_CHECK(size_bytes >= 0, "{} bytes", size_bytes);
  if (size_bytes == 0) return DeviceBuffer();
  return do_allocate(size_bytes);
}

DeviceBuffer Backend::allocate(int64_t size_bytes) {
  Result<DeviceBuffer> buffer = try_allocate(size_bytes);
  LK_CHECK(buffer.ok(), "{}", buffer.status().message());
  return std::move(buffer).value();
}

DeviceBuffer Backend::share(const TensorView& host, std::shared_ptr<const void> owner) {
  LK_CHECK(host.defined());
  return do_share(host, std::move(owner));
}

void Backend::upload(void* dst, const void* host, int64_t size_bytes) {
  if (size_bytes == 0) return;
  LK_CHECK(dst && host && size_bytes > 0);
  do_upload(dst, host, size_bytes);
}

void Backend::read(void* host, const void* src, int64_t size_bytes) {
  if (size_bytes == 0) return;
  LK_CHECK(host && src && size_bytes > 0);
  do_read(host, src, size_bytes);
}

// --- Background

void Backend::pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, Workers workers) {
  LK_CHECK(w.defined() && w.num_dims() == 2 && w.dim(1) == dst.k && out_begin % kPanelCols == 0 &&
               out_begin + w.dim(0) <= dst.n,
           "shape {} at column {} of [{}, {}]", w.shape_string(), out_begin, dst.n, dst.k);
  check_weight(dst);
  do_pack_weight(w, out_begin, dst, workers);
}

void Backend::copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size) {
  LK_CHECK(same_shape(from, to) && at >= 0 && size >= 0 && at + size <= from.total_bytes());
  check_weight(from);
  check_weight(to);
  do_copy_panels(from, to, at, size);
}

void Backend::store_rank_rows(const RankRowsArgs& a) {
  if (a.rows.num_rows == 0) return;
  const int64_t num_rows = a.rows.num_rows, width = a.rows.width;
  LK_CHECK(a.rows.row_offsets && a.base && a.source.defined() &&
               (a.columns ? a.source.has_shape({width, num_rows}) : a.source.has_shape({num_rows, width})),
           "{} for {} rows of {}", a.source.shape_string(), num_rows, width);
  do_store_rank_rows(a);
}

void Backend::merge_panel(const MergeArgs& a, int64_t panel, MergeSums* sums) {
  LK_CHECK(same_shape(a.w, a.out) && a.out.data != a.w.data && a.a_transposed && a.b.data && sums);
  check_weight(a.w);
  check_weight(a.out);
  LK_CHECK(a.b.format == a.w.format && a.b.k > 0 && a.out_begin % kPanelCols == 0 && panel >= 0 &&
               panel * kPanelCols < a.b.n && a.out_begin + a.b.n <= a.w.n,
           "columns {} + {} of {}, panel {}", a.out_begin, a.b.n, a.w.n, panel);
  do_merge_panel(a, panel, sums);
}

// --- Ops

void Backend::embed(const EmbedArgs& a) {
  if (a.rows.empty()) return;
  LK_CHECK(a.y && a.y_stride >= a.dim);
  for (const EmbedRow& row : a.rows) {
    LK_CHECK(row.source);
    if (!row.delta) continue;
    const TensorView &da = row.delta->a, &db = row.delta->b;
    LK_CHECK(da.num_dims() == 2 && db.has_shape({a.dim, da.dim(0)}) && row.token >= 0 && row.token < da.dim(1),
             "token {} of a delta {} {}", row.token, da.shape_string(), db.shape_string());
  }
  do_embed(a);
}

void Backend::gather_rows(const GatherRowsArgs& a) {
  if (a.rows.empty()) return;
  LK_CHECK(a.x && a.y && a.x_stride >= a.dim && a.y_stride >= a.dim);
  for (int32_t row : a.rows) LK_CHECK(row >= 0);
  do_gather_rows(a);
}

void Backend::gemm(const GemmArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.x && a.y && a.num_rows > 0 && a.x_stride >= a.w.k && a.y_stride >= a.w.n);
  LK_CHECK(a.act == traits_of(a.w.format).act, "no product of {} activations with weights of {}", to_string(a.act),
           to_string(traits_of(a.w.format).element));
  LK_CHECK(can_shard(a.num_shards, a.w.k), "{} shards of {}", a.num_shards, a.w.k);
  check_weight(a.w);
  do_gemm(a);
}

void Backend::gemm_columns(const GemmColumnsArgs& a) {
  if (a.num_rows == 0 || a.w.n == 0) return;
  LK_CHECK(a.x && a.y && a.columns && a.num_rows > 0 && a.x_stride >= a.w.k);
  check_weight(a.w);
  do_gemm_columns(a);
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
               proj.out_begin + proj.b.width <= a.y_stride && can_shard(a.num_shards, proj.a.width));
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

void Backend::sample(std::span<const SampleArgs> rows, std::span<SampleResult> results) {
  LK_CHECK(rows.size() == results.size());
  if (rows.empty()) return;
  for (const SampleArgs& a : rows)
    LK_CHECK(a.logits && a.vocab_size > 0 && a.given < a.vocab_size && a.temperature >= 0 && a.top_k >= 0 &&
             a.uniform >= 0 && a.uniform < 1);
  do_sample(rows, results);
}

}  // namespace lk
