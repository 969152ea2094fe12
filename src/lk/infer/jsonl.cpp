// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/jsonl.h"

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "lk/base/json_text.h"

namespace lk {
namespace {

namespace json = boost::json;

// One field of an object: reads it when present, or explains what is wrong with it.
class Fields {
 public:
  explicit Fields(const json::object& object) : object_(object) {}

  Status boolean(std::string_view name, bool& out) {
    return read(name, "true or false", [&](const json::value& v) { return v.is_bool() && (out = v.get_bool(), true); });
  }
  Status text(std::string_view name, std::string& out) {
    return read(name, "a string", [&](const json::value& v) { return v.is_string() && (out = v.get_string(), true); });
  }
  Status text(std::string_view name, std::optional<std::string>& out) {
    return read(name, "a string", [&](const json::value& v) { return v.is_string() && (out = v.get_string(), true); });
  }
  Status number(std::string_view name, double& out) {
    return read(name, "a number", [&](const json::value& v) {
      if (!v.is_number()) return false;
      out = v.to_number<double>();
      return std::isfinite(out);
    });
  }
  template <class T>
  Status integer(std::string_view name, T& out) {
    return read(name, "an integer in range", [&](const json::value& v) { return to_integer(v, out); });
  }
  // true means 0 extra alternatives, false none at all.
  Status logprobs(std::string_view name, int& out) {
    return read(name, "an integer from 0 to 20, or true", [&](const json::value& v) {
      if (v.is_bool()) return out = v.get_bool() ? 0 : -1, true;
      return to_integer(v, out) && out >= 0;
    });
  }
  Status tokens(std::string_view name, std::vector<int32_t>& out) {
    return read(name, "a list of token ids", [&](const json::value& v) {
      if (!v.is_array()) return false;
      out.clear();
      for (const json::value& item : v.get_array())
        if (!to_integer(item, out.emplace_back())) return false;
      return true;
    });
  }
  Status strings(std::string_view name, std::vector<std::string>& out) {
    return read(name, "a string or a list of strings", [&](const json::value& v) {
      out.clear();
      if (v.is_string()) return out.emplace_back(v.get_string()), true;
      if (!v.is_array()) return false;
      for (const json::value& item : v.get_array()) {
        if (!item.is_string()) return false;
        out.emplace_back(item.get_string());
      }
      return true;
    });
  }
  Status biases(std::string_view name, std::vector<std::pair<int32_t, float>>& out) {
    return read(name, "an object of token id to bias", [&](const json::value& v) {
      if (!v.is_object()) return false;
      for (const auto& [key, bias] : v.get_object()) {
        int32_t token;
        const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
        if (error != std::errc() || end != key.data() + key.size() || !bias.is_number()) return false;
        out.emplace_back(token, static_cast<float>(bias.to_number<double>()));
      }
      return true;
    });
  }
  Status messages(std::string_view name, json::array& out) {
    return read(name, "a list of objects", [&](const json::value& v) {
      if (!v.is_array()) return false;
      for (const json::value& item : v.get_array())
        if (!item.is_object()) return false;
      out = v.get_array();
      return true;
    });
  }
  Status value(std::string_view name, json::value& out) {
    return read(name, "a string or an integer", [&](const json::value& v) {
      return (v.is_string() || v.is_int64() || v.is_uint64()) && (out = v, true);
    });
  }

  // Everything in the object must have been read.
  Status no_others() const {
    if (num_read_ == object_.size()) return Status();
    for (const auto& [key, unused] : object_)
      if (std::find(known_.begin(), known_.end(), std::string_view(key)) == known_.end())
        return invalid_argument("unknown field \"{}\"", std::string_view(key));
    return Status();
  }

 private:
  template <class T>
  static bool to_integer(const json::value& v, T& out) {
    boost::system::error_code error;
    if (v.is_double()) return false;
    out = v.to_number<T>(error);
    return !error;
  }
  template <class F>
  Status read(std::string_view name, const char* expected, F&& parse) {
    known_.push_back(name);
    const json::value* v = object_.if_contains(name);
    if (!v) return Status();
    ++num_read_;
    if (v->is_null()) return Status();
    if (!parse(*v))
      return invalid_argument("field \"{}\" must be {}, got {}", name, expected, json_text(*v).substr(0, 80));
    return Status();
  }

