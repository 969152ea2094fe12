// SPDX-License-Identifier: Apache-2.0
// safetensors: 8-byte little-endian header length, JSON header, raw row-major data. The file is
// mapped, never copied; every offset is checked against the file size before anything is read
// (hostile input). Format: https://github.com/huggingface/safetensors#format
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lk/base/file.h"
#include "lk/base/status.h"
#include "lk/tensor/buffer.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

struct TensorEntry {
  std::string name;
  TensorView view;  // points into the mapped file
};

// Parses and validates a header. `bytes` is the whole file. For fuzzing and SafetensorsFile.
// Errors (kDataLoss) name the tensor: truncated, lying or oversized header (> 100 MB), duplicate
// names, ranges that overlap, leave holes or leave the file, a shape that contradicts its byte
// range; dtypes other than F32, BF16 and F16 are kUnsupported. Views may be unaligned when the
// header has an odd length: see TensorStore.
struct SafetensorsIndex {
  std::vector<TensorEntry> tensors;             // in order of their data
  std::map<std::string, std::string> metadata;  // "__metadata__"
};
Result<SafetensorsIndex> parse_safetensors(std::span<const std::byte> bytes);

// One or more mapped safetensors files as one name -> tensor map. Every view is aligned to its
// element: a tensor that is not, in the file, is copied. Thread safety: immutable after open; share
// freely.
class TensorStore {
 public:
  static Result<std::shared_ptr<const TensorStore>> open_file(const std::string& path);
  // The same, copied into memory: independent of what happens to the file afterwards.
  static Result<std::shared_ptr<const TensorStore>> copy_file(const std::string& path, int64_t max_bytes);
  // A Hugging Face model directory: model.safetensors, or the shards of
  // model.safetensors.index.json (a missing shard, or a tensor the index names but no shard has, is
  // an error naming it).
  static Result<std::shared_ptr<const TensorStore>> open_model(const std::string& directory);

  const TensorView* find(const std::string& name) const;  // nullptr when absent
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  int64_t size_bytes() const { return size_bytes_; }
  // The mapped bytes of file `index`, for digests.
  std::span<const std::byte> file_bytes(size_t index) const { return files_[index].bytes(); }

 private:
  Status add_file(MmapFile file);

  std::vector<MmapFile> files_;
  std::vector<Buffer> realigned_;  // copies of misaligned tensors
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
  int64_t size_bytes_ = 0;
};

// Writes tensors in the given order, metadata {"format": "pt"} plus `metadata`, atomically.
Status write_safetensors(const std::string& path, const std::vector<TensorEntry>& tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace lk
