// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapter_registry.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <future>

#include "lk/base/file.h"
#include "lk/base/thread_name.h"
#include "lk/lora/adapter.h"
#include "lk/lora/compose.h"
#include "lk/serve/names.h"
#include "lk/serve/path_guard.h"

namespace lk {
namespace {

constexpr int64_t kProbeTokens = 16;
constexpr size_t kMaxParts = 8;

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

std::vector<std::string> target_names(const Adapter& adapter) {
  std::vector<std::string> names;
  for (size_t proj = 0; proj < kNumProjs; ++proj) {
    const bool used = std::any_of(adapter.layers.begin(), adapter.layers.end(), [&](const auto& layer) { return layer[proj].has_value(); });
    if (!used) continue;
    const std::string_view path = hf_name(static_cast<Proj>(proj));
    names.emplace_back(path.substr(path.rfind('.') + 1));
  }
  if (adapter.embedding) names.emplace_back("embed_tokens");
  if (adapter.lm_head) names.emplace_back("lm_head");
  for (const auto& [module, tensor] : adapter.replaced) names.push_back(module);
  return names;
}

int64_t host_bytes_of(const Adapter& adapter) {
  int64_t bytes = adapter.file ? adapter.file_bytes : 0;
  for (const Buffer& buffer : adapter.owned) bytes += buffer.size_bytes();
  return bytes;
}

int64_t machine_memory() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

}  // namespace

// --- AdapterVersion

AdapterVersion::AdapterVersion(EngineService& service, std::shared_ptr<const Adapter> host, Engine::PreparedAdapter prepared)
    : name(host->name), path(host->directory), digest(host->digest), rank(host->max_rank), host_bytes(host_bytes_of(*host)),
      targets(target_names(*host)), created(std::time(nullptr)), host_(std::move(host)), service_(service),
      id_(service.add_adapter(std::move(prepared))) {}

AdapterVersion::~AdapterVersion() { service_.remove_adapter(id_, std::move(on_freed_)); }

void AdapterVersion::allow_merging() {
  service_.allow_merging(id_);
  exact = false;
}

// --- Loading

AdapterRegistry::AdapterRegistry(EngineService& service, const AdapterRegistryOptions& options, std::shared_ptr<const TensorStore> checkpoint,
                                 StateStore* store)
    : service_(service), options_([&] {
        AdapterRegistryOptions filled = options;
        if (filled.max_host_bytes <= 0) filled.max_host_bytes = machine_memory() / 2;
        if (filled.max_composed_bytes <= 0) filled.max_composed_bytes = filled.max_host_bytes / 8;
        return filled;
      }()),
      checkpoint_(std::move(checkpoint)), store_(store), host_bytes_(std::make_shared<std::atomic<int64_t>>(0)), readers_(options.num_readers) {
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
        next = std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& candidate) { return !busy_.contains(candidate.request.name); });
        return stopping_ || next != jobs_.end();
      });
      if (stopping_) return;
      job = std::move(*next);
      jobs_.erase(next);
      busy_.insert(job.request.name);
    }
    Result<AdapterLease> loaded = run_load(job.request);
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
  if (request.name == "base" || request.name == options_.base_name) return already_exists("\"{}\" is the base model", request.name);
  std::lock_guard lock(mutex_);
  if (aliases_.contains(request.name)) return already_exists("\"{}\" is an alias", request.name);
  if (!request.replace && !request.version && names_.contains(request.name))
    return already_exists("The lora adapter '{}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.",
                          request.name);
  return Status();
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

