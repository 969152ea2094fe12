// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "lk/lora/conversion_cache.h"
#include "lk/lora/host_tier.h"
#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::to_floats;
namespace fs = std::filesystem;

const std::string kFixtures = "tests/lora/fixtures/";

class Conversion : public ::testing::Test {
 protected:
  Result<std::shared_ptr<const Adapter>> load() {
    return load_adapter("a", kFixtures + "pissa", config_, base_.get(), options_);
  }
  fs::path only_file() {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(options_.conversion_cache)) files.push_back(entry.path());
    EXPECT_EQ(files.size(), 1u);
    return files.at(0);
  }
  static void expect_equal(const Adapter& x, const Adapter& y) {
    ASSERT_EQ(x.layers.size(), y.layers.size());
    EXPECT_EQ(x.max_rank, y.max_rank);
    int compared = 0;
    for (size_t layer = 0; layer < x.layers.size(); ++layer)
      for (size_t proj = 0; proj < kNumProjs; ++proj) {
        ASSERT_EQ(x.layers[layer][proj].has_value(), y.layers[layer][proj].has_value());
        if (!x.layers[layer][proj]) continue;
        EXPECT_EQ(to_floats(x.layers[layer][proj]->a), to_floats(y.layers[layer][proj]->a));
        EXPECT_EQ(to_floats(x.layers[layer][proj]->b), to_floats(y.layers[layer][proj]->b));
        ++compared;
      }
    EXPECT_GT(compared, 0);
  }

  TempDir dir_;
  ModelConfig config_ = *load_model_config(kFixtures + "base");
  std::shared_ptr<const TensorStore> base_ = *TensorStore::open_model(kFixtures + "base");
  AdapterLoadOptions options_;
};

TEST_F(Conversion, IsDoneOnceAndGivesTheSameBits) {
  const auto plain = load().value();
  EXPECT_EQ(plain->converted, nullptr);
  options_.conversion_cache = dir_.file("cache");
  const auto first = load().value();
  EXPECT_EQ(first->converted, nullptr);
  for (const bool copy : {false, true}) {
    options_.copy_file = copy;
    const auto second = load().value();
    ASSERT_NE(second->converted, nullptr);
    EXPECT_TRUE(second->owned.empty()) << "nothing is computed";
    expect_equal(*plain, *second);
    EXPECT_GE(host_bytes_of(*second), second->file_bytes + second->converted->size_bytes()) << "all of it is counted";
  }
}

TEST_F(Conversion, DamagedAndForeignFilesCountAsAbsent) {
  const auto plain = load().value();
  options_.conversion_cache = dir_.file("cache");
  (void)load().value();
  const fs::path file = only_file();
  const auto size = fs::file_size(file);
  // One bit of a value: nothing but the digest tells.
  {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(size) - 2);
    const char flipped = static_cast<char>(stream.get() ^ 1);
    stream.seekp(static_cast<std::streamoff>(size) - 2);
    stream.put(flipped);
  }
  auto again = load().value();
  EXPECT_EQ(again->converted, nullptr);
  expect_equal(*plain, *again);
  EXPECT_NE(load().value()->converted, nullptr) << "written anew";
  fs::resize_file(file, size / 2);
  again = load().value();
  EXPECT_EQ(again->converted, nullptr);
  expect_equal(*plain, *again);
  // Another base, another file.
  TempDir other_dir;
  testing::write_base(other_dir, config_, "{}");
  base_ = *TensorStore::open_model(other_dir.path());
  EXPECT_EQ(load().value()->converted, nullptr);
}

TEST_F(Conversion, ADirectoryThatCannotBeWrittenIsNoFailure) {
  dir_.write("file", "x");
  options_.conversion_cache = dir_.file("file") + "/below";
  EXPECT_TRUE(load().ok());
}

TEST_F(Conversion, TheDirectoryIsBounded) {
  const std::vector<float> values(1000, 1.0f);
  const std::vector<TensorEntry> tensors = {{"x", TensorView(values.data(), DType::kF32, {1000})}};
  const std::string cache = dir_.file("cache");
  for (const char* adapter : {"a", "b", "c"}) {
    ConversionCache(cache, adapter, "base", 9000).put(tensors);
    ASSERT_NE(ConversionCache(cache, adapter, "base", 9000).find(false), nullptr);
  }
  int files = 0;
  for (const auto& entry : fs::directory_iterator(cache)) files += entry.path().extension() == ".safetensors";
  EXPECT_EQ(files, 2);
  ConversionCache(cache, "d", "base", 3000).put(tensors);
  EXPECT_EQ(ConversionCache(cache, "d", "base", 9000).find(false), nullptr) << "larger than the bound";
}

TEST_F(Conversion, WhatWouldTakeTooLongIsRefused) {
  options_.max_conversion_seconds = 1e-9;
  const auto refused = load();
  EXPECT_EQ(refused.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(refused.status().message(), HasSubstr("lorikeet adapter convert"));
  options_.max_conversion_seconds = 3600;
  EXPECT_TRUE(load().ok());
}

}  // namespace
}  // namespace lk
