// SPDX-License-Identifier: Apache-2.0
#include "lk/io/base_digest.h"

#include <gtest/gtest.h>

#include <set>

#include "testing/temp_dir.h"

namespace lk {
namespace {

using testing::TempDir;

class BaseDigestTest : public ::testing::Test {
 protected:
  BaseDigestTest() { dir_.write("config.json", R"({"a": 1, "b": [2], "transformers_version": "4"})"); }
  std::string digest(const std::string& file = "m.safetensors") {
    const auto store = TensorStore::open_file(dir_.file(file));
    const auto found = base_digest(dir_.file("config.json"), dir_.file("tokenizer.json"), store->get());
    EXPECT_TRUE(found.ok()) << found.status().message();
    return found.ok() ? *found : "";
  }
  void write(const std::vector<float>& values, const std::string& file = "m.safetensors",
             std::vector<int64_t> shape = {}) {
    if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
    ASSERT_TRUE(write_safetensors(dir_.file(file), {{"w", TensorView(values.data(), DType::kF32, shape)}}).ok());
  }
  TempDir dir_;
};

TEST_F(BaseDigestTest, AnyWeightCounts) {
  // Sizes that fill words and blocks, and such that do not.
  for (const size_t size : {1u, 2u, 15u, 16u, 17u, 100u}) {
    std::vector<float> values(size, 1.5f);
    std::set<std::string> seen;
    write(values);
    seen.insert(digest());
    for (float& value : values) {
      value = -value;
      write(values);
      EXPECT_TRUE(seen.insert(digest()).second) << "one after the other negated, which changes one bit of each";
    }
  }
  std::vector<float> zeros(40, 0.0f);
  write(zeros);
  const std::string before = digest();
  std::swap(zeros[3], zeros[30] = 1);
  write(zeros);
  const std::string one = digest();
  std::swap(zeros[3], zeros[19]);  // to another block's same lane
  write(zeros);
  EXPECT_NE(before, one);
  EXPECT_NE(one, digest());
}

TEST_F(BaseDigestTest, IsOfTheContentAndNotOfItsFiles) {
  const std::vector<float> values(24, 2.0f);
  write(values);
  const std::string first = digest();
  write(values, "other.safetensors");
  EXPECT_EQ(digest("other.safetensors"), first) << "another file of another time";
  dir_.write("config.json", R"({"b": [2], "_name_or_path": "x", "a": 1})");
  EXPECT_EQ(digest(), first) << "order and notes";
  dir_.write("config.json", R"({"b": [2], "a": 2})");
  EXPECT_NE(digest(), first);
  dir_.write("config.json", R"({"b": [2], "a": 1})");
  dir_.write("tokenizer.json", "{}");
  EXPECT_NE(digest(), first);
  std::filesystem::remove(dir_.file("tokenizer.json"));
  write(values, "shape.safetensors", {4, 6});
  EXPECT_NE(digest("shape.safetensors"), first);
}

}  // namespace
}  // namespace lk
