// SPDX-License-Identifier: Apache-2.0
// An EngineService on the demo model, and a receiver that writes down what it hears.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lk/base/file.h"
#include "lk/serve/http/engine_service.h"
#include "lk/tensor/buffer.h"
#include "testing/temp_dir.h"

namespace lk::testing {

inline constexpr auto kPatience = std::chrono::seconds(120);  // never reached unless something hangs
inline const std::string kDemoAdapters = "examples/demo/adapters/";

// What one receiver heard of its choices.
class Heard : public RequestSink {
 public:
  struct Choice {
    std::string text;
    std::vector<int32_t> tokens;
    int num_prompts = 0, num_ends = 0, num_late = 0;  // late: events after the end
    bool prompt_was_first = true;
    std::vector<int32_t> prompt_token_ids;  // of the prompt's event
    Completion completion;
    RequestTiming timing;
  };
  explicit Heard(int shard = 0) : RequestSink(shard) {}

  void on_event(StreamEvent& event) override {
    std::lock_guard lock(mutex_);
    Choice& choice = choices_[event.choice];
    if (choice.num_ends > 0) ++choice.num_late;
    if (event.prompt) {
      ++choice.num_prompts;
      choice.prompt_token_ids = event.prompt->prompt_token_ids;
      if (!choice.tokens.empty() || !choice.text.empty()) choice.prompt_was_first = false;
    }
    choice.text += event.delta.text;
    for (const TokenLogprob& token : event.delta.tokens) choice.tokens.push_back(token.token);
    if (event.ended) {
      ++choice.num_ends;
      choice.completion = std::move(event.ended->completion);
      choice.timing = event.ended->timing;
    }
    heard_.notify_all();
  }
  bool wait_until(const std::function<bool(const std::map<int, Choice>&)>& condition) {
    std::unique_lock lock(mutex_);
    return heard_.wait_for(lock, kPatience, [&] { return condition(choices_); });
  }
  bool wait_for_ends(size_t count = 1) {
    return wait_until([&](const auto& choices) {
      size_t ended = 0;
      for (const auto& [number, choice] : choices) ended += choice.num_ends > 0;
      return ended >= count;
    });
  }
  bool wait_for_tokens(size_t count, int number = 0) {
    return wait_until(
        [&](const auto& choices) { return choices.contains(number) && choices.at(number).tokens.size() >= count; });
  }
  Choice choice(int number = 0) const {
    std::lock_guard lock(mutex_);
    const auto it = choices_.find(number);
    return it == choices_.end() ? Choice() : it->second;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable heard_;
  std::map<int, Choice> choices_;
};

inline void expect_complete(const Heard::Choice& choice) {
  EXPECT_EQ(choice.num_ends, 1);
  EXPECT_EQ(choice.num_late, 0);
  EXPECT_EQ(choice.text, choice.completion.text);
  EXPECT_EQ(choice.tokens, choice.completion.token_ids);
}

inline std::unique_ptr<TextEngine> open_demo(const SchedulerOptions& scheduler = {}, int64_t memory_bytes = 32 << 20) {
  auto engine = TextEngine::open(
      {.model = "examples/demo/model", .num_threads = 2, .memory_bytes = memory_bytes, .scheduler = scheduler});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return std::move(engine).value();
}

struct Service {
  std::atomic<int> wrong_shards{0};
  std::unique_ptr<EngineService> engine;

  explicit Service(const EngineServiceOptions& options = {}, const SchedulerOptions& scheduler = {},
                   int64_t memory_bytes = 32 << 20) {
    engine = std::make_unique<EngineService>(open_demo(scheduler, memory_bytes), options,
                                             [this](int shard, std::vector<StreamEvent> events) {
                                               for (StreamEvent& event : events) {
                                                 if (event.sink->shard() != shard) ++wrong_shards;
                                                 event.sink->on_event(event);
                                               }
                                             });
  }
  EngineService* operator->() { return engine.get(); }

