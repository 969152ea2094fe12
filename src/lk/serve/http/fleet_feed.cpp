// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/fleet_feed.h"

#include <algorithm>
#include <random>
#include <set>

#include "lk/base/guarded.h"
#include "lk/base/sha256.h"
#include "lk/base/thread_name.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/serve/http/engine_probe.h"

namespace lk {
namespace {

constexpr std::chrono::milliseconds kInterval{100};
// Of the probe: enough to go through every kernel's wide and narrow forms, cheap beside a start.
constexpr int64_t kProbeTokens = 64;

// What tokenizers split in different ways.
constexpr std::string_view kProbeText = "Hello  world's 12345 naïve ñandú\n\t漢字かな 🙂 <|im_start|> x_y{z} ";

}  // namespace

FleetFeed::FleetFeed(std::function<ReplicaReport()> make) : make_(std::move(make)) {}

FleetFeed::~FleetFeed() { stop(); }

void FleetFeed::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void FleetFeed::listen(std::shared_ptr<Exchange> exchange) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    listeners_.push_back({.exchange = std::move(exchange)});
    wants_now_ = true;
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  }
  changed_.notify_all();
}

void FleetFeed::run() {
  set_thread_name("lk-fleet");
  std::unique_lock lock(mutex_);
  bool last = false;
  while (!last) {
    changed_.wait(lock, [this] { return stopping_ || !listeners_.empty(); });
    if (!stopping_) changed_.wait_until(lock, next_, [this] { return stopping_ || wants_now_; });
    last = stopping_;
    wants_now_ = false;
    next_ = std::chrono::steady_clock::now() + kInterval;
    lock.unlock();
    ReplicaReport report;
    const Status made = guarded("a report", [&] { report = make_(); });
    lock.lock();
    std::erase_if(listeners_, [](const Listener& listener) { return listener.exchange->gone.load(); });
    report.routers = routers();
    if (made.ok()) tell(std::move(report));
  }
  for (const Listener& listener : listeners_)
    listener.exchange->post([exchange = listener.exchange] { exchange->end_stream("ok"); });
  listeners_.clear();
}

// One that listens twice, because it came back before its old connection was seen to be gone, is one.
std::vector<std::string> FleetFeed::routers() const {
  std::set<std::string> names;
  for (const Listener& listener : listeners_)
    if (const std::string_view name = listener.exchange->request.header(kRouterHeader); is_request_id(name))
      names.emplace(name);
  return {names.begin(), names.end()};
}

void FleetFeed::tell(ReplicaReport report) {
  const auto event = [&](const ReplicaReport* before) { return "data: " + format_report(report, before) + "\n\n"; };
  const bool some_new = std::ranges::any_of(listeners_, &Listener::is_new);
  const std::string all = some_new || !before_ ? event(nullptr) : "";
  const std::string news = before_ ? event(&*before_) : all;
  for (Listener& listener : listeners_) {
    const bool is_new = std::exchange(listener.is_new, false);
    listener.exchange->post([exchange = listener.exchange, is_new, bytes = is_new ? all : news] {
      if (!exchange->reply) return;
      if (is_new) exchange->begin_stream({});
      exchange->reply->write(bytes);
    });
  }
  before_ = std::move(report);
}

Result<std::string> numerics_of(EngineService& service, bool merging, int64_t max_answer_bytes,
                                std::string_view formats) {
  const TextModel& text = service.text();
  LK_ASSIGN_OR_RETURN(const std::vector<TokenLogprob> probe, probe_engine(service, kBaseModel, kProbeTokens));
  const int64_t vocabulary = text.config().vocab_size;
  Sha256 hash;
  const auto add = [&](const auto& value) { hash.update(&value, sizeof value); };
  const auto add_text = [&](std::string_view value) {
    add(value.size());
    hash.update(value.data(), value.size());
  };
  for (const TokenLogprob& token : probe) {
    add(token.logprob);
    add(token.rank);
  }
  add(text.context());
  add(vocabulary);
  const TextSide& side = text.base();
  for (const int32_t token : side.end_tokens) add(token);
  if (side.templates)
    for (const ChatTemplates::Entry& entry : side.templates->entries()) {
      add_text(entry.name);
      add_text(entry.body->source());
    }
  const GenerationDefaults& generation = side.generation;
  for (const std::optional<double>& value :
       {generation.temperature, generation.top_p, generation.min_p, generation.repetition_penalty,
        generation.presence_penalty, generation.frequency_penalty})
    add(value.value_or(-1e9));
  for (const std::optional<int64_t>& value : {generation.top_k, generation.max_tokens, generation.min_tokens})
    add(value.value_or(-1));
  for (const std::string& stop : generation.stop) add_text(stop);
  add(max_answer_bytes);
  add_text(formats);
  if (text.tokenizer()) {
    LK_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, text.tokenizer()->encode(kProbeText, true));
    for (const int32_t token : tokens) add(token);
    for (int64_t token = 0; token < vocabulary; ++token)
      add_text(text.tokenizer()->decode(std::vector<int32_t>{static_cast<int32_t>(token)}, false));
  }
  if (merging) add(std::random_device()());
  return to_hex(hash.finish()).substr(0, 32);
}

}  // namespace lk
