// SPDX-License-Identifier: Apache-2.0
// JSON schemas: hand-written texts inside and outside the language, random texts against an independent validator,
// refusals.
#include <gmock/gmock.h>

#include "grammar/grammar_test_util.h"
#include "grammar/json_validator.h"
#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

using namespace grammar_testing;
using testing::HasSubstr;

boost::json::value parse_text(const std::string& text) {
  boost::json::parse_options options;
  options.max_depth = 1000;
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(text, error, {}, options);
  EXPECT_FALSE(error) << error.message() << ": " << text;
  return value;
}

const char* const kTree = R"({"$defs":{"node":{"type":"object","properties":{"value":{"type":"integer"},
  "next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}, "kids":{"type":"array","items":{"$ref":"#/$defs/node"},"maxItems":2}},
  "required":["value","next"],"additionalProperties":false}},"$ref":"#/$defs/node"})";
const char* const kToolCall =
    R"({"type":"object","properties":{"name":{"const":"get_weather"},"arguments":{"type":"object","properties":{
  "location":{"type":"string","description":"city"},"unit":{"enum":["celsius","fahrenheit"]},"days":{"type":"integer","minimum":1,"maximum":14},
  "tags":{"type":"array","items":{"type":"string"}}},"required":["location","unit"],"additionalProperties":false}},
  "required":["name","arguments"],"additionalProperties":false})";

const std::vector<std::string> kSchemas = {
    "{}",
    "true",
    R"({"type":"object"})",
    R"({"type":"string"})",
    R"({"type":["string","null"]})",
    R"({"type":"number"})",
    R"({"type":"integer"})",
    R"({"type":"array"})",
    R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":4})",
    R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false})",
    R"({"type":"array","prefixItems":[{"type":"integer"}],"items":{"type":"boolean"},"minItems":3})",
    R"({"type":"array","items":{"type":"array","items":{"type":"array","items":{"type":"null"},"minItems":2},"minItems":2}})",
    R"({"enum":["a","b\"c",1,1.5,null,true,[1,{"x":2}],{"k":[]},"ü"]})",
    R"({"const":{"a":[1,2,3]}})",
    R"({"type":"string","minLength":2,"maxLength":5})",
    R"({"type":"string","pattern":"^[a-z]+[0-9]{2,3}$"})",
    R"({"type":"string","pattern":"^[^a-z]*$","minLength":1,"maxLength":6})",
    R"({"type":"integer","minimum":-12,"maximum":345})",
    R"({"type":"integer","exclusiveMinimum":0})",
    R"({"type":"integer","maximum":-7})",
    R"({"type":"integer","minimum":98,"maximum":1203})",
    R"({"type":"number","minimum":-1.5,"maximum":2.25})",
    R"({"type":"number","exclusiveMinimum":0,"maximum":1})",
    R"({"type":"number","minimum":0.1,"exclusiveMaximum":0.15})",
    R"({"type":"number","minimum":3})",
    R"({"type":"number","maximum":-0.5})",
    R"({"type":"number","exclusiveMaximum":0})",
    R"({"type":"number","minimum":99.5,"maximum":100.25})",
    R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{"type":"null"}},"required":["b"],"additionalProperties":false})",
    R"({"type":"object","properties":{"a":{"type":"integer"},"ab":{"type":"boolean"}},"required":["ab"]})",
    R"({"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"boolean"}})",
    R"({"type":"object","properties":{"a\"\\b\n":{"type":"integer"},"é":{"type":"null"}},"required":["zz"],"additionalProperties":{"type":"string"}})",
    R"({"type":"object","properties":{},"additionalProperties":false})",
    kTree,
    kToolCall,
    R"({"type":"object","properties":{"a":{"$ref":"#"},"b":{"type":"integer"}},"required":["b"],"additionalProperties":false})",
    R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"string"},"a":{"minimum":5}},"required":["b"]}]})",
    R"({"allOf":[{"$ref":"#/$defs/x"},{"properties":{"b":{"type":"string"},"c":true},"additionalProperties":{"type":"integer"}}],"$defs":{"x":{"type":"object","properties":{"a":{"minimum":1},"c":{"maximum":9}},"required":["a","c"]}}})",
    R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"anyOf":[{"required":["a"]},{"required":["b"]}],"additionalProperties":false})",
    R"({"oneOf":[{"type":"object","properties":{"k":{"const":"x"},"v":{"type":"integer"}},"required":["k","v"]},{"type":"object","properties":{"k":{"const":"y"},"w":{"type":"string"}},"required":["k"]},{"type":"integer"}]})",
    R"({"properties":{"a":{"minLength":3}},"required":["a"]})",
    R"({"type":"object","properties":{"a":false,"b":true},"required":["b"],"additionalProperties":false})",
    // Annotations, formats that nobody knows here.
    R"({"title":"x","madeUp":{"not":1},"nullable":true,"contentEncoding":"base64","type":"string","format":"int32","maxLength":4})",
    R"({"format":"double"})",
    R"({"type":"object","propertyNames":{"pattern":"^[a-c]+$","maxLength":3},"additionalProperties":{"type":"boolean"}})",
    R"({"type":"object","properties":{"ab":{"type":"integer"},"zz":{"type":"null"}},"required":["ab"],"propertyNames":{"pattern":"^[a-c]+$"}})",
    R"({"type":"object","propertyNames":{"enum":["x","y",1]},"additionalProperties":{"type":"integer"}})",
    R"({"type":"object","propertyNames":{"$ref":"#/$defs/n"},"additionalProperties":{"type":"null"},"$defs":{"n":{"anyOf":[{"const":"k"},{"minLength":5,"maxLength":6}]}}})",
    R"({"allOf":[{"type":"object","propertyNames":{"maxLength":2}},{"propertyNames":{"pattern":"^[xy]"},"additionalProperties":{"type":"null"}}]})",
    R"({"type":"object","propertyNames":true,"additionalProperties":{"type":"null"}})",
    // Tuples of draft 7.
    R"({"type":"array","items":[{"type":"integer"},{"type":"string"}],"additionalItems":false})",
    R"({"type":"array","items":[{"type":"integer"}],"additionalItems":{"type":"boolean"},"minItems":2})",
    R"({"type":"array","items":[{"type":"null"},{"type":"boolean"}],"maxItems":3})",
    R"({"type":"array","items":{"type":"integer"},"additionalItems":false,"maxItems":2})",
    R"({"allOf":[{"items":[{"type":"integer"}],"additionalItems":false},{"type":"array","minItems":1}]})",
    // Bounds beside constants.
    R"({"enum":["a","bcd","ef",3,40,null,[1],[1,2]],"minLength":2,"maximum":10,"maxItems":1})",
    R"({"type":"string","enum":["aa","ab","b"],"pattern":"^a","maxLength":5})",
    R"({"type":"string","format":"date","enum":["2020-01-01","soon"]})",
    R"({"allOf":[{"enum":["x","yy","zzz"]},{"maxLength":2}]})",
};

