// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_registry.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <future>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/names.h"
#include "lk/base/thread_name.h"
#include "lk/lora/adapter_files.h"
#include "lk/serve/adapters/path_guard.h"

namespace lk {
namespace {

constexpr int64_t kProbeTokens = 16;
constexpr double kMaxConversionSeconds = 600;  // one of few readers is busy with it meanwhile

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Status no_such_model(std::string_view model) {
  return not_found("The model `{}` does not exist or you do not have access to it.", model);
}

// "name@3" -> ("name", 3); version 0 when none is given, -1 when it is not a number.
std::pair<std::string, int64_t> split_version(std::string_view text) {
  const size_t at = text.find('@');
  if (at == std::string_view::npos) return {std::string(text), 0};
  int64_t version = -1;
  const std::string_view digits = text.substr(at + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), version);
  if (error != std::errc() || end != digits.data() + digits.size() || version <= 0) version = -1;
  return {std::string(text.substr(0, at)), version};
}

struct Probe : RequestSink {
  Probe() : RequestSink(kEngineThread) {}
  void on_event(StreamEvent& event) override {
    if (event.ended) done.set_value(std::move(event.ended->completion));
  }
  std::promise<Completion> done;
};

}  // namespace

// --- Loading

AdapterRegistry::AdapterRegistry(EngineService& service, const AdapterRegistryOptions& options,
                                 std::shared_ptr<const TensorStore> checkpoint, StateStore* store)
    : service_(service),
      options_(options),
      checkpoint_(std::move(checkpoint)),
      store_(store),
      host_(HostTier::create(options_.max_host_bytes)),
      sums_(service, host_, options_.max_composed, options_.max_composed_bytes),
      readers_(options.num_readers) {
  const int64_t vocab_size = service.text().config().vocab_size;
  const int64_t length = std::min(kProbeTokens, service.text().context());
  for (int64_t i = 0; i < length; ++i) probe_tokens_.push_back(static_cast<int32_t>((i * 7919 + 13) % vocab_size));
  for (int i = 0; i < options_.num_threads; ++i) loaders_.emplace_back([this] { loader_main(); });
}

AdapterRegistry::~AdapterRegistry() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  for (std::thread& loader : loaders_) loader.join();
  for (const Job& job : jobs_)
    if (job.done) job.done(unavailable("the server is shutting down"));
}

void AdapterRegistry::load(LoadRequest request, Loaded done) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back({std::move(request), std::move(done)});
    ++num_loading_;
  }
  wanted_.notify_one();
}

Result<AdapterLease> AdapterRegistry::load_and_wait(LoadRequest request) {
  std::promise<Result<AdapterLease>> promise;
  std::future<Result<AdapterLease>> result = promise.get_future();
  load(std::move(request), [&](Result<AdapterLease> loaded) { promise.set_value(std::move(loaded)); });
  return result.get();
}

void AdapterRegistry::loader_main() {
  set_thread_name("lk-adapters");
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      // One load per name at a time, so that replacements happen in the order they were asked for.
      auto next = jobs_.end();
      wanted_.wait(lock, [&] {
        next = std::find_if(jobs_.begin(), jobs_.end(),
                            [&](const Job& candidate) { return !busy_.contains(candidate.request.name); });
        return stopping_ || next != jobs_.end();
      });
      if (stopping_) return;
      job = std::move(*next);
      jobs_.erase(next);
      busy_.insert(job.request.name);
    }
    Result<AdapterLease> loaded = guarded("a load of an adapter", [&] { return run_load(job.request); });
    {
      std::lock_guard lock(mutex_);
      busy_.erase(job.request.name);
      --num_loading_;
    }
    wanted_.notify_all();
    if (job.done) job.done(std::move(loaded));
  }
}

