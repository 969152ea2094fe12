// SPDX-License-Identifier: Apache-2.0
// Shared by the kernel tests: the tolerance table of docs/design/numerics.md, random arrays, guard words, and the
// parameterisation over every instruction set of the machine x {bf16, f32}.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "lk/base/rng.h"
#include "lk/kernels/cpu.h"

namespace lk::testing {

struct Tolerance {
  double nmse;     // sum (got - want)^2 / sum want^2
  double max_abs;  // largest |got - want|, relative to the largest |want|
};
enum class Op {
  kGemm,
  kLora,
  kAttention,
  kRmsNorm,
  kRope,
  kSwiglu,
  kAttentionBackward,
  kOuter,
  kRowGradient,  // f32, of a row-wise kernel; what is rounded to act is kSwiglu
};
// The table of docs/design/numerics.md.
inline Tolerance tolerance(Op op, DType dtype) {
  const bool f32 = dtype == DType::kF32;
  switch (op) {
    case Op::kGemm:
      return {1e-11, 1e-5};
    case Op::kLora:
      return {1e-11, 1e-5};
    case Op::kAttention:
      return f32 ? Tolerance{1e-11, 1e-5} : Tolerance{1e-5, 6e-3};
    case Op::kRmsNorm:
      return f32 ? Tolerance{1e-12, 1e-6} : Tolerance{1e-5, 6e-3};
    case Op::kRope:
      return {1e-12, 1e-6};
    case Op::kSwiglu:
      return f32 ? Tolerance{1e-12, 1e-6} : Tolerance{1e-5, 6e-3};
    case Op::kAttentionBackward:
      return f32 ? Tolerance{1e-11, 1e-5} : Tolerance{3e-5, 1e-2};
    case Op::kOuter:
      return {1e-11, 1e-5};
    case Op::kRowGradient:
      return {1e-12, 2e-6};
  }
  return {0, 0};
}

inline std::vector<float> as_floats(const std::vector<float>& values) { return values; }
inline std::vector<float> as_floats(const std::vector<bf16>& values) {
  std::vector<float> out;
  for (bf16 value : values) out.push_back(static_cast<float>(value));
  return out;
}

inline void expect_close(const std::vector<float>& got, const std::vector<float>& want, Tolerance limit,
                         const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  double error = 0, norm = 0, worst = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = static_cast<double>(got[i]), w = static_cast<double>(want[i]);
    ASSERT_FALSE(std::isnan(g)) << what << " at " << i;
    error += (g - w) * (g - w);
    norm += w * w;
    worst = std::max(worst, std::fabs(g - w));
    largest = std::max(largest, std::fabs(w));
  }
  EXPECT_LE(error, limit.nmse * norm + 1e-30) << what;
  EXPECT_LE(worst, limit.max_abs * largest + 1e-30) << what;
}

// A packed matrix of the same shape in scattered pages of a pool: pages of `page_bytes` in a shuffled order, the first
// panel at byte `begin` of them. The pages between stay as they are, so that a store to one is seen.
class PagedWeight {
 public:
  PagedWeight(WeightFormat format, int64_t n, int64_t k, int64_t page_bytes, int64_t begin, uint64_t seed) {
    const int64_t used = (begin + packed_weight_bytes(format, n, k) + page_bytes - 1) / page_bytes;
    pool_.assign(static_cast<size_t>(2 * used * page_bytes / 8), kUntouched);
    for (int64_t i = 0; i < used; ++i) pages_.push_back(static_cast<int32_t>(2 * i));
    Rng rng(seed);
    for (size_t i = pages_.size(); i > 1; --i) std::swap(pages_[i - 1], pages_[rng.below(i)]);
    weight_ = {format, n, k, pool_.data(), pages_.data(), page_bytes, begin};
  }
  const PackedWeight& get() const { return weight_; }
  void expect_untouched_between() const {
    const int64_t words = weight_.page_bytes / 8;
    for (size_t i = 0; i < pool_.size(); ++i) {
      if (static_cast<int64_t>(i) / words % 2 == 1) {
        ASSERT_EQ(pool_[i], kUntouched) << "a page of somebody else";
      }
    }
  }

 private:
  static constexpr uint64_t kUntouched = 0x7ff4'a5a5'7fc1'7fc1;  // NaN as bf16 and as f32
  std::vector<uint64_t> pool_;
  std::vector<int32_t> pages_;
  PackedWeight weight_;
};

// n values between two runs of guard words, so that a store outside [0, n) is seen.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(n), values_(static_cast<size_t>(n) + 2 * kGuard) {
    std::memset(static_cast<void*>(values_.data()), 0xa5, values_.size() * sizeof(T));
  }
  T* data() { return values_.data() + kGuard; }
  std::vector<T> values() const { return {values_.begin() + kGuard, values_.end() - kGuard}; }
  void fill(T value) { std::fill(data(), data() + n_, value); }
  void expect_intact(const std::string& what) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values_.data());
    const size_t guard = kGuard * sizeof(T), end = values_.size() * sizeof(T);
    for (size_t i = 0; i < guard; ++i) {
      ASSERT_EQ(bytes[i], 0xa5) << what << ": write before the output";
      ASSERT_EQ(bytes[end - 1 - i], 0xa5) << what << ": write past the output";
    }
  }

 private:
  static constexpr size_t kGuard = 64;
  int64_t n_;
  std::vector<T> values_;
};

template <class T>
std::vector<T> random_values(int64_t n, uint64_t seed, double scale = 1.0) {
  std::vector<T> values;
  values.reserve(static_cast<size_t>(n));
  Rng rng(seed);
  for (int64_t i = 0; i < n; ++i) values.push_back(T(static_cast<float>((rng.uniform() * 2 - 1) * scale)));
  return values;
}

template <class T>
bool same_bits(const T* a, const T* b, int64_t n) {
  return n == 0 || std::memcmp(a, b, static_cast<size_t>(n) * sizeof(T)) == 0;
}

// {instruction set, act dtype}
class KernelTest : public ::testing::TestWithParam<std::tuple<CpuIsa, DType>> {
 protected:
  const CpuKernels& kernels() const { return cpu_kernels(std::get<0>(GetParam())); }
  DType act() const { return std::get<1>(GetParam()); }
  ThreadPool& pool() {
    static ThreadPool pool(3);  // more threads than one, odd
    return pool;
  }
};
inline std::string param_name(const ::testing::TestParamInfo<std::tuple<CpuIsa, DType>>& info) {
  return std::string(to_string(std::get<0>(info.param))) + "_" + to_string(std::get<1>(info.param));
}
#define LK_INSTANTIATE_KERNEL_TESTS(Suite)                                                                         \
  INSTANTIATE_TEST_SUITE_P(                                                                                        \
      Cpu, Suite,                                                                                                  \
      ::testing::Combine(::testing::ValuesIn(supported_cpu_isas()), ::testing::Values(DType::kBF16, DType::kF32)), \
      ::lk::testing::param_name)

}  // namespace lk::testing
