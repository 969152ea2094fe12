// SPDX-License-Identifier: Apache-2.0
// Small file helpers: whole-file read with a size cap, atomic write, read-only memory map.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

// The whole file; kNotFound, kIoError, or kResourceExhausted past max_bytes. Errors name the path.
Result<std::string> read_file(const std::string& path, size_t max_bytes = size_t{256} << 20);

// Writes a temporary file beside `path`, fsyncs, renames: readers see the old or the new file, never half of one.
Status write_file_atomic(const std::string& path, std::string_view bytes);

bool file_exists(const std::string& path);
bool is_directory(const std::string& path);
Status make_directories(const std::string& path);
std::string join_path(std::string_view directory, std::string_view name);

// A read-only map of a regular file. The length is fixed at open. Move-only.
class MmapFile {
 public:
  static Result<MmapFile> open(const std::string& path);
  // The bytes as they are now, in memory of our own: somebody who later truncates the file in place cannot take them
  // away (a read behind the end of a mapped file is SIGBUS). max_bytes is checked before anything is allocated.
  static Result<MmapFile> copy(const std::string& path, size_t max_bytes);
  MmapFile(MmapFile&& other) noexcept;
  MmapFile& operator=(MmapFile&& other) noexcept;
  ~MmapFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MmapFile() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

}  // namespace lk
