// SPDX-License-Identifier: Apache-2.0
// tokenizer.json files that are made to cost: what they multiply is refused when the file is read, and what is left is
// bounded by the budget of each text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lk/text/added_tokens.h"
#include "lk/text/decoder.h"
#include "lk/text/tokenizer.h"
#include "lk/text/tokenizer_json.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

using testing::HasSubstr;

struct File {
  std::string normalizer = "null", pre_tokenizer = "null", post_processor = "null", added = "[]";
  std::string decoder = R"({"type":"Fuse"})";
  std::string vocab = R"({"a":0,"b":1,"e":2})", model_extra;
  TokenizerConfig config = {};

  Result<std::shared_ptr<const Tokenizer>> parse(const Tokenizer* base = nullptr) const {
    return Tokenizer::parse(
        fmt::format(
            R"({{"version":"1.0","added_tokens":{},"normalizer":{},"pre_tokenizer":{},"post_processor":{},"decoder":{},
      "model":{{"type":"BPE","unk_token":null{},"vocab":{},"merges":[]}}}})",
            added, normalizer, pre_tokenizer, post_processor, decoder, model_extra, vocab),
        "t.json", config, base);
  }
  std::string error(const Tokenizer* base = nullptr) const {
    const auto tokenizer = parse(base);
    return tokenizer.ok() ? "loaded" : tokenizer.status().message();
  }
};

std::string replace(std::string_view pattern, const std::string& content, std::string_view kind = "String") {
  return fmt::format(R"({{"type":"Replace","pattern":{{"{}":"{}"}},"content":"{}"}})", kind, pattern, content);
}

std::string sequence(std::string_view key, const std::string& part, size_t times) {
  std::string list = part;
  for (size_t k = 1; k < times; ++k) list += "," + part;
  return fmt::format(R"({{"type":"Sequence","{}":[{}]}})", key, list);
}

// Error of a file with this normalizer.
std::string normalizer_error(const std::string& normalizer) { return File{.normalizer = normalizer}.error(); }

TEST(HostileTokenizer, NormalizersThatMultiplyTextsAreRefusedByName) {
  EXPECT_THAT(normalizer_error(sequence("normalizers", replace("a", std::string(64, 'a')), 5)),
              HasSubstr("t.json: normalizer.normalizers[1]: with this part the rules make up to 4096 bytes of one"));
  EXPECT_THAT(normalizer_error(replace("a", std::string(100'000, 'a'))), HasSubstr("normalizer: with this part"));
  EXPECT_THAT(normalizer_error(replace("", std::string(100, 'a'))), HasSubstr("normalizer: with this part"))
      << "between all characters";
  EXPECT_THAT(normalizer_error(replace("a?", std::string(100, 'a'), "Regex")), HasSubstr("normalizer: with this part"));
  EXPECT_THAT(normalizer_error(R"({"type":"Prepend","prepend":")" + std::string(5000, 'x') + R"("})"),
              HasSubstr("add up to 5000"));
  EXPECT_THAT(normalizer_error(sequence("normalizers", R"({"type":"Prepend","prepend":"xxxxxxxxxx"})", 1000)),
              HasSubstr("more than 256 normalizers"));
  EXPECT_THAT(normalizer_error(sequence("normalizers", R"({"type":"ByteLevel"})", 7)),
              HasSubstr("normalizer.normalizers[6]: with"));
  EXPECT_EQ(normalizer_error(sequence("normalizers", R"({"type":"NFKC"})", 9)), "loaded") << "nothing repeats";
  EXPECT_EQ(normalizer_error(R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},)" +
                             replace(" ", "▁") + "]}"),
            "loaded");
  EXPECT_EQ(normalizer_error(replace("a{10}", std::string(600, 'a'), "Regex")), "loaded") << "ten become sixty each";
}

TEST(HostileTokenizer, PreTokenizersThatMultiplyTextsAreRefused) {
  const std::string part = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})";
  EXPECT_THAT(File{.pre_tokenizer = sequence("pretokenizers", part, 20)}.error(),
              HasSubstr("pre_tokenizer.pretokenizers[6]: with this part"));
  EXPECT_EQ(File{.pre_tokenizer = sequence("pretokenizers", part, 2)}.error(), "loaded");
}

TEST(HostileTokenizer, WhatGrowsAtRunTimeStaysWithinTheTextsBudget) {
  const auto tokenizer = File{.normalizer = replace("a", std::string(64, 'b'))}.parse().value();
  EXPECT_EQ(tokenizer->encode("a", false)->size(), 64u);
  const std::string text(1 << 20, 'a');
  const auto ids = tokenizer->encode(text, false);
  EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument) << "nothing to try again";
  EXPECT_THAT(ids.status().message(), HasSubstr("make more than 4194304 bytes of this text of 1048576"));
  // Honest rules at their worst: every space becomes three bytes.
  const auto spaces = File{.normalizer = replace(" ", "▁"), .vocab = R"({"▁":0})"}.parse().value();
  EXPECT_EQ(spaces->encode(std::string(3 << 20, ' '), false)->size(), size_t{3} << 20);
}

