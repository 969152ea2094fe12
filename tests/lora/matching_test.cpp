// SPDX-License-Identifier: Apache-2.0
// Expected values: Python's re, and PEFT's check_target_module_exists and get_pattern_key.
#include "lk/lora/matching.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

using ::testing::HasSubstr;

bool full(const std::string& pattern, const std::string& text) {
  auto regex = PythonRegex::compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status().message();
  return regex.ok() && *regex->full_match(text);
}

TEST(PythonRegex, MatchesAsPythonDoes) {
  EXPECT_TRUE(full("a.c", "abc"));
  EXPECT_FALSE(full("a.c", "xabc"));
  EXPECT_FALSE(full("a|ab", "abx"));
  EXPECT_TRUE(full("a|ab", "ab"));
  EXPECT_TRUE(full("(?P<n>a+)b(?P=n)", "aabaa"));
  EXPECT_TRUE(full("(?i)ABC", "abc"));
  EXPECT_TRUE(full(R"(.*(?<!up)_proj)", "q_proj"));
  EXPECT_FALSE(full(R"(.*(?<!up)_proj)", "up_proj"));
  EXPECT_TRUE(full(R"(\d+\Z)", "12"));
  EXPECT_TRUE(full("a{,2}", "aa"));
  EXPECT_FALSE(full("a{,2}", "a{,2}"));
  EXPECT_TRUE(full("a{,x}", "a{,x}"));
  EXPECT_TRUE(full("[[]", "["));
  EXPECT_TRUE(full("[]a]+", "]a"));
  EXPECT_FALSE(full(R"(a\vb)", "a\nb"));
}

TEST(PythonRegex, RefusesWhatPythonLacksOrMeansOtherwise) {
  for (const char* pattern : {"(", "[", "\\", "(?R)", "(?1)", "(*FAIL)", R"(\K)", R"(\Qa\E)", R"(\p{L})", R"(\h)",
                              "(?C1)", "(?|a)", "*a", "(?a)x"}) {
    EXPECT_FALSE(PythonRegex::compile(pattern).ok()) << pattern;
  }
  EXPECT_FALSE(PythonRegex::compile(std::string(5000, 'a')).ok());
  EXPECT_FALSE(PythonRegex::compile(std::string(500, '(') + std::string(500, ')')).ok());
}

TEST(PythonRegex, EndlessBacktrackingIsAnError) {
  auto regex = PythonRegex::compile("(a|aa)+");
  ASSERT_TRUE(regex.ok());
  const auto result = regex->full_match(std::string(200, 'a') + "!");
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.status().message(), HasSubstr("takes too long"));
}

bool key_matches(const std::string& key, const std::string& module) {
  auto pattern = PatternKey::compile(key);
  EXPECT_TRUE(pattern.ok()) << pattern.status().message();
  return pattern.ok() && *pattern->matches(module);
}

TEST(PatternKey, HasPeftSemantics) {
  const std::string q = "model.layers.0.self_attn.q_proj";
  for (const char* key : {"q_proj", "self_attn.q_proj", "layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj",
                          R"(^model\.layers\.0\.self_attn\.q_proj)", R"(.*\.self_attn\..*)", ".*", "k_proj|q_proj",
                          "self_attn_q_proj|layers.0.self_attn.q_proj", "[qk]_proj", "self.attn.q_proj"}) {
    EXPECT_TRUE(key_matches(key, q)) << key;
  }
  for (const char* key : {"^q_proj", "proj", "_proj", "layers.1.self_attn.q_proj", "xmodel.layers.0.self_attn.q_proj",
                          "q_proj.x", "attn.q_proj"}) {
    EXPECT_FALSE(key_matches(key, q)) << key;
  }
}

ModuleMatcher matcher(const std::string& fields) {
  auto config = parse_adapter_config(R"({"peft_type":"LORA",)" + fields + "}", "test");
  EXPECT_TRUE(config.ok()) << config.status().message();
  auto result = ModuleMatcher::create(*config);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return *result;
}
bool targeted(const std::string& fields, const std::string& module) { return *matcher(fields).is_targeted(module); }

