// SPDX-License-Identifier: Apache-2.0
// Vocabularies, states and the cache.
#include <gmock/gmock.h>

#include <thread>

#include "grammar/grammar_test_util.h"

namespace lk {
namespace {

using namespace grammar_testing;
using testing::ElementsAre;
using testing::HasSubstr;

std::shared_ptr<const TokenVocabulary> vocabulary_of(std::vector<std::string> tokens, std::vector<int32_t> ends) {
  return std::make_shared<grammar::TrieVocabulary>(std::move(tokens), std::move(ends));
}

TEST(Vocabulary, SpecialAndUnknownTokensAreNeverAllowedButEndTokensAre) {
  const auto tokenizer = Tokenizer::load("examples/demo/model");
  ASSERT_TRUE(tokenizer.ok());
  const int32_t end = *(*tokenizer)->token_to_id("<|im_end|>"), special = *(*tokenizer)->token_to_id("<|im_start|>");
  const int64_t size = (*tokenizer)->vocab_size() + 100;
  const auto vocabulary = TokenVocabulary::create(**tokenizer, size, std::vector<int32_t>{end, -1, 1 << 20});
  EXPECT_EQ(vocabulary->size(), size);
  GrammarState state(compile(regex_spec("(.|\\n)*"), vocabulary));
  const auto tokens = allowed_tokens(state, size);
  const auto has = [&](int32_t token) { return std::binary_search(tokens.begin(), tokens.end(), token); };
  EXPECT_TRUE(has(end));
  EXPECT_FALSE(has(special));
  EXPECT_FALSE(has(static_cast<int32_t>((*tokenizer)->vocab_size())));
  EXPECT_GT(tokens.size(), 1000u);
  EXPECT_FALSE(state.accept(special));
  EXPECT_FALSE(state.accept(-1));
  EXPECT_FALSE(state.accept(static_cast<int32_t>(size)));
  EXPECT_TRUE(state.accept(end));
  EXPECT_TRUE(allowed_tokens(state, size).empty()) << "after the end";
  EXPECT_FALSE(state.accept(end));
  EXPECT_FALSE(state.can_end());
}

TEST(State, CopiesAreIndependentAndRefusedTokensChangeNothing) {
  const auto vocabulary = vocabulary_of({"a", "ab", "b", "c", "", "abc", "ab"}, {4});
  const auto grammar = compile(regex_spec("ab+c"), vocabulary);
  GrammarState state(grammar);
  EXPECT_THAT(allowed_tokens(state, 7), ElementsAre(0, 1, 5, 6)) << "equal tokens are both allowed";
  EXPECT_FALSE(state.accept(2));
  GrammarState copy(state);
  EXPECT_TRUE(copy.accept(5));
  EXPECT_TRUE(copy.can_end());
  EXPECT_THAT(allowed_tokens(copy, 7), ElementsAre(4));
  EXPECT_THAT(allowed_tokens(state, 7), ElementsAre(0, 1, 5, 6));
  EXPECT_TRUE(state.accept(0));
  EXPECT_THAT(allowed_tokens(state, 7), ElementsAre(2));
  GrammarState moved(std::move(copy));
  EXPECT_TRUE(moved.accept(4));
}

TEST(State, TokensThatSpanCharactersAndRules) {
  // "é" as two half tokens, and tokens that end one value and begin another.
  const auto vocabulary = byte_vocabulary({"\xC3", "\xA9\"", "\"}", "\",\"b\":", "é\", \"b\": tr", "\":\""});
  const auto grammar = compile(
      schema_spec(
          R"({"type":"object","properties":{"a":{"type":"string"},"b":{"type":"boolean"}},"required":["a"],"additionalProperties":false})"),
      vocabulary);
  GrammarState state(grammar);
  for (const char c : std::string_view("{\"a\":\"x")) ASSERT_TRUE(state.accept(c));
  const auto allows = [&](int32_t token) {
    const auto tokens = allowed_tokens(state, vocabulary->size());
    return std::binary_search(tokens.begin(), tokens.end(), token);
  };
  EXPECT_TRUE(allows(257));
  EXPECT_FALSE(allows(258)) << "half a character alone";
  EXPECT_TRUE(allows(259));
  EXPECT_TRUE(allows(260));
  EXPECT_TRUE(allows(261));
  EXPECT_FALSE(allows(262));
  ASSERT_TRUE(state.accept(257));
  EXPECT_TRUE(allows(258));
  EXPECT_FALSE(allows(259));
  ASSERT_TRUE(state.accept(258));
  EXPECT_FALSE(allows(258));
  ASSERT_TRUE(state.accept('}'));
  EXPECT_TRUE(state.can_end());
}

TEST(State, SurvivesThrowingAwayWhatWasComputed) {
  // An ambiguous grammar with many states: the arena is replaced while old states live.
  const auto vocabulary = byte_vocabulary({"aa", "aaaa", "bab"});
  const auto grammar = compile(ebnf_spec("root ::= r | s | t\nr ::= [a-z] root [a-z] | [a-m]\ns ::= [a-k] root root | "
                                         "[a-z]\nt ::= [a-z] t [b-z] root | [a-z]"),
                               vocabulary);
  std::mt19937 random(1);
  int64_t most = 0;
  bool replaced = false;
  std::vector<std::pair<GrammarState, GrammarState>> old;
  for (int round = 0; round < 100 && !testing::Test::HasFailure(); ++round) {
    GrammarState state(grammar);
    for (int step = 0; step < 200; ++step) {
      const auto tokens = allowed_tokens(state, vocabulary->size());
      replaced |= grammar_bytes(*grammar) < most;
      most = std::max(most, grammar_bytes(*grammar));
      ASSERT_FALSE(tokens.empty());
      const int32_t token = tokens[random() % tokens.size()];
      ASSERT_TRUE(state.accept(token));
      if (token == 256) break;
      if (step % 50 == 0) old.emplace_back(state, state);
    }
    ASSERT_LT(grammar_bytes(*grammar), int64_t{100} << 20);
    for (auto& [a, b] : old) {
      if (random() % 4 == 0) {
        ASSERT_EQ(a.can_end(), b.can_end());
        ASSERT_EQ(allowed_tokens(a, vocabulary->size()), allowed_tokens(b, vocabulary->size()));
      }
    }
  }
  EXPECT_TRUE(replaced) << most;
}

TEST(State, ThreadsShareAGrammar) {
  const auto vocabulary = byte_vocabulary();
  const auto grammar = compile({GrammarSpec::Kind::kJsonObject, "", {}}, vocabulary);
  std::vector<std::thread> threads;
  for (uint32_t k = 0; k < 4; ++k) {
    threads.emplace_back([&, k] {
      std::mt19937 random(k);
      for (int round = 0; round < 20; ++round) random_text(grammar, *vocabulary, random, 30);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Cache, CompilesOncePerSpecification) {
  GrammarCache cache(byte_vocabulary(), 64 << 20);
  const auto first = cache.get(regex_spec("ab"));
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*cache.get(regex_spec("ab")), *first);
  EXPECT_NE(*cache.get(ebnf_spec("root ::= \"ab\"")), *first);
  EXPECT_NE(*cache.get(choice_spec({"ab"})), *cache.get(choice_spec({"a", "b"})));
  EXPECT_FALSE(cache.get(regex_spec("(")).ok());
  EXPECT_FALSE(cache.get(regex_spec("(")).ok());
  EXPECT_THAT(cache.get(regex_spec(std::string(1 << 20, 'a'))).status().message(), HasSubstr("more than 65536"));
  std::vector<std::shared_ptr<const Grammar>> seen(8);
  std::vector<std::thread> threads;
  for (auto& slot : seen) threads.emplace_back([&] { slot = *cache.get(regex_spec("(a|b)*a(a|b){9}")); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& grammar : seen) EXPECT_EQ(grammar, seen[0]);
}

TEST(Cache, KnowsWhatFailedWithoutTryingAgain) {
  GrammarCache cache(byte_vocabulary(), 64 << 20);
  const GrammarSpec costly = regex_spec("(a|b)*a(a|b){20}");
  EXPECT_FALSE(cache.find(costly)) << "nothing is known yet";
  // Given up: that says nothing about the grammar.
  int asked = 0;
  EXPECT_EQ(cache.get(costly, [&] { return ++asked < 3; }).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(asked, 3);
  EXPECT_FALSE(cache.find(costly));
  const auto failed = cache.get(costly);
  EXPECT_THAT(failed.status().message(), HasSubstr("too"));
  const auto known = cache.find(costly);
  ASSERT_TRUE(known);
  EXPECT_EQ(known->status().message(), failed.status().message());
  ASSERT_FALSE(cache.find(regex_spec("ab")));
  const auto ab = cache.get(regex_spec("ab"));
  EXPECT_EQ(**cache.find(regex_spec("ab")), *ab);
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(cache.get(regex_spec("(" + std::to_string(i))).ok());
  EXPECT_FALSE(cache.find(costly)) << "only the last failures are kept";
}

TEST(Cache, OtherCompilationsMayRunWithinALongOne) {
  GrammarCache cache(byte_vocabulary(), 64 << 20);
  const GrammarSpec spec = regex_spec("(a|b)*a(a|b){13}");
  std::shared_ptr<const Grammar> within;
  int asked = 0;
  const auto outer = cache.get(spec, [&] {
    // The same one, on the same thread: waiting for the first would be for ever.
    if (++asked == 1) within = *cache.get(spec);
    return true;
  });
  ASSERT_TRUE(outer.ok());
  EXPECT_GT(asked, 0) << "the example must take long enough to be asked";
  EXPECT_TRUE(within);
  EXPECT_EQ(*cache.get(spec), within) << "the one that was ready first is kept";
}

TEST(Cache, DropsTheLeastRecentlyUsedAboveItsBytes) {
  const auto bytes_of_one = [] {
    GrammarCache cache(byte_vocabulary(), 64 << 20);
    EXPECT_TRUE(cache.get(regex_spec("a{100}0")).ok());
    return cache.bytes();
  }();
  ASSERT_GT(bytes_of_one, 0);
  GrammarCache cache(byte_vocabulary(), bytes_of_one * 5 / 2);
  const auto get = [&](char last) { return *cache.get(regex_spec(std::string("a{100}") + last)); };
  const std::weak_ptr<const Grammar> zero = get('0'), one = get('1');
  EXPECT_FALSE(zero.expired());
  get('0');
  get('2');
  EXPECT_TRUE(one.expired()) << "least recently used";
  EXPECT_FALSE(zero.expired());
  EXPECT_LE(cache.bytes(), bytes_of_one * 5 / 2);
  GrammarCache tiny(byte_vocabulary(), 10);
  EXPECT_TRUE(tiny.get(regex_spec("a")).ok()) << "larger than the cache: given, not kept";
  EXPECT_EQ(tiny.bytes(), 0);
}

}  // namespace
}  // namespace lk
