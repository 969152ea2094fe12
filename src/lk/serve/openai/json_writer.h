// SPDX-License-Identifier: Apache-2.0
// JSON text, appended to a string: the streaming path makes one small event for each token of thousands of requests.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lk::openai {

// A JSON string; what is not UTF-8 in `text` becomes U+FFFD.
void append_string(std::string& out, std::string_view text);
// A number; null when it is not finite.
void append_number(std::string& out, float number);
// Likewise; minus infinity (a token that could not come) is -9999, as vLLM writes it.
void append_logprob(std::string& out, float logprob);
void append_ints(std::string& out, std::span<const int32_t> numbers);
void append_bytes(std::string& out, std::string_view bytes);

}  // namespace lk::openai
