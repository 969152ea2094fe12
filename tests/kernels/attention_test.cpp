// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "kernels/kernel_test_util.h"
#include "lk/tensor/buffer.h"

namespace lk::testing {
namespace {

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim, window;
};

// Sequences in a pool of shuffled pages whose unwritten slots are NaN.
template <class T>
class Cache {
 public:
  Cache(const Shape& shape, std::vector<int64_t> lengths, const CpuKernels* kernels, ThreadPool& pool)
      : shape_(shape), lengths_(std::move(lengths)) {
    const int64_t width = shape.num_kv_heads * shape.head_dim;
    const int64_t half = width * kPageTokens * static_cast<int64_t>(sizeof(T));
    int64_t num_pages = 0;
    for (int64_t length : lengths_) num_pages += (length + kPageTokens - 1) / kPageTokens;
    storage_ = Buffer((num_pages + 1) * (2 * half + 192));
    std::fill(storage_.as<T>(), storage_.as<T>() + storage_.size_bytes() / static_cast<int64_t>(sizeof(T)),
              T(std::numeric_limits<float>::quiet_NaN()));
    kv_ = {storage_.data(), 2 * half + 192, half + 64, dtype_of<T>(), shape.num_kv_heads, shape.head_dim};
    int64_t next = 0;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      std::vector<int32_t> table;
      for (int64_t p = 0; p < lengths_[s]; p += kPageTokens, ++next)
        table.push_back(static_cast<int32_t>(num_pages - next));  // not in order
      const auto k = random_values<float>(lengths_[s] * width, 100 + s),
                 v = random_values<float>(lengths_[s] * width, 200 + s);
      std::vector<int64_t> slots;
      for (int64_t i = 0; i < lengths_[s]; ++i)
        slots.push_back(table[static_cast<size_t>(i / kPageTokens)] * kPageTokens + i % kPageTokens);
      const StoreKvArgs args{k.data(), v.data(), width, width, slots.data(), lengths_[s], kv_};
      if (kernels != nullptr)
        kernels->store_kv(args, pool);
      else
        ref::store_kv(args);
      tables_.push_back(std::move(table));
    }
  }
  const KvLayer& kv() const { return kv_; }
  const Buffer& storage() const { return storage_; }
  std::vector<int32_t>& table(size_t seq) { return tables_[seq]; }

  AttentionArgs args(const std::vector<float>& q, T* y, std::span<const AttentionSeq> seqs) const {
    const int64_t width = shape_.num_heads * shape_.head_dim;
    return {q.data(),      width, y,  width, shape_.num_heads, 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
            shape_.window, seqs,  kv_};
  }

 private:
  Shape shape_;
  std::vector<int64_t> lengths_;
  Buffer storage_;
  KvLayer kv_;
  std::vector<std::vector<int32_t>> tables_;
};

const Shape kShapes[] = {{8, 1, 64, 0},  {4, 2, 128, 0}, {3, 3, 80, 0},  {6, 2, 96, 37},
                         {2, 2, 16, 16}, {5, 1, 8, 0},   {4, 1, 250, 1}, {2, 1, 256, 100}};

class AttentionTest : public KernelTest {
 protected:
  template <class F>
  void with_type(F&& f) {
    if (act() == DType::kBF16)
      f(std::type_identity<bf16>{});
    else
      f(std::type_identity<float>{});
  }
};

TEST_P(AttentionTest, StoreKvEqualsRefBitForBit) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Shape& shape : kShapes) {
      const Cache<T> got(shape, {1, 37, 16}, &kernels(), pool()), want(shape, {1, 37, 16}, nullptr, pool());
      EXPECT_EQ(
          std::memcmp(got.storage().data(), want.storage().data(), static_cast<size_t>(got.storage().size_bytes())), 0)
          << "head_dim " << shape.head_dim;
    }
  });
}

