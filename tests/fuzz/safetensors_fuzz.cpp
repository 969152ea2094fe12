// SPDX-License-Identifier: Apache-2.0
// parse_safetensors on arbitrary bytes. Whatever is accepted must be readable to its last byte.
#include <cstdint>
#include <cstring>
#include <vector>

#include "lk/io/safetensors.h"
#include "lk/io/weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto index = lk::parse_safetensors(std::as_bytes(std::span(data, size)));
  if (!index.ok()) return 0;
  int64_t total = 0;
  for (const lk::TensorEntry& tensor : index->tensors) {
    std::vector<std::byte> copy(static_cast<size_t>(tensor.view.num_bytes()));
    if (!copy.empty()) std::memcpy(copy.data(), tensor.view.raw(), copy.size());
    total += tensor.view.num_bytes();
    tensor.view.shape_string();
    // As TensorStore does it: aligned before it is read as numbers.
    const lk::TensorView aligned(copy.data(), tensor.view.dtype(), tensor.view.shape());
    (void)lk::largest_magnitude(aligned);
  }
  LK_CHECK(total <= static_cast<int64_t>(size));
  return 0;
}
