// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/request_facts.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>

namespace lk {
namespace {

class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}
  size_t at() const { return at_; }
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool peek(char c) {
    skip_space();
    return at_ < text_.size() && text_[at_] == c;
  }
  // A whole string with its quotes.
  std::optional<std::string_view> string() {
    skip_space();
    const size_t begin = at_;
    if (!take('"')) return std::nullopt;
    while (at_ < text_.size()) {
      const size_t stop = text_.find_first_of("\"\\", at_);
      if (stop == std::string_view::npos) break;
      at_ = stop + 1;
      if (text_[stop] == '"') return text_.substr(begin, at_ - begin);
      ++at_;  // what is escaped
    }
    at_ = text_.size();
    return std::nullopt;
  }
  // Any value, skipped by its brackets.
  std::optional<std::string_view> value() {
    skip_space();
    const size_t begin = at_;
    int depth = 0;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') {
        if (!string()) return std::nullopt;
      } else if (c == '{' || c == '[') {
        ++depth, ++at_;
      } else if (c == '}' || c == ']') {
        if (depth == 0) break;
        --depth, ++at_;
      } else if (c == ',' && depth == 0) {
        break;
      } else {
        ++at_;
        continue;
      }
      if (depth == 0) break;
    }
    if (depth != 0 || at_ == begin) return std::nullopt;
    return text_.substr(begin, at_ - begin);
  }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

std::optional<std::string> unquoted(std::string_view quoted) {
  boost::system::error_code error;
  const boost::json::value value = boost::json::parse(quoted, error);
  if (error || !value.is_string()) return std::nullopt;
  return std::string(value.get_string());
}

std::optional<int64_t> integer(std::string_view text) {
  while (!text.empty() && std::string_view(" \t\r\n").find(text.back()) != std::string_view::npos)
    text.remove_suffix(1);
  double number = 0;  // 1e3 is a thousand
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  constexpr double kMost = 1e15;  // an integer to the last digit
  return static_cast<int64_t>(std::clamp(number, -kMost, kMost));
}

// Of two numbers of tokens, of which a negative one means as many as there is room for.
std::optional<int64_t> most_of(std::optional<int64_t> a, std::optional<int64_t> b) {
  return a && b && std::min(*a, *b) < 0 ? std::min(a, b) : std::max(a, b);
}

// Prompts in the value of "prompt" or "input": a text, a list of tokens, or a list of either.
int64_t count_prompts(std::string_view value) {
  Cursor cursor(value);
  if (!cursor.take('[') || cursor.peek(']')) return 1;
  if (!cursor.peek('"') && !cursor.peek('[')) return 1;
  int64_t count = 0;
  do {
    if (!cursor.value()) return 1;
    ++count;
  } while (cursor.take(','));
  return count;
}

}  // namespace

std::optional<RequestFacts> read_request_facts(std::string_view body) {
  Cursor cursor(body);
  RequestFacts facts;
  if (!cursor.take('{')) return std::nullopt;
  facts.fields_at = cursor.at();
  bool saw_model = false, saw_stream = false, saw_n = false;
  if (!cursor.peek('}')) {
    facts.has_fields = true;
    do {
      const std::optional<std::string_view> quoted = cursor.string();
      if (!quoted || !cursor.take(':')) return std::nullopt;
      const std::optional<std::string_view> value = cursor.value();
      if (!value) return std::nullopt;
      // Keys with escapes are nobody's spelling of these, but they mean the same.
      const std::string key = quoted->find('\\') == std::string_view::npos
                                  ? std::string(quoted->substr(1, quoted->size() - 2))
                                  : unquoted(*quoted).value_or("");
      if (key == "model" && !std::exchange(saw_model, true))
        facts.model = unquoted(*value).value_or("");
      else if (key == "stream" && !std::exchange(saw_stream, true))
        facts.stream = value->starts_with("true");
      else if (key == "n")
        facts.n = std::max(std::exchange(saw_n, true) ? facts.n : INT64_MIN, integer(*value).value_or(1));
      else if (key == "prompt" || key == "input" || key == "items")
        facts.prompts = std::max(facts.prompts, count_prompts(*value));
      else if (key == "query")
        facts.query_bytes = std::max(facts.query_bytes, std::ssize(*value));
      else if (key == "lorikeet_resume")
        facts.resumes = true;
      else if (key == "max_tokens")
        facts.max_tokens = std::max(facts.max_tokens, integer(*value));
      else if (key == "n_predict")  // llama.cpp's; below 0: until the context is full
        facts.n_predict = most_of(facts.n_predict, integer(*value));
      else if (key == "max_output_tokens")
        facts.max_output_tokens = std::max(facts.max_output_tokens, integer(*value));
      else if (key == "max_completion_tokens")
        facts.max_completion_tokens = std::max(facts.max_completion_tokens, integer(*value));
    } while (cursor.take(','));
  }
  if (!cursor.take('}')) return std::nullopt;
  cursor.skip_space();
  if (cursor.at() != body.size()) return std::nullopt;
  return facts;
}

int64_t RequestFacts::num_answers(std::string_view path) const {
  static constexpr int64_t kMost = 1 << 20;  // more than any server gives at once
  const auto count = [](int64_t given) { return std::clamp<int64_t>(given, 1, kMost); };
  if (path == "/v1/responses" || path == "/v1/messages") return 1;  // their "input" is one conversation
  return count(n) * count(prompts);
}

int64_t RequestFacts::prompt_bytes(std::string_view path, int64_t body_bytes) const {
  static constexpr int64_t kMostItems = 1 << 20;
  return path == "/v1/score" ? body_bytes + query_bytes * (std::min(prompts, kMostItems) - 1) : body_bytes;
}

std::optional<int64_t> RequestFacts::output_limit(std::string_view path) const {
  constexpr int64_t kDefaultCompletion = 16;  // OpenAI's
  if (path == "/v1/responses") return max_output_tokens;
  if (path == "/v1/messages") return max_tokens;
  if (path == "/v1/score") return 1;
  const bool is_text = path == "/v1/completions";
  const std::optional<int64_t> said = is_text ? max_tokens : std::max(max_tokens, max_completion_tokens);
  if (n_predict && (*n_predict >= 0 || !said)) return *n_predict < 0 ? said : std::max(said, n_predict);
  return is_text ? said.value_or(kDefaultCompletion) : said;
}

std::string with_field(std::string_view body, const RequestFacts& facts, std::string_view name, std::string_view json) {
  return fmt::format("{}\"{}\":{}{}{}", body.substr(0, facts.fields_at), name, json, facts.has_fields ? "," : "",
                     body.substr(facts.fields_at));
}

}  // namespace lk
