// SPDX-License-Identifier: Apache-2.0
// DirectoryWatcher: keeps the registry equal to directories of adapters (one sub-directory each, NAME or ORG/NAME,
// which is the adapter's name): offers or loads what appears, replaces what changes, takes out what goes away. Polls:
// works on any file system. What cannot be read now is not gone, and neither is everything at once (a volume that is
// not mounted).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/adapters/adapter_stat.h"
#include "lk/serve/observe/logging.h"

namespace lk {

class DirectoryWatcher {
 public:
  struct Options {
    std::vector<std::string> directories;
    std::chrono::milliseconds interval{2000};
    // With more adapters than this they are known by name only and loaded when somebody asks for them.
    int64_t max_eager = 256;
  };
  // Loads what is there now and waits for it. A directory that cannot be read is an error, an adapter that cannot be
  // loaded a log line.
  static Result<std::unique_ptr<DirectoryWatcher>> start(AdapterRegistry& registry, Log& log, Options options);
  ~DirectoryWatcher();
  // One look at the directories. A change counts once it looked the same twice in a row: nobody is still copying.
  void scan();
  // What the next look at a directory does not find is gone after it, also when that is everything. Any thread.
  void accept_empty();

 private:
  struct Directory {
    std::shared_ptr<const std::string> root;
    WatchedDirectory::State state = WatchedDirectory::State::kOk;
    std::string reason;
  };
  struct Entry {
    uint64_t seen = 0, told = 0;  // stamps: at the last look; that the registry was last told of
    uint16_t directory = 0;       // index of the one it comes from
    int8_t missing = 0;           // looks in a row, kMissingLooks: it is gone
    bool listed = false;          // in this look
    bool settled = false;         // looked the same twice
  };
  struct Sight {
    std::string name;
    AdapterStat files;
  };
  DirectoryWatcher(AdapterRegistry& registry, Log& log, Options options);
  void look();
  Status read(const Directory& directory, std::vector<Sight>& sights);
  Status list(int root, const std::string& folder, std::vector<Sight>& sights);
  void note(uint16_t index, const Sight& sight);
  void set_state(Directory& directory, WatchedDirectory::State state, std::string reason);
  bool is_lazy() const { return std::ssize(entries_) > options_.max_eager; }
  void act();
  void take_out_missing();
  void publish_states();
  // One that is not there may be about to be replaced by a rename.
  static constexpr int8_t kMissingLooks = 2;

  AdapterRegistry& registry_;
  Log& log_;
  const Options options_;
  std::vector<Directory> directories_;
  std::map<std::string, Entry> entries_;  // the watcher's thread only
  std::set<std::string> unusable_names_;  // likewise: of adapters that cannot be asked for; each was logged once
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;  // guarded by mutex_
  std::atomic<bool> accept_empty_{false};
  std::thread thread_;
};

}  // namespace lk
