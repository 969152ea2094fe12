// SPDX-License-Identifier: Apache-2.0
// The BPE model of tokenizer.json: vocabulary, ranked merges, and the merging of one pre-token.
// Source: models/bpe of the `tokenizers` package (word.rs: merge the lowest rank first, leftmost on
// a tie). Thread safety: tokenize is const and concurrent; the cache of merged words is sharded
// under mutexes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lk/text/json_view.h"
#include "lk/text/work_budget.h"

namespace lk {

// Hash with which std::unordered_map<std::string, ...> finds a string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <class T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

// (left id, right id) -> (rank, id of the concatenation). Open addressing, seeded per process: the
// keys come from a file that nobody has to trust.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  explicit MergeTable(size_t capacity);
  bool same_as(const MergeTable& other) const;
  void insert(int32_t left, int32_t right,
              Merge merge);  // a second insert of a pair replaces the first
  const Merge* find(int32_t left, int32_t right) const {
    for (size_t slot = slot_of(key_of(left, right));; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key_of(left, right)) return &slots_[slot].merge;
      if (slots_[slot].key == kEmpty) return nullptr;
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative, so no pair has this key
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const {
    uint64_t h = (key ^ seed_) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return static_cast<size_t>(h >> 32) & mask_;
  }
  uint64_t seed_;
  size_t mask_;
  std::vector<Slot> slots_;
};

class BpeModel {
 public:
  static Result<std::unique_ptr<const BpeModel>> parse(const JsonView& json);

  // Appends the ids of one pre-token. Requires: valid UTF-8.
  Status tokenize(std::string_view word, std::vector<int32_t>& ids, WorkBudget& budget) const;

  std::optional<int32_t> token_to_id(std::string_view token) const;
  const std::string* id_to_token(int32_t id) const;  // nullptr if no token has this id
  size_t num_tokens() const { return token_ids_.size(); }
  int32_t max_id() const { return static_cast<int32_t>(tokens_.size()) - 1; }
  // Whether it makes the same tokens of every text.
  bool same_as(const BpeModel& other) const;

 private:
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1 at the ends
    bool removed;
  };
  struct CacheShard {
    std::mutex mutex;
    StringMap<std::vector<int32_t>> words;
  };

  BpeModel() : merges_(0) {}
  Status parse_options(const JsonView& json);
  Status parse_vocab(const JsonView& json);
  Status parse_merges(const JsonView& json);
  Status add_merge(const JsonView& json, uint32_t rank, std::string_view left, std::string_view right);
  void index_characters();
  std::optional<int32_t> find_symbol(std::string_view character, bool first, bool last) const;
  Status split_symbols(std::string_view word, std::vector<Symbol>& symbols) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  Status merge_long(std::vector<Symbol>& symbols, WorkBudget& budget) const;

  StringMap<int32_t> token_ids_;
  std::vector<const std::string*> tokens_;  // [max id + 1], keys of token_ids_; null in a gap
  MergeTable merges_;
  std::vector<int32_t> small_characters_;  // [kSmallCharacters] id of each low code point, or -1
  std::array<int32_t, 256> byte_tokens_;   // <0x00>..<0xFF>, or -1
  std::optional<std::string> unk_token_;
  std::optional<int32_t> unk_id_;
  std::string prefix_, suffix_;  // continuing_subword_prefix, end_of_word_suffix
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  mutable std::array<CacheShard, 16> cache_;
};

}  // namespace lk
