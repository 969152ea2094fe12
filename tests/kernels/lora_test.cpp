// SPDX-License-Identifier: Apache-2.0
#include <deque>

#include "kernels/kernel_test_util.h"

namespace lk::testing {
namespace {

struct ProjSpec {
  int64_t in, out, rank;
  bool dora = false;
};

// One adapter's projections with rank rows cut into chunks at scattered, unordered offsets.
template <class T>
class Adapter {
 public:
  Adapter(const std::vector<ProjSpec>& specs, int64_t chunk_cols, uint64_t seed) : seed_(seed) {
    for (const ProjSpec& spec : specs) {
      LoraProj proj;
      proj.a = add_matrix<T>(spec.rank, spec.in, chunk_cols);
      proj.b = add_matrix<T>(spec.rank, spec.out, chunk_cols);
      if (spec.dora) {
        proj.out_bias = add_matrix<float>(1, spec.out, chunk_cols);
        proj.out_scale = add_matrix<float>(1, spec.out, chunk_cols);
      }
      proj.scaling = 0.5f + static_cast<float>(projs_.size());
      proj.out_begin = out_;
      out_ += spec.out;
      projs_.push_back(proj);
    }
  }
  std::span<const LoraProj> projs() const { return projs_; }
  const std::byte* base() const { return storage_.data(); }

 private:
  template <class E>
  LoraMatrix add_matrix(int64_t rows, int64_t width, int64_t chunk_cols) {
    const int64_t chunks = chunk_cols == 0 ? 1 : (width + chunk_cols - 1) / chunk_cols;
    std::vector<int64_t> offsets(static_cast<size_t>(rows * chunks));
    // The values depend on the seed only, never on the chunking.
    const std::vector<E> all = random_values<E>(rows * width, ++seed_);
    for (size_t at = offsets.size(); at-- > 0;) {  // backwards: later rows first in memory
      const int64_t row = static_cast<int64_t>(at) / chunks, chunk = static_cast<int64_t>(at) % chunks;
      const int64_t cols = chunks == 1 ? width : std::min(chunk_cols, width - chunk * chunk_cols);
      const E* values = all.data() + row * width + (chunks == 1 ? 0 : chunk * chunk_cols);
      storage_.resize((storage_.size() + 7) / 4 * 4, std::byte{0xff});  // a gap of NaN
      offsets[at] = static_cast<int64_t>(storage_.size());
      const auto* bytes = reinterpret_cast<const std::byte*>(values);
      storage_.insert(storage_.end(), bytes, bytes + static_cast<size_t>(cols) * sizeof(E));
    }
    offsets_.push_back(std::move(offsets));
    return {offsets_.back().data(), static_cast<int32_t>(rows), static_cast<int32_t>(chunks), width,
            chunks == 1 ? width : chunk_cols};
  }
  uint64_t seed_;
  int64_t out_ = 0;
  std::vector<std::byte> storage_;
  std::deque<std::vector<int64_t>> offsets_;
  std::vector<LoraProj> projs_;
};

class LoraTest : public KernelTest {
 protected:
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
};

constexpr int64_t kIn = 200, kOut = 700 + 33 + 90;
std::vector<ProjSpec> specs(int64_t rank, bool dora = false) {
  return {{kIn, 700, rank, dora}, {kIn, 33, rank == 0 ? 0 : rank + 1, false}, {kIn, 90, rank / 2, dora}};
}

template <class T>
struct Batch {
  std::vector<T> x;
  std::vector<float> y0;
  int64_t rows;
  explicit Batch(int64_t n) : x(random_values<T>(n * kIn, 1)), y0(random_values<float>(n * kOut, 2)), rows(n) {}
  std::vector<float> run(const std::vector<LoraSegment>& segments, const CpuKernels* kernels, ThreadPool& pool) const {
    Guarded<float> y(rows * kOut);
    std::copy(y0.begin(), y0.end(), y.data());
    Guarded<float> v(rows * 1600);
    const LoraArgs args{x.data(), dtype_of<T>(), kIn, y.data(), kOut, segments, v.data(), 1600};
    if (kernels != nullptr)
      kernels->lora(args, pool);
    else
      ref::lora(args);
    y.expect_intact("y");
    v.expect_intact("v");
    return y.values();
  }
};

TEST_P(LoraTest, MatchesRefForMixedRanksChunksAndDora) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (int64_t chunk_cols : {0, 32, 64, 96, 160}) {
      std::deque<Adapter<T>> adapters;
      std::vector<LoraSegment> segments;
      int32_t row = 0;
      for (const auto& [rank, rows, dora] : std::vector<std::tuple<int64_t, int32_t, bool>>{{1, 1, false},
                                                                                            {16, 1, true},
                                                                                            {3, 2, false},
                                                                                            {0, 2, true},
                                                                                            {0, 3, false},
                                                                                            {64, 5, false},
                                                                                            {8, 100, true},
                                                                                            {5, 1, false},
                                                                                            {16, 7, false},
                                                                                            {512, 3, false}}) {
        adapters.emplace_back(specs(rank, dora), chunk_cols, 1000 + static_cast<uint64_t>(row));
        segments.push_back({row, row + rows, adapters.back().base(), adapters.back().projs()});
        row += rows + (row % 2);  // some rows are base-only
      }
      const Batch<T> batch(row + 1);
      const std::string what = fmt::format("chunk_cols {}", chunk_cols);
      const auto got = batch.run(segments, &kernels(), pool());
      expect_close(got, batch.run(segments, nullptr, pool()), tolerance(Op::kLora, act()), what);
      // Base-only rows stay as they were.
      for (size_t s = 0; s + 1 < segments.size(); ++s) {
        for (int64_t r = segments[s].row_end; r < segments[s + 1].row_begin; ++r)
          ASSERT_TRUE(same_bits(got.data() + r * kOut, batch.y0.data() + r * kOut, kOut));
      }
    }
  });
}

