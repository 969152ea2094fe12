// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/engine_service.h"

#include <algorithm>
#include <future>

#include "lk/base/guarded.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

constexpr auto kRateWindow = std::chrono::seconds(5);

constexpr const char* kShuttingDown = "the server is shutting down";

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

EngineService::EngineService(std::unique_ptr<TextEngine> engine, const EngineServiceOptions& options, Deliver deliver)
    : engine_(std::move(engine)),
      text_(engine_->shared_text()),
      options_(options),
      deliver_(std::move(deliver)),
      queue_({.requests = options.max_queue_requests,
              .tokens = options.max_queue_tokens > 0
                            ? options.max_queue_tokens
                            : std::max(options.max_queue_requests * text_->context() / 4, text_->context()),
              .wait_seconds = options.max_wait_seconds,
              .fair = engine_->scheduler().serves_by_weight()}) {
  engine_->engine().set_load_listener([this] {
    {
      std::lock_guard lock(mutex_);
      woken_ = true;
    }
    wake_.notify_one();
  });
  engine_->engine().set_interlude([this] { prefetch_arriving(); });
  publish(true);
  thread_ = std::thread([this] { main(); });
}

EngineService::~EngineService() {
  stop();
  engine_.reset();  // the threads of its workshop may still be calling the listener above
}

void EngineService::stop() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

// --- Any thread

bool EngineService::post(Command& command) {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return false;
    if (command.arrived && command.arrived->asked.adapter != kBaseModel) {
      arriving_.push_back(command.arrived->asked.adapter);
      any_arriving_.store(true, std::memory_order_relaxed);
    }
    commands_.push_back(std::move(command));
  }
  wake_.notify_one();
  return true;
}

bool EngineService::post(std::function<void()> task) {
  Command command{.task = std::move(task)};
  return post(command);
}

bool EngineService::call(std::function<void(TextEngine&)> task) {
  return post([this, task = std::move(task)] { task(*engine_); });
}

RequestId EngineService::submit(std::unique_ptr<ServedSequence> sequence) {
  const RequestId id = sequence->asked.id = next_id_.fetch_add(1);
  Command command{.arrived = std::move(sequence)};
  if (post(command)) return id;
  ServedSequence& late = *command.arrived;
  leave_queue(late);
  if (late.sink->shard() != RequestSink::kEngineThread) return id;
  late.end(FinishReason::kError, unavailable(kShuttingDown));
  StreamEvent event{.sink = late.sink, .choice = late.choice, .ended = std::move(command.arrived)};
  event.sink->on_event(event);
  return id;
}

EngineService::Account EngineService::account(const std::string& name, double weight) {
  std::lock_guard lock(accounts_mutex_);
  const auto [it, is_new] =
      accounts_.emplace(name, Account{.id = static_cast<TenantId>(accounts_.size()) + 1, .weight = 1});
  Account& account = it->second;
  if (account.weight != weight) {
    account.weight = weight;
    call([id = account.id, weight](TextEngine& engine) { engine.scheduler().set_tenant_weight(id, weight); });
  }
  return account;
}

void EngineService::cancel(RequestId id) {
  post([this, id] {
    if (std::optional<TextUpdate> last = engine_->cancel(id)) deliver(std::move(*last));
  });
}

AdapterId EngineService::add_adapter(Engine::PreparedAdapter adapter) {
  std::promise<AdapterId> promise;
  std::future<AdapterId> registered = promise.get_future();
  if (!call([&](TextEngine& engine) { promise.set_value(engine.engine().register_adapter(std::move(adapter))); }))
    return kBaseModel;
  return registered.get();
}

void EngineService::allow_merging(AdapterId id) {
  call([id](TextEngine& engine) { engine.allow_merging(id); });
}

void EngineService::remove_adapter(AdapterId id, std::function<void(int64_t)> done) {
  if (!post([this, id, done] { removed_.emplace_back(id, done); }) && done) done(0);
}

void EngineService::abort_all(Status error) {
  post([this, error] { fail_all(error); });
}