Result<AdapterRegistry::Read> AdapterRegistry::read(const LoadRequest& request) {
  readers_.acquire();
  const std::shared_ptr<void> turn(nullptr, [this](void*) { readers_.release(); });
  std::string path = request.path;
  if (!request.trusted_path) {
    LK_ASSIGN_OR_RETURN(path, resolve_adapter_directory(options_.roots, request.path));
  }
  if (!is_directory(path)) return not_found("No adapter found for {}: {} is not a directory", request.name, request.path);
  // Sums are only a cache: they make room for adapters.
  std::error_code error;
  const auto file_bytes = std::filesystem::file_size(join_path(path, "adapter_model.safetensors"), error);
  if (!error && file_bytes <= static_cast<uintmax_t>(options_.max_host_bytes)) make_room(static_cast<int64_t>(file_bytes));
  const int64_t room = options_.max_host_bytes - host_bytes_->load();
  AdapterLoadOptions load_options{.copy_file = true};
  load_options.max_bytes = std::min(load_options.max_bytes, std::max<int64_t>(room, 0));
  Read read;
  LK_ASSIGN_OR_RETURN(read.host, load_adapter(request.name, path, service_.text().config(), checkpoint_.get(), load_options));
  Result<std::shared_ptr<const ChatTemplate>> own = ChatTemplate::load(path);
  if (own.ok()) read.chat_template = std::move(own).value();
  else if (own.status().code() != StatusCode::kNotFound) return own.status();
  LK_ASSIGN_OR_RETURN(read.prepared, service_.prepare_adapter(read.host));
  return read;
}

Result<AdapterLease> AdapterRegistry::create(const LoadRequest& request, int64_t version) {
  LK_ASSIGN_OR_RETURN(Read read, this->read(request));
  auto adapter = std::make_shared<AdapterVersion>(service_, std::move(read.host), std::move(read.prepared));
  adapter->version = version;
  adapter->chat_template = std::move(read.chat_template);
  LK_RETURN_IF_ERROR(account(*adapter));
  return adapter;
}

// Loads run side by side, so what counts is the total once a new one is in it.
Status AdapterRegistry::account(AdapterVersion& version) {
  const int64_t total = version.account_host_bytes(host_bytes_);
  if (total <= options_.max_host_bytes) return Status();
  return resource_exhausted("adapter {} needs {} bytes of host memory; with the others that would be {}, at most {} may be used", version.name,
                            version.host_bytes, total, options_.max_host_bytes);
}

void AdapterRegistry::evict_oldest_sum_locked() {
  composed_bytes_ -= composed_.back().adapter->host_bytes;
  composed_.pop_back();
}

// Drops the oldest sums until `bytes` more fit, as far as sums are in the way. One that a request still uses frees nothing yet.
void AdapterRegistry::make_room(int64_t bytes) {
  std::lock_guard lock(mutex_);
  while (!composed_.empty() && host_bytes_->load() + bytes > options_.max_host_bytes) evict_oldest_sum_locked();
}

AdapterRegistry::SumStats AdapterRegistry::cached_sums() const {
  std::lock_guard lock(mutex_);
  return {.count = static_cast<int64_t>(composed_.size()), .bytes = composed_bytes_};
}

Result<std::vector<TokenLogprob>> AdapterRegistry::run_probe(AdapterId adapter) {
  TextRequest request{.token_ids = probe_tokens_, .max_tokens = 0};
  request.sampling.temperature = 0;
  request.sampling.num_prompt_logprobs = 0;
  LK_ASSIGN_OR_RETURN(PreparedRequest prepared, service_.text().prepare(std::move(request)));
  prepared.request.adapter = adapter;
  prepared.request.urgent = true;
  std::promise<Completion> promise;
  std::future<Completion> done = promise.get_future();
  service_.submit({.request = std::move(prepared), .on_done = [&](Completion completion) { promise.set_value(std::move(completion)); }});
  Completion completion = done.get();
  if (completion.finish == FinishReason::kError) return completion.error;
  return std::move(completion.prompt_logprobs);
}

