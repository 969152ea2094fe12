// SPDX-License-Identifier: Apache-2.0
// SafetensorsWriter: streams a safetensors file, tensor by tensor, into a temporary file beside the
// target; finish() syncs and renames it. Dropped without finish(), it leaves nothing behind.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/tensor/dtype.h"

namespace lk {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  int64_t num_elements() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }
  int64_t num_bytes() const { return num_elements() * dtype_bytes(dtype); }
};

class SafetensorsWriter {
 public:
  // Writes the header: tensors in the given order, metadata {"format": "pt"} plus `metadata`.
  static Result<SafetensorsWriter> create(const std::string& path, const std::vector<TensorSpec>& tensors,
                                          const std::map<std::string, std::string>& metadata = {});
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  ~SafetensorsWriter();

  // The next bytes of the data; a tensor may come in pieces.
  Status append(const void* data, int64_t num_bytes);
  // Requires: exactly the declared bytes were appended.
  Status finish();

 private:
  SafetensorsWriter() = default;
  Status write_all(const void* data, size_t num_bytes);
  Status fail(const char* verb);

  std::string path_, temporary_;
  int fd_ = -1;
  int64_t remaining_ = 0;  // declared bytes not yet appended
};

}  // namespace lk