EngineService::Snapshot EngineService::snapshot() const {
  std::lock_guard lock(snapshot_mutex_);
  Snapshot snapshot = snapshot_;
  snapshot.server.queued_tokens = queue_.waiting().tokens;
  snapshot.server.max_queue = options_.max_queue_requests;
  snapshot.server.predicted_wait_seconds = predicted_wait_seconds();
  return snapshot;
}

EngineService::Snapshot EngineService::fresh_snapshot() {
  std::promise<void> published;
  if (post([&] {
        publish(true);
        published.set_value();
      }))
    published.get_future().wait();
  return snapshot();
}

double EngineService::stalled_seconds() const {
  const int64_t since = busy_since_.load(std::memory_order_relaxed);
  return since == 0 ? 0 : seconds(Clock::now().time_since_epoch() - std::chrono::nanoseconds(since));
}

// --- Engine thread

void EngineService::main() {
  set_thread_name("lk-engine");
  lower_thread_priority(options_.nice);
  Clock::time_point counted = Clock::now();
  for (;;) {
    run_commands();
    // What a step throws by itself is no single request's: all that are in the engine end, and it goes on with the
    // next.
    if (engine_->has_work() && !walled("a step", [&] { step(); }))
      walled("a failed step", [&] { fail_all(internal_error("a step of the engine failed")); });
    drop_removed();  // after the step, which takes in loads that ended: they hold up a drop
    start_rate_ = engine_->scheduler().wait_forecast().rate();
    // Before it is published, so that it stands for the same steps as the other counts.
    const Clock::time_point now = Clock::now();
    busy_seconds_ += seconds(now - counted);
    counted = now;
    // And that before the events: who has the last answer finds it counted.
    publish(!engine_->has_work() && std::ranges::any_of(batches_, [](const auto& batch) { return !batch.empty(); }));
    flush_events();
    const bool nothing_to_do = !engine_->has_work() || engine_->scheduler().last_step_idle();
    std::unique_lock lock(mutex_);
    if (stopping_) break;
    if (!nothing_to_do || !commands_.empty() || woken_) {
      woken_ = false;
      continue;
    }
    busy_since_ = 0;
    lock.unlock();
    publish(true);
    lock.lock();
    const auto ready = [&] { return !commands_.empty() || stopping_ || woken_; };
    // Loads that end wake it up; deadlines, and adapters to be loaded again, come with time.
    const Micros change = engine_->scheduler().next_change();
    if (change != kNoDeadline)
      wake_.wait_until(lock, Clock::time_point(std::chrono::microseconds(change)), ready);
    else if (engine_->has_work())
      wake_.wait(lock, ready);
    else
      wait_idle(lock, ready);
    woken_ = false;
    counted = Clock::now();
  }
  end_everything();
}

void EngineService::step() {
  const Clock::time_point begin = Clock::now();
  const int64_t computed = engine_->scheduler().stats().num_computed_tokens;
  busy_since_ = std::chrono::nanoseconds(begin.time_since_epoch()).count();
  const std::span<TextUpdate> updates = engine_->step(false);
  step_end_ = Clock::now();
  for (TextUpdate& update : updates) deliver(std::move(update));
  if (engine_->scheduler().last_step_idle()) return;
  step_seconds_ += seconds(step_end_ - begin);
  if (options_.on_step)
    options_.on_step(engine_->scheduler().stats().num_computed_tokens - computed, seconds(step_end_ - begin));
}

template <class F>
bool EngineService::walled(std::string_view what, F f) {
  const Status status = guarded(what, std::move(f));
  if (!status.ok() && options_.on_fault) options_.on_fault(status);
  return status.ok();
}

// Until somebody wants something; a slice of the pool is checked meanwhile, now and then, until all of it was.
void EngineService::wait_idle(std::unique_lock<std::mutex>& lock, const std::function<bool()>& ready) {
  while (!audit_.done()) {
    if (wake_.wait_for(lock, options_.audit_interval, ready)) break;
    lock.unlock();
    audit_.check_slice(engine_->pool());
    publish(true);
    lock.lock();
  }
  wake_.wait(lock, ready);
  audit_.restart();
}

