// SPDX-License-Identifier: Apache-2.0
#include "lk/text/added_tokens.h"

#include <algorithm>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr size_t kMaxTokenBytes = 1024;  // bounds the work per position of the text
constexpr int64_t kMaxId = INT32_MAX - 1;

size_t spaces_before(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    const size_t last = utf8::previous_start(text, end);
    if (!unicode::is_space(utf8::decode(text, last))) break;
    end = last;
  }
  return end;
}

size_t spaces_after(std::string_view text, size_t begin) {
  while (begin < text.size() && unicode::is_space(utf8::decode(text, begin))) {
    begin += utf8::char_length(text[begin]);
  }
  return begin;
}

bool is_whole_word(std::string_view text, const TokenTrie::Match& match) {
  const bool open_left =
      match.begin == 0 || !unicode::is_word(utf8::decode(text, utf8::previous_start(text, match.begin)));
  const bool open_right = match.end == text.size() || !unicode::is_word(utf8::decode(text, match.end));
  return open_left && open_right;
}

}  // namespace

int32_t TokenTrie::child(int32_t node, unsigned char byte) const {
  if (node == 0) return roots_[byte];
  const auto& children = nodes_[static_cast<size_t>(node)].children;
  const auto it = std::lower_bound(children.begin(), children.end(), byte,
                                   [](const auto& entry, unsigned char b) { return entry.first < b; });
  return it != children.end() && it->first == byte ? it->second : 0;
}

bool TokenTrie::insert(std::string_view text, int32_t value) {
  int32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    int32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      if (node == 0) {
        roots_[byte] = next;
      } else {
        auto& children = nodes_[static_cast<size_t>(node)].children;
        children.insert(std::upper_bound(children.begin(), children.end(), std::pair(byte, next)), {byte, next});
      }
    }
    node = next;
  }
  int32_t& slot = nodes_[static_cast<size_t>(node)].value;
  if (slot >= 0) return false;
  slot = value;
  return true;
}

std::optional<TokenTrie::Match> TokenTrie::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    std::optional<Match> best;
    int32_t node = 0;
    for (size_t pos = begin; pos < text.size(); ++pos) {
      node = child(node, static_cast<unsigned char>(text[pos]));
      if (node == 0) break;
      const int32_t value = nodes_[static_cast<size_t>(node)].value;
      if (value >= 0) best = Match{begin, pos + 1, value};
    }
    if (best.has_value()) return best;
  }
  return std::nullopt;
}

Result<AddedTokens> AddedTokens::parse(const JsonView& json, const BpeModel& model, const Normalizer* normalizer) {
  AddedTokens added;
  if (json.is_null()) return added;
  LK_ASSIGN_OR_RETURN(const std::vector<JsonView> items, json.array());
  auto next_id = static_cast<int64_t>(model.num_tokens());
  for (const JsonView& item : items) {
    Token token;
    LK_ASSIGN_OR_RETURN(const std::string_view content, item.string("content"));
    token.content = content;
    LK_ASSIGN_OR_RETURN(const JsonView id_json, item.field("id"));
    LK_ASSIGN_OR_RETURN(const int64_t declared, id_json.integer(0, kMaxId));
    LK_ASSIGN_OR_RETURN(token.single_word, item.boolean("single_word"));
    LK_ASSIGN_OR_RETURN(token.lstrip, item.boolean("lstrip"));
    LK_ASSIGN_OR_RETURN(token.rstrip, item.boolean("rstrip"));
    LK_ASSIGN_OR_RETURN(token.normalized, item.boolean("normalized"));
    LK_ASSIGN_OR_RETURN(token.special, item.boolean("special"));
    if (content.empty()) return item.error(StatusCode::kDataLoss, "content is empty");
    if (content.size() > kMaxTokenBytes) {
      return item.error(StatusCode::kUnsupported, "content has {} bytes, more than {}", content.size(), kMaxTokenBytes);
    }

    const Token* earlier = added.find(content);
    const std::optional<int32_t> in_model = model.token_to_id(content);
    const int64_t id = earlier != nullptr ? earlier->id : in_model.has_value() ? *in_model : next_id++;
    if (id != declared) {
      return id_json.error(StatusCode::kDataLoss,
                           "token \"{}\" declares id {}, but stands at id {}: ids must follow the vocabulary's {} "
                           "tokens without gaps",
                           content, declared, id, model.num_tokens());
    }
    if (!in_model.has_value() && model.id_to_token(static_cast<int32_t>(id)) != nullptr) {
      return id_json.error(StatusCode::kDataLoss, "id {} of \"{}\" is the id of \"{}\" in the vocabulary", id, content,
                           *model.id_to_token(static_cast<int32_t>(id)));
    }
    token.id = static_cast<int32_t>(id);
    token.text = token.content;
    if (token.normalized && normalizer != nullptr) {
      NormalizedText text{.text = token.content, .origins = {}, .track = false};
      RegexBudget budget(0);
      LK_RETURN_IF_ERROR(normalizer->apply(text, budget).with_context(item.where()));
      token.text = std::move(text.text);
      if (token.text.empty() || token.text.size() > kMaxTokenBytes) {
        return item.error(StatusCode::kUnsupported, "\"{}\" is {} bytes long when normalised, not in [1, {}]", content,
                          token.text.size(), kMaxTokenBytes);
      }
    }
    if (token.special) added.special_.emplace(token.content, true);
    added.max_id_ = std::max(added.max_id_, token.id);
    const size_t index = earlier != nullptr ? added.by_content_.find(content)->second : added.tokens_.size();
    if (earlier != nullptr) {
      added.tokens_[index] = std::move(token);  // the last entry of a content counts
    } else {
      added.by_id_.emplace(token.id, index);
      added.by_content_.emplace(token.content, index);
      added.tokens_.push_back(std::move(token));
    }
  }
  for (size_t k = 0; k < added.tokens_.size(); ++k) {
    const Token& token = added.tokens_[k];
    if (!(token.normalized ? added.normalized_ : added.raw_).insert(token.text, static_cast<int32_t>(k))) {
      return json.error(StatusCode::kDataLoss, "\"{}\" has the same normalised text as another token", token.content);
    }
  }
  return added;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text, bool normalized) const {
  std::vector<Part> parts;
  const TokenTrie& trie = normalized ? normalized_ : raw_;
  size_t done = 0;
  size_t spaces_end = 0;  // end of the last run of spaces walked: no run is walked twice
  if (!trie.empty()) {
    for (auto match = trie.find(text, 0); match.has_value(); match = trie.find(text, match->end)) {
      const Token& token = tokens_[static_cast<size_t>(match->value)];
      if (token.single_word && !is_whole_word(text, *match)) continue;
      size_t begin = match->begin, end = match->end;
      if (token.lstrip) begin = std::max(spaces_before(text, begin, done), done);
      if (token.rstrip) end = spaces_end = end < spaces_end ? spaces_end : spaces_after(text, end);
      end = std::max(begin, end);
      if (done < begin) parts.push_back({done, begin, -1});
      parts.push_back({begin, end, token.id});
      done = end;
    }
  }
  if (done != text.size()) parts.push_back({done, text.size(), -1});
  return parts;
}

const AddedTokens::Token* AddedTokens::find(int32_t id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

const AddedTokens::Token* AddedTokens::find(std::string_view content) const {
  const auto it = by_content_.find(content);
  return it == by_content_.end() ? nullptr : &tokens_[it->second];
}

}  // namespace lk