Status AdapterRegistry::check_free(const LoadRequest& request) const {
  LK_RETURN_IF_ERROR(check_name("adapter name", request.name));
  if (request.name == "base" || request.name == options_.base_name)
    return already_exists("\"{}\" is the base model", request.name);
  std::lock_guard lock(mutex_);
  if (aliases_.contains(request.name)) return already_exists("\"{}\" is an alias", request.name);
  if (!request.replace && !request.version && names_.contains(request.name))
    return already_exists(
        "The lora adapter '{}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' "
        "to True.",
        request.name);
  return check_quota_locked(request);
}

// Of another tenant only those may be replaced that nobody owns.
Status AdapterRegistry::check_quota_locked(const LoadRequest& request) const {
  if (!request.limits) return Status();
  const auto known = names_.find(request.name);
  if (known != names_.end())
    for (const auto& [number, version] : known->second.versions)
      if (!version->tenant.empty() && version->tenant != request.tenant)
        return already_exists("adapter \"{}\" belongs to another tenant", request.name);
  const Tenant& limits = *request.limits;
  if (limits.max_adapters <= 0 && limits.max_versions <= 0) return Status();
  int64_t adapters = 1, versions = 1;  // with this one
  for (const auto& [name, entry] : names_) {
    int64_t own = 0;
    for (const auto& [number, version] : entry.versions) own += version->tenant == request.tenant ? 1 : 0;
    const bool same = name == request.name;
    adapters += own > 0 && !same ? 1 : 0;
    versions += same && !request.keep_previous ? 0 : own;
  }
  if (limits.max_adapters > 0 && adapters > limits.max_adapters)
    return resource_exhausted("the tenant has {} adapters, the most it may have: unload one", limits.max_adapters);
  if (limits.max_versions > 0 && versions > limits.max_versions)
    return resource_exhausted("the tenant has {} versions of adapters, the most it may have: unload one",
                              limits.max_versions);
  return Status();
}

std::string AdapterRegistry::owner_of(const std::string& name) const {
  std::lock_guard lock(mutex_);
  const AdapterLease found = find_locked(name);
  return found ? found->tenant : "";
}

Result<AdapterLease> AdapterRegistry::run_load(const LoadRequest& request) {
  LK_RETURN_IF_ERROR(check_free(request));
  int64_t version = 0;
  if (request.version) {
    version = *request.version;
  } else {
    int64_t stored = 0;
    if (store_) {
      LK_ASSIGN_OR_RETURN(stored, store_->last_version(request.name));
    }
    std::lock_guard lock(mutex_);
    const auto last = last_version_.find(request.name);
    version = std::max(stored, last == last_version_.end() ? 0 : last->second) + 1;
  }
  const Clock::time_point begin = Clock::now();
  LK_ASSIGN_OR_RETURN(AdapterLease adapter, create(request, version));
  if (options_.probe) LK_RETURN_IF_ERROR(prove(*adapter).with_context(request.name));
  // After the probe, for which nobody should build merged weights.
  if (!service_.is_exact(request.name)) adapter->allow_merging();
  if (request.pinned) {
    LK_RETURN_IF_ERROR(pin_in_engine(*adapter, true));
  }
  adapter->load_seconds = seconds_since(begin);
  LK_RETURN_IF_ERROR(publish(request, adapter));
  return adapter;
}