  std::unique_ptr<ServedSequence> prepare(const std::string& prompt, int64_t max_tokens,
                                          AdapterId adapter = kBaseModel) {
    TextRequest request{.prompt = prompt, .max_tokens = max_tokens, .ignore_eos = true};
    request.sampling.temperature = 0;
    auto sequence = std::make_unique<ServedSequence>();
    const Status prepared = engine->text().prepare(std::move(request), *sequence);
    EXPECT_TRUE(prepared.ok()) << prepared.message();
    sequence->asked.adapter = adapter;
    return sequence;
  }
  struct Submission {
    std::unique_ptr<ServedSequence> request;
    std::shared_ptr<const void> lease;
    std::shared_ptr<RequestSink> sink;
    int choice = 0;
    bool wants_prompt = false;
    std::optional<Clock::time_point> deadline;
  };
  // Takes its place in the queue, then submits.
  RequestId submit(Submission submission) {
    ServedSequence& sequence = *submission.request;
    sequence.lease = std::move(submission.lease);
    sequence.sink = std::move(submission.sink);
    sequence.choice = submission.choice;
    sequence.wants_prompt = submission.wants_prompt;
    if (submission.deadline) sequence.asked.expires = to_micros(*submission.deadline);
    EXPECT_TRUE(engine->admit({}, EngineService::share_of(sequence)).status.ok());
    return engine->submit(std::move(submission.request));
  }
  RequestId submit(const std::shared_ptr<Heard>& heard, const std::string& prompt, int64_t max_tokens) {
    return submit({.request = prepare(prompt, max_tokens), .sink = heard});
  }
  // As the server's own probes: heard on the engine thread, without a place in the queue.
  void probe(const std::string& prompt, int64_t max_tokens, std::function<void(const Completion&)> done) {
    struct Probe : RequestSink {
      explicit Probe(std::function<void(const Completion&)> done) : RequestSink(kEngineThread), done(std::move(done)) {}
      void on_event(StreamEvent& event) override {
        if (event.ended) done(event.ended->completion);
      }
      std::function<void(const Completion&)> done;
    };
    auto sequence = prepare(prompt, max_tokens);
    sequence->queued = false;
    sequence->sink = std::make_shared<Probe>(std::move(done));
    engine->submit(std::move(sequence));
  }
  // Runs `task` between two steps and waits for it.
  void on_engine(const std::function<void(TextEngine&)>& task) {
    std::promise<void> done;
    ASSERT_TRUE(engine->call([&](TextEngine& text) {
      task(text);
      done.set_value();
    }));
    done.get_future().wait();
  }
  // Until `condition` holds between two steps.
  bool wait_on_engine(const std::function<bool(TextEngine&)>& condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    for (bool met = false; std::chrono::steady_clock::now() < end;
         std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
      on_engine([&](TextEngine& text) { met = condition(text); });
      if (met) return true;
    }
    return false;
  }
  int64_t queued_tokens() const { return engine->snapshot().server.queued_tokens; }
  void expect_empty_queue() const {
    EXPECT_EQ(engine->num_queued(), 0);
    EXPECT_EQ(queued_tokens(), 0);
  }
  // No request, no page in use: all are free or only cached.
  void expect_idle_pool() {
    EXPECT_TRUE(wait_on_engine(
        [](TextEngine& text) { return !text.has_work() && text.pool().num_available() == text.pool().num_pages(); }));
    on_engine([](TextEngine& text) { text.pool().check_integrity(); });
  }
};

// Holds the engine thread between two steps until it goes out of scope, so that a test decides what is queued together.
class Hold {
 public:
  explicit Hold(Service& service) {
    std::promise<void> reached;
    service->call([&reached, open = open_.get_future().share()](TextEngine&) {
      reached.set_value();
      open.wait();
    });
    reached.get_future().wait();
  }
  ~Hold() { open_.set_value(); }

 private:
  std::promise<void> open_;
};

// A demo adapter under another name, its weights multiplied.
inline void copy_adapter(const std::string& from, const std::string& to, float factor = 1) {
  std::filesystem::create_directories(to);
  std::filesystem::copy_file(kDemoAdapters + from + "/adapter_config.json", to + "/adapter_config.json",
                             std::filesystem::copy_options::overwrite_existing);
  const auto store = TensorStore::open_file(kDemoAdapters + from + "/adapter_model.safetensors").value();
  std::vector<Buffer> buffers;
  std::vector<TensorEntry> entries;
  for (const auto& [name, view] : store->tensors()) {
    std::vector<float> values(static_cast<size_t>(view.num_elements()));
    view.copy_to(values.data());
    for (float& value : values) value *= factor;
    Buffer& buffer = buffers.emplace_back(view.num_elements() * 4);
    convert(values.data(), DType::kF32, buffer.data(), view.dtype(), view.num_elements());
    entries.push_back({name, TensorView(buffer.data(), view.dtype(), view.shape())});
  }
  const Status status = write_safetensors(to + "/adapter_model.safetensors", entries);
  ASSERT_TRUE(status.ok()) << status.message();
}

}  // namespace lk::testing
