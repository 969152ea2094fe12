// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <set>

#include "lk/base/utf8.h"
#include "lk/serve/openai/json_writer.h"
#include "lk/text/unicode.h"

namespace lk::openai {

std::string TokenNames::bytes(int32_t token) const {
  if (tokenizer == nullptr) return fmt::format("token_id:{}", token);
  return tokenizer->is_special(token) ? tokenizer->id_to_token(token).value_or("") : tokenizer->token_bytes(token);
}

std::string TokenNames::name(int32_t token, Endpoint endpoint) const {
  if (as_ids) return fmt::format("token_id:{}", token);
  std::string text = bytes(token);
  if (!utf8::find_invalid(text)) return text;
  std::string escaped = endpoint == Endpoint::kCompletion ? "bytes:" : "";
  for (const char c : text) fmt::format_to(std::back_inserter(escaped), "\\x{:02x}", static_cast<unsigned char>(c));
  return escaped;
}

int64_t TokenNames::num_characters(int32_t token) const {
  if (tokenizer == nullptr || (skip_special_tokens && tokenizer->is_special(token))) return 0;
  const std::string text = bytes(token);
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

void append_chat_logprobs(std::string& out, std::span<const TokenLogprob> tokens, const TokenNames& names) {
  const auto entry = [&](int32_t token, float logprob) {
    out += "{\"token\":";
    append_string(out, names.name(token, Endpoint::kChat));
    out += ",\"logprob\":";
    append_logprob(out, logprob);
    out += ",\"bytes\":";
    append_bytes(out, names.bytes(token));
  };
  out += '[';
  for (size_t i = 0; i < tokens.size() && out.size() <= names.max_bytes; ++i) {
    if (i > 0) out += ',';
    entry(tokens[i].token, tokens[i].logprob);
    out += ",\"top_logprobs\":[";
    for (size_t k = 0; k < tokens[i].top.size(); ++k) {
      if (k > 0) out += ',';
      entry(tokens[i].top[k].first, tokens[i].top[k].second);
      out += '}';
    }
    out += "]}";
  }
  out += ']';
}

void append_completion_logprobs(std::string& out, std::span<const TokenLogprob> tokens, bool first_is_prompt,
                                int64_t& offset, const TokenNames& names) {
  std::string offsets, logprobs, texts, tops;
  for (size_t i = 0; i < tokens.size() && out.size() + tops.size() + texts.size() <= names.max_bytes; ++i) {
    if (i > 0)
      for (std::string* list : {&offsets, &logprobs, &texts, &tops}) *list += ',';
    const TokenLogprob& token = tokens[i];
    fmt::format_to(std::back_inserter(offsets), "{}", offset);
    offset += names.num_characters(token.token);
    const std::string name = names.name(token.token, Endpoint::kCompletion);
    append_string(texts, name);
    if (first_is_prompt && i == 0) {
      logprobs += "null";
      tops += "null";
      continue;
    }
    append_logprob(logprobs, token.logprob);
    // The most likely tokens, and always the token itself; of tokens with the same text the most likely.
    std::set<std::string> shown;
    tops += '{';
    const auto add = [&](const std::string& text, float logprob) {
      if (!shown.insert(text).second) return;
      if (shown.size() > 1) tops += ',';
      append_string(tops, text);
      tops += ':';
      append_logprob(tops, logprob);
    };
    for (const auto& [id, logprob] : token.top) add(names.name(id, Endpoint::kCompletion), logprob);
    add(name, token.logprob);
    tops += '}';
  }
  out += "{\"text_offset\":[" + offsets + "],\"token_logprobs\":[" + logprobs + "],\"tokens\":[" + texts +
         "],\"top_logprobs\":[" + tops + "]}";
}

void append_prompt_logprobs(std::string& out, std::span<const TokenLogprob> tokens, const TokenNames& names) {
  out += "[null";
  for (const TokenLogprob& token : tokens) {
    if (out.size() > names.max_bytes) break;
    out += ",{";
    const auto add = [&](int32_t id, float logprob, int64_t rank) {
      fmt::format_to(std::back_inserter(out), "\"{}\":{{\"logprob\":", id);
      append_logprob(out, logprob);
      fmt::format_to(std::back_inserter(out), ",\"rank\":{},\"decoded_token\":", rank);
      append_string(out, names.bytes(id));
      out += '}';
    };
    add(token.token, token.logprob, token.rank);
    for (size_t k = 0; k < token.top.size(); ++k) {
      if (token.top[k].first == token.token) continue;
      out += ',';
      add(token.top[k].first, token.top[k].second, static_cast<int64_t>(k) + 1);
    }
    out += '}';
  }
  out += ']';
}

}  // namespace lk::openai