Result<AdapterLease> AdapterRegistry::create(const LoadRequest& request, int64_t version) {
  std::optional<Engine::PreparedAdapter> prepared;
  std::shared_ptr<const Adapter> content;
  std::shared_ptr<const ChatTemplate> chat_template;
  {
    readers_.acquire();
    const std::shared_ptr<void> turn(nullptr, [this](void*) { readers_.release(); });
    std::string path = request.path;
    if (!request.trusted_path) {
      const std::vector<std::string> roots = roots_of(options_.roots, request.limits ? request.limits->name : "");
      LK_ASSIGN_OR_RETURN(path, resolve_adapter_directory(roots, request.path));
    }
    if (!is_directory(path))
      return not_found("No adapter found for {}: {} is not a directory", request.name, request.path);
    AdapterLoadOptions load_options{.copy_file = true};
    load_options.max_bytes = std::min(load_options.max_bytes, options_.max_host_bytes);
    load_options.max_conversion_seconds = kMaxConversionSeconds;
    load_options.conversion_cache = options_.conversion_cache;
    std::error_code error;  // of a file that is not there, which reading it will report
    const auto file_bytes = std::filesystem::file_size(join_path(path, kAdapterWeightsFile), error);
    auto source =
        std::make_shared<AdapterDirectory>(request.name, path, service_.text().config(), checkpoint_, load_options);
    LK_ASSIGN_OR_RETURN(const std::shared_ptr<HostAdapter> host,
                        host_->add(std::move(source), error ? 0 : static_cast<int64_t>(file_bytes)));
    Result<std::shared_ptr<const ChatTemplate>> own = ChatTemplate::load(path);
    if (own.ok())
      chat_template = std::move(own).value();
    else if (own.status().code() != StatusCode::kNotFound)
      return own.status();
    LK_ASSIGN_OR_RETURN(content, host->get());
    LK_ASSIGN_OR_RETURN(prepared, service_.prepare_adapter(host));
  }
  auto adapter = std::make_shared<AdapterVersion>(service_, *content, std::move(*prepared));
  adapter->version = version;
  adapter->tenant = request.tenant;
  adapter->chat_template = std::move(chat_template);
  return adapter;
}

Result<std::vector<TokenLogprob>> AdapterRegistry::run_probe(AdapterId adapter) {
  TextRequest request{.token_ids = probe_tokens_, .max_tokens = 0};
  request.sampling.temperature = 0;
  request.sampling.num_prompt_logprobs = 0;
  auto sequence = std::make_unique<ServedSequence>();
  LK_RETURN_IF_ERROR(service_.text().prepare(std::move(request), *sequence));
  sequence->asked.adapter = adapter;
  sequence->asked.urgent = true;
  sequence->queued = false;
  auto probe = std::make_shared<Probe>();
  std::future<Completion> done = probe->done.get_future();
  sequence->sink = std::move(probe);
  service_.submit(std::move(sequence));
  Completion completion = done.get();
  // A probe that does not fit beside what is pinned is the adapter's want of room, not the caller's mistake.
  if (completion.error.code() == StatusCode::kFailedPrecondition)
    return resource_exhausted("{}", completion.error.message());
  if (completion.finish == FinishReason::kError) return completion.error;
  return std::move(completion.prompt_logprobs);
}

// The whole path, pages and kernels included, must give finite log-probabilities; how far they moved from the base's is
// reported, so that an adapter without effect is seen before its users see it.
Status AdapterRegistry::prove(AdapterVersion& version) {
  {
    std::lock_guard lock(probe_mutex_);
    if (base_probe_.empty()) {
      LK_ASSIGN_OR_RETURN(base_probe_, run_probe(kBaseModel));
    }
  }
  Result<std::vector<TokenLogprob>> result = run_probe(version.id());
  if (result.status().code() == StatusCode::kInternal)
    return data_loss("on a probe prompt {}", result.status().message());
  LK_ASSIGN_OR_RETURN(const std::vector<TokenLogprob> probe, std::move(result));
  for (size_t i = 0; i < probe.size(); ++i) {
    if (!std::isfinite(probe[i].logprob))
      return data_loss("on a probe prompt the adapter makes a token's log-probability {}: its weights are damaged",
                       probe[i].logprob);
    version.probe_shift = std::max(version.probe_shift, std::abs(probe[i].logprob - base_probe_[i].logprob));
  }
  return Status();
}

