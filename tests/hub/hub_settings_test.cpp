// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_settings.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "testing/temp_dir.h"

namespace lk {
namespace {

using Variables = std::map<std::string, std::string>;

Result<HubSettings> read(const Variables& variables) {
  return read_hub_settings([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

// The expected places are those of huggingface_hub/constants.py.
TEST(HubSettings, FindTheCacheAsThePythonClientDoes) {
  const auto cache = [](Variables variables) {
    variables.try_emplace("HOME", "/home/u");
    return read(variables).value().cache;
  };
  EXPECT_EQ(cache({}), "/home/u/.cache/huggingface/hub");
  EXPECT_EQ(cache({{"XDG_CACHE_HOME", "/c"}}), "/c/huggingface/hub");
  EXPECT_EQ(cache({{"XDG_CACHE_HOME", "/c"}, {"HF_HOME", "~/hf"}}), "/home/u/hf/hub");
  EXPECT_EQ(cache({{"HF_HOME", "$BIG/hf"}, {"BIG", "/disk"}}), "/disk/hf/hub");
  EXPECT_EQ(cache({{"HF_HOME", "/${BIG}x/$NONE/${NONE}"}, {"BIG", "disk"}}), "/diskx/$NONE/${NONE}/hub");
  EXPECT_EQ(cache({{"HF_HOME", "/hf"}, {"HUGGINGFACE_HUB_CACHE", "/old"}}), "/old");
  EXPECT_EQ(cache({{"HF_HOME", "/hf"}, {"HUGGINGFACE_HUB_CACHE", "/old"}, {"HF_HUB_CACHE", "~/new"}}), "/home/u/new");
  EXPECT_EQ(cache({{"HF_HUB_CACHE", "here"}}), std::filesystem::current_path() / "here");
  EXPECT_EQ(read({}).status().code(), StatusCode::kInvalidArgument);  // no home
}

TEST(HubSettings, FindTheTokenAsThePythonClientDoes) {
  const testing::TempDir dir;
  dir.write("token", " hf_file\r\n");
  dir.write("other", "hf_other\n");
  const auto token = [&](Variables variables) {
    variables["HF_HOME"] = dir.path();
    return read(variables).value().token;
  };
  EXPECT_EQ(token({}), "hf_file");
  EXPECT_EQ(token({{"HF_TOKEN_PATH", dir.file("other")}}), "hf_other");
  EXPECT_EQ(token({{"HF_TOKEN_PATH", dir.file("none")}}), "");
  EXPECT_EQ(token({{"HUGGING_FACE_HUB_TOKEN", "hf_old"}}), "hf_old");
  EXPECT_EQ(token({{"HUGGING_FACE_HUB_TOKEN", "hf_old"}, {"HF_TOKEN", "\nhf_new "}}), "hf_new");
  EXPECT_EQ(token({{"HF_TOKEN", "hf_new"}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "true"}}), "");
  EXPECT_FALSE(read({{"HF_HOME", dir.path()}, {"HF_TOKEN", "a b"}}).ok());
  EXPECT_FALSE(read({{"HF_HOME", dir.path()}, {"HF_TOKEN", "a\x01"}}).ok());
}

TEST(HubSettings, TakeTheRestFromVariables) {
  Variables variables{{"HF_HOME", "/hf"},
                      {"HF_ENDPOINT", "https://mirror.example/hub//"},
                      {"HF_HUB_DOWNLOAD_TIMEOUT", "30"},
                      {"SSL_CERT_FILE", "/ca.pem"}};
  const HubSettings settings = read(variables).value();
  EXPECT_EQ(settings.endpoint, "https://mirror.example/hub");
  EXPECT_EQ(settings.download_timeout, std::chrono::seconds(30));
  EXPECT_EQ(settings.metadata_timeout, std::chrono::seconds(10));
  EXPECT_EQ(settings.ca_file, "/ca.pem");
  EXPECT_EQ(settings.offline_by, "");
  for (const auto& [name, value, offline] : {std::tuple("HF_HUB_OFFLINE", "on", true),
                                             {"HF_HUB_OFFLINE", "0", false},
                                             {"TRANSFORMERS_OFFLINE", "1", true},
                                             {"HF_HUB_OFFLINE", "", false}})
    EXPECT_EQ(read({{"HF_HOME", "/hf"}, {name, value}}).value().offline_by, offline ? name : "") << name << value;
  EXPECT_EQ(read({{"HF_HOME", "/hf"}, {"HF_HUB_OFFLINE", "0"}, {"TRANSFORMERS_OFFLINE", "1"}}).value().offline_by, "");
  for (const auto& [name, value] : {std::pair("HF_ENDPOINT", "file:///etc"),
                                    {"HF_ENDPOINT", "hub"},
                                    {"HF_HUB_ETAG_TIMEOUT", "soon"},
                                    {"HF_HUB_ETAG_TIMEOUT", "-1"}})
    EXPECT_FALSE(read({{"HF_HOME", "/hf"}, {name, value}}).ok()) << name << value;
}

}  // namespace
}  // namespace lk
