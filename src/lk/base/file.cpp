// SPDX-License-Identifier: Apache-2.0
#include "lk/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "lk/base/write_error.h"

namespace lk {
namespace {

Status errno_status(const char* verb, const std::string& path) {
  const int error = errno;
  const StatusCode code = error == ENOENT || error == ENOTDIR ? StatusCode::kNotFound : StatusCode::kIoError;
  return Status(code, fmt::format("cannot {} {}: {}", verb, path, std::strerror(error)));
}

Status write_error(const char* verb, const std::string& path, int error = errno) {
  return Status(write_error_code(error), fmt::format("cannot {} {}: {}", verb, path, std::strerror(error)));
}

struct Fd {
  int fd;
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};

// Opens for reading; refuses directories, pipes and devices. Without waiting: a pipe would open when somebody writes to
// it, perhaps never.
Result<size_t> open_regular(const std::string& path, Fd& file) {
  file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.fd < 0) return errno_status("open", path);
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) return errno_status("stat", path);
  if (!S_ISREG(info.st_mode)) return invalid_argument("{} is not a regular file", path);
  return static_cast<size_t>(info.st_size);
}

Result<std::string> read_some(const std::string& path, const Fd& file, size_t size) {
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.fd, text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status("read", path);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

}  // namespace

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  Fd file{-1};
  LK_ASSIGN_OR_RETURN(const size_t size, open_regular(path, file));
  if (size > max_bytes) return invalid_argument("{} has {} bytes, more than the limit of {}", path, size, max_bytes);
  return read_some(path, file, size);
}

Result<std::string> read_prefix(const std::string& path, size_t num_bytes) {
  Fd file{-1};
  LK_ASSIGN_OR_RETURN(const size_t size, open_regular(path, file));
  return read_some(path, file, std::min(size, num_bytes));
}

size_t write_all(int fd, std::string_view bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put == 0) errno = EIO;
    if (put <= 0) break;
    done += static_cast<size_t>(put);
  }
  return done;
}

Status write_file_atomic(const std::string& path, std::string_view bytes, FileAccess access) {
  const std::string temporary = path + fmt::format(".tmp.{}", ::getpid());
  const auto failed = [&](const char* verb, const std::string& name) {
    Status status = write_error(verb, name);
    ::unlink(temporary.c_str());
    return status;
  };
  {
    const bool shared = access == FileAccess::kShared;
    // Whoever opened an earlier file of that name would see what comes into it.
    if (!shared) ::unlink(temporary.c_str());
    const int fresh = shared ? O_TRUNC : O_EXCL;
    const Fd file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | fresh, shared ? 0644 : 0600)};
    if (file.fd < 0) return write_error("create", temporary);
    if (write_all(file.fd, bytes) != bytes.size()) return failed("write", temporary);
    if (::fsync(file.fd) != 0) return failed("sync", temporary);
  }
  return ::rename(temporary.c_str(), path.c_str()) == 0 ? Status() : failed("rename to", path);
}

bool file_exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

bool is_directory(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

Status make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return write_error("create directory", path, error.value());
  return Status();
}

std::string join_path(std::string_view directory, std::string_view name) {
  if (directory.empty()) return std::string(name);
  if (directory.back() == '/') return fmt::format("{}{}", directory, name);
  return fmt::format("{}/{}", directory, name);
}

Result<MmapFile> MmapFile::open(const std::string& path) {
  Fd file{-1};
  LK_ASSIGN_OR_RETURN(const size_t size, open_regular(path, file));
  MmapFile map;
  map.path_ = path;
  map.size_ = size;
  if (size > 0) {
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (data == MAP_FAILED) return errno_status("map", path);
    map.data_ = static_cast<std::byte*>(data);
    map.mapped_ = true;
  }
  return map;
}

void MmapFile::drop_pages(std::span<const std::byte> part) const {
  if (!mapped_ || part.empty()) return;
  LK_CHECK(part.data() >= data_ && part.data() + part.size() <= data_ + size_);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto before = static_cast<size_t>(part.data() - data_) % page;
  (void)::madvise(const_cast<std::byte*>(part.data()) - before, before + part.size(), MADV_DONTNEED);
}

Result<MmapFile> MmapFile::reserve(const std::string& path, size_t max_bytes, size_t offset) {
  Fd file{-1};
  LK_ASSIGN_OR_RETURN(const size_t size, open_regular(path, file));
  if (size > max_bytes) return resource_exhausted("{} has {} bytes, more than the limit of {}", path, size, max_bytes);
  MmapFile copy;
  copy.path_ = path;
  copy.size_ = size;
  copy.fd_ = std::exchange(file.fd, -1);
  if (size == 0) return copy;
  constexpr size_t kAlignment = 64;
  copy.lead_ = (kAlignment - offset % kAlignment) % kAlignment;
  void* data = ::mmap(nullptr, copy.lead_ + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return errno_status("allocate memory for", path);
  // Faults of small pages would cost a third of what reading a cached file costs.
  (void)::madvise(data, copy.lead_ + size, MADV_HUGEPAGE);
  copy.data_ = static_cast<std::byte*>(data) + copy.lead_;
  return copy;
}

Result<MmapFile> MmapFile::copy(const std::string& path, size_t max_bytes) {
  LK_ASSIGN_OR_RETURN(MmapFile file, reserve(path, max_bytes));
  LK_RETURN_IF_ERROR(file.read_all());
  return file;
}

Status MmapFile::read_all(const std::function<void(std::span<const std::byte>)>& on_bytes) {
  constexpr size_t kPiece = size_t{1} << 20, kAhead = 8 * kPiece;
  for (size_t done = 0; done < size_;) {
    // The disk works on what comes next while this piece is copied.
    if (done % kPiece == 0)
      (void)::posix_fadvise(fd_, static_cast<off_t>(done == 0 ? 0 : done + kAhead - kPiece),
                            static_cast<off_t>(done == 0 ? kAhead : kPiece), POSIX_FADV_WILLNEED);
    const ssize_t got = ::pread(fd_, data_ + done, std::min(kPiece, size_ - done), static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status("read", path_);
    if (got == 0) return data_loss("{} became shorter while it was read ({} of {} bytes)", path_, done, size_);
    if (on_bytes) on_bytes({data_ + done, static_cast<size_t>(got)});
    done += static_cast<size_t>(got);
  }
  ::close(std::exchange(fd_, -1));
  if (size_ > 0) ::mprotect(data_ - lead_, lead_ + size_, PROT_READ);
  return Status();
}

MmapFile::MmapFile(MmapFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      lead_(std::exchange(other.lead_, 0)),
      mapped_(std::exchange(other.mapped_, false)),
      fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)) {}

MmapFile& MmapFile::operator=(MmapFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(lead_, other.lead_);
  std::swap(mapped_, other.mapped_);
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

MmapFile::~MmapFile() {
  if (data_ != nullptr) ::munmap(data_ - lead_, lead_ + size_);
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace lk