// The whole path, pages and kernels included, must give finite log-probabilities; how far they moved from the base's is reported, so
// that an adapter without effect is seen before its users see it.
Status AdapterRegistry::prove(AdapterVersion& version) {
  {
    std::lock_guard lock(probe_mutex_);
    if (base_probe_.empty()) {
      LK_ASSIGN_OR_RETURN(base_probe_, run_probe(kBaseModel));
    }
  }
  LK_ASSIGN_OR_RETURN(const std::vector<TokenLogprob> probe, run_probe(version.id()));
  for (size_t i = 0; i < probe.size(); ++i) {
    if (!std::isfinite(probe[i].logprob))
      return data_loss("the adapter makes the model give log-probability {} on a probe prompt: its weights overflow or are damaged", probe[i].logprob);
    version.probe_shift = std::max(version.probe_shift, std::abs(probe[i].logprob - base_probe_[i].logprob));
  }
  return Status();
}

Status AdapterRegistry::publish(const LoadRequest& request, const AdapterLease& version) {
  // The store first: what it refuses never becomes visible. The name cannot become an alias meanwhile, because it is busy.
  version->persisted = store_ && request.persist;
  if (version->persisted && !request.version)
    LK_RETURN_IF_ERROR(store_->put_adapter({.name = version->name, .version = version->version, .path = version->path, .digest = version->digest,
                                            .pinned = version->pinned.load(), .is_default = true}));
  std::vector<AdapterLease> retired;  // released after the lock
  {
    std::lock_guard lock(mutex_);
    Name& name = names_[request.name];
    const bool older = version->version < name.default_version;
    if (!request.keep_previous && !request.version) {
      for (auto it = name.versions.begin(); it != name.versions.end();) {
        const std::string exact = fmt::format("{}@{}", request.name, it->first);
        const bool aliased = std::any_of(aliases_.begin(), aliases_.end(), [&](const auto& alias) { return alias.second == exact; });
        if (aliased) {
          ++it;
          continue;
        }
        retired.push_back(std::move(it->second));
        it = name.versions.erase(it);
      }
    }
    name.versions[version->version] = version;
    if (!older) name.default_version = version->version;
    int64_t& last = last_version_[request.name];
    last = std::max(last, version->version);
    drop_sums_locked(retired);
  }
  for (const AdapterLease& old : retired)
    if (old->pinned.exchange(false)) (void)pin_in_engine(*old, false);
  for (const AdapterLease& old : retired)
    if (old->persisted) (void)store_->remove_adapter(old->name, old->version);
  return Status();
}

// Nobody can ask for a sum of a version that is gone: it would only take memory.
void AdapterRegistry::drop_sums_locked(const std::vector<AdapterLease>& parts) {
  composed_.remove_if([&](const Sum& sum) {
    const bool gone = std::any_of(parts.begin(), parts.end(), [&](const AdapterLease& part) { return std::ranges::count(sum.parts, part->id()) > 0; });
    if (gone) composed_bytes_ -= sum.adapter->host_bytes;
    return gone;
  });
}

// --- Unloading, pins, aliases