Status AdapterRegistry::publish(const LoadRequest& request, const AdapterLease& version) {
  std::lock_guard changes(changes_mutex_);
  version->persisted = store_ && request.persist;
  std::vector<AdapterLease> retired;  // released after the lock
  {
    std::lock_guard lock(mutex_);
    LK_RETURN_IF_ERROR(check_quota_locked(request));  // again: others may have come since
    const auto known = names_.find(request.name);
    if (known != names_.end() && !request.keep_previous && !request.version)
      for (const auto& [number, old] : known->second.versions) {
        const std::string exact = fmt::format("{}@{}", request.name, number);
        const bool aliased =
            std::any_of(aliases_.begin(), aliases_.end(), [&](const auto& alias) { return alias.second == exact; });
        if (!aliased) retired.push_back(old);
      }
  }
  // The store first. The name cannot become an alias meanwhile, because it is busy.
  std::vector<std::pair<std::string, int64_t>> forgotten;
  std::vector<int64_t> forgotten_versions;
  for (const AdapterLease& old : retired)
    if (old->persisted) {
      forgotten.emplace_back(old->name, old->version);
      forgotten_versions.push_back(old->version);
    }
  if (version->persisted && !request.version)
    LK_RETURN_IF_ERROR(store_->put_adapter(stored(*version, true), forgotten_versions));
  else if (!forgotten.empty())
    LK_RETURN_IF_ERROR(store_->remove(forgotten, {}));
  {
    std::lock_guard lock(mutex_);
    Name& name = names_[request.name];
    for (const AdapterLease& old : retired) name.versions.erase(old->version);
    version->replaced = name.default_version;
    name.versions[version->version] = version;
    if (version->version >= name.default_version) name.default_version = version->version;
    int64_t& last = last_version_[request.name];
    last = std::max(last, version->version);
  }
  sums_.drop(retired);
  for (const AdapterLease& old : retired)
    if (old->pinned.exchange(false)) (void)pin_in_engine(*old, false);
  return Status();
}

// --- Unloading, pins, aliases

Result<int> AdapterRegistry::unload(const std::string& target, std::function<void(Freed)> freed) {
  const auto [name, version] = split_version(target);
  std::vector<AdapterLease> retired;
  std::vector<std::string> gone;  // aliases
  std::lock_guard changes(changes_mutex_);
  {
    std::lock_guard lock(mutex_);
    const auto add_aliases_of = [&](const std::string& meaning) {
      for (const auto& [alias, target] : aliases_)
        if (target == meaning) gone.push_back(alias);
    };
    const auto it = names_.find(name);
    if (it == names_.end() || version < 0 || (version > 0 && !it->second.versions.contains(version)))
      return not_found("The lora adapter '{}' cannot be found.", target);
    for (const auto& [number, old] : it->second.versions) {
      if (version != 0 && number != version) continue;
      add_aliases_of(fmt::format("{}@{}", name, number));
      retired.push_back(old);
    }
    if (retired.size() == it->second.versions.size()) add_aliases_of(name);
  }
  if (store_) {
    std::vector<std::pair<std::string, int64_t>> forgotten;
    for (const AdapterLease& old : retired)
      if (old->persisted) forgotten.emplace_back(old->name, old->version);
    LK_RETURN_IF_ERROR(store_->remove(forgotten, gone));
  }
  {
    std::lock_guard lock(mutex_);
    const auto it = names_.find(name);
    std::map<int64_t, AdapterLease>& versions = it->second.versions;
    for (const AdapterLease& old : retired) versions.erase(old->version);
    for (const std::string& alias : gone) aliases_.erase(alias);
    if (versions.empty())
      names_.erase(it);
    else if (!versions.contains(it->second.default_version))
      it->second.default_version = versions.rbegin()->first;
  }
  sums_.drop(retired);
  forget_version_of(name);
  const auto count = static_cast<int>(retired.size());
  for (AdapterLease& old : retired) {
    if (old->pinned.exchange(false)) (void)pin_in_engine(*old, false);
    if (freed)
      old->on_freed([freed, name = old->name, number = old->version,
                     host_bytes = old->host()->on_host() ? old->host_bytes : 0](int64_t page_bytes) {
        freed({.name = name, .version = number, .page_bytes = page_bytes, .host_bytes = host_bytes});
      });
  }
  return count;
}

// Version numbers are never used again, but for a name that is gone only one place needs to remember the last one.
void AdapterRegistry::forget_version_of(const std::string& name) {
  if (!store_) return;
  const Result<int64_t> stored = store_->last_version(name);
  std::lock_guard lock(mutex_);
  const auto last = last_version_.find(name);
  if (stored.ok() && last != last_version_.end() && last->second <= *stored && !names_.contains(name))
    last_version_.erase(last);
}

