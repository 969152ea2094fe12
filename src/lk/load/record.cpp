// SPDX-License-Identifier: Apache-2.0
#include "lk/load/record.h"

#include <boost/json.hpp>

#include "lk/base/json_text.h"

namespace lk::load {
namespace {

namespace json = boost::json;
constexpr size_t kMaxBody = 16 << 20, kMaxError = 300;

// The field of an object, or null.
const json::value* find(const json::value* value, std::string_view name) {
  return value && value->is_object() ? value->as_object().if_contains(name) : nullptr;
}

bool is_text(const json::value* value) { return value && value->is_string() && !value->as_string().empty(); }

// Text of any kind in the first choice: completions' text, chat's content, reasoning or tool calls.
bool has_content(const json::value& choice) {
  const json::value* part = find(&choice, "delta");
  if (!part) part = find(&choice, "message");
  const json::value* calls = find(part, "tool_calls");
  return is_text(find(&choice, "text")) || is_text(find(part, "content")) || is_text(find(part, "reasoning_content")) ||
         is_text(find(part, "reasoning")) || (calls && calls->is_array() && !calls->as_array().empty());
}

std::string error_text(const json::value* error) {
  if (!error) return "";
  if (error->is_string()) return std::string(error->as_string());
  if (const json::value* message = find(error, "message"); message && message->is_string())
    return std::string(message->as_string());
  return json_text(*error);
}

int64_t count_of(const json::value* usage, std::string_view name) {
  const json::value* count = find(usage, name);
  return count && count->is_int64() && count->as_int64() >= 0 ? count->as_int64() : -1;
}

}  // namespace

const char* to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::kPending:
      return "pending";
    case Outcome::kOk:
      return "ok";
    case Outcome::kHttpError:
      return "http error";
    case Outcome::kServerError:
      return "server error";
    case Outcome::kBroken:
      return "broken";
    case Outcome::kTimeout:
      return "timeout";
    case Outcome::kCancelled:
      return "cancelled";
  }
  return "?";
}

AnswerReader::AnswerReader(RequestRecord& record, bool stream)
    : record_(record), stream_(stream), sse_([this](std::string_view data) { on_event(data); }) {}

void AnswerReader::fail(Outcome outcome, std::string error) {
  if (record_.outcome != Outcome::kPending) return;
  record_.outcome = outcome;
  if (error.size() > kMaxError) error.resize(kMaxError);
  record_.error = std::move(error);
}

void AnswerReader::on_data(std::string_view bytes, double now_s) {
  now_s_ = now_s;
  if (stream_ && record_.http_status == 200) {
    if (!sse_.push(bytes)) fail(Outcome::kServerError, "an event of the stream exceeds the size limit");
  } else if (body_.size() + bytes.size() <= kMaxBody) {
    body_ += bytes;
  } else {
    fail(Outcome::kServerError, "the answer exceeds the size limit");
  }
}

void AnswerReader::on_event(std::string_view data) {
  if (data == "[DONE]")
    done_marker_ = true;
  else
    read_answer(data);
}

void AnswerReader::read_answer(std::string_view text) {
  boost::system::error_code error;
  unsigned char memory[4096];  // enough for an event of a few tokens
  json::monotonic_resource resource(memory);
  const json::value answer = json::parse(text, error, &resource);
  if (error || !answer.is_object())
    return fail(Outcome::kServerError, "the answer is not a JSON object: " + std::string(text.substr(0, 80)));
  if (const json::value* failure = find(&answer, "error"); failure && !failure->is_null())
    return fail(Outcome::kServerError, error_text(failure));
  if (const json::value* usage = find(&answer, "usage"); usage && usage->is_object()) {
    const int64_t prompt = count_of(usage, "prompt_tokens"), output = count_of(usage, "completion_tokens");
    record_.has_usage = prompt >= 0 && output >= 0;
    if (record_.has_usage) record_.prompt_tokens = prompt, record_.output_tokens = output;
  }
  const json::value* choices = find(&answer, "choices");
  if (!choices || !choices->is_array() || choices->as_array().empty()) return;  // the usage event
  record_.end_s = now_s_;
  if (!has_content(choices->as_array()[0])) return;
  if (num_content_events_++ == 0)
    record_.first_s = now_s_;
  else
    record_.gaps_s.push_back(static_cast<float>(now_s_ - last_content_s_));
  last_content_s_ = now_s_;
}

void AnswerReader::on_done(const Status& status, double now_s) {
  now_s_ = now_s;
  if (!status.ok()) {
    const Outcome outcome = status.code() == StatusCode::kDeadlineExceeded ? Outcome::kTimeout
                            : status.code() == StatusCode::kCancelled      ? Outcome::kCancelled
                                                                           : Outcome::kBroken;
    fail(outcome, status.message());
  } else if (record_.http_status != 200) {
    boost::system::error_code error;
    const json::value body = json::parse(body_, error);
    const json::value* failure = error ? nullptr : find(&body, "error");
    fail(Outcome::kHttpError, failure ? error_text(failure) : body_);
  } else if (!stream_) {
    read_answer(body_);
    record_.first_s = -1;  // not seen apart from the rest
  } else if (!done_marker_) {
    fail(Outcome::kBroken, "the stream ended without [DONE]");
  }
  if (!record_.has_usage) record_.output_tokens = num_content_events_;
  if (record_.outcome == Outcome::kPending)
    record_.outcome = Outcome::kOk;
  else
    record_.end_s = now_s;
  if (record_.end_s == 0) record_.end_s = now_s;  // an answer without any choice
  body_ = {};
}

}  // namespace lk::load
