// SPDX-License-Identifier: Apache-2.0
// Sampling: every instruction set draws what the definition draws, and the definition draws with the right
// probabilities.
#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "kernels/kernel_test_util.h"
#include "lk/base/logprobs.h"

namespace lk::testing {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class SampleTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  const SampleKernels& kernels() const { return cpu_kernels(GetParam()).sample; }
  // `args.logits` need not be set; the row itself is not changed.
  SampleResult run(SampleArgs args, std::vector<float> row) {
    args.logits = row.data();
    args.vocab_size = static_cast<int64_t>(row.size());
    SampleResult result;
    sample_row(kernels(), args, scratch_, &result);
    return result;
  }
  static SampleResult define(SampleArgs args, std::vector<float> row) {
    args.logits = row.data();
    args.vocab_size = static_cast<int64_t>(row.size());
    SampleResult result;
    ref::sample(args, &result);
    return result;
  }
  SampleScratch scratch_;
};
INSTANTIATE_TEST_SUITE_P(Cpu, SampleTest, ::testing::ValuesIn(supported_cpu_isas()),
                         [](const auto& info) { return std::string(to_string(info.param)); });

TEST_P(SampleTest, RowPasses) {
  for (int64_t n : {1, 2, 16, 31, 33, 100, 4097, 32000}) {
    auto x = random_values<float>(n, 9, 20.0);
    RowStats stats = kernels().row_stats(x.data(), n);
    EXPECT_TRUE(stats.finite);
    EXPECT_EQ(stats.max, *std::max_element(x.begin(), x.end()));
    EXPECT_EQ(stats.min, *std::min_element(x.begin(), x.end()));
    if (n > 2) x[1] = kNever;
    const float max = kernels().row_stats(x.data(), n).max;
    EXPECT_EQ(max, *std::max_element(x.begin(), x.end()));
    double sum = 0;
    for (float value : x) sum += std::exp(static_cast<double>(value) - static_cast<double>(max));
    EXPECT_NEAR(kernels().log_sum_exp(x.data(), n, max), static_cast<double>(max) + std::log(sum), 4e-6) << n;
    for (float bound : {-5.0f, x[0], 30.0f})
      EXPECT_EQ(kernels().count_above(x.data(), n, bound),
                std::count_if(x.begin(), x.end(), [&](float value) { return value > bound; }));
    for (float bad : {kNaN, -kNever, kNever}) {
      for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
        auto broken = random_values<float>(n, 9, 20.0);
        broken[static_cast<size_t>(at)] = bad;
        EXPECT_FALSE(kernels().row_stats(broken.data(), n).finite) << bad << " at " << at << " of " << n;
      }
    }
  }
}

TEST_P(SampleTest, MaskAndCollect) {
  for (int64_t n : {1, 15, 63, 64, 65, 1000}) {
    const auto x = random_values<float>(n, 4);
    std::vector<uint64_t> bits(static_cast<size_t>((n + 63) / 64));
    Rng rng(static_cast<uint64_t>(n));
    for (uint64_t& word : bits) word = rng.next();
    Guarded<float> row(n);
    std::copy(x.begin(), x.end(), row.data());
    kernels().mask_row(row.data(), n, bits.data());
    row.expect_intact("mask");
    for (int64_t i = 0; i < n; ++i)
      ASSERT_EQ(row.data()[i],
                (bits[static_cast<size_t>(i / 64)] >> (i % 64) & 1) != 0 ? x[static_cast<size_t>(i)] : kNever);

    Guarded<float> logits(n + 16);
    Guarded<int32_t> indices(n + 16);
    for (int64_t capacity : {int64_t{16}, n + 16}) {
      std::vector<int32_t> got, want;
      for (int64_t begin = 0; begin < n;) {
        TokenList list{logits.data(), indices.data(), 0, capacity};
        begin = kernels().collect_between(x.data(), begin, n, -0.25f, 0.5f, &list);
        for (int64_t i = 0; i < list.size; ++i) {
          got.push_back(list.indices[i]);
          ASSERT_EQ(list.logits[i], x[static_cast<size_t>(list.indices[i])]);
        }
      }
      for (int32_t i = 0; i < n; ++i)
        if (x[static_cast<size_t>(i)] >= -0.25f && x[static_cast<size_t>(i)] <= 0.5f) want.push_back(i);
      EXPECT_EQ(got, want);
    }
    logits.expect_intact("collected logits");
    indices.expect_intact("collected indices");
  }
}