TEST(ModuleMatcher, ListsMatchNamesAndDottedEndings) {
  const std::string list = R"("target_modules":["q_proj","mlp.up_proj","model.layers.1.self_attn.o_proj"])";
  EXPECT_TRUE(targeted(list, "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(targeted(list, "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(targeted(list, "model.layers.1.self_attn.o_proj"));
  EXPECT_FALSE(targeted(list, "model.layers.0.self_attn.o_proj"));
  EXPECT_FALSE(targeted(list, "model.layers.0.self_attn.xq_proj"));
}

TEST(ModuleMatcher, RegexAllLinearAndDefault) {
  EXPECT_TRUE(targeted(R"("target_modules":".*q_proj")", "model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(targeted(R"("target_modules":"q_proj")", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(targeted(R"("target_modules":"All-Linear")", "model.layers.0.mlp.down_proj"));
  EXPECT_FALSE(targeted(R"("target_modules":"all-linear")", "lm_head"));
  EXPECT_FALSE(targeted(R"("target_modules":"all-linear")", "model.embed_tokens"));
  EXPECT_TRUE(targeted(R"("target_modules":null)", "model.layers.0.self_attn.v_proj"));
  EXPECT_FALSE(targeted(R"("r":8)", "model.layers.0.self_attn.k_proj"));
}

TEST(ModuleMatcher, ExclusionsAndSavedModulesWin) {
  const std::string q = "model.layers.0.self_attn.q_proj";
  EXPECT_FALSE(targeted(R"("target_modules":["q_proj"],"exclude_modules":["q_proj"])", q));
  EXPECT_FALSE(targeted(R"("target_modules":["q_proj"],"exclude_modules":".*\\.0\\..*")", q));
  EXPECT_TRUE(targeted(R"("target_modules":["q_proj"],"exclude_modules":".*\\.1\\..*")", q));
  EXPECT_FALSE(targeted(R"("target_modules":["q_proj"],"modules_to_save":["self_attn"])", q));
  EXPECT_TRUE(targeted(R"("target_modules":["q_proj"],"modules_to_save":["attn"])", q));
}

TEST(ModuleMatcher, LayersToTransform) {
  const std::string list = R"("target_modules":["q_proj","model.layers.5.mlp.up_proj"],"layers_to_transform":)";
  EXPECT_TRUE(targeted(list + "[1,3]", "model.layers.3.self_attn.q_proj"));
  EXPECT_FALSE(targeted(list + "[1,3]", "model.layers.2.self_attn.q_proj"));
  EXPECT_TRUE(targeted(list + "2", "model.layers.2.self_attn.q_proj"));
  EXPECT_FALSE(targeted(list + "2", "decoder.q_proj"));               // no index
  EXPECT_TRUE(targeted(list + "[1]", "model.layers.5.mlp.up_proj"));  // named in full
  EXPECT_TRUE(targeted(list + "[1]" + R"(,"layers_pattern":"layers")", "model.layers.1.self_attn.q_proj"));
  EXPECT_FALSE(targeted(list + "[1]" + R"(,"layers_pattern":["h"])", "model.layers.1.self_attn.q_proj"));
}

TEST(ModuleMatcher, SavedModulesMatchPlainEndings) {
  const ModuleMatcher norm = matcher(R"("modules_to_save":["norm"])");
  EXPECT_TRUE(norm.is_saved("model.norm"));
  EXPECT_TRUE(norm.is_saved("model.layers.0.input_layernorm"));
  EXPECT_FALSE(norm.is_saved("model.embed_tokens"));
  EXPECT_TRUE(matcher(R"("modules_to_save":["mlp"])").is_saved("model.layers.0.mlp.up_proj"));
}

TEST(ModuleMatcher, FirstPatternInFileOrderWins) {
  const ModuleMatcher patterns = matcher(R"("rank_pattern":{"z.*":1,".*q_proj":2,"q_proj":3})");
  EXPECT_EQ(*patterns.rank_pattern_of("model.layers.0.self_attn.q_proj"), 1u);
  EXPECT_EQ(*patterns.rank_pattern_of("model.layers.0.self_attn.k_proj"), std::nullopt);
}

}  // namespace
}  // namespace lk
