// SPDX-License-Identifier: Apache-2.0
// Adapter arithmetic against PEFT's add_weighted_adapter (tools/make_combine_fixtures.py) and against itself.
#include "lk/lora_tools/combine.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "lk/base/file.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/delta_svd.h"
#include "lk/lora_tools/save.h"
#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::to_floats;

constexpr const char* kRoot = "tests/lora_tools/fixtures/combine";
constexpr const char* kBase = "tests/lora/fixtures/base";

ModelConfig base_config() { return load_model_config(kBase).value(); }

std::shared_ptr<const Adapter> load(const std::string& name) {
  return load_adapter(name, join_path(kRoot, name), base_config(), nullptr).value();
}

// scaling B A by module, f64.
using Changes = std::map<std::string, std::vector<double>>;
std::vector<double> dense(const TensorView& a, const TensorView& b, double scaling) {
  const std::vector<float> x = to_floats(a), y = to_floats(b);
  const auto rank = static_cast<size_t>(a.dim(0)), in = static_cast<size_t>(a.dim(1)),
             out = static_cast<size_t>(b.dim(0));
  std::vector<double> product(out * in);
  for (size_t o = 0; o < out; ++o)
    for (size_t k = 0; k < rank; ++k)
      for (size_t i = 0; i < in; ++i)
        product[o * in + i] += scaling * static_cast<double>(y[o * rank + k]) * static_cast<double>(x[k * in + i]);
  return product;
}
Changes changes_of(const Adapter& adapter) {
  Changes changes;
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer)
    for (int proj = 0; proj < kNumProjs; ++proj)
      if (const auto& delta = adapter.layers[layer][static_cast<size_t>(proj)])
        changes[module_path(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)))] =
            dense(delta->a, delta->b, delta->scaling);
  if (adapter.lm_head) changes["lm_head"] = dense(adapter.lm_head->a, adapter.lm_head->b, adapter.lm_head->scaling);
  if (adapter.embedding)
    changes["embed"] = dense(adapter.embedding->a, adapter.embedding->b, adapter.embedding->scaling);
  return changes;
}
double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}
double relative_difference(const std::vector<double>& x, const std::vector<double>& y) {
  EXPECT_EQ(x.size(), y.size());
  std::vector<double> difference(x.size());
  for (size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - y[i];
  return norm(difference) / std::max(norm(y), 1e-30);
}
Changes weighted_sum(const std::vector<WeightedAdapter>& parts) {
  Changes sum;
  for (const WeightedAdapter& part : parts)
    for (const auto& [module, change] : changes_of(*part.adapter)) {
      std::vector<double>& to = sum[module];
      to.resize(change.size());
      for (size_t i = 0; i < change.size(); ++i) to[i] += part.weight * change[i];
    }
  return sum;
}

std::vector<WeightedAdapter> two() { return {{load("first"), 0.75}, {load("second"), -1.25}}; }
std::vector<WeightedAdapter> all() { return {{load("first"), 1}, {load("second"), 0.5}, {load("third"), 2}}; }

struct Case {
  const char* name;  // of the fixture
  std::vector<WeightedAdapter> (*parts)();
  CombineOptions options;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

using M = CombineMethod;
std::vector<Case> cases() {
  constexpr uint64_t kSeed = 5;
  return {
      {"cat", all, {.method = M::kCat}},
      {"svd_3", all, {.method = M::kSvd, .rank = 3}},
      {"linear", two, {.method = M::kLinear, .on_factors = true}},
      {"ties", two, {.method = M::kTies, .on_factors = true, .density = 0.5}},
      {"ties_frequency",
       [] {
         return std::vector<WeightedAdapter>{{load("first"), 1}, {load("second"), 2}};
       },
       {.method = M::kTies, .on_factors = true, .density = 0.7, .election = SignElection::kFrequency}},
      {"dare_linear", two, {.method = M::kDareLinear, .on_factors = true, .density = 0.6, .seed = kSeed}},
      {"dare_ties", two, {.method = M::kDareTies, .on_factors = true, .density = 0.6, .seed = kSeed}},
      {"magnitude_prune", two, {.method = M::kMagnitudePrune, .on_factors = true, .density = 0.4}},
      {"ties_svd_4", all, {.method = M::kTies, .rank = 4, .density = 0.5}},
      {"dare_linear_svd_4", all, {.method = M::kDareLinear, .rank = 4, .density = 0.5, .seed = kSeed}},
      {"dare_ties_svd_4", all, {.method = M::kDareTies, .rank = 4, .density = 0.5, .seed = kSeed}},
      {"magnitude_prune_svd_4", all, {.method = M::kMagnitudePrune, .rank = 4, .density = 0.3}},
  };
}

class CombinePeft : public ::testing::TestWithParam<Case> {};

TEST_P(CombinePeft, GivesTheChangesOfAddWeightedAdapter) {
  const auto combined = combine_adapters(GetParam().parts(), GetParam().options);
  ASSERT_TRUE(combined.ok()) << combined.status().message();
  const auto expected = TensorStore::open_file(join_path(kRoot, "expected.safetensors")).value();
  const Changes changes = changes_of(*combined->adapter);
  size_t found = 0;
  for (const auto& [name, view] : expected->tensors()) {
    const std::string prefix = std::string(GetParam().name) + "/";
    if (!name.starts_with(prefix)) continue;
    ++found;
    const std::vector<float> values = to_floats(view);
    const auto change = changes.find(name.substr(prefix.size()));
    ASSERT_NE(change, changes.end()) << name;
    EXPECT_LE(relative_difference(change->second, {values.begin(), values.end()}), 2e-5) << name;
  }
  EXPECT_EQ(found, changes.size());
  EXPECT_GT(found, 0u);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, CombinePeft, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return std::string(info.param.name); });

// PEFT keeps use_rslora of the first part beside alpha = r, so its sum is sqrt(r) times too large. Ours is the sum.
TEST(Combine, RslorasScalingIsNotAppliedTwiceAsInPeft) {
  const std::vector<WeightedAdapter> parts{{load("third"), 1}, {load("first"), 1}};
  const auto combined = combine_adapters(parts, {.method = M::kCat}).value();
  const auto expected = TensorStore::open_file(join_path(kRoot, "expected.safetensors")).value();
  const Changes want = weighted_sum(parts);
  TempDir out;
  ASSERT_TRUE(save_new_adapter(*combined.adapter, base_config(), out.path()).ok());
  const auto written = load_adapter("w", out.path(), base_config(), nullptr).value();
  for (const auto& [module, change] : changes_of(*written)) {
    EXPECT_LE(relative_difference(change, want.at(module)), 1e-6) << module;
    const std::vector<float> theirs = to_floats(*expected->find("rslora_first_cat/" + module));
    std::vector<double> scaled = change;
    for (double& v : scaled) v *= std::sqrt(6.0);
    EXPECT_LE(relative_difference({theirs.begin(), theirs.end()}, scaled), 1e-5) << module;
  }
}

TEST(Combine, CatIsTheExactSumAndSvdOfFullRankIsToo) {
  const Changes want = weighted_sum(all());
  for (const CombineOptions& options : {CombineOptions{.method = M::kCat}, {.method = M::kSvd, .rank = 10}}) {
    const auto combined = combine_adapters(all(), options).value();
    EXPECT_LT(combined.report.dropped, 1e-12 * std::max(combined.report.energy, 1.0));
    for (const auto& [module, change] : changes_of(*combined.adapter))
      EXPECT_LE(relative_difference(change, want.at(module)), 1e-6) << module;
  }
}

// What is said to be dropped is what is missing, and no adapter of that rank is closer (Eckart-Young: the dropped
// energy is that of the smallest singular values).
TEST(Combine, TheDroppedEnergyIsWhatIsMissing) {
  const Changes want = weighted_sum(all());
  for (const int64_t rank : {1, 2, 3, 7}) {
    const auto combined = combine_adapters(all(), {.method = M::kSvd, .rank = rank}).value();
    const Changes got = changes_of(*combined.adapter);
    double dropped = 0, energy = 0;
    for (const auto& module : combined.report.modules) {
      const double missing = relative_difference(got.at(module.path), want.at(module.path));
      EXPECT_NEAR(missing, CombineReport::relative_error(module.energy, module.dropped), 1e-5) << module.path;
      dropped += module.dropped;
      energy += module.energy;
    }
    EXPECT_DOUBLE_EQ(dropped, combined.report.dropped);
    EXPECT_DOUBLE_EQ(energy, combined.report.energy);
  }
}

TEST(Combine, OneAdapterIsTruncatedAndAnUncutOneStaysWhatItWas) {
  const std::vector<WeightedAdapter> one{{load("first"), 1}};
  const Changes want = changes_of(*one[0].adapter);
  const auto same = combine_adapters(one, {.method = M::kSvd}).value();
  for (const auto& [module, change] : changes_of(*same.adapter))
    EXPECT_LE(relative_difference(change, want.at(module)), 1e-6);
  const auto half = combine_adapters(one, {.method = M::kSvd, .rank = 2}).value();
  EXPECT_EQ(half.adapter->max_rank, 2);
  EXPECT_GT(half.report.dropped, 0);
  EXPECT_THAT(render_combine_report(half.report), HasSubstr("rank 2\ndropped "));
}

TEST(Combine, PissaBecomesPlainInFewerRanks) {
  const auto store = TensorStore::open_model(kBase).value();
  const auto pissa = load_adapter("pissa", "tests/lora/fixtures/pissa", base_config(), store.get()).value();
  const std::vector<WeightedAdapter> one{{pissa, 1}};
  const auto combined = combine_adapters(one, {.method = M::kSvd}).value();  // 2 r directions are all there are
  TempDir out;
  ASSERT_TRUE(save_new_adapter(*combined.adapter, base_config(), out.path()).ok());
  const auto plain = load_adapter("plain", out.path(), base_config(), nullptr).value();
  EXPECT_EQ(plain->config.base_change, BaseChange::kNone);
  const Changes want = changes_of(*pissa);
  for (const auto& [module, change] : changes_of(*plain)) EXPECT_LE(relative_difference(change, want.at(module)), 1e-5);
}

TEST(Combine, BiasesAndVocabulariesAddUp) {
  const std::string golden = "tests/golden/fixtures/";
  const ModelConfig config = load_model_config(golden + "models/llama_mha").value();
  const auto golden_adapter = [&](const std::string& name) {
    return load_adapter(name, golden + "adapters/llama_mha__" + name, config, nullptr).value();
  };
  const std::vector<WeightedAdapter> parts{{golden_adapter("lora_bias"), 2}, {golden_adapter("embed_head"), -1}};
  const Changes want = weighted_sum(parts);
  const auto combined = combine_adapters(parts, {.method = M::kSvd, .rank = 64}).value();
  const Changes got = changes_of(*combined.adapter);
  ASSERT_EQ(got.size(), want.size());
  EXPECT_TRUE(got.contains("embed") && got.contains("lm_head"));
  for (const auto& [module, change] : want) EXPECT_LE(relative_difference(got.at(module), change), 1e-5) << module;
  bool biased = false;
  for (size_t proj = 0; proj < kNumProjs; ++proj) {
    const auto& before = parts[0].adapter->layers[0][proj];
    if (!before || !before->bias.defined()) continue;
    biased = true;
    const std::vector<float> was = to_floats(before->bias), is = to_floats(combined.adapter->layers[0][proj]->bias);
    for (size_t i = 0; i < was.size(); ++i) EXPECT_NEAR(is[i], 2 * before->scaling * was[i], 1e-6);
  }
  EXPECT_TRUE(biased);
  EXPECT_EQ(combine_adapters(parts, {.method = M::kTies, .density = 0.5}).status().code(), StatusCode::kUnsupported);
}

TEST(Combine, RefusesWhatHasNoMeaning) {
  const auto refused = [](const std::vector<WeightedAdapter>& parts, const CombineOptions& options, const char* part) {
    const auto combined = combine_adapters(parts, options);
    ASSERT_FALSE(combined.ok()) << part;
    EXPECT_THAT(combined.status().message(), HasSubstr(part));
  };
  refused(two(), {.method = M::kLinear}, "--peft-compatible");
  refused(two(), {.method = M::kCat, .on_factors = true}, "the same in PEFT");
  refused(two(), {.method = M::kTies}, "--density");
  refused(two(), {.method = M::kTies, .density = 1.5}, "--density");
  refused(two(), {.method = M::kCat, .density = 0.5}, "prunes nothing");
  refused(two(), {.method = M::kTies, .on_factors = true, .rank = 2, .density = 0.5}, "--rank");
  refused(two(), {.method = M::kSvd, .rank = 513}, "out of range");
  refused(all(), {.method = M::kLinear, .on_factors = true}, "ranks 4 and 2");
  refused({{load("first"), std::nan("")}}, {}, "not finite");
  refused({{load("first"), 1e38}}, {}, "overflow");
  const std::vector<WeightedAdapter> many(129, WeightedAdapter{load("first"), 1});
  refused(many, {}, "at most 512");
  EXPECT_TRUE(combine_adapters(many, {.method = M::kSvd}).ok());
  // DoRA is refused by compose.h, whose tests have all kinds.
  const auto store = TensorStore::open_model(kBase).value();
  const auto dora = load_adapter("dora", "tests/lora/fixtures/dora", base_config(), store.get()).value();
  refused({{load("first"), 1}, {dora, 1}}, {.method = M::kSvd}, "DoRA");
}

TEST(Combine, AdaptersOfDifferentBasesAreRefusedByName) {
  const auto of_base = [](const std::string& base) {
    TempDir dir;
    SaveOptions options;
    options.base_model_name = base;
    EXPECT_TRUE(save_adapter(*load("first"), base_config(), dir.path(), options).ok());
    return load_adapter(base, dir.path(), base_config(), nullptr, {.copy_file = true}).value();
  };
  const std::vector<WeightedAdapter> same{{of_base("org/Model-1B"), 1}, {of_base("/disk/Model-1B/"), 1}};
  EXPECT_TRUE(combine_adapters(same, {}).ok());
  const std::vector<WeightedAdapter> other{{of_base("org/Model-1B"), 1}, {of_base("org/Model-1B-Instruct"), 1}};
  EXPECT_THAT(combine_adapters(other, {}).status().message(),
              AllOf(HasSubstr("org/Model-1B\""), HasSubstr("Model-1B-Instruct"), HasSubstr("--mixed-bases")));
  EXPECT_TRUE(combine_adapters(other, {.mixed_bases = true}).ok());
}

TEST(SaveNewAdapter, WritesNothingThatDoesNotFitOrOverAnother) {
  TempDir out;
  const std::vector<WeightedAdapter> large{{load("first"), 1e6}};
  const auto combined = combine_adapters(large, {}).value();
  const Status status = save_new_adapter(*combined.adapter, base_config(), out.file("x"), {.dtype = DType::kF16});
  EXPECT_THAT(status.message(), HasSubstr("range of f16"));
  EXPECT_FALSE(file_exists(out.file("x")));
  EXPECT_TRUE(save_new_adapter(*combined.adapter, base_config(), out.file("x"), {.dtype = DType::kBF16}).ok());
  EXPECT_EQ(save_new_adapter(*combined.adapter, base_config(), out.file("x")).code(), StatusCode::kAlreadyExists);
}

TEST(TruncateDelta, BothWaysAgreeAndRefuseWhatIsNotFinite) {
  Rng rng(3);
  for (const auto& [out, in, rank] :
       std::vector<std::array<int64_t, 3>>{{9, 14, 5}, {14, 9, 5}, {6, 4, 9}, {1, 7, 2}}) {
    DeltaFactors delta{.rank = rank, .in = in, .out = out, .a = {}, .b = {}};
    for (int64_t i = 0; i < rank * in; ++i) delta.a.push_back(static_cast<float>(rng.normal()));
    for (int64_t i = 0; i < out * rank; ++i) delta.b.push_back(static_cast<float>(rng.normal()));
    std::vector<float> matrix(static_cast<size_t>(out * in));
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t k = 0; k < rank; ++k)
          sum += static_cast<double>(delta.b[static_cast<size_t>(o * rank + k)]) *
                 static_cast<double>(delta.a[static_cast<size_t>(k * in + i)]);
        matrix[static_cast<size_t>(o * in + i)] = static_cast<float>(sum);
      }
    for (int64_t kept = 1; kept <= std::min({rank, in, out}); ++kept) {
      const TruncatedDelta low = truncate_delta(delta, kept).value(),
                           full = truncate_matrix(matrix, out, in, kept).value();
      ASSERT_EQ(low.factors.rank, kept);
      EXPECT_NEAR(low.dropped, full.dropped, 1e-4 * low.energy);
      for (size_t i = 0; i < low.factors.b.size(); ++i) EXPECT_NEAR(low.factors.b[i], full.factors.b[i], 1e-3);
      for (size_t i = 0; i < low.factors.a.size(); ++i) EXPECT_NEAR(low.factors.a[i], full.factors.a[i], 1e-3);
      EXPECT_EQ(truncate_delta(delta, kept)->factors.a, low.factors.a);  // bit for bit
    }
    delta.a[0] = std::nanf("");
    EXPECT_EQ(truncate_delta(delta, 1).status().code(), StatusCode::kDataLoss);
    matrix[0] = INFINITY;
    EXPECT_EQ(truncate_matrix(matrix, out, in, 1).status().code(), StatusCode::kDataLoss);
  }
  const DeltaFactors zero{.rank = 1, .in = 3, .out = 2, .a = {1, 2, 3}, .b = {0, 0}};
  EXPECT_EQ(truncate_delta(zero, 1)->factors.b, (std::vector<float>{0, 0}));
  EXPECT_EQ(truncate_matrix(std::vector<float>(6, 0.0f), 2, 3, 2)->dropped, 0);
}

TEST(TaskArithmetic, PruningKeepsTheShareThatWasAskedFor) {
  std::vector<float> values{1, -5, 2, -2, 0, 4};
  prune_by_magnitude(values, 0.5);
  EXPECT_EQ(values, (std::vector<float>{0, -5, 2, 0, 0, 4}));  // of equal ones the first
  std::vector<float> many(20000, 1.0f);
  prune_at_random(many, 0.25, 3);
  double sum = 0;
  for (const float v : many) {
    EXPECT_TRUE(v == 0 || v == 4);
    sum += v;
  }
  EXPECT_NEAR(sum / 20000, 1.0, 0.05);
  std::vector<float> whole{1, 2};
  prune_at_random(whole, 1, 3);
  EXPECT_EQ(whole, (std::vector<float>{1, 2}));
}

}  // namespace
}  // namespace lk