// Rows of many shapes: normal, peaked, all equal, nearly equal, one far above equals, ties, mostly «never», large
// values, wide, a power law in random order.
std::vector<float> make_row(int64_t n, int kind, Rng& rng) {
  std::vector<float> row(static_cast<size_t>(n));
  const auto fill = [&](auto value) {
    for (float& x : row) x = static_cast<float>(value());
  };
  float& one = row[rng.below(static_cast<uint64_t>(n))];
  switch (kind) {
    case 0:
      fill([&] { return rng.normal(); });
      break;
    case 1:
      fill([&] { return 3 * rng.normal(); });
      one = 14;
      break;
    case 2:
      fill([&] { return 0.25; });
      break;
    case 3:
      fill([&] { return 1e-4 * rng.normal(); });
      break;
    case 4:
      fill([&] { return 1e-4 * rng.normal(); });
      one = 10;
      break;
    case 5:
      fill([&] { return 0.5 * static_cast<double>(rng.below(20)); });
      break;
    case 6:
      fill([&] { return rng.below(3) != 0 ? static_cast<double>(kNever) : 2 * rng.normal(); });
      one = 1;
      break;
    case 7:
      fill([&] { return 1e6 + 100 * rng.normal(); });
      break;
    case 8:
      fill([&] { return -30 + 1e3 * rng.normal(); });
      break;
    case 9:
      fill([&] { return -1.1 * std::log(1.0 + static_cast<double>(rng.below(static_cast<uint64_t>(n)))); });
      break;
    default:
      fill([&] { return 1e37 * rng.normal(); });
  }
  return row;
}
constexpr int kNumKinds = 11;

TEST_P(SampleTest, DrawsWhatTheDefinitionDraws) {
  for (const auto& [n, rounds] :
       std::vector<std::pair<int64_t, int>>{{1, 20}, {7, 200}, {1000, 60}, {32000, 6}, {151936, 1}}) {
    for (int kind = 0; kind < kNumKinds; ++kind) {
      Rng rng(static_cast<uint64_t>(n * 100 + kind));
      for (int round = 0; round < rounds; ++round) {
        const std::vector<float> row = make_row(n, kind, rng);
        const auto one_of = [&](auto... values) {
          const std::array choices{static_cast<double>(values)...};
          return choices[rng.below(choices.size())];
        };
        SampleArgs args;
        args.temperature = one_of(0, 0.7, 0.7, 1, 1, 2, 0.01, 1e-5, 100);
        args.top_k = static_cast<int64_t>(one_of(0, 0, 0, 1, 5, 50, n / 2, n, n + 3));
        args.top_p = one_of(1, 1, 0.9, 0.5, 1e-6, 0.999);
        args.min_p = one_of(0, 0, 0, 0.05, 1e-3);
        args.uniform = rng.below(20) == 0 ? one_of(0, 1 - 0x1p-53) : rng.uniform();
        std::vector<std::pair<int32_t, int32_t>> seen;
        std::vector<std::pair<int32_t, float>> bias;
        if (rng.below(3) == 0) {
          for (int32_t token = 0; token < std::min<int64_t>(n, 30); token += 1 + static_cast<int32_t>(rng.below(4)))
            seen.emplace_back(token, rng.below(4));
          args.repetition_penalty = one_of(1, 1.3);
          args.presence_penalty = one_of(0, 0.5);
          args.frequency_penalty = one_of(0, 0.25, -0.5);
          if (rng.below(2) == 0) bias = {{0, 3.0f}, {static_cast<int32_t>(n / 2), -100.0f}, {-1, 5.0f}};
        }
        args.seen = seen;
        args.logit_bias = bias;
        std::vector<uint64_t> allowed(static_cast<size_t>((n + 63) / 64));
        for (uint64_t& word : allowed) word = rng.next();
        if (rng.below(3) == 0) args.allowed = allowed.data();
        args.num_logprobs = static_cast<int>(rng.below(5)) + kLogprobsOfBiased;
        const SampleResult want = define(args, row), got = run(args, row);
        const std::string what =
            fmt::format("{} kind {} round {}: temperature {} top_k {} top_p {} min_p {} u {}", n, kind, round,
                        args.temperature, args.top_k, args.top_p, args.min_p, args.uniform);
        ASSERT_EQ(got.fault, want.fault) << what;
        if (want.fault != SampleFault::kNone) continue;
        ASSERT_EQ(got.token, want.token) << what;
        ASSERT_EQ(got.rank, want.rank) << what;
        // logit - log_sum, both f32: off by their last bits.
        double largest = 1;
        for (float logit : row)
          if (std::isfinite(logit)) largest = std::max(largest, static_cast<double>(std::fabs(logit)));
        ASSERT_NEAR(got.logprob, want.logprob, 4e-6 + 2.5e-7 * largest) << what;
        ASSERT_EQ(got.top.size(), want.top.size()) << what;
        for (size_t i = 0; i < want.top.size(); ++i) ASSERT_EQ(got.top[i].first, want.top[i].first) << what;
      }
    }
  }
}

