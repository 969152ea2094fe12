// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/adapter_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/bytes.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/sha256.h"
#include "lk/serve/adapters/path_guard.h"

namespace lk {
namespace {

namespace fs = std::filesystem;

constexpr size_t kCopyBytes = 1 << 20;
constexpr std::string_view kManifestKey = "adapters/manifest/1";  // read with the registry's reader

struct Fd {
  int fd = -1;
  explicit Fd(int number = -1) : fd(number) {}
  Fd(Fd&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};

Status system_error(const char* what, const std::string& path) {
  return io_error("cannot {} {}: {}", what, path, std::strerror(errno));
}

void remove_tree(const std::string& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

Status sync_file(const std::string& path) {
  const Fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0 || ::fsync(file.fd) != 0) return system_error("sync", path);
  return Status();
}

// Copies all of an open file and says what it was.
Result<AdapterRecord::File> copy_file(const Fd& in, const std::string& from, const std::string& to,
                                      const std::string& name, int64_t expected) {
  const Fd out{::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
  if (out.fd < 0) return system_error("create", to);
  Sha256 hash;
  AdapterRecord::File file{.name = name};
  std::string buffer(kCopyBytes, '\0');
  for (;;) {
    const ssize_t count = ::read(in.fd, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("read", from);
    if (count == 0) break;
    hash.update(buffer.data(), static_cast<size_t>(count));
    for (ssize_t done = 0; done < count;) {
      const ssize_t put = ::write(out.fd, buffer.data() + done, static_cast<size_t>(count - done));
      if (put < 0 && errno != EINTR) return system_error("write", to);
      if (put > 0) done += put;
    }
    file.bytes += count;
    if (file.bytes > expected) return failed_precondition("{} grew while it was read", from);
  }
  if (::fsync(out.fd) != 0) return system_error("sync", to);
  file.sha256 = to_hex(hash.finish());
  return file;
}

}  // namespace

Result<std::unique_ptr<AdapterCache>> AdapterCache::open(const std::string& directory, int64_t max_bytes) {
  for (const char* part : {"adapters", "manifests"}) LK_RETURN_IF_ERROR(make_directories(join_path(directory, part)));
  const std::string name = join_path(directory, "lock");
  const int lock = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0) return system_error("open", name);
  std::unique_ptr<AdapterCache> self(new AdapterCache(directory, max_bytes, lock));
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0)
    return failed_precondition("{} is another server's; give each its own --fleet-dir", directory);
  remove_tree(join_path(directory, "incoming"));
  LK_RETURN_IF_ERROR(make_directories(join_path(directory, "incoming")));
  LK_RETURN_IF_ERROR(self->load());
  return Result<std::unique_ptr<AdapterCache>>(std::move(self));
}

AdapterCache::~AdapterCache() { ::close(lock_); }

std::string AdapterCache::path(std::string_view content) const {
  return fmt::format("{}/adapters/{}", directory_, content);
}
std::string AdapterCache::manifest(std::string_view content) const {
  return fmt::format("{}/manifests/{}.json", directory_, content);
}

void AdapterCache::remove_files(const std::string& content) const {
  ::unlink(manifest(content).c_str());  // first: a directory without one is not whole
  remove_tree(path(content));
}

Status AdapterCache::load() {
  std::error_code error;
  std::vector<std::string> unknown;
  for (const fs::directory_entry& item : fs::directory_iterator(join_path(directory_, "adapters"), error)) {
    const std::string content = item.path().filename().string();
    const Result<std::string> text = read_file(manifest(content), 1 << 20);
    Result<AdapterRecord> record = text.ok() ? parse_adapter(kManifestKey, *text) : text.status();
    bool whole = record.ok() && record->content() == content;
    if (whole)
      for (const AdapterRecord::File& file : record->files) {
        std::error_code missing;
        const auto size = fs::file_size(join_path(path(content), file.name), missing);
        whole &= !missing && static_cast<int64_t>(size) == file.bytes;
      }
    if (!whole) {
      unknown.push_back(content);
      continue;
    }
    Entry& entry = entries_[content];
    entry.bytes = record->bytes();
    entry.published = record->publisher == "here";
    entry.files = std::move(record->files);
    for (const AdapterRecord::File& file : entry.files) blobs_[file.sha256] = content;
    bytes_ += entry.bytes;
  }
  if (error) return io_error("cannot read {}: {}", directory_, error.message());
  for (const std::string& content : unknown) remove_files(content);
  return Status();
}

std::shared_ptr<const void> AdapterCache::hold_locked(Entry& entry) {
  entry.last_use = ++uses_;
  std::shared_ptr<const void> held = entry.held.lock();
  if (!held) entry.held = held = std::make_shared<int>(0);
  return held;
}

std::shared_ptr<const void> AdapterCache::hold(const std::string& content) {
  std::lock_guard lock(mutex_);
  const auto found = entries_.find(content);
  return found == entries_.end() ? nullptr : hold_locked(found->second);
}

bool AdapterCache::has(const std::string& content) const {
  std::lock_guard lock(mutex_);
  return entries_.contains(content);
}

// Of one content: from here on nobody else changes what lies on disk of it. Waits until nobody does. One at a time: who
// has one waits for no other.
class AdapterCache::Busy {
 public:
  Busy(AdapterCache& cache, const std::string& content) : cache_(cache), content_(content) {
    std::unique_lock lock(cache_.mutex_);
    cache_.busy_changed_.wait(lock, [&] { return !cache_.busy_.contains(content_); });
    cache_.busy_.insert(content_);
  }
  ~Busy() {
    {
      std::lock_guard lock(cache_.mutex_);
      cache_.busy_.erase(content_);
    }
    cache_.busy_changed_.notify_all();
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  AdapterCache& cache_;
  const std::string content_;
};

Status AdapterCache::take_room(int64_t bytes) {
  std::vector<std::pair<std::string, std::string>> evicted;  // content, where its files go meanwhile
  {
    std::lock_guard lock(mutex_);
    std::vector<std::pair<int64_t, std::string>> candidates;
    int64_t most = 0;
    for (const auto& [content, entry] : entries_)
      if (!entry.published && entry.held.expired() && !busy_.contains(content)) {
        candidates.emplace_back(entry.last_use, content);
        most += entry.bytes;
      }
    // Decided before anything goes.
    if (bytes > max_bytes_ - bytes_ - reserved_ + most)
      return unavailable(
          "the fleet's adapters on this server's disk ({}) leave no room for another {}: see --fleet-disk",
          format_bytes(bytes_ + reserved_), format_bytes(bytes));
    std::ranges::sort(candidates);
    for (const auto& [use, content] : candidates) {
      if (bytes_ + reserved_ + bytes <= max_bytes_) break;
      const auto entry = entries_.find(content);
      bytes_ -= entry->second.bytes;
      for (const AdapterRecord::File& file : entry->second.files)
        if (const auto blob = blobs_.find(file.sha256); blob != blobs_.end() && blob->second == content)
          blobs_.erase(blob);
      entries_.erase(entry);
      busy_.insert(content);
      evicted.emplace_back(content, fmt::format("{}/incoming/gone-{}", directory_, ++additions_));
    }
    reserved_ += bytes;
  }
  // Out of the way first, for whoever waits to bring the same content again.
  for (const auto& [content, trash] : evicted) {
    ::unlink(manifest(content).c_str());
    if (::rename(path(content).c_str(), trash.c_str()) != 0) remove_files(content);
    {
      std::lock_guard lock(mutex_);
      busy_.erase(content);
    }
    busy_changed_.notify_all();
  }
  for (const auto& [content, trash] : evicted) remove_tree(trash);
  return Status();
}

// On disk: the directory at its place, and behind it the manifest.
Status AdapterCache::place(const std::string& from, const std::string& content, const Entry& entry,
                           bool is_there) const {
  const AdapterRecord record{.digest = content, .files = entry.files, .publisher = entry.published ? "here" : ""};
  if (!is_there && ::rename(from.c_str(), path(content).c_str()) != 0) return system_error("rename", from);
  const Status written = write_file_atomic(manifest(content), format_adapter(record));
  if (!written.ok() && !is_there) remove_files(content);
  return written;
}

// Moves a whole directory to its place. The room that was reserved for it is used up, or given back.
Status AdapterCache::settle(const std::string& from, const std::string& content, Entry entry) {
  const Busy busy(*this, content);
  bool is_there = false, is_news = false;
  {
    std::lock_guard lock(mutex_);
    const auto known = entries_.find(content);
    is_there = known != entries_.end();
    is_news = !is_there || (entry.published && !known->second.published);
  }
  const Status placed = is_news ? place(from, content, entry, is_there) : Status();
  std::lock_guard lock(mutex_);
  reserved_ -= entry.bytes;
  if (!placed.ok() || !is_news) return placed;
  Entry& known = entries_[content];
  if (is_there) {
    known.published = true;
    return Status();
  }
  bytes_ += entry.bytes;
  entry.last_use = ++uses_;
  for (const AdapterRecord::File& file : entry.files) blobs_[file.sha256] = content;
  known = std::move(entry);
  return Status();
}

Result<AdapterCache::Files> AdapterCache::add(const std::string& source, const std::vector<std::string>& names,
                                              const std::vector<std::string>& roots) {
  struct Found {
    std::string name;
    Fd in;
    int64_t size = 0;
  };
  std::vector<Found> there;
  int64_t total = 0;
  for (const std::string& name : names) {
    const std::string from = join_path(source, name);
    Found found{.name = name, .in = Fd{::open(from.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)}};
    if (found.in.fd < 0 && (errno == ENOENT || errno == ENOTDIR)) continue;
    struct stat info {};
    if (found.in.fd < 0 || ::fstat(found.in.fd, &info) != 0) return system_error("read", from);
    // Whatever the path meant when somebody looked at it: this is what is read.
    if (!roots.empty() && !is_beneath(roots, found.in.fd))
      return permission_denied("{} is a link that leaves the adapter roots", from);
    if (!S_ISREG(info.st_mode)) return invalid_argument("{} is no regular file", from);
    found.size = info.st_size;
    total += info.st_size;
    there.push_back(std::move(found));
  }
  if (there.empty()) return not_found("{}: none of an adapter's files is there", source);
  LK_RETURN_IF_ERROR(take_room(total));
  std::string directory;
  {
    std::lock_guard lock(mutex_);
    directory = fmt::format("{}/incoming/add-{}", directory_, ++additions_);
  }
  Entry entry{.bytes = total, .published = true};
  const Status copied = [&] {
    for (const auto& [name, in, size] : there) {
      const std::string to = join_path(directory, name);
      LK_RETURN_IF_ERROR(make_directories(fs::path(to).parent_path().string()));
      LK_ASSIGN_OR_RETURN(AdapterRecord::File file, copy_file(in, join_path(source, name), to, name, size));
      if (file.bytes != size) return failed_precondition("{} changed while it was read", join_path(source, name));
      entry.files.push_back(std::move(file));
    }
    return Status();
  }();
  if (!copied.ok()) {
    remove_tree(directory);
    std::lock_guard lock(mutex_);
    reserved_ -= total;
    return copied;
  }
  Files files = entry.files;
  const Status settled = settle(directory, AdapterRecord{.files = files}.content(), std::move(entry));
  remove_tree(directory);
  if (!settled.ok()) return settled;
  return files;
}

void AdapterCache::release(const std::string& content) {
  const Busy busy(*this, content);
  Entry entry;
  {
    std::lock_guard lock(mutex_);
    const auto found = entries_.find(content);
    if (found == entries_.end() || !std::exchange(found->second.published, false)) return;
    entry.files = found->second.files;
  }
  (void)place("", content, entry, true);  // else it is kept a little longer, after a restart
}

Result<std::string> AdapterCache::begin(const AdapterRecord& record) {
  LK_RETURN_IF_ERROR(take_room(record.bytes()));
  const std::string directory = fmt::format("{}/incoming/{}", directory_, record.content());
  for (const AdapterRecord::File& file : record.files)
    if (const Status made = make_directories(fs::path(join_path(directory, file.name)).parent_path().string());
        !made.ok()) {
      abandon(record);
      return made;
    }
  return directory;
}

void AdapterCache::abandon(const AdapterRecord& record) {
  remove_tree(fmt::format("{}/incoming/{}", directory_, record.content()));
  std::lock_guard lock(mutex_);
  reserved_ -= record.bytes();
}

Status AdapterCache::finish(const AdapterRecord& record) {
  const std::string content = record.content(), directory = fmt::format("{}/incoming/{}", directory_, content);
  for (const AdapterRecord::File& file : record.files)
    if (const Status synced = sync_file(join_path(directory, file.name)); !synced.ok()) {
      abandon(record);
      return synced;
    }
  const Status settled = settle(directory, content, {.files = record.files, .bytes = record.bytes()});
  remove_tree(directory);
  return settled;
}

std::optional<AdapterCache::Blob> AdapterCache::find(const std::string& sha256) {
  std::lock_guard lock(mutex_);
  const auto blob = blobs_.find(sha256);
  const auto entry = blob == blobs_.end() ? entries_.end() : entries_.find(blob->second);
  if (entry == entries_.end()) return std::nullopt;
  for (const AdapterRecord::File& file : entry->second.files)
    if (file.sha256 == sha256)
      return Blob{
          .path = join_path(path(entry->first), file.name), .bytes = file.bytes, .held = hold_locked(entry->second)};
  return std::nullopt;
}

AdapterCache::Stats AdapterCache::stats() const {
  std::lock_guard lock(mutex_);
  return {.adapters = std::ssize(entries_), .bytes = bytes_ + reserved_, .max_bytes = max_bytes_};
}

}  // namespace lk