TEST(HostileTokenizer, AddedTokensThatNearlyMatchEverywhereSpendTheBudget) {
  const std::string content = std::string(1000, 'a') + "c";
  File file;
  file.added = fmt::format(R"([{{"id":3,"content":"{}","single_word":false,"lstrip":false,"rstrip":false,
    "normalized":false,"special":false}}])",
                           content);
  const auto tokenizer = file.parse().value();
  EXPECT_EQ(tokenizer->encode(content, false).value(), std::vector<int32_t>{3});
  const auto ids = tokenizer->encode(std::string(size_t{1} << 18, 'a'), false);
  EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(ids.status().message(), HasSubstr("take too long"));

  // The budget itself: so many steps and no more.
  WorkBudget budget(0);
  EXPECT_TRUE(budget.spend(budget.most_steps()).ok());
  EXPECT_FALSE(budget.spend(1).ok());
}

TEST(HostileTokenizer, MarksOnOneCharacterAreLimited) {
  std::string text = "a";
  for (int k = 0; k < 512; ++k) text += "\u0301\u0323";
  EXPECT_TRUE(unicode::normalize(text, unicode::Form::kNfc).ok());
  EXPECT_TRUE(unicode::normalize(text + "b" + text, unicode::Form::kNfc).ok());
  const auto refused = unicode::normalize(text + "\u0301", unicode::Form::kNfc);
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
}

TEST(HostileTokenizer, TemplatesAreCountedBeforeTheyAreExpanded) {
  const auto error_of = [](const std::string& single, const std::string& ids) {
    return File{.post_processor = fmt::format(R"({{"type":"TemplateProcessing","single":[{}],"pair":[],
      "special_tokens":{{"x":{{"id":"x","ids":[{}],"tokens":[]}}}}}})",
                                              single, ids)}
        .error();
  };
  const auto times = [](std::string_view text, size_t count) {
    std::string list(text);
    for (size_t k = 1; k < count; ++k) list.append(",").append(text);
    return list;
  };
  const std::string piece = R"({"SpecialToken":{"id":"x","type_id":0}})", a = R"({"Sequence":{"id":"A","type_id":0}})";
  EXPECT_EQ(error_of(piece + "," + a, "1"), "loaded");
  EXPECT_THAT(error_of(times(piece, 5), times("1", 1000)), HasSubstr("more than 8 sequences or 4096 special ids"));
  EXPECT_THAT(error_of(times(a, 9), "1"), HasSubstr("more than 8 sequences"));
  EXPECT_THAT(error_of(times(piece, 100'000), times("1", 1000)),
              HasSubstr("post_processor.single: has 100000 entries, more than 4104"))
      << "not one is looked at";
  EXPECT_THAT(error_of(piece, times("1", 5000)), HasSubstr("ids: has 5000 entries"));
}

TEST(HostileTokenizer, DecodersThatMultiplyTextsAreRefused) {
  EXPECT_THAT(File{.decoder = replace("e", std::string(3'000'000, 'e'))}.error(), HasSubstr("decoder: with this part"));
  EXPECT_THAT(File{.decoder = sequence("decoders", replace("e", "eeeeeeeeee"), 3)}.error(),
              HasSubstr("decoder.decoders[1]: with this part"));
  EXPECT_THAT(File{.decoder = sequence("decoders", R"({"type":"Fuse"})", 1000)}.error(),
              HasSubstr("has 1000 entries, more than 16"));
}

TEST(HostileTokenizer, AnAdaptersDecoderIsBoundedByTheBases) {
  const auto base = File{}.parse().value();
  EXPECT_EQ(File{}.error(base.get()), "loaded");
  EXPECT_EQ(File{.decoder = replace("▁", " ")}.error(base.get()), "loaded");
  const std::string pattern = replace("(a|aa)+!", "", "Regex");
  EXPECT_THAT(File{.decoder = pattern}.error(base.get()), HasSubstr("may not bring a regular expression"));
  const auto with_pattern = File{.decoder = pattern}.parse().value();
  EXPECT_EQ(File{.decoder = pattern}.error(with_pattern.get()), "loaded") << "the operator's own";

  File long_token;
  long_token.vocab = fmt::format(R"({{"a":0,"b":1,"e":2,"{}":3}})", std::string(5000, 'x'));
  EXPECT_THAT(long_token.error(base.get()), HasSubstr("a token may show up to 5000 bytes, more than 4096"));
  EXPECT_EQ(long_token.error(long_token.parse().value().get()), "loaded");
}

TEST(HostileTokenizer, WhatIsWrittenToEveryCharacterIsShort) {
  File file;
  file.model_extra = R"(,"continuing_subword_prefix":")" + std::string(1000, '#') + "\"";
  EXPECT_THAT(file.error(), HasSubstr("continuing_subword_prefix has 1000 bytes, more than 32"));
  EXPECT_THAT(normalizer_error(replace(std::string(2000, 'a'), "b")), HasSubstr("the pattern has 2000 bytes"));
}

TEST(HostileTokenizer, ErrorsDoNotRepeatTheFile) {
  EXPECT_LT(normalizer_error(R"({"type":")" + std::string(1 << 20, 'x') + R"("})").size(), 1200u);
  std::string list = "0";
  for (int k = 0; k < 600'000; ++k) list += ",0";
  EXPECT_THAT(File{.added = "[" + list + "]"}.error(), HasSubstr("has 600001 entries, more than 524288"));
}

}  // namespace
}  // namespace lk
