// SPDX-License-Identifier: Apache-2.0
// DirectoryWatcher: keeps the registry equal to directories of adapters (one sub-directory each, its name is the
// adapter's): loads what appears, replaces what changes, unloads what goes away. Polls: works on any file system.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/observe/logging.h"

namespace lk {

class DirectoryWatcher {
 public:
  // Loads what is there now and waits for it. A directory that cannot be read is an error, an adapter that cannot be
  // loaded a log line.
  static Result<std::unique_ptr<DirectoryWatcher>> start(AdapterRegistry& registry, Log& log,
                                                         std::vector<std::string> directories,
                                                         std::chrono::milliseconds interval);
  ~DirectoryWatcher();
  // One look at the directories. A change counts once it looked the same twice in a row: nobody is still copying. An
  // adapter that there was no memory for is tried again after 1, 2, 4 ... 32 scans; one that is wrong when it changes.
  void scan();

 private:
  using Fingerprint = std::string;  // sizes, times and inodes of the files
  struct Entry {
    std::string path;
    Fingerprint seen, loaded;
    int missing = 0;      // scans in a row
    int64_t version = 0;  // that was loaded from it; 0 = none
    bool listed = false;  // in this scan
    int retries = 0;      // that failed for lack of memory
    int retry_in = 0;     // scans until the next try; 0 = none
  };
  DirectoryWatcher(AdapterRegistry& registry, Log& log, std::vector<std::string> directories)
      : registry_(registry), log_(log), directories_(std::move(directories)) {}
  Status look();
  void load(const std::string& name, Entry& entry);
  void finish_load(const std::string& name, Entry& entry, const Result<AdapterLease>& loaded);
  void unload(const std::string& name, const Entry& entry);

  AdapterRegistry& registry_;
  Log& log_;
  const std::vector<std::string> directories_;
  std::map<std::string, Entry> entries_;  // the watcher's thread only
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lk
