// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/directory_watcher.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <future>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/names.h"
#include "lk/lora/adapter_files.h"

namespace lk {
namespace {

constexpr int kMaxRetryScans = 32;

std::string describe(const struct stat& info) {
  return fmt::format("{}:{}:{}.{};", info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

// "" when the directory does not look like an adapter (yet).
std::string fingerprint_of(const std::string& path) {
  std::string text;
  for (const char* name : {kAdapterConfigFile, kAdapterWeightsFile}) {
    struct stat info {};
    if (::stat(join_path(path, name).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return "";
    text += describe(info);
  }
  // What need not be there: a chat template of its own.
  for (const char* name : {"chat_template.jinja", "tokenizer_config.json"}) {
    struct stat info {};
    if (::stat(join_path(path, name).c_str(), &info) == 0)
      text += describe(info);
    else
      text += "-;";
  }
  return text;
}

}  // namespace

Result<std::unique_ptr<DirectoryWatcher>> DirectoryWatcher::start(AdapterRegistry& registry, Log& log,
                                                                  std::vector<std::string> directories,
                                                                  std::chrono::milliseconds interval) {
  std::unique_ptr<DirectoryWatcher> self(new DirectoryWatcher(registry, log, std::move(directories)));
  LK_RETURN_IF_ERROR(self->look());
  std::vector<std::future<void>> loads;
  for (auto& [name, entry] : self->entries_) {
    entry.loaded = entry.seen;
    auto done = std::make_shared<std::promise<void>>();
    loads.push_back(done->get_future());
    registry.load({.name = name, .path = entry.path, .trusted_path = true, .replace = true, .persist = false},
                  [raw = self.get(), done, name = name, &entry = entry](const Result<AdapterLease>& loaded) {
                    raw->finish_load(name, entry, loaded);
                    done->set_value();
                  });
  }
  for (std::future<void>& load : loads) load.wait();
  DirectoryWatcher* raw = self.get();
  self->thread_ = std::thread([raw, interval] {
    std::unique_lock lock(raw->mutex_);
    while (!raw->stop_.wait_for(lock, interval, [&] { return raw->stopping_; })) {
      lock.unlock();
      (void)guarded("a look at directories", [raw] { raw->scan(); });  // the next one sees what this one did not
      lock.lock();
    }
  });
  return self;
}

DirectoryWatcher::~DirectoryWatcher() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Status DirectoryWatcher::look() {
  for (auto& [name, entry] : entries_) entry.listed = false;
  for (const std::string& directory : directories_) {
    std::error_code error;
    for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename();
      if (!is_valid_name(name)) continue;
      const Fingerprint now = fingerprint_of(it->path());
      if (now.empty()) continue;
      Entry& entry = entries_[name];
      if (entry.listed) continue;  // the first directory wins
      entry.listed = true;
      entry.path = it->path();
      entry.missing = 0;
      if (entry.seen != now) {
        entry.seen = now;
        entry.retries = entry.retry_in = 0;
        continue;
      }
      if (entry.loaded != now || (entry.retry_in > 0 && --entry.retry_in == 0)) load(name, entry);
    }
    if (error) return io_error("cannot read --lora-dir {}: {}", directory, error.message());
  }
  return Status();
}

void DirectoryWatcher::load(const std::string& name, Entry& entry) {
  entry.loaded = entry.seen;  // also when it fails
  const Result<AdapterLease> loaded = registry_.load_and_wait(
      {.name = name, .path = entry.path, .trusted_path = true, .replace = true, .persist = false});
  if (loaded.ok())
    log_.write(LogLevel::kInfo, "adapter_loaded",
               {{"adapter", name}, {"version", (*loaded)->version}, {"digest", (*loaded)->digest}});
  finish_load(name, entry, loaded);
}

// One log line for an adapter that does not fit, however often it is tried.
void DirectoryWatcher::finish_load(const std::string& name, Entry& entry, const Result<AdapterLease>& loaded) {
  if (loaded.ok()) {
    entry.version = (*loaded)->version;
    entry.retries = entry.retry_in = 0;
    return;
  }
  const bool no_memory = loaded.status().code() == StatusCode::kResourceExhausted;
  log_.write(entry.retries > 0 ? LogLevel::kDebug : LogLevel::kWarning, "adapter_failed",
             {{"adapter", name}, {"retried", no_memory}, {"reason", loaded.status().message()}});
  entry.retry_in = no_memory ? std::min(1 << std::min(entry.retries, 10), kMaxRetryScans) : 0;
  entry.retries = no_memory ? entry.retries + 1 : 0;
}

void DirectoryWatcher::scan() {
  if (const Status status = look(); !status.ok()) {
    // The directory may be back soon (a remount): nothing is unloaded because of it.
    log_.write(LogLevel::kWarning, "lora_dir_unreadable", {{"reason", status.message()}});
    return;
  }
  for (auto it = entries_.begin(); it != entries_.end();) {
    Entry& entry = it->second;
    if (entry.listed || ++entry.missing < 2) {
      ++it;
      continue;
    }
    unload(it->first, entry);
    it = entries_.erase(it);
  }
}

// Takes out what came from the directory, not what somebody else loaded under the same name since.
void DirectoryWatcher::unload(const std::string& name, const Entry& entry) {
  if (entry.version == 0) return;
  const Result<AdapterRegistry::Resolved> now = registry_.resolve(name, Tenant{});
  const bool ours = now.ok() && now->adapter && now->adapter->version == entry.version;
  const Result<int> unloaded = registry_.unload(ours ? name : fmt::format("{}@{}", name, entry.version), nullptr);
  log_.write(LogLevel::kInfo, "adapter_unloaded",
             {{"adapter", name}, {"version", entry.version}, {"known", unloaded.ok()}});
}

}  // namespace lk
