// SPDX-License-Identifier: Apache-2.0
// DeviceBuffer: memory of a back-end, owned. Its address is a device address: anybody may reckon with it, only the
// back-end may read or write what lies there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace lk {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // `owner` frees the memory when the last reference to it goes; it may outlive the back-end object.
  DeviceBuffer(std::byte* data, int64_t size_bytes, std::shared_ptr<const void> owner)
      : data_(data), size_bytes_(size_bytes), owner_(std::move(owner)) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(owner_, other.owner_);
    return *this;
  }

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
  std::shared_ptr<const void> owner_;
};

}  // namespace lk
