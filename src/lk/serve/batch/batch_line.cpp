// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/batch/batch_line.h"

#include <algorithm>

#include <boost/json.hpp>

#include "lk/base/json_reader.h"
#include "lk/base/json_text.h"
#include "lk/serve/http/routes.h"
#include "lk/serve/openai/json_writer.h"

namespace lk {
namespace {

using BatchFields = FormFields<kBatchLineFields>;

constexpr std::string_view kIdKey = "{\"id\":\"";

bool is_answered(const Route& route) {
  return route.access == Access::kInfer && route.method == "POST" && route.cost != Cost::kNothing;
}

BatchError invalid_url(std::string_view url) {
  std::string known;
  for (const Route& route : routes())
    if (is_answered(route)) known += fmt::format("{}{}", known.empty() ? "" : ", ", route.path);
  return {"invalid_url", fmt::format("\"url\" is \"{}\", which is none of {}", url, known), "url"};
}

void append_nullable(std::string& out, std::string_view text) {
  if (text.empty())
    out += "null";
  else
    openai::append_string(out, text);
}

std::string head_of(std::string_view id, std::string_view custom_id) {
  std::string out(kIdKey);
  out += id;
  out += "\",\"custom_id\":";
  append_nullable(out, custom_id);
  return out;
}

}  // namespace

BatchLine parse_batch_line(const LineReader::Line& line) {
  BatchLine out;
  if (line.too_long) {
    out.error = {"request_too_large", "the line is longer than a request may be (--max-body)", ""};
    return out;
  }
  // The body has the levels that the server's have; the line is one around it.
  const Result<boost::json::value> value = read_json(line.text, {}, kMaxJsonDepth + 1);
  if (!value.ok() || !value->is_object()) {
    const std::string why = value.ok() ? "a request must be a JSON object" : value.status().message();
    out.error = {"invalid_json_line", fmt::format("This line is not parseable as valid JSON: {}", why), ""};
    return out;
  }
  JsonErrors errors;
  BatchFields fields(value->get_object(), kBatchLineForm, "", errors);
  fields.read("custom_id", out.custom_id);
  std::string method;
  fields.read("method", method);
  fields.read("url", out.url);
  const boost::json::object* body = fields.object("body");
  for (const char* key : {"custom_id", "method", "url", "body"}) {
    const boost::json::value* given = value->get_object().if_contains(key);
    if (given != nullptr && !given->is_null()) continue;
    out.error = {"missing_required_parameter", fmt::format("Missing required parameter: '{}'.", key), key};
    return out;
  }
  if (errors.failed()) {
    const std::string& where = errors.path();
    out.error = {where == "method" ? "invalid_method"
                 : where == "url"  ? "invalid_url"
                                   : "invalid_value",
                 errors.status().message(), where};
    return out;
  }
  if (std::ranges::none_of(routes(), [&](const Route& route) { return is_answered(route) && route.path == out.url; })) {
    out.error = invalid_url(out.url);
    return out;
  }
  if (const boost::json::value* stream = body->if_contains("stream"); stream != nullptr && *stream == true) {
    out.error = {"invalid_value", "\"body.stream\" is true: a batch has whole answers", "body.stream"};
    return out;
  }
  out.ignored = fields.unknown(16);
  out.body = json_text(*body);
  return out;
}

std::string format_batch_answer(std::string_view id, std::string_view custom_id, int status,
                                std::string_view request_id, std::string_view body) {
  std::string out = head_of(id, custom_id);
  out += fmt::format(",\"response\":{{\"status_code\":{},\"request_id\":\"{}\",\"body\":", status, request_id);
  out += body;
  out += "},\"error\":null}";
  return out;
}

std::string format_batch_error(std::string_view id, std::string_view custom_id, int64_t line, const BatchError& error) {
  std::string out = head_of(id, custom_id);
  out += ",\"response\":null,\"error\":{\"code\":";
  openai::append_string(out, error.code);
  out += ",\"message\":";
  openai::append_string(out, fmt::format("line {}: {}", line, error.message));
  out += fmt::format(",\"line\":{},\"param\":", line);
  append_nullable(out, error.param);
  out += "}}";
  return out;
}

std::string_view batch_id_of(std::string_view result) {
  if (!result.starts_with(kIdKey)) return {};
  result.remove_prefix(kIdKey.size());
  const size_t end = result.find('"');
  return end == std::string_view::npos ? std::string_view() : result.substr(0, end);
}

}  // namespace lk
