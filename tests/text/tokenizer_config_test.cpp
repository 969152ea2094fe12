// SPDX-License-Identifier: Apache-2.0
// What transformers makes of directories as hubs hold them (tools/make_tokenizer_cases.py).
#include "lk/text/tokenizer_config.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/text/chat_templates.h"
#include "lk/text/tokenizer.h"

namespace lk {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using ::testing::HasSubstr;

std::string text_of(const json::value& value) { return std::string(value.as_string()); }

class TokenizerCases : public ::testing::Test {
 protected:
  static const json::object& document() {
    static const json::value parsed = json::parse(read_file("tests/text/fixtures/tokenizer_cases.json").value());
    return parsed.as_object();
  }
  // The files of a case, in a directory of their own.
  void write(const json::object& one) {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    const json::value& tokenizer = document().at("tokenizers").at(text_of(one.at("tokenizer")));
    std::ofstream(directory_ + "/tokenizer.json") << json::serialize(tokenizer);
    for (const auto& [name, content] : one.at("files").as_object()) {
      const std::string path = directory_ + "/" + std::string(name);
      fs::create_directories(fs::path(path).parent_path());
      std::ofstream(path) << (content.is_string() ? text_of(content) : json::serialize(content));
    }
  }
  ~TokenizerCases() override { fs::remove_all(directory_); }

  const std::string directory_ = ::testing::TempDir() + "tokenizer_case_" + std::to_string(getpid());
};

TEST_F(TokenizerCases, TokensAreThoseOfTransformers) {
  int checked = 0, refused = 0;
  for (const json::value& entry : document().at("cases").as_array()) {
    const json::object& one = entry.as_object();
    SCOPED_TRACE(json::serialize(one.at("tokenizer")) + json::serialize(one.at("files")));
    write(one);
    const auto tokenizer = Tokenizer::load(directory_);
    if (one.contains("refused")) {
      EXPECT_THAT(tokenizer.status().message(), HasSubstr("declares id"));
      ++refused;
      continue;
    }
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    for (const json::value& pair : one.at("encoded").as_array()) {
      const auto ids = (*tokenizer)->encode(text_of(pair.at(0)), false);
      ASSERT_TRUE(ids.ok()) << ids.status().message();
      EXPECT_EQ(*ids, json::value_to<std::vector<int32_t>>(pair.at(1))) << pair.at(0);
    }
    std::vector<int32_t> special;
    for (int32_t id = 0; id < (*tokenizer)->vocab_size(); ++id)
      if ((*tokenizer)->is_special(id)) special.push_back(id);
    EXPECT_EQ(special, json::value_to<std::vector<int32_t>>(one.at("special")));
    const auto config = TokenizerConfig::load(directory_);
    std::map<std::string, std::string> names, expected;
    for (const auto& [name, content] : config->variables()) names[name] = content;
    for (const auto& [name, content] : one.at("names").as_object()) expected[name] = text_of(content);
    EXPECT_EQ(names, expected);
    ++checked;
  }
  EXPECT_GE(checked, 80);
  EXPECT_GE(refused, 10);
}

TEST_F(TokenizerCases, TemplatesAreChosenAsTransformersDoes) {
  int checked = 0;
  for (const json::value& entry : document().at("cases").as_array()) {
    const json::object& one = entry.as_object();
    if (!one.contains("template")) continue;
    SCOPED_TRACE(json::serialize(one.at("files")));
    write(one);
    const auto templates = ChatTemplates::parse(TokenizerConfig::load(directory_).value());
    ASSERT_TRUE(templates.ok() && *templates);
    for (const bool tools : {false, true}) {
      const json::value& expected = one.at(tools ? "tool_template" : "template");
      const auto chosen = (*templates)->choose("", tools);
      ASSERT_EQ(chosen.ok(), !expected.is_null());
      if (chosen.ok()) {
        EXPECT_EQ((*chosen)->body->source(), text_of(expected));
      }
    }
    ++checked;
  }
  EXPECT_GE(checked, 7);
}

TEST(TokenizerConfig, LaysOneOverAnother) {
  TokenizerConfig base, own;
  base.named = {{"bos_token", "<s>", {}, true}, {"eos_token", "</s>", {}, true}, {"pad_token", "<p>", {}, true}};
  base.templates = {{"default", "b", "base"}};
  own.named = {{"eos_token", "<e>", {}, true}};
  own.unnamed = {"pad_token"};
  const TokenizerConfig both = own.over(base);
  EXPECT_EQ(both.find("eos_token")->content, "<e>");
  EXPECT_EQ(both.find("bos_token")->content, "<s>");
  EXPECT_EQ(both.find("pad_token"), nullptr) << "null is said, too";
  EXPECT_EQ(both.templates.size(), 1U);
  EXPECT_EQ(TokenizerConfig().over(base).token_key(), base.token_key());
  EXPECT_NE(both.token_key(), base.token_key());
}

}  // namespace
}  // namespace lk