// Random numbers that fall on the very edge between two tokens, or a float beside it.
TEST_P(SampleTest, EdgesBetweenTokensAreTheDefinitions) {
  for (int64_t n : {8, 1000, 3000}) {
    const std::vector<float> row(static_cast<size_t>(n), 1.5f);
    for (int64_t i = 0; i < n; i += 1 + n / 200) {
      const double edge = static_cast<double>(i) / static_cast<double>(n);
      for (double u : {std::nextafter(edge, -1), edge, std::nextafter(edge, 1)}) {
        for (double top_p : {1.0, 0.5, edge, std::nextafter(edge, 1)}) {
          if (u < 0 || u >= 1 || top_p <= 0) continue;
          SampleArgs args{.uniform = u, .temperature = 0.5, .top_p = top_p};
          ASSERT_EQ(run(args, row).token, define(args, row).token) << n << " " << i << " " << top_p;
        }
      }
    }
  }
}

TEST_P(SampleTest, TiesGoToTheLowestId) {
  const std::vector<float> row = {1, 3, 2, 3, 3, 0};
  EXPECT_EQ(run({.temperature = 0}, row).token, 1);
  EXPECT_EQ(run({.uniform = 0.99, .temperature = 1, .top_k = 1}, row).token, 1);
  EXPECT_EQ(run({.uniform = 0.99, .temperature = 1, .top_k = 2}, row).token, 3);
  EXPECT_EQ(run({.uniform = 0.99, .temperature = 1, .top_p = 1e-9}, row).token, 1);
  EXPECT_EQ(run({.uniform = 0.99, .temperature = 1, .min_p = 1}, row).token, 4);
  const SampleResult scored = run({.temperature = 0, .num_logprobs = 3}, row);
  EXPECT_EQ(scored.top[0].first, 1);
  EXPECT_EQ(scored.top[1].first, 3);
  EXPECT_EQ(scored.top[2].first, 4);
  EXPECT_EQ(run({.given = 4, .num_logprobs = 0}, row).rank, 1) << "equals share a rank";
  // Far apart in a large row, in the last, ragged vector.
  std::vector<float> large(151937, -1.0f);
  large[140000] = large[151936] = 2;
  EXPECT_EQ(run({.temperature = 0}, large).token, 140000);
  EXPECT_EQ(run({.uniform = 0.99, .temperature = 0.1, .top_p = 0.4}, large).token, 140000);
}

