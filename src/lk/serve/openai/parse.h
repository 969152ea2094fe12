// SPDX-License-Identifier: Apache-2.0
// The parts of request parsing. Each reads its fields, reports into JsonFields' error and leaves the rest to the
// others.
#pragma once

#include <string>

#include <boost/json/object.hpp>

#include "lk/infer/request_fields.h"
#include "lk/serve/openai/openai.h"

namespace lk::openai {

inline constexpr int64_t kUntilFull = int64_t{1} << 40;  // max_tokens: until the context is full

int64_t vocab_size(const ApiDefaults& defaults);

// sampling_fields.cpp: fields that chat and completion requests share, except max_tokens and logprobs.
void read_common(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text);

// truncate_prompt_tokens, truncation_side.
void read_truncation(RequestFields& fields, TextRequest& text);

// messages.cpp: messages in the form that chat templates expect (content is a string, arguments are objects).
void read_messages(RequestFields& fields, TextRequest& text, std::vector<std::string>& ignored);
// add_generation_prompt, continue_final_message, chat_template_kwargs, documents, reasoning_effort.
void read_template_fields(RequestFields& fields, TextRequest& text);

// tools.cpp: tools, tool_choice, parallel_tool_calls. May set the grammar.
void read_tools(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text);
// `customs` (may be null): those that are custom; `tools` has them as functions.
void read_tool_list(RequestFields& fields, boost::json::array& tools, std::vector<std::string>& ignored,
                    std::vector<CustomTool>* customs = nullptr);

// The template that the request renders; null when there is none, or the name is not known (that is refused where it is
// rendered).
const ChatTemplates::Entry* template_of(const ChatTemplates* templates, const TextRequest& text);

// reasoning_fields.cpp: include_reasoning, separate_reasoning, thinking_token_budget. After read_tools().
void read_reasoning(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text);

// output_format.cpp: response_format, guided_*, structured_outputs.
void read_output_format(RequestFields& fields, GenerateRequest& request);
// Refuses texts beyond kMaxSourceBytes and a second grammar.
void set_grammar(JsonFields& fields, std::string_view key, GrammarSpec spec, GenerateRequest& request);

// What is wrong with a request, as its client hears of it.
ApiError field_error(const JsonErrors& errors);
// Fields that are ignored, for the log: at most 16 of a request.
void add_ignored(const RequestFields& fields, std::vector<std::string>& names);

// The body as an object in `storage`, or the error.
ApiResult<boost::json::object> read_body(std::string_view body, boost::json::storage_ptr storage);

}  // namespace lk::openai
