// SPDX-License-Identifier: Apache-2.0
// AdapterCache: adapters of the fleet on this machine's disk, each a directory named by what is in it, within a bound.
// What is held stays, and so does what was published here, for others fetch it here; of the rest the least recently
// used makes room.
//
// Thread safety: any thread. hold(), has(), find() and stats() never wait for the disk: whoever changes what lies there
// says first which content it is busy with, and only others who would change the same one wait.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lk/registry/adapter_record.h"

namespace lk {

class AdapterCache {
 public:
  using Files = std::vector<AdapterRecord::File>;
  // Makes the directory; what is there and not whole is removed. Nobody else may use it at the same time.
  static Result<std::unique_ptr<AdapterCache>> open(const std::string& directory, int64_t max_bytes);
  ~AdapterCache();

  // Where a content (AdapterRecord::content) lies or would lie.
  std::string path(std::string_view content) const;
  // Keeps it on disk until the last reference is gone. Null: it is not here.
  std::shared_ptr<const void> hold(const std::string& content);
  bool has(const std::string& content) const;

  // Copies those of `names` that are in `source`, to be published: kept until release(). With `roots` what is read must
  // lie beneath one of them. kUnavailable: no room; kNotFound: none of them is there; kPermissionDenied: outside.
  Result<Files> add(const std::string& source, const std::vector<std::string>& names,
                    const std::vector<std::string>& roots = {});
  // It is published here no more: it may make room.
  void release(const std::string& content);

  // --- What is fetched. A directory for its files, and room; then all or nothing.
  Result<std::string> begin(const AdapterRecord& record);
  Status finish(const AdapterRecord& record);  // its files are there, whole, and were verified
  void abandon(const AdapterRecord& record);

  // A file by its SHA-256, for others.
  struct Blob {
    std::string path;
    int64_t bytes = 0;
    std::shared_ptr<const void> held;
  };
  std::optional<Blob> find(const std::string& sha256);

  struct Stats {
    int64_t adapters = 0, bytes = 0, max_bytes = 0;
  };
  Stats stats() const;

 private:
  struct Entry {
    Files files;
    int64_t bytes = 0, last_use = 0;
    bool published = false;
    std::weak_ptr<const void> held;
  };
  AdapterCache(std::string directory, int64_t max_bytes, int lock)
      : directory_(std::move(directory)), max_bytes_(max_bytes), lock_(lock) {}
  Status load();
  Status take_room(int64_t bytes);  // evicts; on success they are counted as reserved
  std::shared_ptr<const void> hold_locked(Entry& entry);
  class Busy;
  Status place(const std::string& from, const std::string& content, const Entry& entry, bool is_there) const;
  Status settle(const std::string& from, const std::string& content, Entry entry);
  void remove_files(const std::string& content) const;
  std::string manifest(std::string_view content) const;

  const std::string directory_;
  const int64_t max_bytes_;
  const int lock_;  // descriptor of the file that is locked
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;      // by content; guarded by mutex_, like all below
  std::map<std::string, std::string> blobs_;  // SHA-256 of a file -> a content that has it
  std::set<std::string> busy_;                // contents whose files or manifest somebody is changing
  std::condition_variable busy_changed_;
  int64_t bytes_ = 0, reserved_ = 0, uses_ = 0, additions_ = 0;
};

}  // namespace lk
