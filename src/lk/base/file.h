// SPDX-License-Identifier: Apache-2.0
// Small file helpers: whole-file read with a size cap, atomic write, read-only memory map.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

// The whole file; kNotFound, kIoError, or kInvalidArgument past max_bytes. Errors name the path.
Result<std::string> read_file(const std::string& path, size_t max_bytes = size_t{256} << 20);

// The first `num_bytes` bytes of a file, or all of a shorter one.
Result<std::string> read_prefix(const std::string& path, size_t num_bytes);

// Writes a temporary file beside `path`, fsyncs, renames: readers see the old or the new file, never half of one.
// A private one is for its owner alone, also before it has its name.
enum class FileAccess { kShared, kPrivate };
Status write_file_atomic(const std::string& path, std::string_view bytes, FileAccess access = FileAccess::kShared);

// Writes all of it, however many calls that takes: the bytes written, fewer when one failed, whose reason is in errno.
size_t write_all(int fd, std::string_view bytes);

bool file_exists(const std::string& path);
bool is_directory(const std::string& path);
Status make_directories(const std::string& path);
std::string join_path(std::string_view directory, std::string_view name);

// A read-only map of a regular file. The length is fixed at open. Move-only.
class MmapFile {
 public:
  static Result<MmapFile> open(const std::string& path);
  // Memory of our own for the file's bytes, to be filled by read_all(): somebody who later truncates the file in place
  // cannot take them away (a read behind the end of a mapped file is SIGBUS). The byte at `offset` gets an address that
  // is a multiple of 64. max_bytes is checked before anything is allocated.
  static Result<MmapFile> reserve(const std::string& path, size_t max_bytes, size_t offset = 0);
  static Result<MmapFile> copy(const std::string& path, size_t max_bytes);  // reserve() and read_all()
  // Reads the file into what reserve() took. on_bytes (may be empty) gets the bytes in order, each piece as soon as it
  // is there.
  Status read_all(const std::function<void(std::span<const std::byte>)>& on_bytes = {});
  MmapFile(MmapFile&& other) noexcept;
  MmapFile& operator=(MmapFile&& other) noexcept;
  ~MmapFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // The pages around `part` of a mapped file leave this process's memory; whoever reads them again gets them from the
  // kernel's cache, or the disk. Nothing for a file that was copied. Any thread may read meanwhile.
  void drop_pages(std::span<const std::byte> part) const;

 private:
  MmapFile() = default;
  std::byte* data_ = nullptr;  // of the file
  size_t size_ = 0;
  size_t lead_ = 0;      // bytes mapped before data_
  bool mapped_ = false;  // the file itself, not memory of our own
  int fd_ = -1;          // between reserve() and read_all()
  std::string path_;
};

}  // namespace lk
