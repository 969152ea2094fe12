// SPDX-License-Identifier: Apache-2.0
#include "lk/tensor/buffer.h"

#include <sys/mman.h>

#include <utility>

namespace lk {

Result<Buffer> Buffer::try_allocate(int64_t size_bytes) {
  constexpr int64_t kHuge = int64_t{2} << 20;
  Buffer buffer;
  if (size_bytes <= 0) return buffer;
  // Over-map by one huge page so that the start can be aligned to it.
  const bool large = size_bytes >= 2 * kHuge;
  const int64_t align = large ? kHuge : 4096;
  const int64_t length = (size_bytes + align - 1) / align * align;
  void* raw = ::mmap(nullptr, static_cast<size_t>(length + (large ? kHuge : 0)), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return resource_exhausted("cannot allocate {} bytes of memory", size_bytes);
  auto* start = static_cast<std::byte*>(raw);
  if (large) {
    const auto address = reinterpret_cast<uintptr_t>(raw);
    const auto head = static_cast<int64_t>((kHuge - address % kHuge) % kHuge);
    if (head > 0) ::munmap(start, static_cast<size_t>(head));
    if (kHuge - head > 0) ::munmap(start + head + length, static_cast<size_t>(kHuge - head));
    start += head;
    ::madvise(start, static_cast<size_t>(length), MADV_HUGEPAGE);
  }
  buffer.data_ = start;
  buffer.size_bytes_ = size_bytes;
  buffer.mapped_bytes_ = length;
  return buffer;
}

Buffer::Buffer(int64_t size_bytes) {
  Result<Buffer> buffer = try_allocate(size_bytes);
  LK_CHECK(buffer.ok(), "{}", buffer.status().message());
  *this = std::move(buffer).value();
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(mapped_bytes_));
}

}  // namespace lk
