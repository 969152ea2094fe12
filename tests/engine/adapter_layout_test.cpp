// SPDX-License-Identifier: Apache-2.0
// Where an adapter's rows and matrices go: nothing overlaps, nothing passes the end of its slice, everything is
// aligned.
#include "lk/engine/adapter_layout.h"

#include <gtest/gtest.h>

#include <map>

#include "lk/base/rng.h"

namespace lk {
namespace {

constexpr ModelShape kShape{.num_layers = 4,
                            .hidden_dim = 96,
                            .intermediate_dim = 352,
                            .num_heads = 4,
                            .num_kv_heads = 2,
                            .head_dim = 24,
                            .vocab_size = 515};

// Views of nothing: a layout never looks at values, only at shapes and at whether two projections share their A.
class FakeAdapter {
 public:
  Adapter adapter;

  FakeAdapter() { adapter.layers.resize(static_cast<size_t>(kShape.num_layers)); }
  TensorView view(std::initializer_list<int64_t> shape, DType dtype = DType::kF32) {
    return TensorView(reinterpret_cast<const void*>(next_ += 4096), dtype, shape);
  }
  LoraDelta delta(int64_t rank, int64_t in, int64_t out, bool bias, bool dora) {
    LoraDelta delta{.rank = rank, .scaling = 1, .a = view({rank, in}), .b = view({out, rank})};
    if (bias) delta.bias = view({out});
    if (dora) delta.dora_scale = view({out});
    return delta;
  }
  void add(size_t layer, Proj proj, int64_t rank, bool bias = false, bool dora = false) {
    adapter.layers[layer][static_cast<size_t>(proj)] =
        delta(rank, in_dim(proj, kShape), out_dim(proj, kShape), bias, dora);
  }

