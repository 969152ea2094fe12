// SPDX-License-Identifier: Apache-2.0
#include "lk/text/bpe_model.h"

#include <algorithm>
#include <bit>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <queue>
#include <random>
#include <tuple>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr uint32_t kSmallCharacters = 0x800;  // covers the byte-level alphabet and most alphabets
constexpr size_t kMaxCachedBytes = 64;        // longer words hardly repeat
constexpr size_t kMaxCachedWords = 8192;      // per shard
constexpr size_t kMaxAffixBytes = 32;         // "##", "</w>": written to every character that is looked up
constexpr size_t kMaxUnknownBytes = 1024;
constexpr size_t kShortWord = 24;  // symbols; up to here scanning beats a heap

std::string_view text_of(const boost::json::string& text) { return {text.data(), text.size()}; }

}  // namespace

MergeTable::MergeTable(size_t capacity)
    : seed_(std::random_device{}() | uint64_t{std::random_device{}()} << 32),
      mask_(std::bit_ceil(2 * capacity + 2) - 1),
      slots_(mask_ + 1, Slot{kEmpty, {0, 0}}) {}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  size_t slot = slot_of(key);
  while (slots_[slot].key != kEmpty && slots_[slot].key != key) slot = (slot + 1) & mask_;
  slots_[slot] = {key, merge};
}

bool MergeTable::same_as(const MergeTable& other) const {
  size_t here = 0, there = 0;
  for (const Slot& slot : other.slots_) there += slot.key == kEmpty ? 0 : 1;
  for (const Slot& slot : slots_) {
    if (slot.key == kEmpty) continue;
    ++here;
    const Merge* merge = other.find(static_cast<int32_t>(slot.key >> 32), static_cast<int32_t>(slot.key));
    if (merge == nullptr || merge->rank != slot.merge.rank || merge->id != slot.merge.id) return false;
  }
  return here == there;
}

Result<std::unique_ptr<const BpeModel>> BpeModel::parse(const JsonView& json) {
  LK_RETURN_IF_ERROR(json.expect_object());
  // Files older than the "type" key are BPE if they have merges.
  if (json.has("type") || !json.has("merges")) {
    LK_ASSIGN_OR_RETURN(const std::string_view type, json.string("type"));
    if (type != "BPE")
      return json.error(StatusCode::kUnsupported, "model type \"{}\" is not supported, only BPE", type);
  }
  std::unique_ptr<BpeModel> model(new BpeModel());
  LK_RETURN_IF_ERROR(model->parse_options(json));
  LK_RETURN_IF_ERROR(model->parse_vocab(json));
  LK_RETURN_IF_ERROR(model->parse_merges(json));
  model->index_characters();
  return std::unique_ptr<const BpeModel>(std::move(model));
}

Status BpeModel::parse_options(const JsonView& json) {
  if (json.has("dropout")) {
    LK_ASSIGN_OR_RETURN(const JsonView dropout, json.field("dropout"));
    const boost::json::value& value = dropout.raw();
    if (!value.is_number()) return dropout.error(StatusCode::kDataLoss, "must be a number");
    if (value.to_number<double>() != 0) {
      return dropout.error(StatusCode::kUnsupported, "dropout makes encoding random; only 0 or null is supported");
    }
  }
  const auto text = [&](std::string_view key, std::string& out, size_t most) -> Status {
    if (!json.has(key)) return {};
    LK_ASSIGN_OR_RETURN(const std::string_view value, json.string(key));
    if (value.size() > most)
      return json.error(StatusCode::kUnsupported, "{} has {} bytes, more than {}", key, value.size(), most);
    out = value;
    return {};
  };
  LK_RETURN_IF_ERROR(text("continuing_subword_prefix", prefix_, kMaxAffixBytes));
  LK_RETURN_IF_ERROR(text("end_of_word_suffix", suffix_, kMaxAffixBytes));
  if (json.has("unk_token")) LK_RETURN_IF_ERROR(text("unk_token", unk_token_.emplace(), kMaxUnknownBytes));
  LK_ASSIGN_OR_RETURN(fuse_unk_, json.boolean_or("fuse_unk", false));
  LK_ASSIGN_OR_RETURN(byte_fallback_, json.boolean_or("byte_fallback", false));
  LK_ASSIGN_OR_RETURN(ignore_merges_, json.boolean_or("ignore_merges", false));
  return {};
}

