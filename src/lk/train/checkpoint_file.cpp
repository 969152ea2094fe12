// SPDX-License-Identifier: Apache-2.0
#include "lk/train/checkpoint_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/sha256.h"
#include "lk/base/write_error.h"

namespace lk {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kHiddenPrefix = ".checkpoint-";
constexpr const char* kManifest = "checkpoint.json";

Status errno_status(const char* verb, const std::string& path) {
  const int error = errno;
  return Status(write_error_code(error), fmt::format("cannot {} {}: {}", verb, path, std::strerror(error)));
}

Status sync_path(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno_status("open", path);
  const bool synced = ::fsync(fd) == 0;
  Status status = synced ? Status() : errno_status("sync", path);
  ::close(fd);
  return status;
}

Status remove_tree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (!error) return Status();
  return Status(write_error_code(error.value()), fmt::format("cannot remove {}: {}", path, error.message()));
}

struct FileFacts {
  int64_t bytes = 0;
  std::string sha256;
};
Result<FileFacts> read_facts(const std::string& path) {
  Sha256 sha;
  FileFacts facts;
  std::vector<char> piece(1 << 20);  // read, not mapped: a mapped file counts as this process's memory
  std::ifstream in(path, std::ios::binary);
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0) {
    sha.update(piece.data(), static_cast<size_t>(in.gcount()));
    facts.bytes += in.gcount();
  }
  if (in.bad() || !in.eof()) return io_error("{} cannot be read", path);
  facts.sha256 = to_hex(sha.finish());
  return facts;
}

// Its files are those of its manifest, byte for byte.
Status check_complete(const std::string& path, int64_t step) {
  const std::string manifest = join_path(path, kManifest);
  LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(manifest));
  JsonFields fields(object, manifest);
  int64_t written_step = -1;
  fields.read_int("step", written_step, 0, INT64_MAX);
  LK_RETURN_IF_ERROR(fields.status());
  if (written_step != step) return data_loss("{}: is of step {}", manifest, written_step);
  const json::value* files = fields.find("files");
  if (files == nullptr || !files->is_array()) return data_loss("{}: lists no files", manifest);
  for (const json::value& each : files->get_array()) {
    if (!each.is_object()) return data_loss("{}: lists no files", manifest);
    JsonFields file(each.get_object(), manifest);
    std::string name, sha256;
    int64_t bytes = -1;
    file.read_string("name", name);
    file.read_int("bytes", bytes, 0, INT64_MAX);
    file.read_string("sha256", sha256);
    LK_RETURN_IF_ERROR(file.status());
    if (fs::path(name).filename() != name) return data_loss("{}: \"{}\" is no name of a file", manifest, name);
    LK_ASSIGN_OR_RETURN(const FileFacts facts, read_facts(join_path(path, name)));
    if (facts.bytes != bytes || facts.sha256 != sha256)
      return data_loss("{} is not the file that was written", join_path(path, name));
  }
  return Status();
}

}  // namespace

CheckpointPart bytes_part(std::string name, std::string bytes) {
  const auto write = [name, bytes = std::move(bytes)](const std::string& directory) {
    return write_file_atomic(join_path(directory, name), bytes);
  };
  return {{name}, write};
}

CheckpointStore::Lock::~Lock() {
  if (fd >= 0) ::close(fd);
}

Status CheckpointStore::claim() {
  LK_RETURN_IF_ERROR(make_directories(directory_));
  Lock lock;
  lock.fd = ::open(directory_.c_str(), O_DIRECTORY | O_RDONLY | O_CLOEXEC);
  if (lock.fd < 0) return errno_status("open", directory_);
  // A file system without locks has none to offer; then users must see to it.
  if (::flock(lock.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return failed_precondition("{} is written to by another run; wait for it, or give another directory", directory_);
  std::error_code error;
  std::vector<std::string> leftovers;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_, error))
    if (entry.path().filename().string().starts_with(kHiddenPrefix)) leftovers.push_back(entry.path());
  if (error) return io_error("cannot list {}: {}", directory_, error.message());
  for (const std::string& path : leftovers) LK_RETURN_IF_ERROR(remove_tree(path));
  lock_ = std::move(lock);
  return Status();
}

std::string CheckpointStore::path_of(int64_t step) const {
  return join_path(directory_, fmt::format("{}{}", kPrefix, step));
}
std::string CheckpointStore::hidden_path(int64_t step) const {
  return join_path(directory_, fmt::format("{}{}", kHiddenPrefix, step));
}

