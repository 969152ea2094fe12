// SPDX-License-Identifier: Apache-2.0
// What one request of a load experienced, and the reader that fills it from the answer as it arrives.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/net/http_client.h"

namespace lk::load {

enum class Outcome {
  kPending,
  kOk,
  kHttpError,    // a status other than 200; http_status says which
  kServerError,  // an error inside the stream, or an answer that is not the OpenAI format
  kBroken,       // no connection, or it was lost before the answer was complete
  kTimeout,
  kCancelled,  // by us, at an interrupt
};
const char* to_string(Outcome outcome);

// Times in seconds since the start of the run.
struct RequestRecord {
  int adapter = -1;           // -1 = the base model
  int64_t wanted_tokens = 0;  // max_tokens of the request
  double scheduled_s = 0;     // when the arrival process wanted it sent; equal to sent_s in a closed loop
  double sent_s = 0;
  double first_s = -1;                           // first content; -1 = none came
  double end_s = 0;                              // last event with a choice; for failures, when it was known
  std::vector<float> gaps_s;                     // between events with content
  int64_t prompt_tokens = 0, output_tokens = 0;  // the server's count (usage)
  bool has_usage = false;                        // otherwise output_tokens counts events, and says so in the report
  int http_status = 0;
  Outcome outcome = Outcome::kPending;
  std::string error;

  double ttft_s() const { return (first_s >= 0 ? first_s : end_s) - sent_s; }
  double e2e_s() const { return end_s - sent_s; }
  bool has_tpot() const { return first_s >= 0 && output_tokens > 1; }
  double tpot_s() const { return (e2e_s() - ttft_s()) / static_cast<double>(output_tokens - 1); }
};

// Feeds one answer into a record. Chat and completions, streamed or whole. Times are the caller's.
class AnswerReader {
 public:
  AnswerReader(RequestRecord& record, bool stream);
  void on_head(int status) { record_.http_status = status; }
  void on_data(std::string_view bytes, double now_s);
  void on_done(const Status& status, double now_s);

 private:
  void on_event(std::string_view data);
  void read_answer(std::string_view json);
  void fail(Outcome outcome, std::string error);

  RequestRecord& record_;
  bool stream_, done_marker_ = false;
  double now_s_ = 0, last_content_s_ = 0;
  int64_t num_content_events_ = 0;
  std::string body_;  // of an answer that is not a stream; at most kMaxBody
  SseParser sse_;
};

}  // namespace lk::load
