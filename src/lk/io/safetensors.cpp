// SPDX-License-Identifier: Apache-2.0
#include "lk/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <set>

#include "lk/base/json_fields.h"
#include "lk/io/file_digest.h"
#include "lk/io/safetensors_header.h"

namespace lk {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
static_assert(std::endian::native == std::endian::little, "tensor data is mapped as it is");

std::optional<DType> dtype_from_name(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  return std::nullopt;
}

// Bytes of the tensor, or nullopt on overflow.
std::optional<uint64_t> tensor_bytes(const SafetensorsHeaderEntry& entry, DType dtype) {
  uint64_t bytes = static_cast<uint64_t>(dtype_bytes(dtype));
  for (uint64_t extent : entry.shape) {
    // int64 bound as well: TensorView counts in int64.
    if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes > INT64_MAX) return std::nullopt;
  }
  return bytes;
}

Result<TensorView> make_view(const SafetensorsHeaderEntry& entry, DType dtype, std::span<const std::byte> data) {
  const std::optional<uint64_t> bytes = tensor_bytes(entry, dtype);
  if (!bytes || *bytes != entry.end - entry.begin) {
    return data_loss("tensor '{}': its shape and dtype contradict its {} bytes", entry.name, entry.end - entry.begin);
  }
  std::array<int64_t, 4> shape{};
  std::copy(entry.shape.begin(), entry.shape.end(), shape.begin());
  return TensorView(data.data() + entry.begin, dtype, std::span<const int64_t>(shape.data(), entry.shape.size()));
}

// Where the data of a file begins, as its first bytes say. Not checked yet; it only decides on an alignment.
Result<uint64_t> data_offset(const std::string& path) {
  LK_ASSIGN_OR_RETURN(const std::string head, read_prefix(path, 8));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, head.data(), head.size());
  return 8 + header_bytes;
}

}  // namespace

Result<SafetensorsIndex> parse_safetensors(std::span<const std::byte> bytes) {
  if (bytes.size() < 8) return data_loss("truncated: {} bytes, not even a header length", bytes.size());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes) {
    return data_loss("header of {} bytes exceeds the limit of {}; not a safetensors file?", header_bytes,
                     kMaxHeaderBytes);
  }
  if (header_bytes > bytes.size() - 8) {
    return data_loss("truncated: the header has {} bytes, the file {}", header_bytes, bytes.size());
  }
  const auto text = std::string_view(reinterpret_cast<const char*>(bytes.data() + 8), header_bytes);
  LK_ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors_header(text));
  const std::span<const std::byte> data = bytes.subspan(8 + header_bytes);

  std::vector<SafetensorsHeaderEntry>& entries = header.entries;
  std::stable_sort(entries.begin(), entries.end(), [](const auto& left, const auto& right) {
    return std::pair(left.begin, left.end) < std::pair(right.begin, right.end);
  });
  SafetensorsIndex index;
  index.metadata = std::move(header.metadata);
  index.tensors.reserve(entries.size());
  uint64_t position = 0;
  for (SafetensorsHeaderEntry& entry : entries) {
    if (entry.begin > entry.end || entry.end > data.size()) {
      return data_loss("tensor '{}': bytes [{}, {}) lie outside the {} bytes of data; truncated file?", entry.name,
                       entry.begin, entry.end, data.size());
    }
    if (entry.begin != position) {
      return data_loss("tensor '{}' begins at byte {}, {} the previous tensor's end at {}", entry.name, entry.begin,
                       entry.begin < position ? "overlapping" : "leaving a hole after", position);
    }
    position = entry.end;
    const std::optional<DType> dtype = dtype_from_name(entry.dtype);
    if (!dtype || entry.shape.size() > 4) {
      index.unread.push_back(
          {std::move(entry.name), dtype ? fmt::format("has {} dimensions, at most 4 are supported", entry.shape.size())
                                        : fmt::format("has dtype {}; supported: F32, BF16, F16", entry.dtype)});
      continue;
    }
    LK_ASSIGN_OR_RETURN(TensorView view, make_view(entry, *dtype, data));
    index.tensors.push_back({std::move(entry.name), view});
  }
  if (position != data.size()) return data_loss("{} bytes after the last tensor", data.size() - position);
  return index;
}

TensorStore::TensorStore() = default;
TensorStore::~TensorStore() = default;

