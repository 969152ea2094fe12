// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/save.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/lora_tools/merge.h"
#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempDir;
using testing::to_floats;

constexpr const char* kFixtures = "tests/lora/fixtures";

std::vector<float> merged_values(WeightId weight, const Adapter& adapter, const ModelConfig& config,
                                 const TensorStore& base) {
  std::vector<float> values;
  const auto width = [&](int64_t) {
    return weight.module.kind == ModuleKind::kDown ? config.intermediate_dim : config.hidden_dim;
  };
  const Status status =
      visit_merged_weight(weight, adapter, config, base, [&](int64_t first, int64_t count, const float* rows) {
        values.insert(values.end(), rows, rows + count * width(first));
        return Status();
      });
  EXPECT_TRUE(status.ok()) << status.message();
  return values;
}

// Every kind of adapter keeps its effect through save and load.
TEST(SaveAdapter, RoundTripsEveryFixture) {
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    const std::string name = entry.path().filename();
    if (!file_exists(entry.path() / "adapter_config.json")) continue;
    const std::string base_dir = join_path(kFixtures, name.starts_with("tied_")                ? "tied"
                                                      : name.find("bias") != std::string::npos ? "biased"
                                                                                               : "base");
    const ModelConfig config = *load_model_config(base_dir);
    const auto base = *TensorStore::open_model(base_dir);
    const auto before = load_adapter(name, entry.path(), config, base.get());
    ASSERT_TRUE(before.ok()) << before.status().message();
    TempDir out;
    const Status saved = save_adapter(**before, config, out.file("a"));
    ASSERT_TRUE(saved.ok()) << saved.message();
    const auto after = load_adapter(name, out.file("a"), config, base.get());
    ASSERT_TRUE(after.ok()) << name << ": " << after.status().message();
    const std::vector<WeightId> changed = changed_weights(**before, config);
    EXPECT_EQ(changed, changed_weights(**after, config)) << name;
    for (const WeightId tensor : changed) {
      if (tensor.bias) continue;
      const auto want = merged_values(tensor, **before, config, *base),
                 got = merged_values(tensor, **after, config, *base);
      ASSERT_EQ(want.size(), got.size());
      for (size_t index = 0; index < want.size(); ++index)
        ASSERT_NEAR(want[index], got[index], 1e-6 * (1 + std::abs(want[index]))) << name << " " << weight_name(tensor);
    }
    // A second generation is the same file: nothing drifts.
    ASSERT_TRUE(save_adapter(**after, config, out.file("b")).ok());
    EXPECT_EQ(out.read("a/adapter_model.safetensors"), out.read("b/adapter_model.safetensors")) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 31);
}

TEST(SaveAdapter, PlainPeftFilesKeepTheirTensorsBitForBit) {
  const ModelConfig config = *load_model_config(join_path(kFixtures, "base"));
  for (const char* name : {"plain", "all_linear", "rslora", "patterns", "layers"}) {
    TempDir out;
    const auto adapter = *load_adapter(name, join_path(kFixtures, name), config, nullptr);
    ASSERT_TRUE(save_adapter(*adapter, config, out.path()).ok());
    const auto written = *TensorStore::open_file(out.file("adapter_model.safetensors"));
    ASSERT_EQ(written->tensors().size(), adapter->file->tensors().size());
    for (const auto& [tensor, view] : adapter->file->tensors()) {
      ASSERT_NE(written->find(tensor), nullptr) << tensor;
      EXPECT_EQ(to_floats(*written->find(tensor)), to_floats(view));
    }
  }
}

TEST(ConvertAdapter, HalvesTheBytesAndReportsTheRounding) {
  const ModelConfig config = *load_model_config(join_path(kFixtures, "base"));
  TempDir out;
  const auto report =
      convert_adapter(join_path(kFixtures, "all_linear"), config, nullptr, out.path(), {.dtype = DType::kBF16});
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_LT(report->bytes_after, report->bytes_before);
  EXPECT_GT(report->largest_rounding, 0);
  EXPECT_LT(report->largest_rounding, 0.01);
  const auto adapter = *load_adapter("x", out.path(), config, nullptr);
  EXPECT_EQ(adapter->layers[0][0]->a.dtype(), DType::kBF16);
  EXPECT_EQ(convert_adapter(join_path(kFixtures, "plain"), config, nullptr, out.path()).status().code(),
            StatusCode::kAlreadyExists);
}

