// SPDX-License-Identifier: Apache-2.0
// ConversionCache: what the conversion of a PiSSA or OLoRA adapter gave, kept in a directory as one safetensors file
// per adapter and base. A decomposition of every adapted weight takes minutes, and the host tier reads an adapter again
// whenever it was dropped.
//
// A file is named by the digests of the adapter and of the base's weights, appears whole (rename) and says its own
// digest: what is damaged or does not fit counts as absent. The directory is bounded; what was not read for the longest
// time goes first.
//
// Thread safety: any thread, any number of processes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lk/io/safetensors.h"

namespace lk {

class ConversionCache {
 public:
  // `directory` empty: nothing is kept and nothing found.
  ConversionCache(std::string directory, const std::string& adapter_digest, const std::string& base_digest,
                  int64_t max_bytes = int64_t{16} << 30);

  // Null when there is none. `copy`: into memory instead of mapping it.
  std::shared_ptr<const TensorStore> find(bool copy) const;
  // Best effort: a full disk costs the next reader his time, nothing else.
  void put(const std::vector<TensorEntry>& tensors) const;

 private:
  void make_room(int64_t bytes) const;

  std::string directory_, path_;
  int64_t max_bytes_;
};

}  // namespace lk
