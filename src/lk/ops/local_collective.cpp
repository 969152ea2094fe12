// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/local_collective.h"

#include <algorithm>
#include <array>

#include "lk/base/barrier.h"
#include "lk/base/check.h"
#include "lk/kernels/args.h"

namespace lk {
namespace {

using Parts = std::array<const float*, kMaxShards>;

// out[j] = the tree over kRanks parts.
template <int kRanks>
void add_tree(const Parts& parts, float* out, int64_t n) {
  Parts from = parts;  // a copy of its own, which the compiler knows not to change
  for (int64_t j = 0; j < n; ++j) {
    float level[kRanks];
    for (int r = 0; r < kRanks; ++r) level[r] = from[static_cast<size_t>(r)][j];
    for (int step = 1; step < kRanks; step *= 2)
      for (int r = 0; r < kRanks; r += 2 * step) level[r] += level[r + step];
    out[j] = level[0];
  }
}

void add_row(int ranks, const Parts& parts, float* out, int64_t n) {
  switch (ranks) {
    case 1:
      return add_tree<1>(parts, out, n);
    case 2:
      return add_tree<2>(parts, out, n);
    case 4:
      return add_tree<4>(parts, out, n);
    case 8:
      return add_tree<8>(parts, out, n);
    default:
      check_failed(__FILE__, __LINE__, "ranks", "not a power of two");
  }
}

// What the ranks of one group share. Call number i uses posts [i % 2]: a rank that posts for call i + 2 has passed the
// barrier of call i + 1, which all others reach after they have read those of call i.
struct Group {
  explicit Group(int size) : barrier(size), posts{std::vector<Posted>(static_cast<size_t>(size)), {}} {
    posts[1].resize(static_cast<size_t>(size));
  }
  struct alignas(64) Posted {
    std::vector<RankSum> sums;
  };
  Barrier barrier;
  std::array<std::vector<Posted>, 2> posts;  // [call % 2][rank]
};

class LocalCollective final : public Collective {
 public:
  LocalCollective(std::shared_ptr<Group> group, int rank, int size)
      : group_(std::move(group)), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }

 private:
  void do_sum(std::span<const RankSum> sums, ThreadPool& threads) override {
    std::vector<Group::Posted>& posts = group_->posts[static_cast<size_t>(num_sums() % 2)];
    posts[static_cast<size_t>(rank_)].sums.assign(sums.begin(), sums.end());
    group_->barrier.wait();
    for (const Group::Posted& other : posts)
      LK_CHECK(other.sums.size() == sums.size(), "ranks that compute different steps");
    for (size_t i = 0; i < sums.size(); ++i) add(posts, i, threads);
  }

  void add(const std::vector<Group::Posted>& posts, size_t i, ThreadPool& threads) const {
    const RankSum& own = posts[static_cast<size_t>(rank_)].sums[i];
    for (const Group::Posted& other : posts)
      LK_CHECK(other.sums[i].num_rows == own.num_rows && other.sums[i].n == own.n,
               "ranks that compute different steps");
    // Rows go to threads in lots that are worth it.
    constexpr int64_t kLot = 1 << 15;
    const int64_t rows = std::max<int64_t>(1, kLot / std::max<int64_t>(own.n, 1));
    threads.for_each((own.num_rows + rows - 1) / rows, [&](int64_t lot) {
      for (int64_t row = lot * rows; row < std::min(own.num_rows, (lot + 1) * rows); ++row) {
        Parts parts{};
        for (size_t r = 0; r < posts.size(); ++r) parts[r] = posts[r].sums[i].part + row * posts[r].sums[i].part_stride;
        add_row(size_, parts, own.sum + row * own.sum_stride, own.n);
      }
    });
  }

  const std::shared_ptr<Group> group_;
  const int rank_, size_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> make_local_collectives(int size) {
  LK_CHECK(size >= 1 && size <= kMaxShards && (size & (size - 1)) == 0, "{} ranks", size);
  const auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Collective>> ends;
  for (int rank = 0; rank < size; ++rank) ends.push_back(std::make_unique<LocalCollective>(group, rank, size));
  return ends;
}

}  // namespace lk