  const json::object& object_;
  std::vector<std::string_view> known_;
  size_t num_read_ = 0;
};

json::object logprob_json(const TokenLogprob& entry) {
  json::object object{{"token", entry.token}, {"logprob", entry.logprob}, {"rank", entry.rank}};
  if (!entry.top.empty()) {
    json::array top;
    for (const auto& [token, logprob] : entry.top) top.push_back(json::object{{"token", token}, {"logprob", logprob}});
    object["top"] = std::move(top);
  }
  return object;
}

json::array logprobs_json(const std::vector<TokenLogprob>& entries) {
  json::array array;
  for (const TokenLogprob& entry : entries) array.push_back(logprob_json(entry));
  return array;
}

}  // namespace

Result<JsonlRequest> parse_jsonl_request(std::string_view line, const TextRequest& defaults) {
  boost::system::error_code error;
  const json::value root = json::parse(line, error);
  if (error) return invalid_argument("not valid JSON: {}", error.message());
  if (!root.is_object()) return invalid_argument("a request must be a JSON object");
  JsonlRequest parsed{.request = defaults};
  TextRequest& r = parsed.request;
  SamplingParams& s = r.sampling;
  Fields fields(root.get_object());
  LK_RETURN_IF_ERROR(fields.value("id", parsed.id));
  LK_RETURN_IF_ERROR(fields.text("adapter", r.adapter));
  LK_RETURN_IF_ERROR(fields.text("prompt", r.prompt));
  LK_RETURN_IF_ERROR(fields.messages("messages", r.messages));
  LK_RETURN_IF_ERROR(fields.tokens("token_ids", r.token_ids));
  LK_RETURN_IF_ERROR(fields.integer("max_tokens", r.max_tokens));
  LK_RETURN_IF_ERROR(fields.tokens("output_so_far", r.output_so_far));
  LK_RETURN_IF_ERROR(fields.number("temperature", s.temperature));
  LK_RETURN_IF_ERROR(fields.integer("top_k", s.top_k));
  LK_RETURN_IF_ERROR(fields.number("top_p", s.top_p));
  LK_RETURN_IF_ERROR(fields.number("min_p", s.min_p));
  LK_RETURN_IF_ERROR(fields.number("repetition_penalty", s.repetition_penalty));
  LK_RETURN_IF_ERROR(fields.number("presence_penalty", s.presence_penalty));
  LK_RETURN_IF_ERROR(fields.number("frequency_penalty", s.frequency_penalty));
  LK_RETURN_IF_ERROR(fields.biases("logit_bias", s.logit_bias));
  LK_RETURN_IF_ERROR(fields.integer("seed", s.seed));
  LK_RETURN_IF_ERROR(fields.strings("stop", r.stop));
  LK_RETURN_IF_ERROR(fields.tokens("stop_token_ids", r.stop_token_ids));
  LK_RETURN_IF_ERROR(fields.logprobs("logprobs", s.num_logprobs));
  LK_RETURN_IF_ERROR(fields.logprobs("prompt_logprobs", s.num_prompt_logprobs));
  LK_RETURN_IF_ERROR(fields.boolean("ignore_eos", r.ignore_eos));
  LK_RETURN_IF_ERROR(fields.boolean("skip_special_tokens", r.skip_special_tokens));
  LK_RETURN_IF_ERROR(fields.boolean("add_special_tokens", r.add_special_tokens));
  LK_RETURN_IF_ERROR(fields.text("expected", parsed.expected));
  LK_RETURN_IF_ERROR(fields.no_others());
  return parsed;
}

json::value jsonl_id(std::string_view line) {
  boost::system::error_code error;
  const json::value root = json::parse(line, error);
  if (error || !root.is_object()) return nullptr;
  const json::value* id = root.get_object().if_contains("id");
  return id ? *id : json::value(nullptr);
}

bool matches_expected(const std::string& text, const std::string& expected) {
  const auto trim = [](std::string_view s) {
    const size_t first = s.find_first_not_of(" \t\r\n");
    return first == std::string_view::npos ? std::string_view{}
                                           : s.substr(first, s.find_last_not_of(" \t\r\n") - first + 1);
  };
  return trim(text) == trim(expected);
}

std::string format_jsonl_result(const json::value& id, const std::string& adapter, const Completion& completion,
                                const std::optional<std::string>& expected) {
  if (completion.finish == FinishReason::kError) return format_jsonl_error(id, adapter, completion.error);
  json::object object{{"id", id},
                      {"adapter", adapter.empty() ? "base" : adapter},
                      {"text", completion.text},
                      {"token_ids", json::value_from(completion.token_ids)}};
  if (!completion.logprobs.empty()) object["logprobs"] = logprobs_json(completion.logprobs);
  if (!completion.prompt_logprobs.empty()) object["prompt_logprobs"] = logprobs_json(completion.prompt_logprobs);
  if (expected) object["match"] = matches_expected(completion.text, *expected);
  object["finish_reason"] = to_string(completion.finish);
  object["prompt_tokens"] = completion.prompt_tokens;
  object["completion_tokens"] = completion.token_ids.size();
  return json_text(object);
}

std::string format_jsonl_error(const json::value& id, const std::string& adapter, const Status& error) {
  return json_text(json::object{{"id", id},
                                {"adapter", adapter.empty() ? "base" : adapter},
                                {"error", {{"code", to_string(error.code())}, {"message", error.message()}}}});
}

}  // namespace lk