Status BpeModel::parse_vocab(const JsonView& json) {
  LK_ASSIGN_OR_RETURN(const JsonView vocab, json.field("vocab"));
  LK_RETURN_IF_ERROR(vocab.expect_object());
  const boost::json::object& object = vocab.raw().get_object();
  // Tables are indexed by id: a bound in proportion to the file keeps one hostile id from sizing
  // them.
  const int64_t max_id = 4 * static_cast<int64_t>(object.size()) + (1 << 16);
  token_ids_.reserve(object.size());
  for (const auto& [key, value] : object) {
    const std::string_view token(key.data(), key.size());
    const int64_t* id = value.if_int64();
    if (id == nullptr || *id < 0 || *id > max_id) {
      return vocab.error(StatusCode::kDataLoss, "the id of token \"{}\" must be an integer in [0, {}]", token, max_id);
    }
    const auto index = static_cast<size_t>(*id);
    if (index >= tokens_.size()) tokens_.resize(index + 1, nullptr);
    if (tokens_[index] != nullptr) {
      return vocab.error(StatusCode::kDataLoss, "tokens \"{}\" and \"{}\" have the same id {}", *tokens_[index], token,
                         *id);
    }
    const auto [entry, inserted] = token_ids_.emplace(token, static_cast<int32_t>(*id));
    LK_CHECK(inserted, "duplicate key in a parsed JSON object");
    tokens_[index] = &entry->first;
  }
  return {};
}

Status BpeModel::parse_merges(const JsonView& json) {
  LK_ASSIGN_OR_RETURN(const JsonView merges, json.field("merges"));
  const boost::json::array* items = merges.raw().if_array();
  if (items == nullptr) return merges.error(StatusCode::kDataLoss, "must be a list");
  merges_ = MergeTable(items->size());
  uint32_t rank = 0;
  for (size_t k = 0; k < items->size(); ++k) {
    // Views are only built for errors: a vocabulary has hundreds of thousands of merges.
    const auto fail = [&](std::string_view what) {
      return merges.error(StatusCode::kDataLoss, "merge {} {}", k, what);
    };
    const boost::json::value& item = (*items)[k];
    if (const boost::json::string* line = item.if_string()) {
      const std::string_view text = text_of(*line);
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space == text.npos || text.find(' ', space + 1) != text.npos) return fail("must be two tokens and one space");
      LK_RETURN_IF_ERROR(add_merge(merges, rank, text.substr(0, space), text.substr(space + 1)));
    } else if (const boost::json::array* pair = item.if_array()) {
      if (pair->size() != 2 || !(*pair)[0].is_string() || !(*pair)[1].is_string()) return fail("must be two strings");
      LK_RETURN_IF_ERROR(add_merge(merges, rank, text_of((*pair)[0].get_string()), text_of((*pair)[1].get_string())));
    } else {
      return fail("must be a string or an array of two strings");
    }
    ++rank;
  }
  return {};
}

Status BpeModel::add_merge(const JsonView& json, uint32_t rank, std::string_view left, std::string_view right) {
  const auto unknown = [&](std::string_view token) {
    return json.error(StatusCode::kDataLoss, "merge {} (\"{}\" \"{}\") names \"{}\", which is not in the vocabulary",
                      rank, left, right, token);
  };
  const std::optional<int32_t> left_id = token_to_id(left);
  const std::optional<int32_t> right_id = token_to_id(right);
  if (!left_id.has_value()) return unknown(left);
  if (!right_id.has_value()) return unknown(right);
  if (right.size() < prefix_.size()) {
    return json.error(StatusCode::kDataLoss, "merge {}: \"{}\" lacks the continuing_subword_prefix", rank, right);
  }
  const std::string joined = std::string(left) + std::string(right.substr(prefix_.size()));
  const std::optional<int32_t> id = token_to_id(joined);
  if (!id.has_value()) return unknown(joined);
  merges_.insert(*left_id, *right_id, {rank, *id});
  return {};
}

