// SPDX-License-Identifier: Apache-2.0
// The cache of the Python client (huggingface_hub), on disk as it has it, so that both use each other's downloads:
//
//   CACHE/CACHEDIR.TAG
//   CACHE/.locks/models--ORG--NAME/ETAG.lock        flock(2) while somebody makes the blob
//   CACHE/models--ORG--NAME/blobs/ETAG              the bytes; ETAG.incomplete while they arrive
//                          /refs/main               the commit that a branch or tag had when it was asked for last
//                          /snapshots/COMMIT/PATH   -> ../../blobs/ETAG
//                          /.no_exist/COMMIT/PATH   empty: the commit has no such file
//
// A blob may itself be a link to CACHE/blobs/xx/XETHASH, which later versions of the client share between repositories.
// Not written: trees/COMMIT.json, by which those versions take a snapshot without the files that nobody here needs for
// a broken one.
//
// Others may be able to write into a cache. Everything below a repository's directory is opened without following
// links, files that are written to belong to this user and have one name, and a snapshot whose links leave the cache is
// not used. Its values are as good as whoever may write there: digests are checked when files arrive, not each time
// they are read.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"
#include "lk/base/stop.h"

namespace lk {

// A directory that stays the same one whatever happens to its name. Move-only.
class CacheDirectory {
 public:
  CacheDirectory(CacheDirectory&& other) noexcept;
  CacheDirectory& operator=(CacheDirectory&& other) noexcept;
  ~CacheDirectory();

  // Follows links: for a place that the operator named.
  static Result<CacheDirectory> open(const std::string& path);
  // A directory in this one, not through a link. kNotFound when it is absent and not to be made.
  Result<CacheDirectory> enter(const std::string& name, bool make) const;
  // enter() for each part of a path but the last, which is returned in `leaf`.
  Result<CacheDirectory> enter_parents(std::string_view path, bool make, std::string& leaf) const;

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }

 private:
  CacheDirectory(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;  // for messages
};

// What makes a blob one process at a time. Kept by whoever holds it until it ends.
class BlobLock {
 public:
  // Waits; `on_wait` is called once, after some seconds of it. An empty lock where the file system has none.
  // kCancelled: stopped.
  static Result<BlobLock> take(const CacheDirectory& locks, const std::string& etag,
                               const std::function<void()>& on_wait, const AskStop& stop);
  BlobLock(BlobLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  BlobLock& operator=(BlobLock&&) = delete;
  ~BlobLock();
  bool held() const { return fd_ >= 0; }

 private:
  explicit BlobLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

// One repository in the cache.
class RepoCache {
 public:
  // `make` for who is going to write; otherwise kNotFound when the cache does not have it.
  static Result<RepoCache> open(const std::string& cache, const std::string& repo, bool make);

  // The commit that `revision` was when it was last asked for, or is; nothing when nobody asked.
  Result<std::optional<std::string>> commit_of(const std::string& revision) const;
  Status set_ref(const std::string& revision, const std::string& commit) const;
  Status set_missing(const std::string& commit, const std::string& path) const;

  std::string snapshot_path(const std::string& commit) const;
  // Whether the snapshot has this file, with its bytes. A link that leaves the cache is kPermissionDenied.
  Result<bool> has(const std::string& commit, const std::string& path) const;
  // kPermissionDenied names the first entry of the snapshot's directory `subfolder` that leads out of the cache.
  Status check_links(const std::string& commit, const std::string& subfolder) const;
  // Points snapshots/COMMIT/PATH to the blob, in place of what is there.
  Status link(const std::string& commit, const std::string& path, const std::string& etag) const;

  // Whether the blob is there, in the size that is expected of it (-1: any). One of another size is not.
  Result<bool> has_blob(const std::string& etag, int64_t size) const;
  std::string blob_path(const std::string& etag) const;
  Result<CacheDirectory> blobs() const { return directory_.enter("blobs", true); }
  const CacheDirectory& locks() const { return *locks_; }

 private:
  RepoCache(std::string cache, CacheDirectory directory) : cache_(std::move(cache)), directory_(std::move(directory)) {}
  Result<bool> stays_inside(const std::string& path) const;

  std::string cache_;
  CacheDirectory directory_;
  std::optional<CacheDirectory> locks_;  // only of who writes
};

// What a cache holds, for people.
struct CachedRepo {
  std::string repo;
  int64_t bytes = 0;  // of its blobs
  struct Revision {
    std::string name, commit;  // name: of a ref, or empty
  };
  std::vector<Revision> revisions;
  int64_t incomplete_bytes = 0;  // of downloads that were cut off
};
// Models alone, by name. Empty when there is no cache.
Result<std::vector<CachedRepo>> list_cache(const std::string& cache);

}  // namespace lk
