// SPDX-License-Identifier: Apache-2.0
// Request bodies of the API, by the first byte: chat, completion, embedding, tokenize, detokenize, responses, messages.
// What parses is also answered, in small pieces, with the rest of the input as the model's text. No crash, no leak,
// answers are valid JSON.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <boost/json/parse.hpp>

#include "lk/serve/openai/openai.h"

namespace {

void check_json(const std::string& text) {
  boost::json::error_code error;
  boost::json::parse_options options;
  options.max_depth = 128;
  boost::json::parse(text, error, {}, options);
  if (error) __builtin_trap();
}

void answer(const lk::GenerateRequest& request, std::string_view text, lk::ToolFormat format) {
  const size_t num_choices = request.prompts.size() * static_cast<size_t>(request.n);
  if (num_choices > 32) return;
  lk::Completion completion{.text = std::string(text.substr(0, 512)),
                            .token_ids = {1, 2},
                            .finish = lk::FinishReason::kStop,
                            .prompt_token_ids = {3}};
  if (request.logprobs) completion.logprobs = {{.token = 1, .logprob = -1}, {.token = 2, .logprob = -2}};
  lk::AnswerFormatter whole(request, "id", 1, request.model, nullptr, format);
  check_json(whole.response(std::vector<lk::Completion>(num_choices, completion)));
  lk::AnswerFormatter pieces(request, "id", 1, request.model, nullptr, format);
  for (size_t i = 0; i + 3 < completion.text.size(); i += 3)
    pieces.delta(0, {.text = completion.text.substr(i, 3), .tokens = {}});
  const std::string last = pieces.done(0, completion);
  const std::string end = pieces.end();
  const bool has_mark = request.endpoint == lk::Endpoint::kChat || request.endpoint == lk::Endpoint::kCompletion;
  if (last.empty() || (has_mark ? !end.ends_with("data: [DONE]\n\n") : !end.empty())) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto format = static_cast<lk::ToolFormat>(data[0] / 8 % lk::kNumToolFormats);
  const lk::ApiDefaults defaults{.context = 100, .vocab_size = 300, .generation = {}, .tool_format = format};
  const auto check = [&](const auto& parsed) {
    if (!parsed.ok()) check_json(lk::format_error(parsed.error));
  };
  switch (data[0] % 8) {
    case 0:
    case 1: {
      const auto parsed =
          data[0] % 8 == 0 ? lk::parse_chat_request(body, defaults) : lk::parse_completion_request(body, defaults);
      check(parsed);
      if (parsed.ok()) answer(*parsed.value, body, format);
      break;
    }
    case 2:
      check(lk::parse_embedding_request(body, defaults));
      break;
    case 3:
      check(lk::parse_tokenize_request(body, defaults));
      break;
    case 4:
      check(lk::parse_detokenize_request(body, defaults));
      break;
    case 5:
    case 6: {
      const auto parsed =
          data[0] % 8 == 5 ? lk::parse_responses_request(body, defaults) : lk::parse_messages_request(body, defaults);
      check(parsed);
      if (parsed.ok()) answer(*parsed.value, body, format);
      break;
    }
    default: {
      // All of it is a model's text, after a request with tools.
      static const lk::GenerateRequest request =
          *lk::parse_chat_request(
               R"({"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function", "function": {"name": "f"}}]})",
               {.context = 100, .vocab_size = 300, .generation = {}, .tool_format = lk::ToolFormat::kHermes})
               .value;
      answer(request, body, format);
    }
  }
  return 0;
}