void EngineService::end_everything() {
  // What ends lets go of adapters, which gives new commands.
  for (;;) {
    run_commands();
    fail_all(unavailable(kShuttingDown));
    step_end_ = Clock::now();
    flush_events();
    drop_removed();
    for (auto& [id, done] : std::exchange(removed_, {}))
      if (done) done(0);
    std::lock_guard lock(mutex_);
    stopped_ = commands_.empty();
    if (stopped_) break;
  }
  publish(true);
}

void EngineService::run_commands() {
  std::deque<Command> commands;
  {
    std::lock_guard lock(mutex_);
    commands.swap(commands_);
    arriving_.clear();
    any_arriving_.store(false, std::memory_order_relaxed);
  }
  if (!commands.empty()) step_end_ = Clock::now();
  // One by one: what a command holds is let go of before the next one runs.
  for (; !commands.empty(); commands.pop_front())
    if (Command& command = commands.front(); command.arrived)
      walled("the start of a request", [&] { start(std::move(command.arrived)); });
    else
      walled("a task of the engine", command.task);
}

// Between the layers of a step: adapters of requests that arrived since it began load beside the rest of it.
void EngineService::prefetch_arriving() {
  if (!any_arriving_.load(std::memory_order_relaxed)) return;
  std::vector<AdapterId> arriving;
  {
    std::lock_guard lock(mutex_);
    arriving.swap(arriving_);
    any_arriving_.store(false, std::memory_order_relaxed);
  }
  // One that was unregistered is not loaded; its request learns that from whoever starts it.
  for (const AdapterId adapter : arriving)
    if (engine_->engine().has_adapter(adapter)) engine_->scheduler().prefetch(adapter);
}

void EngineService::start(std::unique_ptr<ServedSequence> sequence) {
  std::unique_ptr<TextSequence> taken = std::move(sequence);
  const Status status = engine_->submit(taken);
  if (!status.ok()) end(std::unique_ptr<ServedSequence>(static_cast<ServedSequence*>(taken.release())), status);
}

// One that the engine does not have.
void EngineService::end(std::unique_ptr<ServedSequence> sequence, Status error) {
  sequence->end(FinishReason::kError, std::move(error));
  TextUpdate last{.sequence = sequence.get()};
  last.ended = std::move(sequence);
  deliver(std::move(last));
}

void EngineService::fail_all(const Status& error) {
  for (const RequestId id : engine_->scheduler().requests()) deliver(*engine_->fail(id, error));
}

void EngineService::leave_queue(ServedSequence& sequence) {
  if (!std::exchange(sequence.queued, false)) return;
  queue_.leave(sequence.asked.tenant, share_of(sequence));
}

void EngineService::deliver(TextUpdate update) {
  auto& sequence = static_cast<ServedSequence&>(*update.sequence);
  RequestTiming& timing = sequence.timing;
  const Clock::time_point now = Clock::now();
  if (update.started) timing.started = now;
  if (update.started || update.ended) leave_queue(sequence);
  if (!update.delta.tokens.empty() && timing.first_token == Clock::time_point()) timing.first_token = now;
  generation_tokens_ += static_cast<int64_t>(update.delta.tokens.size());
  StreamEvent event{.sink = sequence.sink, .choice = sequence.choice, .delta = std::move(update.delta)};
  if (update.prompt_done && sequence.wants_prompt) event.prompt = sequence.prompt_facts();
  if (update.ended) {
    timing.finished = now;
    if (timing.started != Clock::time_point()) prompt_tokens_ += sequence.counted_prompt_tokens();
    sequence.lease.reset();
    event.ended.reset(static_cast<ServedSequence*>(update.ended.release()));
  } else if (event.delta.tokens.empty() && event.delta.text.empty() && event.delta.reasoning.empty() && !event.prompt) {
    return;
  }
  if (event.sink->shard() == RequestSink::kEngineThread) {
    walled("an event", [&] { event.sink->on_event(event); });
    return;
  }
  const auto shard = static_cast<size_t>(event.sink->shard());
  if (batches_.size() <= shard) batches_.resize(shard + 1);
  batches_[shard].push_back(std::move(event));
}

