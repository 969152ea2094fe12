// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/constraint.h"

#include <boost/json.hpp>

#include <cmath>
#include <set>

#include "lk/base/rng.h"
#include "serve/service_testing.h"

namespace lk {
namespace {

constexpr int64_t kVocab = 130;  // not a multiple of a mask's word

std::set<int32_t> allowed_by(TokenConstraint& constraint, int64_t vocab_size = kVocab) {
  std::vector<uint64_t> words(static_cast<size_t>((vocab_size + 63) / 64), 0x5555);
  const Status status = constraint.allowed(words);
  EXPECT_TRUE(status.ok()) << status.message();
  std::set<int32_t> allowed;
  for (size_t i = 0; i < 64 * words.size(); ++i)
    if ((words[i / 64] >> (i % 64) & 1) != 0) allowed.insert(static_cast<int32_t>(i));
  EXPECT_TRUE(allowed.empty() || *allowed.rbegin() < vocab_size);
  return allowed;
}

TEST(Constraint, NoneWhenNothingConstrains) { EXPECT_EQ(make_constraint({}, {2}, kVocab), nullptr); }

TEST(Constraint, AllowedTokensAndMinTokens) {
  auto listed = make_constraint({.allowed_token_ids = {0, 63, 64, 129}}, {2}, kVocab);
  EXPECT_EQ(allowed_by(*listed), (std::set<int32_t>{0, 63, 64, 129}));
  EXPECT_TRUE(listed->accept(63).ok());
  EXPECT_EQ(allowed_by(*listed), (std::set<int32_t>{0, 63, 64, 129}));

  auto long_enough = make_constraint({.min_tokens = 2}, {2, 128, 500, -1}, kVocab);  // ids outside are no tokens
  for (int made = 0; made < 2; ++made) {
    const std::set<int32_t> allowed = allowed_by(*long_enough);
    EXPECT_EQ(allowed.size(), static_cast<size_t>(kVocab - 2));
    EXPECT_FALSE(allowed.contains(2) || allowed.contains(128));
    EXPECT_TRUE(long_enough->accept(5).ok());
  }
  EXPECT_EQ(allowed_by(*long_enough).size(), static_cast<size_t>(kVocab));
}

TEST(Constraint, NeverLeavesNothing) {
  auto both = make_constraint({.min_tokens = 3, .allowed_token_ids = {2, 7}}, {2}, kVocab);
  EXPECT_EQ(allowed_by(*both), (std::set<int32_t>{7}));
  auto only_end = make_constraint({.min_tokens = 3, .allowed_token_ids = {2}}, {2}, kVocab);
  EXPECT_EQ(allowed_by(*only_end), (std::set<int32_t>{2})) << "the limit that would leave nothing is passed over";
}

class GrammarConstraintTest : public ::testing::Test {
 protected:
  GrammarConstraintTest() : engine_(testing::open_demo({.max_step_tokens = 32}, 512 << 10)) {
    const TextModel& text = engine_->text();
    vocabulary_ = TokenVocabulary::create(*text.tokenizer(), text.config().vocab_size, text.base().end_tokens);
  }
  std::shared_ptr<const Grammar> grammar(const GrammarSpec& spec) {
    auto compiled = compile_grammar(spec, vocabulary_);
    EXPECT_TRUE(compiled.ok()) << compiled.status().message();
    return *compiled;
  }
  std::shared_ptr<TokenConstraint> constraint(const TextRequest& request) {
    return make_constraint(request, engine_->text().base().end_tokens, engine_->text().config().vocab_size);
  }
  std::string text_of(int32_t token) const { return engine_->tokenizer()->decode(std::vector<int32_t>{token}, true); }
  std::set<int32_t> allowed(TokenConstraint& of) { return allowed_by(of, engine_->text().config().vocab_size); }

