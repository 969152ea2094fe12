// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/pooling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lk/base/file.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::HasSubstr;

struct Model {
  testing::TempDir dir;
  Model& pooling(const std::string& config, const std::string& directory = "1_Pooling") {
    EXPECT_TRUE(make_directories(dir.file(directory)).ok());
    EXPECT_TRUE(write_file_atomic(dir.file(directory + "/config.json"), config).ok());
    return *this;
  }
  Model& modules(const std::string& list) {
    EXPECT_TRUE(write_file_atomic(dir.file("modules.json"), list).ok());
    return *this;
  }
  Result<Pooling> load() const { return load_pooling(dir.path()); }
};

TEST(Pooling, IsWhatTheDirectorySays) {
  EXPECT_EQ(Model().load().value(), Pooling::kMean);
  EXPECT_EQ(Model().pooling(R"({"pooling_mode_lasttoken":true,"pooling_mode_mean_tokens":false})").load().value(),
            Pooling::kLast);
  EXPECT_EQ(Model().pooling(R"({"pooling_mode_cls_token":true})").load().value(), Pooling::kFirst);
  EXPECT_EQ(Model().pooling(R"({"pooling_mode_mean_tokens":true})").load().value(), Pooling::kMean);
  EXPECT_EQ(Model().pooling(R"({"pooling_mode":"lasttoken"})").load().value(), Pooling::kLast);
  EXPECT_EQ(Model().pooling(R"({"pooling_mode":["cls"]})").load().value(), Pooling::kFirst);
}

TEST(Pooling, RefusesWhatItDoesNotDo) {
  EXPECT_THAT(Model().pooling(R"({"pooling_mode_max_tokens":true})").load().status().message(),
              HasSubstr("pooling \"max\" is not supported"));
  EXPECT_THAT(
      Model().pooling(R"({"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true})").load().status().message(),
      HasSubstr("\"cls+mean\""));
  EXPECT_THAT(Model().pooling(R"({"pooling_mode":["cls","mean"]})").load().status().message(),
              HasSubstr("\"cls+mean\""));
  EXPECT_FALSE(Model().pooling(R"({"pooling_mode":7})").load().ok());
}

TEST(Pooling, FollowsTheListOfModules) {
  const std::string transformer = R"({"idx":0,"path":"","type":"sentence_transformers.models.Transformer"})";
  const std::string pooling = R"({"idx":1,"path":"pool","type":"sentence_transformers.models.Pooling"})";
  const std::string last = R"({"pooling_mode_lasttoken":true})";
  EXPECT_EQ(Model().pooling(last, "pool").modules("[" + transformer + "," + pooling + "]").load().value(),
            Pooling::kLast);
  EXPECT_THAT(Model()
                  .pooling(last, "pool")
                  .modules("[" + pooling + R"(,{"path":"2_Dense","type":"sentence_transformers.models.Dense"}])")
                  .load()
                  .status()
                  .message(),
              HasSubstr("module Dense"));
  EXPECT_THAT(Model().modules(R"([{"path":"../x","type":"a.Pooling"}])").load().status().message(),
              HasSubstr("not a plain directory name"));
}

}  // namespace
}  // namespace lk