class SchemaSample : public testing::TestWithParam<size_t> {};

TEST_P(SchemaSample, RandomTextsAreValidAndMasksAgreeWithBytes) {
  const std::string& schema = kSchemas[GetParam()];
  const boost::json::value schema_json = parse_text(schema);
  const JsonValidator validator(schema_json);
  const auto demo = Tokenizer::load("examples/demo/model");
  ASSERT_TRUE(demo.ok());
  const std::vector<int32_t> ends{*(*demo)->token_to_id("<|im_end|>")};
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  for (const auto& vocabulary : {TokenVocabulary::create(**demo, (*demo)->vocab_size() + 9, ends),
                                 byte_vocabulary({"\"}", "\": ", "{\"", "\",\n  \"", "[1", "]]", "}}}", "tru", "true,",
                                                  "\",\"", "12", " \"", "é\"", "\\u00"})}) {
    const auto grammar = compile(schema_spec(schema), vocabulary);
    ASSERT_NE(grammar, nullptr);
    const auto bytewise = compile(schema_spec(schema), byte_vocabulary());
    for (int round = 0; round < 60 && !testing::Test::HasFailure(); ++round) {
      const std::string text = random_text(grammar, *vocabulary, random, static_cast<int>(random() % 40));
      ASSERT_EQ(utf8::find_invalid(text), std::nullopt);
      ASSERT_TRUE(validator.valid(parse_text(text))) << schema << "\n" << text;
      ASSERT_TRUE(matches(bytewise, text)) << text;
    }
    // A token is allowed exactly when its bytes fit one by one.
    const auto& trie = static_cast<const grammar::TrieVocabulary&>(*vocabulary);
    GrammarState state(grammar);
    GrammarState bytes(bytewise);
    for (int step = 0; step < 40; ++step) {
      const std::vector<int32_t> tokens = allowed_tokens(state, vocabulary->size());
      std::vector<int32_t> expected;
      for (int32_t token = 0; token < vocabulary->size(); ++token) {
        GrammarState copy(bytes);
        bool fits = trie.is_end(token) ? bytes.can_end() : !trie.bytes(token).empty();
        for (const char c : trie.bytes(token)) fits = fits && copy.accept(static_cast<unsigned char>(c));
        if (fits) expected.push_back(token);
      }
      ASSERT_EQ(tokens, expected) << schema;
      const int32_t token = tokens[random() % tokens.size()];
      ASSERT_TRUE(state.accept(token));
      if (trie.is_end(token)) break;
      for (const char c : trie.bytes(token)) ASSERT_TRUE(bytes.accept(static_cast<unsigned char>(c)));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(, SchemaSample, testing::Range<size_t>(0, kSchemas.size()));

struct Texts {
  const char* schema;
  std::vector<std::string> inside, outside;
};

TEST(Schema, HandWrittenTexts) {
  const std::vector<Texts> cases = {
      {R"({"type":"string"})",
       {R"("")", R"("a\n\u00e9\ud83d\ude00/\/")", "\"é😀\x7F\""},
       {"\"\n\"", R"("\x")", R"("\ud83d")", R"("\ude00")", R"("\u00g0")", "\"a", R"("a"b)", "\"\xFF\"", "\"\xC0\x80\"",
        "\"\xED\xA0\x80\""}},
      {R"({"type":"number"})",
       {"0", "-0", "-12.5e+10", "1E5", "10.0"},
       {"01", "+1", ".5", "1.", "1e", "--1", "NaN", "1e100", "1234567890123456789"}},
      {R"({"type":"integer"})", {"0", "-5", "100"}, {"1.0", "1e2", "00"}},
      {R"({"type":"integer","minimum":-12,"maximum":345})",
       {"-12", "-9", "0", "9", "99", "345", "300"},
       {"-13", "346", "1000", "-20", "-0"}},
      {R"({"type":"integer","minimum":9223372036854775807})", {"9223372036854775807"}, {"9223372036854775806"}},
      {R"({"type":"number","minimum":-1.5,"maximum":2.25})",
       {"-1.5", "-1.50", "-0.0", "0", "2.25", "2.2", "1.999", "2.250"},
       {"-1.51", "2.26", "2.251", "3", "-2", "1e0"}},
      {R"({"type":"number","exclusiveMinimum":0,"maximum":1})",
       {"0.001", "1", "1.0", "0.5"},
       {"0", "0.0", "-0", "1.01"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"null"}},"additionalProperties":false})",
       {"{}", R"({"a":1})", R"({"a": 1, "b": null})", R"({"b":null})", "{\n  \"a\": 1,\n  \"b\": null\n}",
        "{\n\t\"a\": 1\n}", "{ }"},
       {R"({"b":null,"a":1})", R"({"a":1,})", R"({,"a":1})", R"({"a":  1})", R"({"c":1})", R"({"a" :1})", "{}  ", " {}",
        "{\n\n}", R"({"a":1"b":null})"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]})",
       {R"({"a":1})", R"({"a":1,"b":[{"c":{}}]})", R"({"a":1,"aa":1,"":2})"},
       {"{}", R"({"b":1})", R"({"a":1,"a":2})", R"({"a":1,"\u0061":2})"}},
      {R"({"enum":["a","ab",12,null]})", {R"("a")", R"("ab")", "12", "null"}, {R"("abc")", "1", R"("\u0061")"}},
      {R"({"type":"string","enum":["a",1]})", {R"("a")"}, {"1"}},
      {R"({"type":"string","maxLength":2})", {R"("")", R"("é😀")", R"("\n\"")"}, {R"("abc")", R"("\n\"a")"}},
      {R"({"type":"string","pattern":"b+c"})", {R"("bc")", R"("x\nbbc\u0001")"}, {R"("bd")", R"("b c")"}},
      {R"({"type":"string","pattern":"ab$"})", {R"("ab")", R"("x\nab")"}, {R"("abc")"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":2})",
       {"[1]", "[1, 2]", "[ 1,2 ]", "[\n  1,\n  2\n]"},
       {"[]", "[1,2,3]", "[1,]"}},
      {R"({"type":"array","prefixItems":[{"type":"null"},{"type":"boolean"}],"items":{"type":"integer"}})",
       {"[]", "[null]", "[null,true]", "[null,true,1,2]"},
       {"[true]", "[null,1]", "[null,true,null]"}},
      {R"({"type":"string","format":"date"})",
       {R"("2024-02-29")", R"("1999-12-31")", R"("2000-02-29")"},
       {R"("2023-02-29")", R"("1900-02-29")", R"("2024-13-01")", R"("2024-04-31")", R"("0000-01-01")"}},
      {R"({"type":"string","format":"date-time"})",
       {R"("2024-02-29T23:59:59Z")", R"("2024-01-01T00:00:00.5+01:30")"},
       {R"("2024-01-01 00:00:00Z")", R"("2024-01-01T24:00:00Z")", R"("2024-01-01T00:00:00")"}},
      {R"({"type":"string","format":"ipv4"})",
       {R"("0.0.0.0")", R"("255.10.200.9")"},
       {R"("256.1.1.1")", R"("01.1.1.1")", R"("1.1.1")"}},
      {R"({"type":"string","format":"ipv6"})",
       {R"("::")", R"("::1")", R"("1:2:3:4:5:6:7:8")", R"("fe80::1:2")", R"("1:2:3:4:5:6:7::")", R"("1::8")",
        R"("1:2:3:4:5:6::8")"},
       {R"("1:2:3")", R"("1::2::3")", R"("1:2:3:4:5:6:7:8:9")", R"(":1")", R"("1:2:3:4:5:6:7::8")"}},
      {R"({"type":"string","format":"uuid"})",
       {R"("123e4567-e89b-12d3-a456-426614174000")"},
       {R"("123e4567e89b12d3a456426614174000")"}},
      {R"({"type":"string","format":"email"})", {R"("a.b+c@example.com")"}, {R"("a@b")", R"("@b.c")", R"("a@-b.com")"}},
  };
  for (const Texts& c : cases) {
    const auto grammar = compile(schema_spec(c.schema), byte_vocabulary());
    ASSERT_NE(grammar, nullptr);
    for (const std::string& text : c.inside) EXPECT_TRUE(matches(grammar, text)) << c.schema << " should take " << text;
    for (const std::string& text : c.outside)
      EXPECT_FALSE(matches(grammar, text)) << c.schema << " should not take " << text;
  }
}

