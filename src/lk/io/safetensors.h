// SPDX-License-Identifier: Apache-2.0
// safetensors: 8-byte little-endian header length, JSON header, raw row-major data. The file is
// mapped, never copied; every offset is checked against the file size before anything is read
// (hostile input). Format: https://github.com/huggingface/safetensors#format
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
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
// A tensor that is not read: integers, 8-bit floats, more than four dimensions (kernels over video).
struct UnreadTensor {
  std::string name;
  std::string why;  // "has dtype I64; supported: F32, BF16, F16"
};

// Parses and validates a header. `bytes` is the whole file. For fuzzing and SafetensorsFile.
// Errors (kDataLoss) name the tensor: truncated, lying or oversized header (> 100 MB), duplicate
// names, ranges that overlap, leave holes or leave the file, a shape that contradicts its byte
// range. Tensors of other types than F32, BF16 and F16, or of more than four dimensions, are listed apart: whoever
// needs one refuses. Views may be unaligned when the header has an odd length: see TensorStore.
struct SafetensorsIndex {
  std::vector<TensorEntry> tensors;  // in order of their data
  std::vector<UnreadTensor> unread;
  std::map<std::string, std::string> metadata;  // "__metadata__"
};
Result<SafetensorsIndex> parse_safetensors(std::span<const std::byte> bytes);

struct OpenOptions {
  bool copy = false;  // into memory instead of mapping it: independent of what happens to the file afterwards
  int64_t max_bytes = INT64_MAX;
  // Sees what the header says before anything is copied into place; may refuse it, and may take tensors out. Unread
  // tensors that it leaves are an error.
  std::function<Status(SafetensorsIndex&)> accept = {};
  // Start computing the SHA-256 of this text followed by the file, beside everything else: see digest().
  std::optional<std::string> digest_after = {};
};

class FileDigest;

// One or more mapped safetensors files as one name -> tensor map. Every view is aligned to its element: tensors that
// are not, in the file, are copied, all together into one block. Thread safety: immutable after open; share freely.
class TensorStore {
 public:
  TensorStore();
  ~TensorStore();
  static Result<std::shared_ptr<const TensorStore>> open_file(const std::string& path, const OpenOptions& options = {});
  // A Hugging Face model directory: model.safetensors, or the shards of
  // model.safetensors.index.json (a missing shard, or a tensor the index names but no shard has, is
  // an error naming it). Tensors of types that are not read are left to the caller: see unread().
  static Result<std::shared_ptr<const TensorStore>> open_model(const std::string& directory);
  // The tensors of `source`, which stays open, under other names.
  static std::shared_ptr<const TensorStore> renamed(std::shared_ptr<const TensorStore> source,
                                                    std::map<std::string, TensorView> tensors);

  const TensorView* find(const std::string& name) const;  // nullptr when absent
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::vector<UnreadTensor>& unread() const { return unread_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  int64_t size_bytes() const { return size_bytes_; }  // of the files
  // What the store keeps in memory, mapped files counted as if they were all there.
  int64_t memory_bytes() const;
  // Whoever has read a tensor of a mapped file and wants no more of it gives its memory back: see MmapFile::drop_pages.
  void drop_pages(const TensorView& tensor) const;
  // Waits for it. Requires: opened with digest_after.
  std::array<uint8_t, 32> digest() const;
  // SHA-256 over the names, types, shapes and bytes of all tensors, hex: which weights these are, in whatever files.
  // Computed on the first call, which reads everything.
  const std::string& content_digest() const;

 private:
  Status add_tensors(const std::function<Status(SafetensorsIndex&)>& accept, bool keep_unread);  // of the last file
  Status realign(std::vector<TensorEntry>& tensors);

  std::shared_ptr<const TensorStore> source_;  // of a renamed store: it has the files
  std::vector<MmapFile> files_;
  std::vector<Buffer> realigned_;  // of each file with misaligned tensors, their copies
  std::map<std::string, TensorView> tensors_;
  std::vector<UnreadTensor> unread_;
  std::map<std::string, std::string> metadata_;
  int64_t size_bytes_ = 0;
  mutable std::once_flag content_once_;
  mutable std::string content_digest_;
  std::unique_ptr<FileDigest> digest_;  // last: it reads the files until it is destroyed
};

// Writes tensors in the given order, metadata {"format": "pt"} plus `metadata`, atomically.
Status write_safetensors(const std::string& path, const std::vector<TensorEntry>& tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace lk