TEST_P(SampleTest, FaultsAreToldAndNeverToken) {
  for (int64_t n : {1, 7, 1000}) {
    for (double temperature : {0.0, 1.0}) {
      for (float bad : {kNaN, -kNever}) {
        std::vector<float> row = random_values<float>(n, 3);
        row[static_cast<size_t>(n / 2)] = bad;
        EXPECT_EQ(run({.temperature = temperature}, row).fault, SampleFault::kNotFinite);
        EXPECT_EQ(run({.given = 0, .num_logprobs = 2}, row).fault, SampleFault::kNotFinite) << "a prompt token";
      }
      const std::vector<float> none(static_cast<size_t>(n), kNever), nan(static_cast<size_t>(n), kNaN);
      EXPECT_EQ(run({.temperature = temperature}, none).fault, SampleFault::kNotFinite);
      EXPECT_EQ(run({.temperature = temperature}, nan).fault, SampleFault::kNotFinite);
      const std::vector<uint64_t> nothing(static_cast<size_t>((n + 63) / 64));
      EXPECT_EQ(run({.temperature = temperature, .allowed = nothing.data()}, random_values<float>(n, 3)).fault,
                SampleFault::kNotAllowed);
    }
  }
  EXPECT_EQ(run({.temperature = 1, .num_logprobs = 0}, {kNever, 2, kNever}).token, 1) << "some may be never";
}

// What a request may ask for, and more, never makes a finite row look like one of damaged weights.
TEST_P(SampleTest, NoFieldOfARequestMakesAFiniteRowFaulty) {
  for (int64_t n : {1, 7, 1000}) {
    for (float size : {1e-40f, 1.0f, 3e38f}) {
      std::vector<float> row = random_values<float>(n, 3);
      for (float& logit : row) logit *= size;
      row[0] = size;
      row[static_cast<size_t>(n / 2)] = -size;
      if (n > 2) row[2] = kNever;
      const std::vector<std::pair<int32_t, int32_t>> seen = {{0, 1 << 30}, {static_cast<int32_t>(n / 2), 1}};
      for (double temperature : {0.0, 5e-324, 1e-30, 1.0, 100.0})
        for (double repetition : {5e-324, 1e-31, 0.01, 1.0, 100.0})
          for (double penalty : {-2.0, 0.0, 2.0})
            for (float bias : {-3e38f, -100.0f, 0.0f, 100.0f, 3e38f})
              for (double part : {5e-324, 0.5, 1.0}) {
                const std::vector<std::pair<int32_t, float>> biases = {{0, bias}, {static_cast<int32_t>(n / 2), -bias}};
                const SampleArgs args{.uniform = 0.999,
                                      .temperature = temperature,
                                      .top_k = part == 0.5 ? 1 : 0,
                                      .top_p = part,
                                      .min_p = part == 1 ? 0 : part,
                                      .repetition_penalty = repetition,
                                      .presence_penalty = penalty,
                                      .frequency_penalty = penalty,
                                      .seen = seen,
                                      .logit_bias = biases,
                                      .num_logprobs = 0};
                const SampleResult got = run(args, row), want = define(args, row);
                ASSERT_EQ(got.fault, SampleFault::kNone) << size << " " << repetition << " " << penalty << " " << bias;
                ASSERT_EQ(got.token, want.token) << temperature << " " << repetition << " " << bias << " " << part;
                ASSERT_NE(row[static_cast<size_t>(got.token)], kNever);
              }
    }
  }
}

TEST_P(SampleTest, LogprobsAreThoseOfTheRowAsGiven) {
  const auto row = random_values<float>(500, 8, 5.0);
  const std::vector<std::pair<int32_t, float>> bias = {{17, 1000.0f}};
  const std::vector<uint64_t> allowed = {uint64_t{1} << 17 | 1, 0, 0, 0, 0, 0, 0, 0};
  const SampleResult drawn =
      run({.uniform = 0.5, .temperature = 1, .logit_bias = bias, .allowed = allowed.data(), .num_logprobs = 4}, row);
  const SampleResult given = run({.given = 17, .num_logprobs = 4}, row);
  EXPECT_EQ(drawn.token, 17);
  EXPECT_EQ(drawn.logprob, given.logprob);
  EXPECT_EQ(drawn.rank, given.rank);
  EXPECT_EQ(drawn.top, given.top);
}

// --- Distributions

struct Setting {
  std::string name;
  SampleArgs args;
  std::vector<std::pair<int32_t, int32_t>> seen = {};
  std::vector<std::pair<int32_t, float>> bias = {};
  std::vector<uint64_t> allowed = {};
};