TEST_P(LoraTest, RowAloneEqualsRowInAnyBatchAndAnyChunkingBitForBit) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    const Batch<T> batch(75);
    for (int64_t rank : {1, 7, 16, 40}) {
      const Adapter<T> other(specs(9), 64, 5);
      std::vector<float> alone;
      for (int64_t chunk_cols : {0, 32, 96}) {
        const Adapter<T> adapter(specs(rank, true), 0, 77), chunked(specs(rank, true), chunk_cols, 77);
        if (alone.empty()) {
          for (int32_t row = 0; row < 75; ++row) {
            const auto y = batch.run({{row, row + 1, adapter.base(), adapter.projs()}}, &kernels(), pool());
            alone.insert(alone.end(), y.begin() + row * kOut, y.begin() + (row + 1) * kOut);
          }
        }
        for (int32_t first : {0, 10}) {
          for (int32_t last : {11, 13, 15, 75}) {
            std::vector<LoraSegment> segments;
            if (first > 0) segments.push_back({0, first, other.base(), other.projs()});
            segments.push_back({first, last, chunked.base(), chunked.projs()});
            const auto y = batch.run(segments, &kernels(), pool());
            ASSERT_TRUE(same_bits(y.data() + first * kOut, alone.data() + first * kOut, (last - first) * kOut))
                << "rank " << rank << " rows " << first << " to " << last << " chunk_cols " << chunk_cols;
          }
        }
      }
    }
  });
}

// The products with A of any subtree of shards add up to the whole input's, bit for bit, whatever the chunks. Scaling
// comes after the sum, so the ranks' parts are taken unscaled.
TEST_P(LoraTest, ShardsAreAddedInABinaryTree) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kWidth = 1536, kRows = 37, kRank = 21;
    const std::vector<T> x = random_values<T>(kRows * kWidth, 1), a = random_values<T>(kRank * kWidth, 2);
    // v of columns [begin, begin + width) of x and A, whose rows are cut into chunks.
    const auto shrink = [&](int64_t begin, int64_t width, int64_t shards, int64_t chunk_cols, float scaling) {
      const int64_t chunks = chunk_cols == 0 ? 1 : (width + chunk_cols - 1) / chunk_cols;
      std::vector<int64_t> offsets;
      for (int64_t r = 0; r < kRank; ++r)
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          offsets.push_back((r * kWidth + begin + chunk * chunk_cols) * static_cast<int64_t>(sizeof(T)));
      const LoraProj proj{
          .a = {offsets.data(), kRank, static_cast<int32_t>(chunks), width, chunks == 1 ? width : chunk_cols},
          .scaling = scaling};
      const std::vector<LoraSegment> segments{{0, 1, reinterpret_cast<const std::byte*>(a.data()), {&proj, 1}},
                                              {1, kRows, reinterpret_cast<const std::byte*>(a.data()), {&proj, 1}}};
      std::vector<float> v(kRows * kRank);
      float none = 0;
      kernels().lora({x.data() + begin, act(), kWidth, &none, 0, segments, v.data(), kRank, shards}, pool());
      return v;
    };
    for (int64_t shards = 1; shards <= kMaxShards; shards *= 2) {
      const std::vector<float> whole = shrink(0, kWidth, shards, 0, 0.7f);
      for (const int64_t chunk_cols : {32, 160, 192, 512})
        ASSERT_EQ(shrink(0, kWidth, shards, chunk_cols, 0.7f), whole) << shards << " in chunks of " << chunk_cols;
      for (int64_t ranks = 1; ranks <= shards; ranks *= 2) {
        std::vector<std::vector<float>> sums;
        for (int64_t rank = 0; rank < ranks; ++rank)
          sums.push_back(shrink(kWidth / ranks * rank, kWidth / ranks, shards / ranks, rank % 2 == 0 ? 0 : 96, 1));
        for (size_t step = 1; step < sums.size(); step *= 2)
          for (size_t rank = 0; rank < sums.size(); rank += 2 * step)
            for (size_t i = 0; i < whole.size(); ++i) sums[rank][i] += sums[rank + step][i];
        for (float& value : sums[0]) value *= 0.7f;
        ASSERT_EQ(sums[0], whole) << shards << " shards on " << ranks << " ranks";
      }
    }
  });
}

TEST_P(LoraTest, TheTwoPhasesAreTheWholeBitForBit) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    const Batch<T> batch(40);
    const Adapter<T> one(specs(16, true), 64, 5), other(specs(7), 0, 9);
    const std::vector<LoraSegment> segments{{1, 2, one.base(), one.projs()}, {3, 40, other.base(), other.projs()}};
    const std::vector<float> whole = batch.run(segments, &kernels(), pool());
    std::vector<float> y = batch.y0, v(40 * 64);
    LoraArgs args{batch.x.data(), act(), kIn, y.data(), kOut, segments, v.data(), 64};
    args.phase = LoraPhase::kShrink;
    kernels().lora(args, pool());
    ASSERT_EQ(y, batch.y0);
    args.phase = LoraPhase::kExpand;
    kernels().lora(args, pool());
    ASSERT_EQ(y, whole);
  });
}

TEST_P(LoraTest, NoSegmentsIsANoOp) { kernels().lora(LoraArgs{}, pool()); }
LK_INSTANTIATE_KERNEL_TESTS(LoraTest);

}  // namespace
}  // namespace lk::testing