// A header of odd length, or a tensor of odd size before one of wider elements. One block for all, laid out before it
// is allocated: a block each would round every one up to a page.
Status TensorStore::realign(std::vector<TensorEntry>& tensors) {
  const auto width = [](const TensorView& view) { return static_cast<int64_t>(dtype_bytes(view.dtype())); };
  const auto misaligned = [&](const TensorView& view) {
    return reinterpret_cast<uintptr_t>(view.raw()) % static_cast<uintptr_t>(width(view)) != 0;
  };
  const auto place = [&](int64_t& end, const TensorView& view) {
    const int64_t begin = (end + width(view) - 1) / width(view) * width(view);
    end = begin + view.num_bytes();
    return begin;
  };
  int64_t total = 0;
  for (const TensorEntry& tensor : tensors)
    if (misaligned(tensor.view)) place(total, tensor.view);
  if (total == 0) return Status();
  LK_ASSIGN_OR_RETURN(Buffer block, Buffer::try_allocate(total));
  int64_t end = 0;
  for (TensorEntry& tensor : tensors) {
    if (!misaligned(tensor.view)) continue;
    std::byte* copy = block.data() + place(end, tensor.view);
    std::memcpy(copy, tensor.view.raw(), static_cast<size_t>(tensor.view.num_bytes()));
    tensor.view = TensorView(copy, tensor.view.dtype(), tensor.view.shape());
  }
  realigned_.push_back(std::move(block));
  return Status();
}

// Requires: `file` is the last of files_.
Status TensorStore::add_tensors(const std::function<Status(SafetensorsIndex&)>& accept, bool keep_unread) {
  const MmapFile& file = files_.back();
  Result<SafetensorsIndex> index = parse_safetensors(file.bytes());
  if (!index.ok()) return index.status().with_context(file.path());
  if (accept) LK_RETURN_IF_ERROR(accept(*index));
  if (!keep_unread && !index->unread.empty())
    return unsupported("{}: tensor '{}' {}", file.path(), index->unread.front().name, index->unread.front().why);
  std::ranges::move(index->unread, std::back_inserter(unread_));
  LK_RETURN_IF_ERROR(realign(index->tensors));
  for (const TensorEntry& tensor : index->tensors) {
    const auto [at, added] = tensors_.emplace(tensor.name, tensor.view);
    if (!added) return data_loss("{}: tensor '{}' is also in another shard", file.path(), at->first);
  }
  metadata_.insert(index->metadata.begin(), index->metadata.end());
  size_bytes_ += static_cast<int64_t>(file.bytes().size());
  return Status();
}

Result<std::shared_ptr<const TensorStore>> TensorStore::open_file(const std::string& path, const OpenOptions& options) {
  auto store = std::make_shared<TensorStore>();
  const auto digest = [&](std::span<const std::byte> bytes) {
    if (store->digest_) store->digest_->add(bytes);
  };
  if (options.digest_after) store->digest_ = std::make_unique<FileDigest>(*options.digest_after);
  if (options.copy) {
    LK_ASSIGN_OR_RETURN(const uint64_t offset, data_offset(path));
    LK_ASSIGN_OR_RETURN(MmapFile file, MmapFile::reserve(path, static_cast<size_t>(options.max_bytes), offset));
    store->files_.push_back(std::move(file));
    LK_RETURN_IF_ERROR(store->files_.back().read_all(digest));
  } else {
    LK_ASSIGN_OR_RETURN(MmapFile file, MmapFile::open(path));
    if (std::ssize(file.bytes()) > options.max_bytes)
      return resource_exhausted("{} has {} bytes, more than the limit of {}", path, file.bytes().size(),
                                options.max_bytes);
    store->files_.push_back(std::move(file));
    digest(store->files_.back().bytes());
  }
  LK_RETURN_IF_ERROR(store->add_tensors(options.accept, false));
  return std::shared_ptr<const TensorStore>(std::move(store));
}

int64_t TensorStore::memory_bytes() const {
  int64_t bytes = size_bytes_;
  for (const Buffer& block : realigned_) bytes += block.size_bytes();
  for (const auto& [name, view] : tensors_) bytes += static_cast<int64_t>(sizeof(view) + 64 + name.capacity());
  return bytes;
}