TEST(Schema, RefusesByName) {
  const auto error = [](std::string schema) { return compile_error(schema_spec(std::move(schema))); };
  EXPECT_THAT(error(R"({"type":"object","properties":{"x":{"not":{}}}})"),
              HasSubstr("#/properties/x: the keyword \"not\" is not supported"));
  for (const char* keyword : {"if", "patternProperties", "minProperties", "multipleOf", "contains", "dependencies",
                              "unevaluatedProperties", "dependentRequired", "$dynamicRef"})
    EXPECT_THAT(error(fmt::format(R"({{"type":"object","{}":1}})", keyword)),
                HasSubstr(fmt::format("\"{}\"", keyword)));
  EXPECT_THAT(error(R"({"type":"array","uniqueItems":true})"), HasSubstr("uniqueItems"));
  EXPECT_THAT(error(R"({"enum":[{"a":1}],"required":["a"]})"), HasSubstr("\"required\" beside \"enum\""));
  EXPECT_THAT(error(R"({"prefixItems":[{}],"items":[{}]})"), HasSubstr("must be a schema"));
  EXPECT_THAT(error(R"({"type":"object","propertyNames":{"not":{}}})"), HasSubstr("\"not\""));
  EXPECT_THAT(error(R"({"type":"object","properties":{"b":{}},"required":["b"],"propertyNames":{"const":"a"}})"),
              HasSubstr("no text"));
  EXPECT_THAT(error(R"({"enum":["a"],"minLength":2})"), HasSubstr("no text"));
  EXPECT_THAT(error(R"({"type":"text"})"), HasSubstr("\"type\""));
  EXPECT_THAT(error(R"({"oneOf":[{"type":"integer"},{"type":"number"}]})"), HasSubstr("oneOf"));
  EXPECT_THAT(error(R"({"oneOf":[{"minimum":1},{"minLength":1}]})"), HasSubstr("oneOf"))
      << "without types both hold for null";
  EXPECT_THAT(error(R"({"$ref":"#/$defs/x"})"), HasSubstr("does not exist"));
  EXPECT_THAT(error(R"({"$ref":"http://x/y"})"), HasSubstr("only this document"));
  EXPECT_THAT(error(R"({"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"})"), HasSubstr("no text"));
  EXPECT_THAT(error(R"({"$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"})"),
              HasSubstr("contains itself"));
  EXPECT_THAT(error(R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})"), HasSubstr("no text"));
  EXPECT_THAT(error(R"({"type":"integer","minimum":5,"maximum":4})"), HasSubstr("no text"));
  EXPECT_THAT(error(R"({"type":"string","minLength":5,"maxLength":4})"), HasSubstr("no text"));
  EXPECT_THAT(error(R"({"type":"string","enum":[1]})"), HasSubstr("no text"));
  EXPECT_THAT(error(R"x({"type":"string","pattern":"(?=a)"})x"), HasSubstr("look-around"));
  EXPECT_THAT(error("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("must be an object"));
  EXPECT_THAT(error(R"({"type":"string","maxLength":-1})"), HasSubstr("maxLength"));
  EXPECT_THAT(error(R"({"type":"string","maxLength":1e8})"), HasSubstr("maxLength"));
}

// Bounds as pydantic writes them: counted, not written out.
TEST(Schema, LongStringsAreCounted) {
  const auto object = [](const std::string& text) {
    return R"({"type":"object","properties":{"x":)" + text + R"(},"required":["x"],"additionalProperties":false})";
  };
  const auto of_length = [](size_t length, const std::string& character = "a") {
    std::string text;
    for (size_t k = 0; k < length; ++k) text += character;
    return "{\"x\":\"" + text + "\"}";
  };
  struct Case {
    int min, max;
  };
  for (const auto& [min, max] : {Case{0, 20'000}, Case{3'000, 20'000}, Case{1'500, 1'500}, Case{0, 100'000},
                                 Case{1, 1'024}, Case{1'000, 1'300}, Case{5'000, -1}}) {
    std::string schema = fmt::format(R"({{"type":"string","minLength":{})", min);
    if (max >= 0) schema += fmt::format(R"(,"maxLength":{})", max);
    const auto grammar = compile(schema_spec(object(schema + "}")), byte_vocabulary({"ab\"", "aaaaaaaa", "\"}"}));
    ASSERT_NE(grammar, nullptr);
    const int top = max < 0 ? min + 3'000 : max;
    for (const int length : {min, min + 1, min + 255, min + 256, min + 257, min + 700, top - 256, top - 1, top})
      EXPECT_EQ(matches(grammar, of_length(static_cast<size_t>(length))), length >= min && length <= top) << length;
    EXPECT_TRUE(matches(grammar, of_length(static_cast<size_t>(top), "\xC3\xA9"))) << "characters, not bytes";
    EXPECT_TRUE(matches(grammar, of_length(static_cast<size_t>(top), "\\n"))) << "characters, not their spelling";
    EXPECT_EQ(matches(grammar, of_length(static_cast<size_t>(top) + 1)), max < 0);
    EXPECT_EQ(matches(grammar, of_length(static_cast<size_t>(std::max(min, 1)) - 1)), min == 0);
  }
  // pydantic's HttpUrl, and other formats with more room than they need.
  const auto url = compile(schema_spec(object(R"({"type":"string","format":"uri","minLength":1,"maxLength":2083})")),
                           byte_vocabulary());
  ASSERT_NE(url, nullptr);
  EXPECT_TRUE(matches(url, R"({"x":"https://example.org:80/a/b?c=%20"})"));
  EXPECT_TRUE(matches(url, R"({"x":"https://example.org/)" + std::string(1'700, 'a') + "\"}"));
  EXPECT_FALSE(matches(url, R"({"x":"https://example.org/)" + std::string(2'083, 'a') + "\"}"));
  EXPECT_FALSE(matches(url, R"({"x":""})"));
  EXPECT_NE(compile(schema_spec(object(R"({"type":"string","format":"email","maxLength":2000})")), byte_vocabulary()),
            nullptr);
  const auto date =
      compile(schema_spec(object(R"({"type":"string","format":"date","maxLength":10})")), byte_vocabulary());
  EXPECT_TRUE(matches(date, R"({"x":"2024-02-29"})"));
  // What a constant or a property's name is compared with is written out.
  EXPECT_NE(compile(schema_spec(R"({"enum":["a","b"],"type":"string","maxLength":2000})"), byte_vocabulary()), nullptr);
}

TEST(Schema, WhatIsTooLargeIsNamed) {
  const std::string error = compile_error(schema_spec(
      R"({"type":"object","properties":{"x":{"type":"string","pattern":"^([a-c]{3}-){0,90}","maxLength":90000}}})"));
  EXPECT_THAT(error, HasSubstr("too large"));
  EXPECT_THAT(error, HasSubstr("\"maxLength\" in #/properties/x"));
  EXPECT_THAT(compile_error(regex_spec("([a-z]{1,300}x?){1,90000}")), HasSubstr("a repetition"));
}

TEST(Schema, LimitsHold) {
  EXPECT_THAT(compile_error(schema_spec(R"({"type":"string","pattern":"^(ab*c)*$","maxLength":100000})")),
              HasSubstr("too "));
  std::string nested = "{}";
  for (int k = 0; k < 70; ++k) nested = R"({"type":"array","items":)" + nested + "}";
  EXPECT_THAT(compile_error(schema_spec(nested)), HasSubstr("deep"));
  // Each definition merges the next one four times: 4^15 merges.
  std::string defs = R"("d15":{"type":"object"})";
  for (int k = 0; k < 15; ++k)
    defs += fmt::format(
        R"(,"d{0}":{{"allOf":[{{"$ref":"#/$defs/d{1}"}},{{"$ref":"#/$defs/d{1}"}},{{"$ref":"#/$defs/d{1}"}},{{"$ref":"#/$defs/d{1}"}}]}})",
        k, k + 1);
  GrammarLimits quick;
  quick.compile_timeout = std::chrono::milliseconds(100);
  EXPECT_THAT(compile_error(schema_spec(fmt::format(R"({{"$defs":{{{}}},"$ref":"#/$defs/d0"}})", defs)), quick),
              HasSubstr("takes more than 100 ms"));
  // Not merged it is small.
  std::string pairs = R"("d30":{"type":"object"})";
  for (int k = 0; k < 30; ++k)
    pairs += fmt::format(
        R"(,"d{0}":{{"type":"array","prefixItems":[{{"$ref":"#/$defs/d{1}"}},{{"$ref":"#/$defs/d{1}"}}]}})", k, k + 1);
  EXPECT_EQ(compile_error(schema_spec(fmt::format(R"({{"$defs":{{{}}},"$ref":"#/$defs/d0"}})", pairs))), "compiled");
  std::string deep = "{}";
  for (int k = 0; k < 30; ++k) deep = R"({"type":"array","minItems":2,"items":)" + deep + "}";
  EXPECT_EQ(compile_error(schema_spec(deep)), "compiled");
}

TEST(JsonObject, NestsUpToTheLimitWithoutDeadEnds) {
  const auto vocabulary = byte_vocabulary({"[[[[", "{\"a\":{\"a\":", "]]]", "}}"});
  const auto grammar = compile({GrammarSpec::Kind::kJsonObject, "", {}}, vocabulary);
  EXPECT_TRUE(matches(grammar, R"({"a": [1, {"b": null}], "c": "d"})"));
  EXPECT_EQ(fit(grammar, "["), Fit::kNo);
  GrammarState state(grammar);
  for (const char c : std::string_view("{\"a\":")) ASSERT_TRUE(state.accept(c));
  int depth = 0;
  while (state.accept(257)) depth += 4;
  while (state.accept('[')) ++depth;
  EXPECT_GE(depth, 100);
  EXPECT_LE(depth, 300);
  // Everything allowed at the limit can still be finished.
  std::mt19937 random(3);
  for (int step = 0; !state.can_end(); ++step) {
    ASSERT_LT(step, 20'000);
    const auto tokens = allowed_tokens(state, vocabulary->size());
    ASSERT_FALSE(tokens.empty());
    for (const int32_t token : tokens) {
      GrammarState copy(state);
      ASSERT_TRUE(copy.accept(token));
      ASSERT_FALSE(allowed_tokens(copy, vocabulary->size()).empty());
    }
    int32_t token = tokens[random() % tokens.size()];
    const auto takes = [&](char c) { return std::count(tokens.begin(), tokens.end(), c) > 0; };
    if (step > 300) {  // 'x' fits in strings only
      for (const char close : {']', '}', '"'}) {
        if (takes(close) && (close != '"' || takes('x') || (!takes(']') && !takes('}')))) token = close;
      }
    }
    ASSERT_TRUE(state.accept(token));
  }
}

}  // namespace
}  // namespace lk
