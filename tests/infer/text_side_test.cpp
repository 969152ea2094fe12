// SPDX-License-Identifier: Apache-2.0
// The text sides of adapters over a small base: what their files add, what is shared, and what is refused.
#include "lk/infer/text_side.h"

#include <gmock/gmock.h>

#include <filesystem>

#include <boost/json.hpp>

#include "lk/infer/text_model.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

namespace json = boost::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr int kRows = 272;  // of the base's embedding, for 259 tokens

json::object added(int id, const std::string& content, bool special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// 256 byte tokens and three special ones, and then those of `more`.
json::object tokenizer(const std::vector<std::string>& more = {}, const std::string& third = "<|end|>") {
  json::object vocab;
  for (int byte = 0; byte < 256; ++byte) {
    // The printable form of byte-level tokenizers: bytes without one are written behind U+0100.
    static int shifted = 0;
    const bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    if (byte == 0) shifted = 0;
    const int code = plain ? byte : 256 + shifted++;
    std::string text;
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xC0 | code >> 6);
      text += static_cast<char>(0x80 | (code & 0x3F));
    }
    vocab[text] = byte;
  }
  json::array tokens{added(256, "<|pad|>"), added(257, "<|eos|>"), added(258, third)};
  for (size_t k = 0; k < more.size(); ++k) tokens.push_back(added(259 + static_cast<int>(k), more[k]));
  return {{"version", "1.0"},
          {"added_tokens", tokens},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
}

constexpr const char* kTemplate =
    "{% for m in messages %}{{ bos_token }}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}";

class TextSideTest : public ::testing::Test {
 protected:
  TextSideTest() {
    base_.write("tokenizer.json", json::serialize(tokenizer()));
    base_.write(
        "tokenizer_config.json",
        json::serialize(json::object{
            {"eos_token", "<|eos|>"}, {"pad_token", "<|pad|>"}, {"bos_token", "#"}, {"chat_template", kTemplate}}));
    base_.write("generation_config.json", R"({"eos_token_id": 257, "temperature": 0.6, "top_k": 20})");
    config_.vocab_size = kRows;
    config_.max_positions = 512;
    config_.model_type = "llama";
    model_ = TextModel::load(base_.path(), config_, 0).value();
  }
  void config(const json::object& object) { adapter_.write("tokenizer_config.json", json::serialize(object)); }
  std::shared_ptr<const TextSide> side() {
    auto side = model_->load_side(adapter_.path());
    EXPECT_TRUE(side.ok()) << side.status().message();
    return side.ok() ? *side : nullptr;
  }
  Status refusal() { return model_->load_side(adapter_.path()).status(); }
  std::string shown(const TextSide& side, bool tools = false, const std::string& name = "") {
    TextRequest request;
    request.template_name = name;
    request.messages = {{{"role", "user"}, {"content", "hi"}}};
    if (tools) request.tools = {{{"type", "function"}, {"function", {{"name", "get_x"}}}}};
    const auto text = render_messages(request, side);
    return text.ok() ? *text : text.status().message();
  }

  testing::TempDir base_, adapter_;
  ModelConfig config_;
  std::shared_ptr<const TextModel> model_;
};

TEST_F(TextSideTest, NothingOfItsOwnIsTheBases) {
  EXPECT_EQ(side(), model_->shared_base());
  // The files that trainers copy beside every adapter cost nothing either, even written in another way.
  std::filesystem::copy(base_.path(), adapter_.path(), std::filesystem::copy_options::recursive);
  adapter_.write("tokenizer.json", json::serialize(tokenizer()) + "\n  ");
  const auto copied = side();
  EXPECT_EQ(copied->tokenizer, model_->tokenizer());
  EXPECT_TRUE(copied->own_templates);
  EXPECT_EQ(copied->vocabulary(), model_->base().vocabulary());
}