TEST_P(AttentionTest, MatchesRefForMixedPrefillAndDecode) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Shape& shape : kShapes) {
      Cache<T> cache(shape, {1, 150, 70, 33, 16, 64}, nullptr, pool());
      // {rows, first position}: decode of one token, prefill from 0, a chunk in the middle
      const std::vector<AttentionSeq> seqs = {{0, 1, 0, cache.table(0).data()},    {1, 2, 149, cache.table(1).data()},
                                              {2, 72, 0, cache.table(2).data()},   {72, 85, 20, cache.table(3).data()},
                                              {85, 86, 15, cache.table(4).data()}, {86, 89, 60, cache.table(5).data()}};
      const int64_t rows = 89, width = shape.num_heads * shape.head_dim;
      const auto q = random_values<float>(rows * width, 3, 3.0);
      Guarded<T> got(rows * width), want(rows * width);
      kernels().attention(cache.args(q, got.data(), seqs), pool());
      ref::attention(cache.args(q, want.data(), seqs));
      const std::string what = fmt::format("head_dim {} window {}", shape.head_dim, shape.window);
      got.expect_intact(what);
      expect_close(as_floats(got.values()), as_floats(want.values()), tolerance(Op::kAttention, act()), what);
    }
  });
}

TEST_P(AttentionTest, RowDoesNotDependOnChunkingOrNeighboursBitForBit) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Shape& shape : kShapes) {
      constexpr int64_t kLength = 141;
      const int64_t width = shape.num_heads * shape.head_dim;
      Cache<T> cache(shape, {kLength, 50}, nullptr, pool());
      const auto q = random_values<float>((kLength + 50) * width, 3, 3.0);
      std::vector<T> alone(static_cast<size_t>(kLength * width)), y((kLength + 50) * static_cast<size_t>(width));
      const auto is_sampled = [](int64_t row) { return row % 16 == 0 || row % 16 == 15 || row % 7 == 3; };
      for (int64_t row = 0; row < kLength; ++row) {
        if (!is_sampled(row)) continue;
        // Later positions do not exist yet when a token is decoded: their slots are NaN.
        const std::vector<float> q_row(q.begin() + row * width, q.begin() + (row + 1) * width);
        Cache<T> partial(shape, {row + 1}, nullptr, pool());
        const AttentionSeq seq{0, 1, row, partial.table(0).data()};
        kernels().attention(partial.args(q_row, alone.data() + row * width, {&seq, 1}), pool());
      }
      for (int64_t chunk : {141, 64, 50, 7}) {
        for (int64_t begin = 0; begin < kLength; begin += chunk) {
          const int64_t end = std::min(begin + chunk, kLength);
          const std::vector<AttentionSeq> seqs = {
              {static_cast<int32_t>(begin), static_cast<int32_t>(end), begin, cache.table(0).data()},
              {kLength, kLength + 50, 0, cache.table(1).data()}};
          kernels().attention(cache.args(q, y.data(), seqs), pool());
        }
        for (int64_t row = 0; row < kLength; ++row)
          ASSERT_TRUE(!is_sampled(row) || same_bits(y.data() + row * width, alone.data() + row * width, width))
              << "row " << row << " chunk " << chunk << " head_dim " << shape.head_dim << " window " << shape.window;
      }
    }
  });
}

TEST_P(AttentionTest, PagesOutsideTheWindowMayBeGone) {
  with_type([&](auto type) {
    using T = typename decltype(type)::type;
    const Shape shape{4, 2, 64, 40};
    Cache<T> cache(shape, {200}, nullptr, pool());
    const auto q = random_values<float>(5 * 256, 3);
    const AttentionSeq seq{0, 5, 195, cache.table(0).data()};
    std::vector<T> before(5 * 256), after(5 * 256);
    kernels().attention(cache.args(q, before.data(), {&seq, 1}), pool());
    for (size_t page = 0; page < (195 - 39) / 16; ++page) cache.table(0)[page] = -1;
    kernels().attention(cache.args(q, after.data(), {&seq, 1}), pool());
    EXPECT_TRUE(same_bits(before.data(), after.data(), 5 * 256));
  });
}

TEST_P(AttentionTest, NoSequencesIsANoOp) {
  kernels().attention(AttentionArgs{}, pool());
  kernels().store_kv(StoreKvArgs{}, pool());
}
LK_INSTANTIATE_KERNEL_TESTS(AttentionTest);

}  // namespace
}  // namespace lk::testing
