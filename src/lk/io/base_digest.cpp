// SPDX-License-Identifier: Apache-2.0
#include "lk/io/base_digest.h"

#include <algorithm>
#include <array>
#include <bit>
#include <boost/json/object.hpp>
#include <cstring>
#include <map>
#include <span>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {

// What says who wrote the file, and where it lay.
constexpr const char* kNotes[] = {"transformers_version", "_name_or_path"};
constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;

void add(Sha256& sha, std::string_view text) {
  const std::string head = fmt::format("{}:", text.size());  // so that no two parts can be mistaken for others
  sha.update(head.data(), head.size());
  sha.update(text.data(), text.size());
}

// Eight checksums of a tensor's bytes, one for every eighth word. Nobody forges his own base model, so this need not be
// a cryptographic hash, which would take seconds of each start; it runs at the speed of memory. A step is a bijection
// of the checksum for a given word and of the word for a given checksum: one word that differs is always seen, more of
// them but for one in 2^64.
std::array<uint64_t, 8> checksums(std::span<const std::byte> bytes) {
  std::array<uint64_t, 8> sums{};
  const auto step = [](uint64_t& sum, uint64_t word) { sum = std::rotl((sum ^ word) * 0x9E3779B97F4A7C15ULL, 31); };
  size_t at = 0;
  for (; at + sizeof sums <= bytes.size(); at += sizeof sums) {
    std::array<uint64_t, 8> words;
    std::memcpy(words.data(), bytes.data() + at, sizeof words);
    for (size_t lane = 0; lane < sums.size(); ++lane) step(sums[lane], words[lane]);
  }
  std::array<uint64_t, 8> rest{};
  std::memcpy(rest.data(), bytes.data() + at, bytes.size() - at);
  for (size_t lane = 0; lane < sums.size(); ++lane) step(sums[lane], rest[lane]);
  return sums;
}

}  // namespace

Result<std::string> base_digest(const std::string& config, const std::string& tokenizer,
                                const TensorStore* checkpoint) {
  Sha256 sha;
  LK_ASSIGN_OR_RETURN(const boost::json::object fields, load_json_object(config));
  std::map<std::string, std::string> sorted;  // tools write them in any order
  for (const auto& field : fields)
    if (std::ranges::find(kNotes, field.key()) == std::end(kNotes))
      sorted[std::string(field.key())] = json_text(field.value());
  for (const auto& [key, value] : sorted) {
    add(sha, key);
    add(sha, value);
  }
  if (file_exists(tokenizer)) {
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(tokenizer, kMaxTokenizerBytes));
    add(sha, text);
  }
  if (checkpoint)
    for (const auto& [name, view] : checkpoint->tensors()) {
      add(sha, fmt::format("{} {} {}", name, to_string(view.dtype()), view.shape_string()));
      const auto sums = checksums({static_cast<const std::byte*>(view.raw()), static_cast<size_t>(view.num_bytes())});
      sha.update(sums.data(), sizeof sums);
    }
  return to_hex(sha.finish());
}

}  // namespace lk