  std::unique_ptr<TextEngine> engine_;
  std::shared_ptr<const TokenVocabulary> vocabulary_;
};

TEST_F(GrammarConstraintTest, GrammarComesFirst) {
  const auto yes = grammar({.kind = GrammarSpec::Kind::kChoice, .choices = {"yes", "yesterday"}});
  const std::vector<int32_t> prefix = engine_->tokenizer()->encode("yes", false).value();
  const int32_t end = engine_->text().base().end_tokens[0];
  TextRequest request{.min_tokens = 100, .grammar = yes};
  auto of = constraint(request);
  EXPECT_FALSE(allowed(*of).contains(end));
  for (const int32_t token : prefix) {
    EXPECT_TRUE(allowed(*of).contains(token));
    EXPECT_TRUE(of->accept(token).ok());
  }
  // "yes" may end or go on; min_tokens lets it go on only.
  std::set<int32_t> next = allowed(*of);
  EXPECT_FALSE(next.empty());
  EXPECT_FALSE(next.contains(end));
  // At the end of the language nothing else is left than the end, min_tokens or not.
  const auto only = grammar({.kind = GrammarSpec::Kind::kChoice, .choices = {"yes"}});
  request.grammar = only;
  of = constraint(request);
  for (const int32_t token : prefix) EXPECT_TRUE(of->accept(token).ok());
  next = allowed(*of);
  EXPECT_TRUE(next.contains(end));
  for (const int32_t token : next) EXPECT_NE(std::ranges::count(engine_->text().base().end_tokens, token), 0);
}

TEST_F(GrammarConstraintTest, AllowedTokensNarrowTheGrammarOrEndTheRequest) {
  const auto only = grammar({.kind = GrammarSpec::Kind::kChoice, .choices = {"yes"}});
  const std::vector<int32_t> yes = engine_->tokenizer()->encode("yes", false).value();
  const std::vector<int32_t>& ends = engine_->text().base().end_tokens;
  auto of = constraint({.allowed_token_ids = yes, .grammar = only});
  EXPECT_EQ(allowed(*of), std::set<int32_t>{yes[0]});
  for (const int32_t token : yes) EXPECT_TRUE(of->accept(token).ok());
  EXPECT_EQ(allowed(*of), std::set<int32_t>(ends.begin(), ends.end())) << "the text is whole: it may end";
  EXPECT_TRUE(of->accept(ends[0]).ok());
  // Before that nothing is passed over.
  of = constraint({.allowed_token_ids = {ends[0]}, .grammar = only});
  std::vector<uint64_t> words(static_cast<size_t>((engine_->text().config().vocab_size + 63) / 64));
  const Status none = of->allowed(words);
  EXPECT_EQ(none.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(none.message().find("allowed_token_ids has no token that the grammar allows"), std::string::npos);
  EXPECT_FALSE(constraint({.allowed_token_ids = {yes[0]}})->accept(yes[0] + 1).ok());
}

// Nothing may follow: an error, and no token that the grammar does not allow.
TEST_F(GrammarConstraintTest, DeadEndIsAnError) {
  const auto only = grammar({.kind = GrammarSpec::Kind::kChoice, .choices = {"yes"}});
  auto of = make_constraint({.grammar = only}, {}, engine_->text().config().vocab_size);
  const std::vector<int32_t> tokens = engine_->tokenizer()->encode("yes", false).value();
  for (const int32_t token : tokens) EXPECT_TRUE(of->accept(token).ok());
  EXPECT_TRUE(of->accept(engine_->text().base().end_tokens[0]).ok());
  std::vector<uint64_t> words(static_cast<size_t>((engine_->text().config().vocab_size + 63) / 64));
  EXPECT_EQ(of->allowed(words).code(), StatusCode::kFailedPrecondition) << "after the end";
  EXPECT_EQ(of->accept(tokens[0]).code(), StatusCode::kInternal);
}

// What a constrained request says does not depend on who else runs, on chunks, or on losing its pages.
TEST_F(GrammarConstraintTest, SameTextAloneAndInACrowdedPool) {
  const auto object = grammar(
      {.kind = GrammarSpec::Kind::kJsonSchema,
       .text =
           R"({"type":"object","properties":{"n":{"type":"integer"},"s":{"type":"string","maxLength":40}},"required":["n","s"],"additionalProperties":false})"});
  const auto digits = grammar({.kind = GrammarSpec::Kind::kRegex, .text = "[0-9]{40,60}(, [a-f]+){3,9}"});
  const auto make = [&](int i) {
    TextRequest request{.prompt = "Once upon a time " + std::string(static_cast<size_t>(i * 3), 'x'),
                        .max_tokens = 60 + i};
    request.sampling.temperature = 1.3;
    request.sampling.seed = static_cast<uint64_t>(i);
    if (i % 4 == 0) request.grammar = object;
    if (i % 4 == 1) request.grammar = digits;
    if (i % 4 == 2) request.allowed_token_ids = {40, 41, 42, 43, 300, 301};
    request.min_tokens = i;
    return request;
  };
  const auto run = [](TextEngine& engine, const std::vector<TextRequest>& requests) {
    std::vector<Completion> done(requests.size());
    std::map<RequestId, size_t> index;
    for (size_t i = 0; i < requests.size(); ++i) index[engine.submit(requests[i]).value()] = i;
    while (engine.has_work())
      for (TextUpdate& update : engine.step())
        if (update.ended) done[index.at(update.ended->asked.id)] = std::move(update.ended->completion);
    return done;
  };
  std::vector<TextRequest> requests;
  for (int i = 0; i < 12; ++i) requests.push_back(make(i));
  const std::unique_ptr<TextEngine> large = testing::open_demo();
  const std::vector<Completion> crowd = run(*engine_, requests);
  EXPECT_GT(engine_->scheduler().stats().num_preemptions, 0) << "the pool is too small for all";
  for (size_t i = 0; i < requests.size(); ++i) {
    const Completion alone = run(*large, {requests[i]})[0];
    EXPECT_EQ(crowd[i].token_ids, alone.token_ids) << i;
    EXPECT_EQ(crowd[i].text, alone.text);
    if (i % 4 == 2) {
      for (const int32_t token : alone.token_ids)
        EXPECT_NE(std::ranges::count(requests[i].allowed_token_ids, token), 0);
    }
    if (i % 4 == 1) {
      EXPECT_TRUE(std::isdigit(alone.text.at(0)) != 0) << alone.text;
    }
    if (i % 4 == 0 && alone.finish == FinishReason::kStop) {
      boost::system::error_code error;
      const boost::json::value value = boost::json::parse(alone.text, error);
      EXPECT_FALSE(error.failed()) << alone.text;
      EXPECT_TRUE(value.is_object() && value.at("n").is_int64()) << alone.text;
    }
  }
}

}  // namespace
}  // namespace lk
