// SPDX-License-Identifier: Apache-2.0
// Recording. Everything per request is counted under one lock; only token_gap, called for every token, has its own
// lock-free place.
#include "lk/serve/observe/metrics.h"

#include <atomic>
#include <chrono>
#include <mutex>

#include "lk/serve/observe/metrics_state.h"

namespace lk {
namespace {

using namespace metrics_detail;

constexpr int kMaxFieldLabels = 64;  // clients make them up

constexpr std::string_view kFinishWords[] = {"stop", "length", "tool_calls", "cancelled", "deadline", "error"};

std::string_view finish_word(std::string_view finish) {
  for (const std::string_view word : kFinishWords)
    if (word == finish) return word;
  return "other";
}

class MetricsImpl final : public Metrics {
 public:
  explicit MetricsImpl(const Options& options) : options_(options), token_gap_(kTokenGap), io_turn_(kTurn) {
    options_.model_name = clean_label_value(options.model_name);
    options_.version = clean_label_value(options.version);
    for (const std::string_view word : kFinishWords) state_.finished.emplace(word, 0);
  }

  void request_finished(const RequestRecord& r) override {
    const std::lock_guard lock(mutex_);
    State& s = state_;
    ++s.finished.try_emplace(std::string(finish_word(r.finish))).first->second;
    ++s.endpoints(r.endpoint, options_.max_label_values);
    s.cached_tokens += std::max<int64_t>(r.cached_tokens, 0);
    s.prompt_tokens.observe(static_cast<double>(r.prompt_tokens));
    s.output_tokens.observe(static_cast<double>(r.output_tokens));
    s.max_tokens.observe(static_cast<double>(r.max_tokens));
    s.choices.observe(static_cast<double>(r.n));
    s.queue.observe(std::max(r.queue_seconds, 0.0));
    s.e2e.observe(std::max(r.e2e_seconds, 0.0));
    s.inference.observe(std::max(r.e2e_seconds - r.queue_seconds, 0.0));
    const bool has_first = r.time_to_first_token >= 0;
    if (has_first) {
      s.first_token.observe(r.time_to_first_token);
      s.prefill.observe(std::max(r.time_to_first_token - r.queue_seconds, 0.0));
      s.decode.observe(std::max(r.e2e_seconds - r.time_to_first_token, 0.0));
    }
    const auto add = [&](Usage& usage) {
      ++usage.requests;
      usage.prompt_tokens += std::max<int64_t>(r.prompt_tokens, 0);
      usage.output_tokens += std::max<int64_t>(r.output_tokens, 0);
      if (has_first) usage.first_token.observe(r.time_to_first_token);
    };
    add(s.adapters(r.adapter.empty() ? "base" : r.adapter, options_.max_label_values));
    if (!r.key.empty()) {
      s.keys(r.key, options_.max_label_values)
          .add({.requests = 1,
                .prompt_tokens = std::max<int64_t>(r.prompt_tokens, 0),
                .cached_tokens = std::max<int64_t>(r.cached_tokens, 0),
                .output_tokens = std::max<int64_t>(r.output_tokens, 0)});
    }
    if (!r.tenant.empty()) add(s.tenants(r.tenant, options_.max_label_values));
  }

  void token_gap(double seconds) override { token_gap_.observe(seconds); }

  void step_finished(int64_t num_tokens, double seconds) override {
    const std::lock_guard lock(mutex_);
    state_.step_tokens.observe(static_cast<double>(num_tokens));
    state_.step_seconds.observe(seconds);
  }

  void events_delivered(double seconds) override {
    const std::lock_guard lock(mutex_);
    state_.event_delay.observe(seconds);
  }

  void io_turn(double seconds, double cpu_seconds) override {
    io_turn_.observe(seconds);
    raise(longest_turn_, seconds);
    raise(longest_turn_cpu_, cpu_seconds);
  }

  void request_abandoned(double seconds) override {
    const std::lock_guard lock(mutex_);
    state_.abandoned.observe(seconds);
  }

  void request_refused(std::string_view reason, std::string_view tenant) override {
    const std::lock_guard lock(mutex_);
    ++state_.refused(reason, options_.max_label_values);
    if (!tenant.empty()) ++state_.tenants(tenant, options_.max_label_values).refused;
  }

  void field_ignored(std::string_view field) override {
    const std::lock_guard lock(mutex_);
    ++state_.ignored_fields(field, kMaxFieldLabels);
  }

  void http_request(std::string_view route, int status, double seconds) override {
    const std::lock_guard lock(mutex_);
    Route& entry = state_.routes(route, options_.max_label_values);
    ++entry.by_status[status >= 100 && status <= 599 ? status : 0];
    entry.seconds.observe(seconds);
  }

  void adapter_load(double seconds, bool ok) override {
    const std::lock_guard lock(mutex_);
    if (ok)
      state_.load_seconds.observe(seconds);
    else
      ++state_.failed_loads;
  }

  void state_write_failed() override {
    const std::lock_guard lock(mutex_);
    ++state_.failed_state_writes;
  }

  std::string scrape(const ServerSnapshot& snapshot) override {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    Exposition exposition{.options = options_,
                          .snapshot = snapshot,
                          .state = copy_state(snapshot),
                          .token_gap = token_gap_.read(),
                          .io_turn = io_turn_.read(),
                          .longest_turn = longest_turn_,
                          .longest_turn_cpu = longest_turn_cpu_,
                          .unix_time = std::chrono::duration<double>(now).count()};
    MetricFamilies out;
    exposition.write_vllm(out);
    exposition.write_own(out);
    return out.text();
  }

 private:
  static void raise(std::atomic<double>& highest, double value) {
    double known = highest.load(std::memory_order_relaxed);
    while (value > known && !highest.compare_exchange_weak(known, value, std::memory_order_relaxed)) {
    }
  }
  State copy_state(const ServerSnapshot& snapshot) {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, value] : snapshot_totals(snapshot)) {
      double& highest = state_.mirrored[name];
      highest = std::max(highest, value);
    }
    return state_;
  }

  Options options_;
  ShardedHistogram token_gap_, io_turn_;
  std::atomic<double> longest_turn_{0}, longest_turn_cpu_{0};
  std::mutex mutex_;
  State state_;
};

}  // namespace

std::unique_ptr<Metrics> Metrics::create(const Options& options) { return std::make_unique<MetricsImpl>(options); }

}  // namespace lk
