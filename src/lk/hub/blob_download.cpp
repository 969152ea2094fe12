// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/blob_download.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "lk/base/bytes.h"
#include "lk/base/file.h"
#include "lk/base/sha256.h"
#include "lk/base/write_error.h"

namespace lk {
namespace {

// Of a file whose size nobody says before it comes.
constexpr int64_t kMaxUnknownSize = int64_t{1} << 30;

// The bytes of a blob on their way. What is in the file is in the digest, too.
class Incoming {
 public:
  // Under `lock`. What an earlier try left is gone on with if it is this user's alone.
  static Result<std::unique_ptr<Incoming>> open(const RepoCache& cache, const HubFile& file, const BlobLock& lock) {
    LK_ASSIGN_OR_RETURN(CacheDirectory blobs, cache.blobs());
    std::unique_ptr<Incoming> incoming(new Incoming(std::move(blobs), file));
    // Without a lock somebody else may write to the file of that name.
    std::random_device random;
    incoming->name_ =
        lock.held() ? file.etag + ".incomplete" : fmt::format("{}.{:08x}.incomplete", file.etag, random());
    incoming->keep_ = lock.held();
    LK_RETURN_IF_ERROR(incoming->open_file());
    return incoming;
  }
  ~Incoming() {
    if (fd_ >= 0) ::close(fd_);
    if (!keep_ && !name_.empty()) (void)::unlinkat(blobs_.fd(), name_.c_str(), 0);
  }
  Incoming(const Incoming&) = delete;
  Incoming& operator=(const Incoming&) = delete;

  int64_t size() const { return size_; }

  // Reads what an earlier try left into the digest.
  Status read_left(const std::function<void(int64_t)>& on_bytes) {
    std::vector<std::byte> buffer(size_t{1} << 20);
    while (true) {
      const ssize_t got = ::pread(fd_, buffer.data(), buffer.size(), static_cast<off_t>(size_));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return io_error("cannot read {}: {}", path(), std::strerror(errno));
      if (got == 0) return Status();
      add({buffer.data(), static_cast<size_t>(got)});
      on_bytes(got);
    }
  }

  Status restart() {
    if (::ftruncate(fd_, 0) != 0) return io_error("cannot truncate {}: {}", path(), std::strerror(errno));
    size_ = 0;
    sha256_ = Sha256();
    return Status();
  }

  Status append(std::span<const std::byte> piece) {
    size_t done = 0;
    while (done < piece.size()) {
      const ssize_t put = ::pwrite(fd_, piece.data() + done, piece.size() - done,
                                   static_cast<off_t>(size_ + static_cast<int64_t>(done)));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0 && (errno == ENOSPC || errno == EDQUOT))
        return resource_exhausted("no room left for {}: {}. What came is kept; HF_HUB_CACHE says where else", path(),
                                  std::strerror(errno));
      if (put < 0)
        return Status(write_error_code(errno), fmt::format("cannot write {}: {}", path(), std::strerror(errno)));
      done += static_cast<size_t>(put);
    }
    add(piece);
    return Status();
  }

  // kDataLoss when these are not the bytes that the ETag names.
  Status check() {
    std::string digest;
    switch (digest_of_etag(file_.etag)) {
      case BlobDigest::kNone:
        return Status();
      case BlobDigest::kSha256:
        digest = to_hex(sha256_.finish());
        break;
      case BlobDigest::kGitSha1: {
        LK_ASSIGN_OR_RETURN(digest, git_sha1());
        break;
      }
    }
    if (digest == file_.etag) return Status();
    return data_loss("{}: the bytes that came have the digest {}, the hub says {}", file_.path, digest, file_.etag);
  }

  // From now on it is the blob.
  Status publish() {
    // A name without bytes would be believed after a loss of power.
    if (::fdatasync(fd_) != 0) return io_error("cannot sync {}: {}", path(), std::strerror(errno));
    if (::renameat(blobs_.fd(), name_.c_str(), blobs_.fd(), file_.etag.c_str()) != 0)
      return io_error("cannot rename {}: {}", path(), std::strerror(errno));
    name_.clear();
    return Status();
  }

 private:
  Incoming(CacheDirectory blobs, const HubFile& file) : blobs_(std::move(blobs)), file_(file) {}
  std::string path() const { return join_path(blobs_.path(), name_); }

  Status open_file() {
    for (const int extra : {0, O_EXCL}) {
      fd_ = ::openat(blobs_.fd(), name_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | extra, 0666);
      struct stat info {};
      // Somebody who may write here could have put a link to one of this user's files.
      if (fd_ >= 0 && ::fstat(fd_, &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink == 1 &&
          info.st_uid == ::geteuid()) {
        if (file_.size >= 0 && info.st_size > file_.size) return restart();
        return Status();
      }
      if (extra != 0) break;
      if (fd_ >= 0) ::close(std::exchange(fd_, -1));
      (void)::unlinkat(blobs_.fd(), name_.c_str(), 0);
    }
    const int error = errno;
    return Status(write_error_code(error), fmt::format("cannot create {}: {}", path(), std::strerror(error)));
  }

  void add(std::span<const std::byte> piece) {
    if (digest_of_etag(file_.etag) == BlobDigest::kSha256) sha256_.update(piece);
    size_ += static_cast<int64_t>(piece.size());
  }

  // Of "blob SIZE\0" and the bytes, as Git names its objects. Such files are small: it is read again.
  Result<std::string> git_sha1() const {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    const std::string head = fmt::format("blob {}", size_);
    bool ok = context && EVP_DigestInit_ex(context.get(), EVP_sha1(), nullptr) == 1 &&
              EVP_DigestUpdate(context.get(), head.c_str(), head.size() + 1) == 1;
    std::vector<std::byte> buffer(size_t{1} << 20);
    for (int64_t at = 0; ok && at < size_;) {
      const ssize_t got = ::pread(fd_, buffer.data(), buffer.size(), static_cast<off_t>(at));
      if (got <= 0) return io_error("cannot read {}: {}", path(), std::strerror(errno));
      ok = EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(got)) == 1;
      at += got;
    }
    std::array<uint8_t, 20> digest{};
    if (!ok || EVP_DigestFinal_ex(context.get(), digest.data(), nullptr) != 1) return internal_error("SHA-1 failed");
    return to_hex(digest);
  }