TEST_F(TextSideTest, TokensThatOnlyTheAdapterNames) {
  adapter_.write("tokenizer.json", json::serialize(tokenizer({"<|cite|>"})));
  const auto own = side();
  EXPECT_THAT(own->tokenizer->encode("a<|cite|>b", false).value(), ElementsAre('a', 259, 'b'));
  EXPECT_EQ(model_->tokenizer()->encode("a<|cite|>b", false)->size(), 10U);
  EXPECT_TRUE(own->tokenizer->shares_vocabulary_with(*model_->tokenizer()));
  TextRequest request{.prompt = "x<|cite|>"};
  TextSequence sequence;
  request.skip_special_tokens = false;
  ASSERT_TRUE(model_->prepare(request, sequence, own.get()).ok());
  EXPECT_THAT(sequence.asked.prompt, ElementsAre('x', 259));
  sequence.add({.token = 259}, false);
  EXPECT_EQ(sequence.completion.text, "<|cite|>") << "the output is the adapter's, too";
  // Two adapters of one trainer share one tokenizer.
  EXPECT_EQ(side()->tokenizer, own->tokenizer);
}

TEST_F(TextSideTest, OfAnAdapterWithAVocabularyOfItsOwn) {
  std::vector<std::string> many;
  for (int k = 0; k < 15; ++k) many.push_back("<|n" + std::to_string(k) + "|>");
  adapter_.write("tokenizer.json", json::serialize(tokenizer(many)));
  EXPECT_THAT(refusal().message(), HasSubstr("as token 272, and the base model has 272 rows"));
  const auto grown = model_->load_side(adapter_.path(), kRows + 2).value();
  EXPECT_EQ(grown->vocab_size, kRows + 2);
  EXPECT_EQ(grown->vocabulary()->size(), kRows + 2);
  TextSequence sequence;
  EXPECT_TRUE(model_->prepare({.prompt = "<|n14|>"}, sequence, grown.get()).ok());
  EXPECT_THAT(sequence.asked.prompt, ElementsAre(273));
  TextRequest request{.token_ids = {273}, .allowed_token_ids = {273}};
  request.stop_token_ids = {273};
  request.sampling.logit_bias = {{273, 1.0f}};
  EXPECT_TRUE(model_->prepare(request, sequence, grown.get()).ok());
  // The others know nothing of them.
  const auto field_of = [&](const TextRequest& refused, const TextSide* side) {
    std::string_view field;
    TextSequence unused;
    EXPECT_THAT(model_->prepare(refused, unused, side, &field).message(), HasSubstr("vocabulary"));
    return std::string(field);
  };
  EXPECT_EQ(field_of({.token_ids = {273}}, nullptr), "prompt");
  EXPECT_EQ(field_of({.prompt = "x", .allowed_token_ids = {273}}, nullptr), "allowed_token_ids");
  EXPECT_EQ(field_of({.prompt = "x", .stop_token_ids = {273}}, nullptr), "stop_token_ids");
  request = {.prompt = "x"};
  request.sampling.logit_bias = {{273, 1.0f}};
  EXPECT_EQ(field_of(request, nullptr), "logit_bias");
  EXPECT_EQ(field_of({.token_ids = {274}}, grown.get()), "prompt");
  // A smaller one lacks rows of the base, with the base's files, too.
  testing::TempDir none;
  const auto shrunk = model_->load_side(none.path(), 260).value();
  EXPECT_EQ(shrunk->vocab_size, 260);
  EXPECT_EQ(shrunk->vocabulary()->size(), 260);
  EXPECT_EQ(shrunk->tokenizer, model_->tokenizer());
  EXPECT_EQ(field_of({.token_ids = {260}}, shrunk.get()), "prompt");
}

