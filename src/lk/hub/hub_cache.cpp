// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/write_error.h"
#include "lk/hub/hub_name.h"

namespace lk {
namespace {

namespace fs = std::filesystem;

Status failed(const char* verb, const std::string& path) {
  const int error = errno;
  if (error == ENOENT) return not_found("{} does not exist", path);
  if (error == ELOOP || error == ENOTDIR) return permission_denied("{} is a link or no directory: not used", path);
  return Status(write_error_code(error), fmt::format("cannot {} {}: {}", verb, path, std::strerror(error)));
}

// Beside `name`, and nobody else's: processes that share a cache need not share process ids.
std::string temporary_name(const std::string& name) {
  std::random_device random;
  return fmt::format("{}.{:08x}{:08x}.tmp", name, random(), random());
}

// Writes a new file and gives it the name, whatever had it before.
Status put_file(const CacheDirectory& directory, const std::string& name, std::string_view text) {
  const std::string temporary = temporary_name(name);
  const int fd = ::openat(directory.fd(), temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return failed("create", join_path(directory.path(), temporary));
  const bool written = write_all(fd, text) == text.size();
  if (::close(fd) == 0 && written && ::renameat(directory.fd(), temporary.c_str(), directory.fd(), name.c_str()) == 0)
    return Status();
  Status status = failed("write", join_path(directory.path(), name));
  (void)::unlinkat(directory.fd(), temporary.c_str(), 0);
  return status;
}

// Few bytes of a file that is no link.
Result<std::optional<std::string>> read_small(const CacheDirectory& directory, const std::string& name) {
  const int fd = ::openat(directory.fd(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return std::optional<std::string>();
  if (fd < 0) return failed("open", join_path(directory.path(), name));
  std::string text(256, '\0');
  const ssize_t got = ::read(fd, text.data(), text.size());
  const int error = errno;
  ::close(fd);
  if (got < 0 && error == EISDIR) return std::optional<std::string>();  // "refs/pr", where "refs/pr/7" is one
  errno = error;
  if (got < 0) return failed("read", join_path(directory.path(), name));
  text.resize(static_cast<size_t>(got));
  return std::optional<std::string>(text);
}

Status tag_cache(const CacheDirectory& cache) {
  const int fd = ::openat(cache.fd(), "CACHEDIR.TAG", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return errno == EEXIST ? Status() : failed("create", join_path(cache.path(), "CACHEDIR.TAG"));
  constexpr std::string_view kTag =
      "Signature: 8a477f597d28d172789f06886806bc55\n# Models of the Hugging Face hub. What is gone is downloaded "
      "again.\n";
  const bool written = write_all(fd, kTag) == kTag.size();
  ::close(fd);
  return written ? Status() : io_error("cannot write into {}", cache.path());
}

}  // namespace

// --- CacheDirectory

CacheDirectory::CacheDirectory(CacheDirectory&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
CacheDirectory& CacheDirectory::operator=(CacheDirectory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}
CacheDirectory::~CacheDirectory() {
  if (fd_ >= 0) ::close(fd_);
}

Result<CacheDirectory> CacheDirectory::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return failed("open", path);
  return CacheDirectory(fd, path);
}

Result<CacheDirectory> CacheDirectory::enter(const std::string& name, bool make) const {
  const std::string path = join_path(path_, name);
  if (make && ::mkdirat(fd_, name.c_str(), 0777) != 0 && errno != EEXIST) return failed("create", path);
  const int fd = ::openat(fd_, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return failed("open", path);
  return CacheDirectory(fd, path);
}

Result<CacheDirectory> CacheDirectory::enter_parents(std::string_view path, bool make, std::string& leaf) const {
  LK_CHECK(is_plain_relative_path(path), "{}", path);
  CacheDirectory at(::fcntl(fd_, F_DUPFD_CLOEXEC, 0), path_);
  for (size_t slash = path.find('/'); slash != path.npos; slash = path.find('/')) {
    LK_ASSIGN_OR_RETURN(at, at.enter(std::string(path.substr(0, slash)), make));
    path.remove_prefix(slash + 1);
  }
  leaf = path;
  return at;
}

// --- BlobLock

Result<BlobLock> BlobLock::take(const CacheDirectory& locks, const std::string& etag,
                                const std::function<void()>& on_wait, const AskStop& stop) {
  const std::string name = etag + ".lock", path = join_path(locks.path(), name);
  constexpr auto kPoll = std::chrono::milliseconds(50);
  constexpr int kPollsUntilSaid = 40;
  for (int polls = 0;; ++polls) {
    // As the Python client's filelock: the file stays, and group members may lock it, too.
    int fd = ::openat(locks.fd(), name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0664);
    if (fd < 0 && errno == EACCES)  // another user's: reading is enough to lock it
      fd = ::openat(locks.fd(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return failed("open", path);
    BlobLock lock(fd);
    struct stat info {};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return permission_denied("{} is no file: not used", path);
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {
      // Somebody may have removed it between the two calls.
      if (::fstat(fd, &info) == 0 && info.st_nlink > 0) return lock;
      continue;
    }
    if (errno == ENOSYS || errno == ENOLCK || errno == EOPNOTSUPP) return BlobLock(-1);
    if (errno != EWOULDBLOCK && errno != EINTR && errno != EACCES) return failed("lock", path);
    if (polls == kPollsUntilSaid && on_wait) on_wait();
    LK_RETURN_IF_ERROR(wait_unless_stopped(kPoll, stop));
  }
}

BlobLock::~BlobLock() {
  if (fd_ >= 0) ::close(fd_);  // and so unlocks it
}

// --- RepoCache

Result<RepoCache> RepoCache::open(const std::string& cache, const std::string& repo, bool make) {
  if (make) LK_RETURN_IF_ERROR(make_directories(cache));
  LK_ASSIGN_OR_RETURN(const CacheDirectory top, CacheDirectory::open(cache));
  const std::string name = repo_directory_name(repo);
  const std::string path = join_path(cache, name);
  if (make && ::mkdirat(top.fd(), name.c_str(), 0777) != 0 && errno != EEXIST) return failed("create", path);
  // Through a link as well: people move large models to other disks.
  LK_ASSIGN_OR_RETURN(CacheDirectory directory, CacheDirectory::open(path));
  RepoCache found(cache, std::move(directory));
  if (make) {
    LK_RETURN_IF_ERROR(tag_cache(top));
    LK_ASSIGN_OR_RETURN(const CacheDirectory locks, top.enter(".locks", true));
    LK_ASSIGN_OR_RETURN(found.locks_, locks.enter(name, true));
  }
  return found;
}

Result<std::optional<std::string>> RepoCache::commit_of(const std::string& revision) const {
  if (is_commit(revision)) return std::optional<std::string>(revision);
  Result<CacheDirectory> refs = directory_.enter("refs", false);
  if (!refs.ok() && refs.status().code() == StatusCode::kNotFound) return std::optional<std::string>();
  if (!refs.ok()) return refs.status();
  std::string leaf;
  const Result<CacheDirectory> parent = refs->enter_parents(revision, false, leaf);
  if (!parent.ok() && parent.status().code() == StatusCode::kNotFound) return std::optional<std::string>();
  if (!parent.ok()) return parent.status();
  LK_ASSIGN_OR_RETURN(const std::optional<std::string> text, read_small(*parent, leaf));
  if (text && !is_commit(*text)) return data_loss("{}/{} holds no commit", parent->path(), leaf);
  return text;
}

Status RepoCache::set_ref(const std::string& revision, const std::string& commit) const {
  if (is_commit(revision)) return Status();
  LK_ASSIGN_OR_RETURN(const CacheDirectory refs, directory_.enter("refs", true));
  std::string leaf;
  LK_ASSIGN_OR_RETURN(const CacheDirectory parent, refs.enter_parents(revision, true, leaf));
  const Result<std::optional<std::string>> now = read_small(parent, leaf);
  if (now.ok() && *now == commit) return Status();  // the cache may be one that this user only reads
  return put_file(parent, leaf, commit);
}

Status RepoCache::set_missing(const std::string& commit, const std::string& path) const {
  LK_ASSIGN_OR_RETURN(const CacheDirectory all, directory_.enter(".no_exist", true));
  LK_ASSIGN_OR_RETURN(const CacheDirectory own, all.enter(commit, true));
  std::string leaf;
  LK_ASSIGN_OR_RETURN(const CacheDirectory parent, own.enter_parents(path, true, leaf));
  const int fd = ::openat(parent.fd(), leaf.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd < 0) return failed("create", join_path(parent.path(), leaf));
  ::close(fd);
  return Status();
}

std::string RepoCache::snapshot_path(const std::string& commit) const {
  return join_path(directory_.path(), "snapshots/" + commit);
}
std::string RepoCache::blob_path(const std::string& etag) const {
  return join_path(directory_.path(), "blobs/" + etag);
}

Result<bool> RepoCache::stays_inside(const std::string& path) const {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return false;  // leads nowhere
  for (const std::string& root : {directory_.path(), join_path(cache_, "blobs")}) {
    const fs::path home = fs::canonical(root, error);
    if (!error && std::mismatch(home.begin(), home.end(), real.begin(), real.end()).first == home.end()) return true;
  }
  return permission_denied("{} leads out of the cache, to {}: not used", path, real.string());
}

Result<bool> RepoCache::has(const std::string& commit, const std::string& path) const {
  LK_CHECK(is_commit(commit) && is_plain_relative_path(path), "{} {}", commit, path);
  return stays_inside(join_path(snapshot_path(commit), path));
}

Status RepoCache::check_links(const std::string& commit, const std::string& subfolder) const {
  const std::string root = subfolder.empty() ? snapshot_path(commit) : join_path(snapshot_path(commit), subfolder);
  LK_RETURN_IF_ERROR(stays_inside(root).status());
  std::error_code error;
  fs::recursive_directory_iterator at(root, error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error))
    if (at->is_symlink(error)) LK_RETURN_IF_ERROR(stays_inside(at->path().string()).status());
  if (error) return io_error("cannot list {}: {}", root, error.message());
  return Status();
}

Status RepoCache::link(const std::string& commit, const std::string& path, const std::string& etag) const {
  LK_CHECK(is_commit(commit) && is_blob_name(etag), "{} {}", commit, etag);
  LK_ASSIGN_OR_RETURN(const CacheDirectory snapshots, directory_.enter("snapshots", true));
  LK_ASSIGN_OR_RETURN(const CacheDirectory own, snapshots.enter(commit, true));
  std::string leaf;
  LK_ASSIGN_OR_RETURN(const CacheDirectory parent, own.enter_parents(path, true, leaf));
  std::string target = "../../blobs/" + etag;
  for (const char c : path)
    if (c == '/') target.insert(0, "../");
  // Under a name of its own first: at no time is the file missing for others.
  const std::string temporary = temporary_name(leaf);
  if (::symlinkat(target.c_str(), parent.fd(), temporary.c_str()) != 0)
    return failed("create the link", join_path(parent.path(), leaf));
  if (::renameat(parent.fd(), temporary.c_str(), parent.fd(), leaf.c_str()) == 0) return Status();
  Status status = failed("create the link", join_path(parent.path(), leaf));
  (void)::unlinkat(parent.fd(), temporary.c_str(), 0);
  return status;
}

Result<bool> RepoCache::has_blob(const std::string& etag, int64_t size) const {
  LK_CHECK(is_blob_name(etag), "{}", etag);
  const std::string path = blob_path(etag);
  LK_ASSIGN_OR_RETURN(const bool inside, stays_inside(path));
  struct stat info {};
  return inside && ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && (size < 0 || info.st_size == size);
}

// --- What is there

Result<std::vector<CachedRepo>> list_cache(const std::string& cache) {
  std::vector<CachedRepo> repos;
  std::error_code error;
  fs::directory_iterator entries(cache, error);
  if (error == std::errc::no_such_file_or_directory) return repos;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (!name.starts_with("models--") || !is_directory(entries->path().string())) continue;
    CachedRepo repo;
    repo.repo = name.substr(8);
    if (const size_t at = repo.repo.find("--"); at != repo.repo.npos) repo.repo.replace(at, 2, "/");
    std::error_code ignored;
    for (fs::directory_iterator blob(entries->path() / "blobs", ignored); !ignored && blob != fs::directory_iterator();
         blob.increment(ignored)) {
      std::error_code gone;
      const auto bytes = static_cast<int64_t>(fs::file_size(blob->path(), gone));
      if (gone) continue;
      (blob->path().extension() == ".incomplete" ? repo.incomplete_bytes : repo.bytes) += bytes;
    }
    std::map<std::string, std::string> named;  // commit -> ref
    const fs::path refs = entries->path() / "refs";
    for (fs::recursive_directory_iterator ref(refs, ignored); !ignored && ref != fs::recursive_directory_iterator();
         ref.increment(ignored)) {
      const Result<std::string> commit = read_prefix(ref->path().string(), 64);
      if (commit.ok() && is_commit(*commit)) named.emplace(*commit, ref->path().lexically_relative(refs).string());
    }
    for (fs::directory_iterator own(entries->path() / "snapshots", ignored);
         !ignored && own != fs::directory_iterator(); own.increment(ignored)) {
      const std::string commit = own->path().filename().string();
      if (is_commit(commit)) repo.revisions.push_back({named[commit], commit});
    }
    repos.push_back(std::move(repo));
  }
  if (error) return io_error("cannot list {}: {}", cache, error.message());
  std::ranges::sort(repos, {}, &CachedRepo::repo);
  for (CachedRepo& repo : repos) std::ranges::sort(repo.revisions, {}, &CachedRepo::Revision::commit);
  return repos;
}

}  // namespace lk
