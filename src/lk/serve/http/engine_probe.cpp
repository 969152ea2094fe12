// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/engine_probe.h"

#include <algorithm>
#include <future>

namespace lk {
namespace {

constexpr std::chrono::seconds kPatience{30};

class ProbeSink final : public RequestSink {
 public:
  ProbeSink() : RequestSink(kEngineThread) {}
  void on_event(StreamEvent& event) override {
    if (event.ended) done.set_value(std::move(event.ended->completion));
  }
  std::promise<Completion> done;
};

}  // namespace

Result<std::vector<TokenLogprob>> probe_engine(EngineService& service, AdapterId adapter, int64_t tokens,
                                               std::span<const int32_t> beginning, const TextSide* side) {
  const TextModel& text = service.text();
  TextRequest request{.token_ids = {beginning.begin(), beginning.end()}, .max_tokens = 0};
  // Tokens that every adapter has, so that their log-probabilities can be compared with the base's.
  const int64_t vocabulary = std::min(text.config().vocab_size, side ? side->vocab_size : INT64_MAX);
  const int64_t length = std::min(tokens, text.context() - std::ssize(beginning));
  for (int64_t i = 0; i < length; ++i) request.token_ids.push_back(static_cast<int32_t>((i * 7919 + 13) % vocabulary));
  request.sampling.temperature = 0;
  request.sampling.num_prompt_logprobs = 0;
  auto sequence = std::make_unique<ServedSequence>();
  LK_RETURN_IF_ERROR(text.prepare(std::move(request), *sequence, side));
  sequence->asked.adapter = adapter;
  sequence->asked.urgent = true;
  sequence->asked.expires = to_micros(Clock::now() + kPatience);
  sequence->queued = false;
  auto sink = std::make_shared<ProbeSink>();
  std::future<Completion> done = sink->done.get_future();
  sequence->sink = std::move(sink);
  service.submit(std::move(sequence));
  Completion completion = done.get();
  if (completion.finish == FinishReason::kError || !completion.error.ok()) return completion.error;
  return std::move(completion.prompt_logprobs);
}

}  // namespace lk
