// SPDX-License-Identifier: Apache-2.0
// Buffer: owned host memory, zeroed, aligned to 64 bytes (2 MiB with transparent huge pages when large).
#pragma once

#include <cstddef>
#include <cstdint>

#include "lk/base/status.h"

namespace lk {

class Buffer {
 public:
  Buffer() = default;
  // Aborts when the machine has no memory left; use try_allocate for sizes that come from outside.
  explicit Buffer(int64_t size_bytes);
  static Result<Buffer> try_allocate(int64_t size_bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  int64_t mapped_bytes_ = 0;
};

}  // namespace lk
