// SPDX-License-Identifier: Apache-2.0
#include "lk/load/workload.h"

#include <array>
#include <charconv>

#include <boost/json.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/rng.h"

namespace lk::load {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxTokens = 1 << 22;
constexpr std::array kWords{
    "time",   "year",    "people", "way",      "day",      "man",     "thing",   "woman", "life",  "child",   "world",
    "school", "state",   "family", "student",  "group",    "country", "problem", "hand",  "part",  "place",   "case",
    "week",   "company", "system", "program",  "question", "work",    "number",  "night", "point", "home",    "water",
    "room",   "mother",  "area",   "money",    "story",    "fact",    "month",   "lot",   "right", "study",   "book",
    "eye",    "job",     "word",   "business", "issue",    "side",    "kind",    "head",  "house", "service", "friend",
    "father", "power",   "hour",   "game",     "line",     "end",     "member",  "law",   "car"};

// Independent streams of random numbers of one seed.
enum Stream : uint64_t { kInputLength = 1, kOutputLength = 2, kPrefix = 3, kPrompts = 16 };
uint64_t stream_seed(const WorkloadOptions& options, uint64_t stream) { return random_bits(options.seed, stream); }

// The random number at a place of a prompt: shared by all prompts within the prefix.
uint64_t draw(const WorkloadOptions& options, int64_t index, int64_t position) {
  const uint64_t stream =
      position < options.shared_prefix ? uint64_t{kPrefix} : kPrompts + static_cast<uint64_t>(index);
  return random_bits(stream_seed(options, stream), static_cast<uint64_t>(position));
}

json::value random_prompt(const WorkloadOptions& options, int64_t index) {
  const int64_t length = options.input.pick(stream_seed(options, kInputLength), static_cast<uint64_t>(index));
  if (!options.chat) {
    json::array ids;
    ids.reserve(static_cast<size_t>(length));
    for (int64_t i = 0; i < length; ++i)
      ids.emplace_back(draw(options, index, i) % static_cast<uint64_t>(options.vocab_size));
    return ids;
  }
  std::string text;
  for (int64_t i = 0; i < length; ++i) {
    if (i > 0) text += ' ';
    text += kWords[draw(options, index, i) % kWords.size()];
  }
  return json::value(std::move(text));
}

json::array user_message(json::value content) {
  return {json::object{{"role", "user"}, {"content", std::move(content)}}};
}

Result<PromptLine> parse_line(std::string_view text) {
  boost::system::error_code error;
  const json::value value = json::parse(text, error);
  if (error || !value.is_object()) return invalid_argument("not a JSON object");
  JsonErrors errors;
  JsonFields fields(value.get_object(), "", errors);
  PromptLine line;
  if (const json::value* prompt = fields.find("prompt")) {
    if (!prompt->is_string() && !prompt->is_array())
      fields.wrong_kind("prompt", "a string or a list of token ids", *prompt);
    line.prompt = *prompt;
  }
  if (const json::array* messages = fields.array("messages")) line.messages = *messages;
  fields.read_int("max_tokens", line.max_tokens, 1, kMaxTokens);
  line.has_adapter = fields.has("adapter");
  fields.read_string("adapter", line.adapter);
  fields.refuse_unknown();
  LK_RETURN_IF_ERROR(errors.status());
  if (line.prompt.is_null() == line.messages.is_null()) return invalid_argument("give either prompt or messages");
  return line;
}

}  // namespace

int64_t LengthRange::pick(uint64_t seed, uint64_t index) const {
  return min + static_cast<int64_t>(random_bits(seed, index) % static_cast<uint64_t>(max - min + 1));
}

Result<LengthRange> parse_length_range(const std::string& text) {
  LengthRange range;
  const char* const end = text.data() + text.size();
  std::from_chars_result parsed = std::from_chars(text.data(), end, range.min);
  range.max = range.min;
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == ':')
    parsed = std::from_chars(parsed.ptr + 1, end, range.max);
  if (parsed.ec != std::errc() || parsed.ptr != end || range.min < 1 || range.max < range.min || range.max > kMaxTokens)
    return invalid_argument("\"{}\" is not a number of tokens: write N or MIN:MAX, 1..{}", text, kMaxTokens);
  return range;
}

Result<std::vector<PromptLine>> parse_prompts(std::string_view jsonl) {
  std::vector<PromptLine> prompts;
  for (int number = 1; !jsonl.empty(); ++number) {
    const size_t end = jsonl.find('\n');
    const std::string_view text = jsonl.substr(0, end);
    jsonl = end == std::string_view::npos ? std::string_view() : jsonl.substr(end + 1);
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    Result<PromptLine> line = parse_line(text);
    if (!line.ok()) return line.status().with_context(fmt::format("line {}", number));
    prompts.push_back(std::move(*line));
  }
  if (prompts.empty()) return invalid_argument("no prompts");
  return prompts;
}

GeneratedRequest make_request(const WorkloadOptions& options, int64_t index, const std::string& model) {
  GeneratedRequest request{
      .path = options.chat ? "/v1/chat/completions" : "/v1/completions",
      .max_tokens = options.output.pick(stream_seed(options, kOutputLength), static_cast<uint64_t>(index))};
  json::object body{{"model", model}};
  if (options.prompts.empty()) {
    if (options.chat)
      body["messages"] = user_message(random_prompt(options, index));
    else
      body["prompt"] = random_prompt(options, index);
  } else {
    const PromptLine& line = options.prompts[static_cast<size_t>(index) % options.prompts.size()];
    if (line.max_tokens > 0) request.max_tokens = line.max_tokens;
    if (!options.chat)
      body["prompt"] = line.prompt;
    else if (!line.messages.is_null())
      body["messages"] = line.messages;
    else
      body["messages"] = user_message(line.prompt);
  }
  body["max_tokens"] = request.max_tokens;
  body["temperature"] = options.temperature;
  body["stream"] = options.stream;
  if (options.stream) body["stream_options"] = json::object{{"include_usage", true}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  for (const auto& [name, value] : options.extra) body[name] = value;
  request.body = json_text(body);
  return request;
}

}  // namespace lk::load