void BpeModel::index_characters() {
  small_characters_.assign(kSmallCharacters, -1);
  std::string text;
  for (uint32_t c = 0; c < kSmallCharacters; ++c) {
    text.clear();
    utf8::append(text, c);
    small_characters_[c] = token_to_id(text).value_or(-1);
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    byte_tokens_[byte] = token_to_id(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
  if (unk_token_.has_value()) unk_id_ = token_to_id(*unk_token_);
}

std::optional<int32_t> BpeModel::token_to_id(std::string_view token) const {
  const auto it = token_ids_.find(token);
  if (it == token_ids_.end()) return std::nullopt;
  return it->second;
}

bool BpeModel::same_as(const BpeModel& other) const {
  const auto same_text = [](const std::string* a, const std::string* b) {
    return a == nullptr || b == nullptr ? a == b : *a == *b;
  };
  return std::tie(unk_token_, prefix_, suffix_, fuse_unk_, byte_fallback_, ignore_merges_) ==
             std::tie(other.unk_token_, other.prefix_, other.suffix_, other.fuse_unk_, other.byte_fallback_,
                      other.ignore_merges_) &&
         std::equal(tokens_.begin(), tokens_.end(), other.tokens_.begin(), other.tokens_.end(), same_text) &&
         merges_.same_as(other.merges_);
}

const std::string* BpeModel::id_to_token(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() ? tokens_[static_cast<size_t>(id)] : nullptr;
}

std::optional<int32_t> BpeModel::find_symbol(std::string_view character, bool first, bool last) const {
  const bool decorated = (!first && !prefix_.empty()) || (last && !suffix_.empty());
  if (!decorated) {
    const uint32_t code_point = utf8::decode(character, 0);
    if (code_point >= kSmallCharacters) return token_to_id(character);
    const int32_t id = small_characters_[code_point];
    return id < 0 ? std::nullopt : std::optional<int32_t>(id);
  }
  return token_to_id((first ? "" : prefix_) + std::string(character) + (last ? suffix_ : ""));
}

Status BpeModel::split_symbols(std::string_view word, std::vector<Symbol>& symbols) const {
  const auto add = [&](int32_t id) {
    const auto index = static_cast<int32_t>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({id, index - 1, -1, false});
  };
  bool unk_pending = false;
  for (size_t pos = 0; pos < word.size();) {
    const size_t next = pos + utf8::char_length(word[pos]);
    const std::string_view character = word.substr(pos, next - pos);
    const bool first = pos == 0, last = next == word.size();
    pos = next;
    if (const std::optional<int32_t> id = find_symbol(character, first, last)) {
      if (unk_pending) add(*unk_id_);
      unk_pending = false;
      add(*id);
      continue;
    }
    if (byte_fallback_) {
      const std::string bytes = (first ? "" : prefix_) + std::string(character) + (last ? suffix_ : "");
      const auto id_of = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
      if (std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return id_of(byte) >= 0; })) {
        // The package does not put a pending unknown token before these bytes; it follows them.
        for (const char byte : bytes) add(id_of(byte));
        continue;
      }
    }
    if (!unk_token_.has_value()) continue;  // the package drops the character
    if (!unk_id_.has_value()) {
      return failed_precondition("the text needs the unknown token \"{}\", which is not in the model's vocabulary",
                                 *unk_token_);
    }
    if (unk_pending && !fuse_unk_) add(*unk_id_);
    unk_pending = true;
  }
  if (unk_pending) add(*unk_id_);
  return {};
}