TEST(ConvertAdapter, MakesPissaLoadWithoutTheBase) {
  const std::string base_dir = join_path(kFixtures, "base");
  const ModelConfig config = *load_model_config(base_dir);
  const auto base = *TensorStore::open_model(base_dir);
  TempDir out;
  ASSERT_TRUE(convert_adapter(join_path(kFixtures, "pissa"), config, base.get(), out.path()).ok());
  const auto adapter = load_adapter("x", out.path(), config, nullptr);
  ASSERT_TRUE(adapter.ok()) << adapter.status().message();
  EXPECT_EQ((*adapter)->layers[0][0]->rank, 8);
  EXPECT_EQ((*adapter)->layers[0][0]->scaling, 2.0);
  EXPECT_THAT((*adapter)->warnings, IsEmpty());
}

TEST(InitAdapter, IsDeterministicAndValid) {
  const ModelConfig config = testing::tiny_config();
  InitOptions options;
  options.rank = 4;
  options.rank_of = {{"up_proj", 7}};
  options.targets = {"q_proj", "up_proj", "lm_head", "embed_tokens"};
  options.dtype = DType::kBF16;
  options.seed = 9;
  TempDir a, b, c;
  ASSERT_TRUE(init_adapter(config, options, a.path()).ok());
  ASSERT_TRUE(init_adapter(config, options, b.path()).ok());
  options.seed = 10;
  ASSERT_TRUE(init_adapter(config, options, c.path()).ok());
  EXPECT_EQ(a.read("adapter_model.safetensors"), b.read("adapter_model.safetensors"));
  EXPECT_NE(a.read("adapter_model.safetensors"), c.read("adapter_model.safetensors"));
  const auto adapter = load_adapter("a", a.path(), config, nullptr);
  ASSERT_TRUE(adapter.ok()) << adapter.status().message();
  EXPECT_THAT((*adapter)->warnings, IsEmpty());
  EXPECT_EQ((*adapter)->max_rank, 7);
  EXPECT_EQ((*adapter)->layers[0][static_cast<size_t>(Proj::kUp)]->scaling, 2.0);
  EXPECT_TRUE((*adapter)->embedding && (*adapter)->lm_head);
  double sum = 0;
  for (float value : to_floats((*adapter)->layers[1][0]->b)) sum += std::abs(value);
  EXPECT_GT(sum, 0);
  EXPECT_EQ(init_adapter(config, options, a.path()).code(), StatusCode::kAlreadyExists);
}

TEST(InitAdapter, RefusesWhatCannotBe) {
  const ModelConfig config = testing::tiny_config();
  TempDir dir;
  const auto refused = [&](InitOptions options, const char* part) {
    EXPECT_THAT(init_adapter(config, options, dir.file("x")).message(), HasSubstr(part));
  };
  refused({.targets = {"q"}}, "'q' is not one of");
  refused({.targets = {}}, "no targets");
  refused({.rank = 0}, "out of range");
  refused({.rank_of = {{"lm_head", 2}}}, "not a target");
  refused({.use_dora = true}, "the base is needed");
}

TEST(InitAdapter, DoraScalesAreNearOne) {
  const std::string base_dir = join_path(kFixtures, "base");
  const ModelConfig config = *load_model_config(base_dir);
  const auto base = *TensorStore::open_model(base_dir);
  TempDir dir;
  InitOptions options;
  options.use_dora = true;
  options.b_scale = 0.1;
  ASSERT_TRUE(init_adapter(config, options, dir.path(), base.get()).ok());
  const auto adapter = load_adapter("a", dir.path(), config, base.get());
  ASSERT_TRUE(adapter.ok()) << adapter.status().message();
  for (float scale : to_floats((*adapter)->layers[0][0]->dora_scale)) EXPECT_NEAR(scale, 1.0, 0.11);
}

TEST(InspectAdapter, ShowsRanksScalingsAndWarnings) {
  const ModelConfig config = *load_model_config(join_path(kFixtures, "base"));
  const auto adapter = *load_adapter("p", join_path(kFixtures, "patterns"), config, nullptr);
  const Inspection inspection = inspect_adapter(*adapter);
  EXPECT_EQ(inspection.targets.size(), 7u);
  EXPECT_EQ(inspection.targets.at("q_proj").min_rank, 1);
  EXPECT_EQ(inspection.targets.at("q_proj").max_rank, 4);
  EXPECT_EQ(inspection.max_rank, 6);
  const std::string text = render_inspection(inspection);
  EXPECT_THAT(text, HasSubstr("sha256:" + adapter->digest));
  EXPECT_THAT(text, HasSubstr("q_proj"));
  EXPECT_THAT(text, HasSubstr("rank 1-4"));
  EXPECT_TRUE(verify_adapter(join_path(kFixtures, "patterns"), config, nullptr).ok());
  EXPECT_FALSE(verify_adapter(join_path(kFixtures, "dora"), config, nullptr).ok());
}

}  // namespace
}  // namespace lk