std::vector<Setting> settings() {
  const std::vector<std::pair<int32_t, int32_t>> seen = {{3, 0}, {5, 1}, {8, 4}, {13, 2}};
  return {
      {"plain", {.temperature = 1}},
      {"cool", {.temperature = 0.6}},
      {"hot", {.temperature = 3}},
      {"very hot", {.temperature = 1e6}},
      {"top-k", {.temperature = 1, .top_k = 9}},
      {"top-k of all", {.temperature = 1, .top_k = 40}},
      {"top-p", {.temperature = 1, .top_p = 0.8}},
      {"min-p", {.temperature = 1, .min_p = 0.1}},
      {"chat", {.temperature = 0.7, .top_p = 0.9}},
      {"all of them", {.temperature = 1.2, .top_k = 12, .top_p = 0.85, .min_p = 0.05}},
      {"penalties",
       {.temperature = 1, .repetition_penalty = 1.4, .presence_penalty = 0.5, .frequency_penalty = 0.3},
       seen},
      {"penalties, bias, top-p",
       {.temperature = 0.9, .top_p = 0.95, .repetition_penalty = 0.8, .presence_penalty = -0.4},
       seen,
       {{2, 2.0f}, {30, -50.0f}}},
      {"mask", {.temperature = 1, .top_p = 0.9}, {}, {}, {0x5a5a5a5a5aull}},
  };
}

// Exact probabilities, by the textbook.
std::vector<double> probabilities(const Setting& s, const std::vector<float>& row) {
  std::vector<double> logit(row.begin(), row.end());
  for (const auto& [token, bias] : s.bias) logit[static_cast<size_t>(token)] += static_cast<double>(bias);
  for (const auto& [token, count] : s.seen) {
    double& x = logit[static_cast<size_t>(token)];
    x = x > 0 ? x / s.args.repetition_penalty : x * s.args.repetition_penalty;
    x -= (count > 0 ? s.args.presence_penalty : 0) + count * s.args.frequency_penalty;
  }
  std::vector<double> p(row.size());
  const double max = *std::max_element(logit.begin(), logit.end());
  for (size_t t = 0; t < p.size(); ++t)
    p[t] = !s.allowed.empty() && (s.allowed[t / 64] >> (t % 64) & 1) == 0
               ? 0
               : std::exp((logit[t] - max) / s.args.temperature);
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  const auto normalise = [&] {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= total;
  };
  if (s.args.top_k > 0)
    for (size_t i = static_cast<size_t>(s.args.top_k); i < order.size(); ++i) p[order[i]] = 0;
  normalise();
  double before = 0;
  const double likeliest = p[order[0]];
  for (size_t t : order) {
    const double own = p[t];
    if (before >= s.args.top_p || own < s.args.min_p * likeliest) p[t] = 0;
    before += own;
  }
  normalise();
  return p;
}

TEST_P(SampleTest, DistributionsAreExact) {
  Rng rng(77);
  std::vector<float> row(40);
  for (float& x : row) x = static_cast<float>(1.5 * rng.normal());
  constexpr int kDraws = 40000;
  for (Setting& s : settings()) {
    s.args.seen = s.seen;
    s.args.logit_bias = s.bias;
    s.args.allowed = s.allowed.empty() ? nullptr : s.allowed.data();
    const std::vector<double> p = probabilities(s, row);
    std::vector<int> drawn(row.size());
    for (int i = 0; i < kDraws; ++i) {
      s.args.uniform = random_uniform(5, static_cast<uint64_t>(i));
      const SampleResult result = run(s.args, row);
      ASSERT_EQ(result.fault, SampleFault::kNone);
      ++drawn[static_cast<size_t>(result.token)];
    }
    double chi_square = 0;
    int cells = 0;
    for (size_t t = 0; t < p.size(); ++t) {
      if (p[t] == 0) {
        EXPECT_EQ(drawn[t], 0) << s.name << ": token " << t << " is excluded";
        continue;
      }
      ++cells;
      const double expected = p[t] * kDraws;
      chi_square += (drawn[t] - expected) * (drawn[t] - expected) / expected;
    }
    // Four standard deviations above the mean of chi-square with cells - 1 degrees of freedom.
    EXPECT_LT(chi_square, cells - 1 + 4 * std::sqrt(2.0 * cells)) << s.name << ", " << cells << " tokens";
  }
}

}  // namespace
}  // namespace lk::testing