TEST_F(TextSideTest, TokensNamedInTheOtherFiles) {
  config({{"extra_special_tokens", {"<|cite|>"}}});
  EXPECT_THAT(side()->tokenizer->encode("<|cite|>", false).value(), ElementsAre(259));
  config({{"added_tokens_decoder", {{"259", {{"content", "<|q|>"}, {"special", false}}}}}});
  EXPECT_THAT(side()->tokenizer->encode("<|q|>", false).value(), ElementsAre(259));
  EXPECT_FALSE(side()->tokenizer->is_special(259));
  std::filesystem::remove(adapter_.file("tokenizer_config.json"));
  adapter_.write("added_tokens.json", R"({"<|z|>": 259})");
  EXPECT_THAT(side()->tokenizer->encode("<|z|>", false).value(), ElementsAre(259));
}

TEST_F(TextSideTest, WhatContradictsTheBaseIsRefused) {
  adapter_.write("tokenizer.json", json::serialize(tokenizer({}, "<|other|>")));
  EXPECT_THAT(refusal().message(), HasSubstr("has \"<|other|>\" as token 258, which is \"<|end|>\" to the base model"));
  std::vector<std::string> many;
  for (int k = 0; k < 14; ++k) many.push_back("<|n" + std::to_string(k) + "|>");
  adapter_.write("tokenizer.json", json::serialize(tokenizer(many)));
  EXPECT_THAT(refusal().message(), HasSubstr("adds \"<|n13|>\" as token 272, and the base model has 272 rows"));
  config({{"pad_token", "<|n13|>"}});
  EXPECT_THAT(side()->warnings, ElementsAre(HasSubstr("padding token \"<|n13|>\" = 272 has no row")));
  config({{"added_tokens_decoder", {{"261", {{"content", "<|far|>"}}}}}});
  std::filesystem::remove(adapter_.file("tokenizer.json"));
  EXPECT_THAT(refusal().message(), HasSubstr("declares id 261, but stands at id 259"));
  config({});
  adapter_.write("generation_config.json", R"({"eos_token_id": 300})");
  EXPECT_THAT(refusal().message(), HasSubstr("eos_token_id 300 is outside"));
  adapter_.write("generation_config.json", R"({"top_p": 7})");
  EXPECT_THAT(refusal().message(), HasSubstr("\"top_p\" must be"));
}

TEST_F(TextSideTest, SpareTokensMayBeGivenNames) {
  base_.write("tokenizer.json", json::serialize(tokenizer({"<|reserved_0|>"})));
  model_ = TextModel::load(base_.path(), config_, 0).value();
  adapter_.write("tokenizer.json", json::serialize(tokenizer({"<|cite|>"})));
  EXPECT_THAT(side()->tokenizer->encode("<|cite|>", false).value(), ElementsAre(259));
}