void BpeModel::merge_short(std::vector<Symbol>& symbols) const {
  // merge[k]: of symbols k and k+1, null if none. Symbols are kept dense.
  const MergeTable::Merge* merge[kShortWord];
  size_t size = symbols.size();
  const auto look_up = [&](size_t k) {
    return k + 1 < size ? merges_.find(symbols[k].id, symbols[k + 1].id) : nullptr;
  };
  for (size_t k = 0; k < size; ++k) merge[k] = look_up(k);
  while (true) {
    size_t best = size;
    for (size_t k = 0; k + 1 < size; ++k) {
      if (merge[k] != nullptr && (best == size || merge[k]->rank < merge[best]->rank)) best = k;
    }
    if (best == size) break;
    symbols[best].id = merge[best]->id;
    for (size_t k = best + 1; k + 1 < size; ++k) {
      symbols[k].id = symbols[k + 1].id;
      merge[k] = merge[k + 1];
    }
    --size;
    merge[best] = look_up(best);
    if (best > 0) merge[best - 1] = look_up(best - 1);
  }
  symbols.resize(size);
}

Status BpeModel::merge_long(std::vector<Symbol>& symbols, WorkBudget& budget) const {
  struct Candidate {
    uint32_t rank;
    int32_t position;
    int32_t id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int32_t left) {
    if (left < 0) return;
    const Symbol& symbol = symbols[static_cast<size_t>(left)];
    if (symbol.next < 0) return;
    const MergeTable::Merge* merge = merges_.find(symbol.id, symbols[static_cast<size_t>(symbol.next)].id);
    if (merge != nullptr) queue.push({merge->rank, left, merge->id});
  };
  for (size_t k = 0; k < symbols.size(); ++k) offer(static_cast<int32_t>(k));
  while (!queue.empty()) {
    LK_RETURN_IF_ERROR(budget.spend(8));
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.removed || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const MergeTable::Merge* merge = merges_.find(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;  // an entry from before one of the two changed
    left.id = top.id;
    left.next = right.next;
    right.removed = true;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = top.position;
    offer(left.previous);
    offer(top.position);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.removed; });
  return {};
}

Status BpeModel::tokenize(std::string_view word, std::vector<int32_t>& ids, WorkBudget& budget) const {
  if (word.empty()) return {};
  LK_RETURN_IF_ERROR(budget.spend(word.size()));
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = token_to_id(word)) {
      ids.push_back(*id);
      return {};
    }
  }
  const bool cacheable = word.size() <= kMaxCachedBytes;
  CacheShard& shard = cache_[cacheable ? StringHash{}(word) >> 7 & (cache_.size() - 1) : 0];
  if (cacheable) {
    // A thread that finds the shard busy computes instead of waiting.
    const std::unique_lock lock(shard.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      const auto it = shard.words.find(word);
      if (it != shard.words.end()) {
        ids.insert(ids.end(), it->second.begin(), it->second.end());
        return {};
      }
    }
  }
  static thread_local std::vector<Symbol> symbols;
  symbols.clear();
  LK_RETURN_IF_ERROR(split_symbols(word, symbols));
  if (symbols.size() <= kShortWord) {
    merge_short(symbols);
  } else {
    LK_RETURN_IF_ERROR(merge_long(symbols, budget));
  }
  const size_t begin = ids.size();
  for (const Symbol& symbol : symbols) ids.push_back(symbol.id);
  if (cacheable) {
    const std::unique_lock lock(shard.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      if (shard.words.size() >= kMaxCachedWords) shard.words.clear();
      shard.words.try_emplace(std::string(word), ids.begin() + static_cast<ptrdiff_t>(begin), ids.end());
    }
  }
  if (symbols.capacity() > (1 << 16)) std::vector<Symbol>().swap(symbols);  // one long word is not kept for ever
  return {};
}

}  // namespace lk
