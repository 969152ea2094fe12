// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/conversion_cache.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <tuple>

#include "lk/base/file.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {
namespace fs = std::filesystem;

constexpr const char* kDigestKey = "lorikeet_sha256";
constexpr const char* kVersion = "1";  // of what a conversion gives: another one makes other names

// In the order of the store, by name, whatever order they were written in.
std::string digest_of(std::vector<TensorEntry> tensors) {
  std::ranges::sort(tensors, {}, &TensorEntry::name);
  Sha256 sha;
  for (const TensorEntry& tensor : tensors) {
    const std::string head = fmt::format("{} {}\n", tensor.name, tensor.view.shape_string());
    sha.update(head.data(), head.size());
    sha.update(tensor.view.raw(), static_cast<size_t>(tensor.view.num_bytes()));
  }
  return to_hex(sha.finish());
}

}  // namespace

ConversionCache::ConversionCache(std::string directory, const std::string& adapter_digest,
                                 const std::string& base_digest, int64_t max_bytes)
    : directory_(std::move(directory)), max_bytes_(max_bytes) {
  if (directory_.empty()) return;
  Sha256 key;
  for (const std::string& part : {std::string(kVersion), adapter_digest, base_digest})
    key.update(part.data(), part.size());
  path_ = join_path(directory_, to_hex(key.finish()) + ".safetensors");
}

std::shared_ptr<const TensorStore> ConversionCache::find(bool copy) const {
  if (path_.empty()) return nullptr;
  const Result<std::shared_ptr<const TensorStore>> store =
      TensorStore::open_file(path_, {.copy = copy, .max_bytes = max_bytes_});
  if (!store.ok()) return nullptr;
  std::vector<TensorEntry> tensors;
  for (const auto& [name, view] : (*store)->tensors()) tensors.push_back({name, view});
  const auto digest = (*store)->metadata().find(kDigestKey);
  if (digest == (*store)->metadata().end() || digest->second != digest_of(std::move(tensors))) return nullptr;
  (void)::utimensat(AT_FDCWD, path_.c_str(), nullptr, 0);  // read now
  return *store;
}

void ConversionCache::put(const std::vector<TensorEntry>& tensors) const {
  if (path_.empty()) return;
  int64_t bytes = 0;
  for (const TensorEntry& tensor : tensors) bytes += tensor.view.num_bytes();
  if (bytes > max_bytes_ || !make_directories(directory_).ok()) return;
  // A half-written file has the name of its process: one writer at a time in each.
  static std::mutex one_at_a_time;
  std::lock_guard lock(one_at_a_time);
  make_room(bytes);
  (void)write_safetensors(path_, tensors, {{kDigestKey, digest_of(tensors)}});
}

void ConversionCache::make_room(int64_t bytes) const {
  std::vector<std::tuple<fs::file_time_type, fs::path, int64_t>> files;
  int64_t total = bytes;
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    std::error_code gone;
    const auto size = static_cast<int64_t>(it->file_size(gone));
    const fs::file_time_type time = it->last_write_time(gone);
    if (gone || it->path().extension() != ".safetensors") continue;
    files.emplace_back(time, it->path(), size);
    total += size;
  }
  std::ranges::sort(files);
  for (const auto& [time, path, size] : files) {
    if (total <= max_bytes_) return;
    if (fs::remove(path, error)) total -= size;
  }
}

}  // namespace lk
