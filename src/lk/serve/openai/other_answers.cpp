// SPDX-License-Identifier: Apache-2.0
// Answers of /v1/embeddings, /tokenize and /detokenize.
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <iterator>

#include "lk/serve/openai/choice.h"
#include "lk/serve/openai/json_writer.h"
#include "lk/serve/openai/openai.h"

namespace lk {

using namespace openai;

namespace {

// The first `dimensions`, with norm 1 again.
std::vector<float> shortened(const std::vector<float>& embedding, int64_t dimensions) {
  const auto size = static_cast<int64_t>(embedding.size());
  if (dimensions <= 0 || dimensions >= size) return embedding;
  std::vector<float> result(embedding.begin(), embedding.begin() + dimensions);
  double sum = 0;
  for (const float x : result) sum += static_cast<double>(x) * x;
  const double scale = sum > 0 ? 1 / std::sqrt(sum) : 0;
  for (float& x : result) x = static_cast<float>(x * scale);
  return result;
}

// Little-endian floats in base64 (RFC 4648).
std::string base64(const std::vector<float>& values) {
  static constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes, out;
  for (const float value : values)
    for (int shift = 0; shift < 32; shift += 8)
      bytes += static_cast<char>(std::bit_cast<uint32_t>(value) >> shift & 0xff);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= count ? kAlphabet[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

}  // namespace

std::string format_embeddings(const EmbeddingRequest& request, const std::string& model,
                              const std::vector<Completion>& results) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  int64_t num_tokens = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    fmt::format_to(std::back_inserter(out),
                   "{}{{\"object\":\"embedding\",\"index\":{},\"embedding\":", i > 0 ? "," : "", i);
    const std::vector<float> values = shortened(results[i].embedding, request.dimensions);
    if (request.base64) {
      out += '"' + base64(values) + '"';
    } else {
      out += '[';
      for (size_t k = 0; k < values.size(); ++k) {
        if (k > 0) out += ',';
        append_number(out, values[k]);
      }
      out += ']';
    }
    out += '}';
    num_tokens += results[i].prompt_tokens;
  }
  out += "],\"model\":";
  append_string(out, model);
  fmt::format_to(std::back_inserter(out), ",\"usage\":{{\"prompt_tokens\":{0},\"total_tokens\":{0}}}}}", num_tokens);
  return out;
}

std::string format_tokenize(const TokenizeRequest& request, const std::vector<int32_t>& tokens, int64_t context,
                            const Tokenizer& tokenizer) {
  std::string out = fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":", tokens.size(), context);
  append_ints(out, tokens);
  out += ",\"token_strs\":";
  if (!request.return_token_strs) return out + "null}";
  out += '[';
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out += ',';
    append_string(out, tokenizer.id_to_token(tokens[i]).value_or(""));
  }
  return out + "]}";
}

std::string format_detokenize(const std::string& text) {
  std::string out = "{\"prompt\":";
  append_string(out, text);
  return out + "}";
}

}  // namespace lk