Status AdapterRegistry::pin_in_engine(AdapterVersion& version, bool pinned) {
  std::promise<Status> promise;
  std::future<Status> done = promise.get_future();
  if (!service_.call(
          [&](TextEngine& engine) { promise.set_value(engine.scheduler().set_pinned(version.id(), pinned)); }))
    return unavailable("the server is shutting down");
  Status status = done.get();
  if (status.ok()) version.pinned = pinned;
  return status;
}

StoredAdapter AdapterRegistry::stored(const AdapterVersion& version, bool is_default) {
  return {.name = version.name,
          .version = version.version,
          .path = version.path,
          .digest = version.digest,
          .pinned = version.pinned.load(),
          .is_default = is_default,
          .tenant = version.tenant};
}

Status AdapterRegistry::change(const std::string& target, std::optional<bool> pinned, const std::string& alias) {
  if (!alias.empty()) LK_RETURN_IF_ERROR(check_name("alias", alias));
  std::lock_guard changes(changes_mutex_);
  AdapterLease version;
  bool is_default = false;
  {
    std::lock_guard lock(mutex_);
    version = find_locked(target);
    if (!alias.empty()) {
      if (alias == "base" || alias == options_.base_name || names_.contains(alias) || busy_.contains(alias))
        return already_exists("\"{}\" is the name of a model", alias);
      if (aliases_.contains(target)) version = nullptr;  // no alias of an alias
    }
    if (!version) return not_found("The lora adapter '{}' cannot be found.", target);
    is_default = names_.at(version->name).default_version == version->version;
  }
  // The pool may refuse a pin, and the store any change: the pin comes first and is taken back when the store fails.
  const bool was_pinned = version->pinned;
  if (pinned.value_or(false)) LK_RETURN_IF_ERROR(pin_in_engine(*version, true));
  if (store_) {
    std::optional<StoredAdapter> row;
    if (pinned && version->persisted) {
      row = stored(*version, is_default);
      row->pinned = *pinned;
    }
    std::optional<StateStore::Alias> meaning;
    const auto [name, number] = split_version(target);
    if (!alias.empty()) meaning = {.alias = alias, .name = name, .version = number};
    if (const Status status = store_->put(row, meaning); !status.ok()) {
      if (pinned.value_or(false) && !was_pinned) (void)pin_in_engine(*version, false);
      return status;
    }
  }
  if (!alias.empty()) {
    std::lock_guard lock(mutex_);
    aliases_[alias] = target;
  }
  return pinned && !*pinned ? pin_in_engine(*version, false) : Status();
}

Status AdapterRegistry::remove_alias(const std::string& alias) {
  std::lock_guard changes(changes_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (!aliases_.contains(alias)) return not_found("there is no alias \"{}\"", alias);
  }
  if (store_) LK_RETURN_IF_ERROR(store_->remove({}, {alias}));
  std::lock_guard lock(mutex_);
  aliases_.erase(alias);
  return Status();
}

std::map<std::string, std::string> AdapterRegistry::aliases() const {
  std::lock_guard lock(mutex_);
  return aliases_;
}

// --- Looking up

AdapterLease AdapterRegistry::find_locked(const std::string& text) const {
  const auto alias = aliases_.find(text);
  const auto [name, version] = split_version(alias == aliases_.end() ? text : alias->second);
  const auto it = names_.find(name);
  if (it == names_.end() || version < 0) return nullptr;
  const auto found = it->second.versions.find(version == 0 ? it->second.default_version : version);
  return found == it->second.versions.end() ? nullptr : found->second;
}