std::vector<int64_t> CheckpointStore::steps() const {
  std::vector<int64_t> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename();
    int64_t step = -1;
    if (!name.starts_with(kPrefix)) continue;
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
    if (parsed.ec == std::errc() && parsed.ptr == end && step >= 0) found.push_back(step);
  }
  std::sort(found.begin(), found.end());
  return found;
}

Result<std::optional<CheckpointStore::Found>> CheckpointStore::newest() const {
  Found found;
  const std::vector<int64_t> all = steps();
  for (auto step = all.rbegin(); step != all.rend(); ++step) {
    found.step = *step, found.path = path_of(*step);
    const Status status = check_complete(found.path, *step);
    if (status.ok()) return std::optional<Found>(std::move(found));
    found.skipped.push_back(fmt::format("{}: {}", found.path, status.message()));
  }
  if (found.skipped.empty()) return std::optional<Found>();
  return data_loss("{}: no checkpoint is complete ({}); remove them to start anew", directory_,
                   fmt::join(found.skipped, "; "));
}

Status CheckpointStore::before(const std::string& operation) const {
  return options_.fault ? options_.fault(operation) : Status();
}

Status CheckpointStore::write_parts(const std::string& path, int64_t step,
                                    const std::vector<CheckpointPart>& parts) const {
  LK_RETURN_IF_ERROR(before("create"));
  LK_RETURN_IF_ERROR(remove_tree(path));  // of a save that failed and could not clean up
  LK_RETURN_IF_ERROR(make_directories(path));
  json::array files;
  for (const CheckpointPart& part : parts) {
    LK_RETURN_IF_ERROR(before("write " + part.names[0]));
    LK_RETURN_IF_ERROR(part.write(path));
    for (const std::string& name : part.names) {
      LK_CHECK(fs::path(name).filename() == name && name != kManifest, "part {}", name);
      const std::string file = join_path(path, name);
      LK_RETURN_IF_ERROR(before("sync " + name));
      LK_RETURN_IF_ERROR(sync_path(file, 0));
      LK_ASSIGN_OR_RETURN(const FileFacts facts, read_facts(file));
      files.push_back(json::object{{"name", name}, {"bytes", facts.bytes}, {"sha256", facts.sha256}});
    }
  }
  LK_RETURN_IF_ERROR(before("write manifest"));
  LK_RETURN_IF_ERROR(write_file_atomic(join_path(path, kManifest),
                                       json_text(json::object{{"step", step}, {"files", std::move(files)}}) + "\n"));
  LK_RETURN_IF_ERROR(before("sync directory"));
  return sync_path(path, O_DIRECTORY);
}

Status CheckpointStore::publish(const std::string& hidden, int64_t step) const {
  const std::string path = path_of(step);
  LK_RETURN_IF_ERROR(before("rename"));
  // One of the same step, perhaps damaged, changes places with the new one, so that there always is one.
  if (is_directory(path)) {
    if (::renameat2(AT_FDCWD, hidden.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) return remove_tree(hidden);
    LK_RETURN_IF_ERROR(remove_tree(path));  // a file system that cannot
  }
  if (::rename(hidden.c_str(), path.c_str()) != 0) return errno_status("rename to", path);
  LK_RETURN_IF_ERROR(before("sync parent"));
  return sync_path(directory_, O_DIRECTORY);
}

// What cannot be removed now is tried again after the next save.
void CheckpointStore::remove_old(int64_t saved) const {
  std::vector<int64_t> all = steps();
  const auto remove = [&](int64_t step) {
    // Hidden first: a checkpoint is never seen half removed.
    if (before("remove").ok() && ::rename(path_of(step).c_str(), hidden_path(step).c_str()) == 0)
      (void)remove_tree(hidden_path(step));
  };
  int64_t kept = 0;
  for (auto step = all.rbegin(); step != all.rend(); ++step) {
    const bool complete = file_exists(join_path(path_of(*step), kManifest));
    if (*step != saved && (kept >= options_.keep || !complete))
      remove(*step);
    else
      ++kept;
  }
}

Status CheckpointStore::save(int64_t step, const std::vector<CheckpointPart>& parts) {
  LK_CHECK(lock_.fd >= 0 && options_.keep >= 1);
  const std::string hidden = hidden_path(step);
  Status status = write_parts(hidden, step, parts);
  if (status.ok()) status = publish(hidden, step);
  if (!status.ok()) {
    (void)remove_tree(hidden);
    return status.with_context(fmt::format("checkpoint of step {}", step));
  }
  remove_old(step);
  return Status();
}

}  // namespace lk