  CacheDirectory blobs_;
  const HubFile file_;
  std::string name_;
  bool keep_ = true;  // for the next time, when this one fails
  int fd_ = -1;
  int64_t size_ = 0;
  Sha256 sha256_;
};

bool is_hex(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// One request's worth of bytes. `came` says whether any did.
Status fetch_some(Incoming& incoming, HubClient& client, const HubName& name, const std::string& commit,
                  const HubFile& file, const BlobWatcher& watcher, bool& came) {
  int64_t expected = file.size;
  const auto on_begin = [&](int64_t begin, int64_t total) -> Status {
    if (begin != incoming.size()) {
      watcher.on_bytes(-incoming.size());
      LK_RETURN_IF_ERROR(incoming.restart());
    }
    if (expected >= 0 && total >= 0 && total != expected)
      return data_loss("{}: {} bytes are offered, the hub said {}", file.path, total, expected);
    if (expected < 0) expected = total;
    if (file.size < 0 && expected > kMaxUnknownSize)
      return data_loss("{}: {} bytes are offered, and the hub has not said its size", file.path, expected);
    return Status();
  };
  const auto on_body = [&](std::span<const std::byte> piece) -> Status {
    if (watcher.stopped()) return cancelled("{}: stopped", file.path);
    const int64_t most = expected >= 0 ? expected : kMaxUnknownSize;
    if (static_cast<int64_t>(piece.size()) > most - incoming.size())
      return data_loss("{}: more than {} bytes came", file.path, most);
    LK_RETURN_IF_ERROR(incoming.append(piece));
    came = true;
    watcher.on_bytes(static_cast<int64_t>(piece.size()));
    return Status();
  };
  LK_RETURN_IF_ERROR(client.download(name, commit, file.path, incoming.size(), on_begin, on_body));
  if (expected >= 0 && incoming.size() < expected)
    return unavailable("{}: only {} of {} bytes came", file.path, incoming.size(), expected);
  return Status();
}

// Until all bytes are there.
Status fetch_all(Incoming& incoming, HubClient& client, const HubName& name, const std::string& commit,
                 const HubFile& file, const BlobWatcher& watcher) {
  int attempt = 1;
  while (file.size < 0 || incoming.size() < file.size) {
    bool came = false;
    const Status status = fetch_some(incoming, client, name, commit, file, watcher, came);
    if (status.ok()) break;
    if (status.code() != StatusCode::kUnavailable) return status;
    attempt = came ? 1 : attempt + 1;  // as long as it goes on, however slowly
    if (attempt > HubClient::kTries) return status;
    LK_RETURN_IF_ERROR(client.wait(std::max(attempt - 1, 1), status));
  }
  return Status();
}

}  // namespace

BlobDigest digest_of_etag(std::string_view etag) {
  if (!is_hex(etag)) return BlobDigest::kNone;
  return etag.size() == 64 ? BlobDigest::kSha256 : etag.size() == 40 ? BlobDigest::kGitSha1 : BlobDigest::kNone;
}

int64_t missing_bytes(const RepoCache& cache, const HubFile& file) {
  struct stat info {};
  const std::string path = cache.blob_path(file.etag) + ".incomplete";
  const int64_t there = ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : 0;
  return std::max<int64_t>(0, std::max<int64_t>(file.size, 0) - there);
}

Status fetch_blob(const RepoCache& cache, HubClient& client, const HubName& name, const std::string& commit,
                  const HubFile& file, const BlobWatcher& watcher) {
  LK_ASSIGN_OR_RETURN(
      const BlobLock lock,
      BlobLock::take(
          cache.locks(), file.etag,
          [&] { watcher.on_note(fmt::format("{}: another process is downloading it; waiting", file.path)); },
          watcher.stopped));
  LK_ASSIGN_OR_RETURN(const bool there, cache.has_blob(file.etag, file.size));
  if (there) {
    watcher.on_bytes(std::max<int64_t>(file.size, 0));
    return Status();
  }
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Incoming> incoming, Incoming::open(cache, file, lock));
  LK_RETURN_IF_ERROR(incoming->read_left(watcher.on_bytes));
  bool resumed = incoming->size() > 0;
  for (;;) {
    Status status = fetch_all(*incoming, client, name, commit, file, watcher);
    if (status.ok()) status = incoming->check();
    if (status.ok()) break;
    if (status.code() != StatusCode::kDataLoss) return status;
    // Bytes that are wrong are no use to anybody. They may be those of an earlier try.
    watcher.on_bytes(-incoming->size());
    LK_RETURN_IF_ERROR(incoming->restart());
    if (!std::exchange(resumed, false)) return status;
    watcher.on_note(fmt::format("{}; once more from its beginning", status.message()));
  }
  return incoming->publish();
}

}  // namespace lk