TEST_F(TextSideTest, VariablesOfTheTemplateFallBackToTheBases) {
  EXPECT_EQ(shown(model_->base()), "#user:hi<|eos|>");
  adapter_.write("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
  EXPECT_EQ(shown(*side()), "#hi<|eos|>");
  config({{"eos_token", "<|end|>"}});
  EXPECT_EQ(shown(*side()), "#hi<|end|>");
  std::filesystem::remove(adapter_.file("chat_template.jinja"));
  EXPECT_EQ(shown(*side()), "#user:hi<|end|>") << "the base's template, the adapter's tokens";
  config({{"bos_token", nullptr}});
  EXPECT_EQ(shown(*side()), "user:hi<|eos|>");
}

TEST_F(TextSideTest, WhatEndsAnAnswer) {
  EXPECT_THAT(model_->base().end_tokens, ElementsAre(257));
  config({{"eos_token", "<|end|>"}});
  EXPECT_THAT(side()->end_tokens, UnorderedElementsAre(257, 258));
  adapter_.write("generation_config.json", R"({"eos_token_id": [256]})");
  EXPECT_THAT(side()->end_tokens, UnorderedElementsAre(256, 258));
  // The token that a template writes behind an answer, though nothing else names it.
  std::filesystem::remove(adapter_.file("generation_config.json"));
  config({{"chat_template", "{% for m in messages %}{{ m.role }}:{{ m.content }} \n<|end|>\n{% endfor %}"}});
  EXPECT_THAT(side()->end_tokens, UnorderedElementsAre(257, 258));
  config({{"chat_template", "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"}});
  EXPECT_THAT(side()->end_tokens, ElementsAre(257));
}

TEST_F(TextSideTest, DefaultsOfRequestsAreLaidOverTheBases) {
  adapter_.write("generation_config.json", R"({"do_sample": false, "repetition_penalty": 1.2})");
  const auto own = side();
  EXPECT_EQ(own->generation.temperature, 0);
  EXPECT_EQ(own->generation.top_k, 20);
  EXPECT_EQ(own->generation.repetition_penalty, 1.2);
  EXPECT_EQ(own->tokenizer, model_->tokenizer());
  EXPECT_EQ(own->templates, model_->base().templates);
  adapter_.write("generation_config.json", R"({"num_beams": 3})");
  EXPECT_THAT(side()->warnings, ElementsAre(HasSubstr("not applied: num_beams")));
}

TEST_F(TextSideTest, ToolsAreShownInTheAdaptersOwnWay) {
  EXPECT_THAT(shown(model_->base(), true), HasSubstr("does not show the model any tools"));
  config({{"chat_template",
           {{{"name", "default"}, {"template", "{{ messages[0].content }}"}},
            {{"name", "tool_use"}, {"template", "{{ tools | tojson }}<tool_call>"}},
            {{"name", "rag"}, {"template", "rag {{ messages[0].content }}"}}}}});
  const auto own = side();
  EXPECT_EQ(shown(*own), "hi");
  EXPECT_THAT(shown(*own, true), HasSubstr("<tool_call>"));
  EXPECT_EQ(own->templates->choose("", true).value()->tool_format, ToolFormat::kHermes);
  EXPECT_EQ(own->templates->choose("", false).value()->tool_format, ToolFormat::kNone);
  EXPECT_EQ(shown(*own, false, "rag"), "rag hi");
  TextSequence sequence;
  TextRequest request;
  request.messages = {{{"role", "user"}, {"content", "hi"}}};
  request.template_name = "none";
  std::string_view field;
  EXPECT_THAT(model_->prepare(request, sequence, own.get(), &field).message(),
              HasSubstr("it has default, tool_use, rag"));
  EXPECT_EQ(field, "chat_template");
  request.template_name = "rag";
  request.tools = {{{"type", "function"}, {"function", {{"name", "get_x"}}}}};
  EXPECT_FALSE(model_->prepare(request, sequence, own.get(), &field).ok());
  EXPECT_EQ(field, "tools");
}

TEST_F(TextSideTest, StructuredOutputEndsAsTheAdapterDoes) {
  adapter_.write("tokenizer.json", json::serialize(tokenizer({"<|cite|>"})));
  config({{"eos_token", "<|cite|>"}});
  const auto own = side();
  const auto grammar = compile_grammar({GrammarSpec::Kind::kRegex, "a", {}}, own->vocabulary()).value();
  GrammarState state(grammar);
  ASSERT_TRUE(state.accept('a'));
  std::vector<uint64_t> words((kRows + 63) / 64);
  state.allowed(words);
  EXPECT_TRUE(words[259 / 64] >> (259 % 64) & 1);
  EXPECT_NE(own->vocabulary()->id(), model_->base().vocabulary()->id());
  GrammarCache cache(model_->base().vocabulary(), 1 << 20);
  const GrammarSpec spec{GrammarSpec::Kind::kRegex, "a", {}};
  const auto first = cache.get(spec).value();
  EXPECT_NE(cache.get(spec, {}, own->vocabulary()).value(), first);
  EXPECT_EQ(cache.get(spec).value(), first);
  EXPECT_TRUE(cache.find(spec, own->vocabulary()).has_value());
}

}  // namespace
}  // namespace lk