void EngineService::flush_events() {
  for (size_t shard = 0; shard < batches_.size(); ++shard) {
    if (batches_[shard].empty()) continue;
    for (StreamEvent& event : batches_[shard]) event.step_end = step_end_;
    deliver_(static_cast<int>(shard), std::exchange(batches_[shard], {}));
  }
}

void EngineService::drop_removed() {
  std::erase_if(removed_, [&](auto& entry) {
    const std::optional<int64_t> pages = engine_->scheduler().drop_adapter(entry.first);
    if (!pages) return false;
    engine_->engine().unregister_adapter(entry.first);
    if (entry.second) walled("an unload", [&] { entry.second(*pages * engine_->engine().page_bytes()); });
    return true;
  });
}

void EngineService::publish(bool force) {
  const Clock::time_point now = Clock::now();
  if (!force && now - published_ < options_.publish_interval) return;
  published_ = now;
  generated_.emplace_back(now, generation_tokens_);
  while (generated_.size() > 2 && now - generated_.front().first > kRateWindow) generated_.pop_front();

  Snapshot next;
  ServerSnapshot& s = next.server;
  const Scheduler& scheduler = engine_->scheduler();
  const UnifiedPool& pool = engine_->pool();
  const SchedulerStats& stats = scheduler.stats();
  s.num_running = scheduler.num_running();
  s.num_waiting = scheduler.num_waiting();
  s.max_running = scheduler.max_running();
  s.num_steps = stats.num_steps;
  s.num_computed_tokens = stats.num_computed_tokens;
  s.num_preemptions = stats.num_preemptions;
  s.num_adapter_loads = stats.num_adapter_loads;
  s.num_fair_preemptions = stats.num_fair_preemptions;
  s.num_sampling_failures = stats.num_sampling_failures;
  s.num_prefetches = stats.num_prefetches;
  s.num_adapter_evictions = pool.num_evicted_adapters();
  s.prefix_queries_tokens = stats.num_looked_up_tokens;
  s.prefix_hit_tokens = stats.num_cached_prompt_tokens;
  s.prompt_tokens = prompt_tokens_;
  s.generation_tokens = generation_tokens_;
  s.step_seconds = step_seconds_;
  s.busy_seconds = busy_seconds_;
  s.execute_seconds = engine_->engine().execute_seconds();
  const double window = seconds(now - generated_.front().first);
  s.tokens_per_second = window > 0 ? static_cast<double>(generation_tokens_ - generated_.front().second) / window : 0;
  s.pages = pool.num_pages();
  s.pages_free = pool.num_free();
  s.pages_cached = pool.num_cached_kv();
  s.pages_kv = pool.num_kv() - pool.num_cached_kv();
  s.pages_adapter = pool.num_adapter();
  s.pages_merged = pool.num_merged();
  s.pages_checked = audit_.num_checked();
  if (const MergeController* merging = engine_->merging()) {
    const MergeStats& merges = merging->stats();
    s.merging = {.chooser = merging->chooser().name(),
                 .adapter = merges.merged == kBaseModel ? "" : engine_->engine().adapter_name(merges.merged),
                 .builds = merges.num_builds,
                 .refused = merges.num_refused,
                 .given_back = merges.num_given_back,
                 .merged_steps = merges.num_merged_steps,
                 .exclusive_steps = merges.num_exclusive_steps,
                 .mode_changes = merges.num_mode_changes};
  }
  s.page_bytes = engine_->engine().page_bytes();
  for (const auto& [id, resident] : pool.resident_adapters())
    next.adapters[id] = {.state = resident.state, .bytes = resident.pages * s.page_bytes};
  for (const auto& [id, load] : scheduler.adapter_load()) {
    next.adapters[id].running = load.running;
    next.adapters[id].waiting = load.waiting;
  }
  {
    std::lock_guard lock(accounts_mutex_);
    for (const auto& [name, account] : accounts_)
      if (const auto it = scheduler.tenants().find(account.id); it != scheduler.tenants().end())
        next.tenants.emplace(name, it->second);
  }
  std::lock_guard lock(snapshot_mutex_);
  snapshot_ = std::move(next);
}

}  // namespace lk