std::array<uint8_t, 32> TensorStore::digest() const {
  LK_CHECK(digest_, "the store was opened without a digest");
  return digest_->finish();
}

const std::string& TensorStore::content_digest() const {
  std::call_once(content_once_, [this] {
    Sha256 sha;
    for (const auto& [name, view] : tensors_) {
      const std::string head = fmt::format("{} {} {}\n", name, to_string(view.dtype()), view.shape_string());
      sha.update(head.data(), head.size());
      sha.update(view.raw(), static_cast<size_t>(view.num_bytes()));
      drop_pages(view);
    }
    content_digest_ = to_hex(sha.finish());
  });
  return content_digest_;
}

Result<std::shared_ptr<const TensorStore>> TensorStore::open_model(const std::string& directory) {
  const std::string single = join_path(directory, "model.safetensors");
  const std::string index_path = join_path(directory, "model.safetensors.index.json");
  if (file_exists(single)) {
    auto store = std::make_shared<TensorStore>();
    LK_ASSIGN_OR_RETURN(MmapFile file, MmapFile::open(single));
    store->files_.push_back(std::move(file));
    LK_RETURN_IF_ERROR(store->add_tensors({}, true));
    return std::shared_ptr<const TensorStore>(std::move(store));
  }
  if (!file_exists(index_path)) {
    const bool pickle = file_exists(join_path(directory, "pytorch_model.bin")) ||
                        file_exists(join_path(directory, "pytorch_model.bin.index.json"));
    return not_found("{}: neither model.safetensors nor model.safetensors.index.json{}", directory,
                     pickle ? "; pickle weights (pytorch_model.bin) can run code and are not read: "
                              "save the model with "
                              "save_pretrained(safe_serialization=True)"
                            : "");
  }
  LK_ASSIGN_OR_RETURN(const boost::json::object index, load_json_object(index_path));
  const boost::json::value* map = index.if_contains("weight_map");
  if (map == nullptr || !map->is_object()) return data_loss("{}: no object \"weight_map\"", index_path);

  std::set<std::string> shards;
  for (const auto& field : map->get_object()) {
    if (!field.value().is_string()) {
      return data_loss("{}: the shard of tensor '{}' is not a string", index_path, std::string_view(field.key()));
    }
    std::string shard(field.value().get_string());
    // The name comes from the file: it must stay inside the directory.
    if (shard.empty() || shard.front() == '.' || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos) {
      return data_loss("{}: shard name '{}' is not a plain file name", index_path, shard);
    }
    shards.insert(std::move(shard));
  }
  auto store = std::make_shared<TensorStore>();
  for (const std::string& shard : shards) {
    const std::string path = join_path(directory, shard);
    if (!file_exists(path)) return not_found("{}: shard {} named by the index is missing", directory, shard);
    LK_ASSIGN_OR_RETURN(MmapFile file, MmapFile::open(path));
    store->files_.push_back(std::move(file));
    LK_RETURN_IF_ERROR(store->add_tensors({}, true));
  }
  for (const auto& field : map->get_object()) {
    const std::string name(field.key());
    if (store->find(name) == nullptr &&
        std::ranges::find(store->unread_, name, &UnreadTensor::name) == store->unread_.end()) {
      return data_loss("{}: tensor '{}' should be in {} and is in no shard", index_path, name,
                       std::string_view(field.value().get_string()));
    }
  }
  return std::shared_ptr<const TensorStore>(std::move(store));
}

void TensorStore::drop_pages(const TensorView& tensor) const {
  if (source_) return source_->drop_pages(tensor);
  const std::span<const std::byte> part(static_cast<const std::byte*>(tensor.raw()),
                                        static_cast<size_t>(tensor.num_bytes()));
  for (const MmapFile& file : files_) {
    const std::span<const std::byte> all = file.bytes();
    if (part.data() >= all.data() && part.data() + part.size() <= all.data() + all.size()) file.drop_pages(part);
  }
}

std::shared_ptr<const TensorStore> TensorStore::renamed(std::shared_ptr<const TensorStore> source,
                                                        std::map<std::string, TensorView> tensors) {
  auto store = std::make_shared<TensorStore>();
  store->tensors_ = std::move(tensors);
  store->metadata_ = source->metadata_;
  store->size_bytes_ = source->size_bytes_;
  store->source_ = std::move(source);
  return store;
}

const TensorView* TensorStore::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace lk
