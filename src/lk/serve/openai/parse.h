// SPDX-License-Identifier: Apache-2.0
// The parts of request parsing. Each reads its fields, reports into ApiFields' error and leaves the rest to the others.
#pragma once

#include <string>

#include <boost/json/object.hpp>

#include "lk/serve/openai/fields.h"
#include "lk/serve/openai/openai.h"

namespace lk::openai {

inline constexpr size_t kMaxNameBytes = 256;  // of a model, a user, a role
inline constexpr size_t kMaxTools = 128;
inline constexpr size_t kMaxPrompts = 256;
inline constexpr size_t kMaxOutputSoFar = size_t{1} << 19;
inline constexpr size_t kMaxInputs = 2048;               // of an embedding request
inline constexpr int64_t kMaxSourceBytes = 64 << 10;     // of a schema or grammar
inline constexpr int64_t kUntilFull = int64_t{1} << 40;  // max_tokens: until the context is full

int64_t vocab_size(const ApiDefaults& defaults);

// sampling_fields.cpp: fields that chat and completion requests share, except max_tokens and logprobs.
void read_common(ApiFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text);
void read_ignored_and_refused(ApiFields& fields);

// messages.cpp: messages in the form that chat templates expect (content is a string, arguments are objects).
void read_messages(ApiFields& fields, TextRequest& text, std::vector<std::string>& ignored);
// add_generation_prompt, continue_final_message, chat_template_kwargs, documents, reasoning_effort.
void read_template_fields(ApiFields& fields, TextRequest& text);

// tools.cpp: tools, tool_choice, parallel_tool_calls. May set the grammar.
void read_tools(ApiFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text);
void read_tool_list(ApiFields& fields, boost::json::array& tools);

// output_format.cpp: response_format, guided_*, structured_outputs.
void read_output_format(ApiFields& fields, GenerateRequest& request);
// Refuses texts beyond kMaxSourceBytes and a second grammar.
void set_grammar(ApiFields& fields, std::string_view key, GrammarSpec spec, GenerateRequest& request);

// The body as an object in `storage`, or the error.
ApiResult<boost::json::object> read_body(std::string_view body, boost::json::storage_ptr storage);

}  // namespace lk::openai