Result<AdapterRegistry::Resolved> AdapterRegistry::resolve(std::string_view model, const Tenant& tenant) {
  if (model.empty() || model == "base" || model == options_.base_name) {
    if (!tenant.may_use("base")) return no_such_model(model);
    return Resolved{nullptr, options_.base_name};
  }
  // Ray and SGLang write base:adapter, vLLM the bare name.
  std::string_view name = model;
  for (const std::string& prefix : {std::string("base:"), options_.base_name + ":"})
    if (name.starts_with(prefix)) {
      name.remove_prefix(prefix.size());
      break;
    }
  if (AdapterSums::is_sum(name)) return compose(name, tenant);
  std::lock_guard lock(mutex_);
  AdapterLease found = find_locked(std::string(name));
  // The tenant needs to be allowed the name it asks for or the adapter behind it.
  if (!found || !(tenant.may_use(found->name) || tenant.may_use(name))) return no_such_model(model);
  return Resolved{std::move(found), std::string(name)};
}

Result<AdapterRegistry::Resolved> AdapterRegistry::compose(std::string_view expression, const Tenant& tenant) {
  LK_ASSIGN_OR_RETURN(const std::vector<AdapterSums::NamedTerm> named, AdapterSums::parse(expression));
  std::vector<AdapterSums::Term> terms;
  for (const auto& [name, weight] : named) {
    LK_ASSIGN_OR_RETURN(Resolved part, resolve(name, tenant));
    if (!part.adapter) return invalid_argument("model \"{}\": the base model is not part of a sum", expression);
    terms.push_back({.adapter = std::move(part.adapter), .weight = weight});
  }
  LK_ASSIGN_OR_RETURN(AdapterLease sum,
                      sums_.get(expression, terms,
                                [this](const AdapterSums::Term& term) {
                                  std::lock_guard lock(mutex_);
                                  return find_locked(fmt::format("{}@{}", term.adapter->name, term.adapter->version)) ==
                                         term.adapter;
                                },
                                {.tenant = tenant.name, .max_count = tenant.max_sums}));
  return Resolved{std::move(sum), std::string(expression)};
}

AdapterSnapshot AdapterRegistry::describe(const AdapterVersion& version, const EngineService::Snapshot& engine) const {
  AdapterSnapshot s{.name = version.name,
                    .version = version.version,
                    .digest = version.digest,
                    .path = version.path,
                    .tier = version.host()->on_host() ? "host" : "disk",
                    .rank = version.rank,
                    .targets = version.targets,
                    .host_bytes = version.host()->on_host() ? version.host_bytes : 0,
                    .pinned = version.pinned.load(),
                    .exact = version.exact,
                    .requests = version.requests.load(),
                    .load_seconds = version.load_seconds};
  const auto it = engine.adapters.find(version.id());
  if (it == engine.adapters.end()) return s;
  if (it->second.state == AdapterState::kResident) s.tier = "device";
  if (it->second.state == AdapterState::kLoading) s.tier = "loading";
  s.device_bytes = it->second.bytes;
  s.running = it->second.running;
  s.waiting = it->second.waiting;
  return s;
}

std::vector<AdapterSnapshot> AdapterRegistry::list(const EngineService::Snapshot& engine) const {
  std::lock_guard lock(mutex_);
  std::vector<AdapterSnapshot> all;
  for (const auto& [name, entry] : names_)
    for (const auto& [number, version] : entry.versions) {
      all.push_back(describe(*version, engine));
      all.back().is_default = number == entry.default_version;
    }
  return all;
}

std::optional<AdapterSnapshot> AdapterRegistry::find(const std::string& name,
                                                     const EngineService::Snapshot& engine) const {
  std::lock_guard lock(mutex_);
  const AdapterLease found = find_locked(name);
  if (!found) return std::nullopt;
  AdapterSnapshot snapshot = describe(*found, engine);
  snapshot.is_default = names_.at(found->name).default_version == found->version;
  return snapshot;
}

std::vector<AdapterLease> AdapterRegistry::versions() const {
  std::lock_guard lock(mutex_);
  std::vector<AdapterLease> all;
  for (const auto& [name, entry] : names_) all.push_back(entry.versions.at(entry.default_version));
  return all;
}

int64_t AdapterRegistry::num_loading() const {
  std::lock_guard lock(mutex_);
  return num_loading_;
}

}  // namespace lk
