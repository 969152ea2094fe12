// SPDX-License-Identifier: Apache-2.0
// grammar_bench [TOKENIZER_DIRECTORY]: compile time, and time of a mask when first needed (cold), for a new text of the
// same grammar (warm), over a random text of a tool call. Vocabularies: the tokenizer given, and synthetic ones of 32k
// and 128k tokens.
#include <fmt/format.h>

#include <time.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <set>

#include "lk/grammar/grammar.h"
#include "lk/grammar/vocabulary.h"

namespace {

using namespace lk;

// Time of this thread on a processor: others may be busy on the machine.
struct Clock {
  using time_point = std::chrono::nanoseconds;
  static time_point now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
  }
};

const char* const kSchema =
    R"({"type":"object","properties":{"name":{"const":"search_flights"},"arguments":{"type":"object","properties":{
  "from":{"type":"string","description":"IATA code","pattern":"^[A-Z]{3}$"},"to":{"type":"string","pattern":"^[A-Z]{3}$"},
  "date":{"type":"string","format":"date"},"passengers":{"type":"integer","minimum":1,"maximum":9},"comment":{"type":"string","maxLength":200},
  "class":{"enum":["economy","business","first"]},"stops":{"type":"array","items":{"type":"string"}},"budget":{"type":"number","minimum":0},
  "filters":{"type":"object","properties":{"airlines":{"type":"array","items":{"type":"string"}},"refundable":{"type":"boolean"}},
  "additionalProperties":false}},"required":["from","to","date","passengers","comment","class"],"additionalProperties":false}},
  "required":["name","arguments"],"additionalProperties":false})";

std::shared_ptr<const TokenVocabulary> synthetic(size_t size) {
  std::mt19937 random(1);
  std::set<std::string> seen;
  std::vector<std::string> tokens;
  const auto add = [&](std::string token) {
    if (tokens.size() < size && seen.insert(token).second) tokens.push_back(std::move(token));
  };
  for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)));
  for (int number = 0; number < 1000; ++number) add(std::to_string(number));
  for (size_t length = 2; length <= 64; ++length) add(std::string(length, ' '));
  const std::string marks = "\"'{}[](),.:;!?-_/\\<>=+*&|#@$%^~`\n\t ";
  while (tokens.size() < size / 20) {  // runs of punctuation, as in source code
    std::string token;
    for (uint32_t k = 2 + random() % 3; k > 0; --k) token += marks[random() % marks.size()];
    add(std::move(token));
  }
  while (tokens.size() < size) {
    std::string token = random() % 2 == 0 ? " " : "";
    const bool foreign = random() % 5 == 0;
    for (uint32_t k = 2 + random() % 8; k > 0; --k) {
      if (foreign) {
        token += static_cast<char>(0xD0 + random() % 2);
        token += static_cast<char>(0x80 + random() % 64);
      } else {
        token += "etaoinshrdlucmfwygpbvkxqjz"[std::min(random() % 26, random() % 26)];
      }
    }
    add(std::move(token));
  }
  tokens.emplace_back();
  const auto end = static_cast<int32_t>(tokens.size() - 1);
  return std::make_shared<grammar::TrieVocabulary>(std::move(tokens), std::vector<int32_t>{end});
}

double us(Clock::time_point from) { return std::chrono::duration<double, std::micro>(Clock::now() - from).count(); }

void report(const char* what, std::vector<double> times) {
  std::sort(times.begin(), times.end());
  double sum = 0;
  for (const double time : times) sum += time;
  fmt::print("  {:10} masks {:5}  median {:8.2f} us  p99 {:9.2f}  max {:9.2f}  sum {:10.0f}\n", what, times.size(),
             times[times.size() / 2], times[times.size() * 99 / 100], times.back(), sum);
}

void measure(const char* name, const std::shared_ptr<const TokenVocabulary>& vocabulary) {
  const auto begin = Clock::now();
  const auto grammar = compile_grammar({GrammarSpec::Kind::kJsonSchema, kSchema, {}}, vocabulary);
  LK_CHECK(grammar.ok(), "{}", grammar.status().message());
  fmt::print("{}: {} tokens, compiled in {:.2f} ms, {} KB\n", name, vocabulary->size(), us(begin) / 1000,
             grammar_bytes(**grammar) >> 10);
  std::vector<uint64_t> words(static_cast<size_t>(vocabulary->size() + 63) / 64);
  std::vector<double> accepts;
  for (int pass = 0; pass < 12; ++pass) {
    std::mt19937 random(pass < 2 ? 7 : static_cast<uint32_t>(pass));  // the second text is the first again
    GrammarState state(*grammar);
    std::vector<double> times;
    for (int step = 0; step < 400; ++step) {
      const auto start = Clock::now();
      state.allowed(words);
      times.push_back(us(start));
      std::vector<int32_t> tokens;
      for (int64_t token = 0; token < vocabulary->size(); ++token) {
        if (words[static_cast<size_t>(token / 64)] >> (token % 64) & 1) tokens.push_back(static_cast<int32_t>(token));
      }
      const auto accept_start = Clock::now();
      LK_CHECK(state.accept(tokens[random() % tokens.size()]), "refused an allowed token");
      accepts.push_back(us(accept_start));
      if (state.can_end() || words[words.size() - 1] == ~uint64_t{0}) break;
    }
    if (pass < 2 || pass == 11) report(pass == 0 ? "cold" : pass == 1 ? "same text" : "12th text", std::move(times));
  }
  report("accept", std::move(accepts));
  fmt::print("  {} KB with masks\n", grammar_bytes(**grammar) >> 10);
}

}  // namespace

int main(int argc, char** argv) {
  const auto tokenizer = lk::Tokenizer::load(argc > 1 ? argv[1] : "examples/demo/model");
  LK_CHECK(tokenizer.ok(), "{}", tokenizer.status().message());
  measure("tokenizer", lk::TokenVocabulary::create(**tokenizer, (*tokenizer)->vocab_size(), std::vector<int32_t>{0}));
  measure("synthetic", synthetic(32'000));
  measure("synthetic", synthetic(128'000));
}
