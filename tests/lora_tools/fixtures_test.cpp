// SPDX-License-Identifier: Apache-2.0
// Adapters saved by PEFT against what PEFT makes of them (tools/make_lora_fixtures.py).
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "lk/base/file.h"
#include "lk/lora/adapter.h"
#include "lk/lora_tools/merge.h"

namespace lk {
namespace {

constexpr const char* kRoot = "tests/lora/fixtures";

std::vector<std::string> fixture_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kRoot)) {
    if (file_exists(entry.path() / "adapter_config.json")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string base_of(const std::string& name) {
  if (name.starts_with("tied_")) return "tied";
  return name.find("bias") != std::string::npos ? "biased" : "base";
}

class PeftFixture : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string base_dir = join_path(kRoot, base_of(GetParam()));
    auto config = load_model_config(base_dir);
    ASSERT_TRUE(config.ok()) << config.status().message();
    config_ = *config;
    auto base = TensorStore::open_model(base_dir);
    ASSERT_TRUE(base.ok()) << base.status().message();
    base_ = *base;
    auto adapter = load_adapter(GetParam(), join_path(kRoot, GetParam()), config_, base_.get());
    ASSERT_TRUE(adapter.ok()) << adapter.status().message();
    adapter_ = *adapter;
    auto expected = TensorStore::open_file(join_path(join_path(kRoot, GetParam()), "expected.safetensors"));
    ASSERT_TRUE(expected.ok()) << expected.status().message();
    expected_ = *expected;
  }

  ModelConfig config_;
  std::shared_ptr<const TensorStore> base_, expected_;
  std::shared_ptr<const Adapter> adapter_;
};

TEST_P(PeftFixture, GivesTheWeightsPeftGives) {
  const std::vector<WeightId> changed = changed_weights(*adapter_, config_);
  std::set<std::string> names;
  for (const WeightId weight : changed) names.insert(weight_name(weight));
  for (const auto& [name, view] : expected_->tensors()) EXPECT_TRUE(names.contains(name)) << name << " is unchanged";
  for (const WeightId weight : changed) {
    const std::string name = weight_name(weight);
    const TensorView* expected = expected_->find(name);
    // A replacement that happens to equal the base is not listed as changed by the script.
    if (expected == nullptr) expected = base_->find(name);
    ASSERT_NE(expected, nullptr) << name;
    std::vector<float> want(static_cast<size_t>(expected->num_elements()));
    expected->copy_to(want.data());
    const auto width = want.size() / static_cast<size_t>(expected->num_dims() == 2 ? expected->dim(0) : 1);
    std::vector<float> got(want.size());
    const Status status =
        visit_merged_weight(weight, *adapter_, config_, *base_, [&](int64_t first, int64_t count, const float* rows) {
          std::copy(rows, rows + static_cast<size_t>(count) * width,
                    got.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(first) * width));
          return Status();
        });
    ASSERT_TRUE(status.ok()) << status.message();
    double difference = 0, norm = 0;
    for (size_t index = 0; index < want.size(); ++index) {
      difference += std::pow(got[index] - want[index], 2);
      norm += std::pow(want[index], 2);
    }
    EXPECT_LE(std::sqrt(difference / norm), 1e-5) << name;
  }
}

TEST_P(PeftFixture, LoadsWithoutSurprisingWarnings) {
  for (const std::string& warning : adapter_->warnings) {
    const bool known = warning.find("converted to a plain adapter") != std::string::npos ||
                       warning.find("differs from the base's") != std::string::npos;
    EXPECT_TRUE(known) << warning;
  }
}

INSTANTIATE_TEST_SUITE_P(Saved, PeftFixture, testing::ValuesIn(fixture_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lk