 private:
  uintptr_t next_ = 1 << 20;
};

// Checks every row of a slice and returns how many bytes lie in it.
int64_t check_slice(const AdapterLayout::SlicePlace& slice, int64_t capacity, DType act) {
  std::map<std::pair<int32_t, int32_t>, int64_t> taken;  // page and offset -> bytes
  int64_t total = 0;
  int32_t last_page = -1;
  const auto check = [&](const AdapterLayout::RowsPlace& rows, int64_t elem) {
    EXPECT_EQ(rows.chunks.size(), static_cast<size_t>(rows.num_rows * rows.num_chunks));
    if (rows.num_chunks > 1) {
      EXPECT_EQ(rows.chunk_cols % kPanelCols, 0);
    }
    if (rows.num_rows > 0) {
      EXPECT_LT((rows.num_chunks - 1) * rows.chunk_cols, rows.width);
      EXPECT_GE(rows.num_chunks * rows.chunk_cols, rows.width);
    }
    for (size_t i = 0; i < rows.chunks.size(); ++i) {
      const int64_t first = static_cast<int64_t>(i) % rows.num_chunks * rows.chunk_cols;
      const int64_t bytes = std::min(rows.chunk_cols, rows.width - first) * elem;
      const AdapterLayout::Place place = rows.chunks[i];
      EXPECT_EQ(place.offset % 64, 0);
      EXPECT_LE(place.offset + bytes, capacity) << "a row passes the end of its slice";
      EXPECT_TRUE(taken.emplace(std::pair(place.page, place.offset), bytes).second) << "two rows in one place";
      last_page = std::max(last_page, place.page);
      total += bytes;
    }
  };
  for (const AdapterLayout::ProjPlace& proj : slice.projs) {
    if (proj.a_shared_with >= 0) {
      const AdapterLayout::RowsPlace& shared = slice.projs[static_cast<size_t>(proj.a_shared_with)].a;
      EXPECT_EQ(proj.a.chunks.size(), shared.chunks.size());
      for (size_t i = 0; i < shared.chunks.size(); ++i)
        EXPECT_TRUE(proj.a.chunks[i].page == shared.chunks[i].page &&
                    proj.a.chunks[i].offset == shared.chunks[i].offset);
    } else {
      check(proj.a, dtype_bytes(act));
    }
    check(proj.b, dtype_bytes(act));
    check(proj.bias, 4);
    check(proj.scale, 4);
  }
  for (auto it = taken.begin(); it != taken.end(); ++it) {
    const auto next = std::next(it);
    if (next == taken.end() || next->first.first != it->first.first) continue;
    EXPECT_LE(it->first.second + it->second, next->first.second) << "two rows overlap";
  }
  EXPECT_EQ(slice.num_pages, last_page + 1);
  return total;
}

TEST(AdapterLayout, RowsNeitherOverlapNorPassTheEndOfTheirSlice) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed);
    const DType act = rng.below(2) == 0 ? DType::kBF16 : DType::kF32;
    FakeAdapter fake;
    for (size_t layer = 0; layer < fake.adapter.layers.size(); ++layer)
      for (int p = 0; p < kNumProjs; ++p)
        if (rng.below(3) != 0)
          fake.add(layer, static_cast<Proj>(p), 1 + static_cast<int64_t>(rng.below(40)), rng.below(4) == 0,
                   rng.below(4) == 0);
    // Fused names: k reads the A of q.
    auto& first = fake.adapter.layers[0];
    if (first[0] && first[1])
      first[1]->a = first[0]->a, first[1]->rank = first[0]->rank,
      first[1]->b = fake.view({kShape.kv_dim(), first[0]->rank});
    if (rng.below(2) == 0)
      fake.adapter.lm_head = fake.delta(1 + static_cast<int64_t>(rng.below(20)), kShape.hidden_dim, kShape.vocab_size,
                                        rng.below(2) == 0, rng.below(2) == 0);
    // Slices that hold one row chunk at least, and others that hold many rows.
    const int64_t slice = 128 * (1 + static_cast<int64_t>(rng.below(24)));
    const PageGeometry geometry{.slice_bytes = slice, .page_bytes = slice * kShape.num_layers, .act = act};
    const AdapterLayout layout(fake.adapter, kShape, false, geometry);
    int64_t pages = 0, highest_rank = 0;
    for (size_t layer = 0; layer < fake.adapter.layers.size(); ++layer) {
      const AdapterLayout::SlicePlace& kind = layout.kind(layout.kind_of(layer));
      check_slice(kind, slice, act);
      pages = std::max(pages, kind.num_pages);
      std::map<ProjGroup, int64_t> ranks;
      for (const AdapterLayout::ProjPlace& proj : kind.projs)
        highest_rank = std::max(highest_rank, ranks[group_of(proj.proj)] += proj.a.num_rows);
    }
    check_slice(layout.head(), geometry.page_bytes, act);
    EXPECT_EQ(layout.first_matrix_page(), pages);
    EXPECT_EQ(layout.num_pages(), pages + layout.head().num_pages);
    if (fake.adapter.lm_head) highest_rank = std::max(highest_rank, fake.adapter.lm_head->rank);
    EXPECT_EQ(layout.max_group_rank(), highest_rank);
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(AdapterLayout, EqualLayersShareOnePlacement) {
  FakeAdapter fake;
  for (size_t layer = 0; layer < 4; ++layer) fake.add(layer, Proj::kQ, layer == 2 ? 8 : 4);
  const AdapterLayout layout(fake.adapter, kShape, false, {.slice_bytes = 1536, .page_bytes = 6144});
  EXPECT_EQ(layout.num_kinds(), 2u);
  EXPECT_EQ(layout.kind_of(0), layout.kind_of(3));
  EXPECT_NE(layout.kind_of(0), layout.kind_of(2));
  EXPECT_EQ(layout.num_pages(), 2) << "8 rows of 192 bytes of A, 8 of B";
}

TEST(AdapterLayout, MatricesFollowEachOtherInTheirPages) {
  FakeAdapter fake;
  fake.adapter.replaced.layers.resize(4);
  fake.adapter.replaced.layers[1].weight[static_cast<size_t>(Proj::kDown)] =
      fake.view({kShape.hidden_dim, kShape.intermediate_dim});
  fake.adapter.replaced.layers[1].input_norm = fake.view({kShape.hidden_dim});
  fake.adapter.replaced.embedding = fake.view({kShape.vocab_size, kShape.hidden_dim});
  fake.adapter.replaced.lm_head = fake.view({kShape.vocab_size, kShape.hidden_dim});
  fake.adapter.trained_token_ids = {3, 5, 514};
  fake.adapter.trained_token_rows = fake.view({3, kShape.hidden_dim});
  const PageGeometry geometry{.slice_bytes = 1024, .page_bytes = 4096, .act = DType::kBF16};
  for (const bool tied : {false, true}) {
    const AdapterLayout layout(fake.adapter, kShape, tied, geometry);
    ASSERT_EQ(layout.matrices().size(), tied ? 3u : 2u) << "vectors and embeddings are not among them";
    int64_t end = 0;
    for (const AdapterLayout::MatrixPlace& matrix : layout.matrices()) {
      EXPECT_EQ(matrix.begin, end);
      EXPECT_EQ(matrix.begin % kPanelStepBytes, 0);
      end += packed_weight_bytes(matrix.format, matrix.n, matrix.k);
    }
    EXPECT_EQ(layout.first_head_page() - layout.first_matrix_page(), (end + 4095) / 4096);
    EXPECT_EQ(layout.matrices()[1].weight->module, kLmHead);
    if (!tied) continue;
    EXPECT_FALSE(layout.matrices()[2].weight.has_value());
    EXPECT_EQ(layout.matrices()[2].format, WeightFormat::kF32Panels) << "f32 rows are not rounded";
  }
}

}  // namespace
}  // namespace lk