Result<int> AdapterRegistry::unload(const std::string& target, std::function<void(Freed)> freed) {
  const auto [name, version] = split_version(target);
  std::vector<AdapterLease> retired;
  std::vector<std::string> gone;  // aliases
  std::lock_guard changes(alias_mutex_);
  {
    std::lock_guard lock(mutex_);
    const auto erase_aliases_of = [&](const std::string& meaning) {
      std::erase_if(aliases_, [&](const auto& alias) {
        if (alias.second == meaning) gone.push_back(alias.first);
        return alias.second == meaning;
      });
    };
    const auto it = names_.find(name);
    if (it == names_.end() || version < 0 || (version > 0 && !it->second.versions.contains(version)))
      return not_found("The lora adapter '{}' cannot be found.", target);
    std::map<int64_t, AdapterLease>& versions = it->second.versions;
    for (auto entry = versions.begin(); entry != versions.end();) {
      if (version != 0 && entry->first != version) {
        ++entry;
        continue;
      }
      erase_aliases_of(fmt::format("{}@{}", name, entry->first));
      retired.push_back(std::move(entry->second));
      entry = versions.erase(entry);
    }
    if (versions.empty()) {
      erase_aliases_of(name);
      names_.erase(it);
    } else if (!versions.contains(it->second.default_version)) {
      it->second.default_version = versions.rbegin()->first;
    }
    drop_sums_locked(retired);
  }
  if (store_)
    for (const std::string& alias : gone) (void)store_->remove_alias(alias);
  forget_version_of(name);
  const auto count = static_cast<int>(retired.size());
  for (AdapterLease& old : retired) {
    if (old->persisted) (void)store_->remove_adapter(old->name, old->version);
    if (old->pinned.exchange(false)) (void)pin_in_engine(*old, false);
    if (freed)
      old->on_freed([freed, name = old->name, number = old->version, host_bytes = old->host_bytes](int64_t page_bytes) {
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
  if (stored.ok() && last != last_version_.end() && last->second <= *stored && !names_.contains(name)) last_version_.erase(last);
}

Status AdapterRegistry::pin_in_engine(AdapterVersion& version, bool pinned) {
  std::promise<Status> promise;
  std::future<Status> done = promise.get_future();
  if (!service_.call([&](TextEngine& engine) { promise.set_value(engine.scheduler().set_pinned(version.id(), pinned)); }))
    return unavailable("the server is shutting down");
  Status status = done.get();
  if (status.ok()) version.pinned = pinned;
  return status;
}

Status AdapterRegistry::set_pinned(const std::string& name, bool pinned) {
  AdapterLease version;
  bool is_default = false;
  {
    std::lock_guard lock(mutex_);
    version = find_locked(name);
    if (!version) return not_found("The lora adapter '{}' cannot be found.", name);
    is_default = names_.at(version->name).default_version == version->version;
  }
  LK_RETURN_IF_ERROR(pin_in_engine(*version, pinned));
  if (!version->persisted) return Status();
  return store_->put_adapter({.name = version->name, .version = version->version, .path = version->path, .digest = version->digest,
                              .pinned = pinned, .is_default = is_default});
}

Status AdapterRegistry::set_alias(const std::string& alias, const std::string& target) {
  LK_RETURN_IF_ERROR(check_name("alias", alias));
  const auto [name, version] = split_version(target);
  std::lock_guard changes(alias_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (alias == "base" || alias == options_.base_name || names_.contains(alias) || busy_.contains(alias))
      return already_exists("\"{}\" is the name of a model", alias);
    if (aliases_.contains(target) || !find_locked(target)) return not_found("The lora adapter '{}' cannot be found.", target);
  }
  // The store first: what it refuses never becomes visible. Unloading the target waits for alias_mutex_, replacing it does not.
  if (store_) LK_RETURN_IF_ERROR(store_->put_alias({.alias = alias, .name = name, .version = version}));
  std::lock_guard lock(mutex_);
  aliases_[alias] = target;
  return Status();
}

Status AdapterRegistry::remove_alias(const std::string& alias) {
  std::lock_guard changes(alias_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (aliases_.erase(alias) == 0) return not_found("there is no alias \"{}\"", alias);
  }
  return store_ ? store_->remove_alias(alias) : Status();
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
  if (name.find_first_of("+*") != std::string_view::npos) return compose(name, tenant);
  std::lock_guard lock(mutex_);
  AdapterLease found = find_locked(std::string(name));
  // The tenant needs to be allowed the name it asks for or the adapter behind it.
  if (!found || !(tenant.may_use(found->name) || tenant.may_use(name))) return no_such_model(model);
  return Resolved{std::move(found), std::string(name)};
}

Result<AdapterRegistry::Resolved> AdapterRegistry::compose(std::string_view expression, const Tenant& tenant) {
  struct Term {
    AdapterLease adapter;
    double weight = 1;
  };
  std::vector<Term> terms;
  std::string key;  // by version, so that a replaced component makes another sum
  int64_t file_bytes = 0;
  for (size_t begin = 0; begin <= expression.size();) {
    const size_t end = std::min(expression.find('+', begin), expression.size());
    const std::string_view text = expression.substr(begin, end - begin);
    begin = end + 1;
    Term term;
    const size_t star = text.find('*');
    if (star != std::string_view::npos) {
      const std::string_view number = text.substr(star + 1);
      const auto [stop, error] = std::from_chars(number.data(), number.data() + number.size(), term.weight);
      if (error != std::errc() || stop != number.data() + number.size() || !std::isfinite(term.weight) || std::abs(term.weight) > 100)
        return invalid_argument("model \"{}\": \"{}\" is not a weight in [-100, 100]; write name*0.7+other*0.3", expression, number);
    }
    LK_ASSIGN_OR_RETURN(Resolved part, resolve(text.substr(0, star), tenant));
    if (!part.adapter) return invalid_argument("model \"{}\": the base model is not part of a sum", expression);
    if (terms.size() == kMaxParts) return invalid_argument("model \"{}\": at most {} adapters can be summed", expression, kMaxParts);
    key += fmt::format("{}*{:a}+", part.adapter->id(), term.weight);
    file_bytes += part.adapter->host()->file_bytes;
    term.adapter = std::move(part.adapter);
    terms.push_back(std::move(term));
  }
  const auto cached_locked = [&]() -> AdapterLease {
    const auto it = std::find_if(composed_.begin(), composed_.end(), [&](const Sum& sum) { return sum.key == key; });
    if (it == composed_.end()) return nullptr;
    composed_.splice(composed_.begin(), composed_, it);
    return it->adapter;
  };
  {
    std::lock_guard lock(mutex_);
    if (AdapterLease cached = cached_locked()) return Resolved{std::move(cached), std::string(expression)};
  }
  make_room(2 * file_bytes);  // f32 of 2 byte types
  std::vector<WeightedAdapter> parts;
  for (const Term& term : terms) parts.push_back({term.adapter->host(), term.weight});
  LK_ASSIGN_OR_RETURN(std::shared_ptr<const Adapter> sum, compose_adapters(std::string(expression), parts));
  LK_ASSIGN_OR_RETURN(Engine::PreparedAdapter prepared, service_.prepare_adapter(sum));
  auto adapter = std::make_shared<AdapterVersion>(service_, std::move(sum), std::move(prepared));
  // The first component's template stands for all, if they agree on having one.
  adapter->chat_template = terms[0].adapter->chat_template;
  LK_RETURN_IF_ERROR(account(*adapter));
  if (std::ranges::none_of(terms, [](const Term& term) { return term.adapter->exact; })) adapter->allow_merging();
  Sum entry{.key = key, .parts = {}, .adapter = adapter};
  for (const Term& term : terms) entry.parts.push_back(term.adapter->id());
  std::lock_guard lock(mutex_);
  if (AdapterLease cached = cached_locked()) return Resolved{std::move(cached), std::string(expression)};  // somebody was faster
  // A component that was retired meanwhile took its sums with it: this one serves the request only.
  if (std::ranges::any_of(terms, [&](const Term& term) { return find_locked(fmt::format("{}@{}", term.adapter->name, term.adapter->version)) != term.adapter; }))
    return Resolved{std::move(adapter), std::string(expression)};
  composed_bytes_ += adapter->host_bytes;
  composed_.push_front(std::move(entry));
  // One that is larger than the cache serves its request and goes.
  while (!composed_.empty() && (static_cast<int64_t>(composed_.size()) > options_.max_composed || composed_bytes_ > options_.max_composed_bytes))
    evict_oldest_sum_locked();
  return Resolved{std::move(adapter), std::string(expression)};
}

AdapterSnapshot AdapterRegistry::describe(const AdapterVersion& version, const EngineService::Snapshot& engine) const {
  AdapterSnapshot s{.name = version.name, .version = version.version, .digest = version.digest, .path = version.path, .tier = "host",
                    .rank = version.rank, .targets = version.targets, .host_bytes = version.host_bytes, .pinned = version.pinned.load(),
                    .exact = version.exact, .requests = version.requests.load(), .load_seconds = version.load_seconds};
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

std::optional<AdapterSnapshot> AdapterRegistry::find(const std::string& name, const EngineService::Snapshot& engine) const {
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
