// SPDX-License-Identifier: Apache-2.0
#include "lk/text/added_tokens.h"

#include <algorithm>
#include <set>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr size_t kMaxTokenBytes = 1024;  // bounds the work per position of the text
constexpr int64_t kMaxId = INT32_MAX - 1;
constexpr size_t kMaxTrieNodes = 1 << 21;  // about 64 bytes each

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

Result<std::optional<TokenTrie::Match>> TokenTrie::find(std::string_view text, size_t from, WorkBudget& budget) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    std::optional<Match> best;
    int32_t node = 0;
    size_t pos = begin;
    for (; pos < text.size(); ++pos) {
      node = child(node, static_cast<unsigned char>(text[pos]));
      if (node == 0) break;
      const int32_t value = nodes_[static_cast<size_t>(node)].value;
      if (value >= 0) best = Match{begin, pos + 1, value};
    }
    LK_RETURN_IF_ERROR(budget.spend(pos - begin + 1));
    if (best.has_value()) return best;
  }
  return std::optional<Match>();
}

struct AddedTokens::Place {
  const BpeModel& model;
  const Normalizer* normalizer;
  std::string where;
  WorkBudget& budget;  // of all tokens of the files
};

Result<AddedTokens> AddedTokens::parse(const JsonView& json, const BpeModel& model, const Normalizer* normalizer,
                                       const TokenizerConfig& config) {
  AddedTokens added;
  WorkBudget budget(0);
  if (!json.is_null()) {
    LK_ASSIGN_OR_RETURN(const std::vector<JsonView> items, json.array());
    for (const JsonView& item : items) {
      AddedToken token;
      LK_ASSIGN_OR_RETURN(token.content, item.string("content"));
      LK_ASSIGN_OR_RETURN(const JsonView id, item.field("id"));
      LK_ASSIGN_OR_RETURN(const int64_t declared, id.integer(0, kMaxId));
      LK_ASSIGN_OR_RETURN(token.single_word, item.boolean("single_word"));
      LK_ASSIGN_OR_RETURN(token.lstrip, item.boolean("lstrip"));
      LK_ASSIGN_OR_RETURN(token.rstrip, item.boolean("rstrip"));
      LK_ASSIGN_OR_RETURN(token.normalized, item.boolean("normalized"));
      LK_ASSIGN_OR_RETURN(token.special, item.boolean("special"));
      LK_RETURN_IF_ERROR(added.add(std::move(token), declared, {model, normalizer, item.where(), budget}));
    }
  }
  LK_RETURN_IF_ERROR(added.apply(config, {model, normalizer, config.where, budget}));
  LK_RETURN_IF_ERROR(added.index(json.where()));
  return added;
}

// The token's id is that of its text, where there is one; else the next one.
Status AddedTokens::add(AddedToken given, std::optional<int64_t> declared, const Place& place) {
  Token token{std::move(given), "", -1};
  const std::string& content = token.content;
  const auto fail = [&](StatusCode code, std::string message) {
    return Status(code, fmt::format("{}: {}", place.where, message));
  };
  if (content.empty()) return fail(StatusCode::kDataLoss, "content is empty");
  if (content.size() > kMaxTokenBytes)
    return fail(StatusCode::kUnsupported,
                fmt::format("content has {} bytes, more than {}", content.size(), kMaxTokenBytes));
  if (!utf8::is_valid(content)) return fail(StatusCode::kDataLoss, "content is not valid UTF-8");
  const BpeModel& model = place.model;
  const Token* earlier = find(content);
  const std::optional<int32_t> in_model = model.token_to_id(content);
  const auto vocabulary = static_cast<int64_t>(model.num_tokens());
  const int64_t id = earlier != nullptr     ? earlier->id
                     : in_model.has_value() ? *in_model
                                            : std::max<int64_t>(vocabulary, int64_t{max_id_} + 1);
  if (declared.has_value() && id != *declared)
    return fail(StatusCode::kDataLoss,
                fmt::format("token \"{}\" declares id {}, but stands at id {}: ids must follow the vocabulary's {} "
                            "tokens without gaps",
                            content, *declared, id, vocabulary));
  if (id > kMaxId) return fail(StatusCode::kUnsupported, "too many tokens");
  if (!in_model.has_value() && model.id_to_token(static_cast<int32_t>(id)) != nullptr)
    return fail(StatusCode::kDataLoss, fmt::format("id {} of \"{}\" is the id of \"{}\" in the vocabulary", id, content,
                                                   *model.id_to_token(static_cast<int32_t>(id))));
  token.id = static_cast<int32_t>(id);
  token.text = content;
  if (token.normalized && place.normalizer != nullptr) {
    NormalizedText text{.text = content, .origins = {}, .track = false};
    LK_RETURN_IF_ERROR(place.normalizer->apply(text, place.budget).with_context(place.where));
    token.text = std::move(text.text);
    if (token.text.empty() || token.text.size() > kMaxTokenBytes)
      return fail(StatusCode::kUnsupported, fmt::format("\"{}\" is {} bytes long when normalised, not in [1, {}]",
                                                        content, token.text.size(), kMaxTokenBytes));
  }
  if (token.special) special_.emplace(content, true);
  max_id_ = std::max(max_id_, token.id);
  if (earlier != nullptr) {  // the last entry of a content counts
    tokens_[by_content_.find(content)->second] = std::move(token);
    return {};
  }
  by_id_.emplace(token.id, tokens_.size());
  by_content_.emplace(content, tokens_.size());
  tokens_.push_back(std::move(token));
  return {};
}

// Source: TokenizersBackend.__init__ of transformers 5.24. First the tokens that a file lists by id: theirs are the
// flags, and those that have a name are special. Then what has a name, and what is in the list of special ones, as far
// as it is not listed; of one text the last counts.
Status AddedTokens::apply(const TokenizerConfig& config, const Place& place) {
  split_special_ = config.split_special_tokens;
  const auto has_name = [&](const std::string& content) {
    return std::ranges::any_of(config.named, [&](const auto& named) { return named.content == content; });
  };
  std::set<std::string, std::less<>> listed;
  std::vector<AddedToken> known(tokens_.begin(), tokens_.end());
  for (const AddedToken& token : known) listed.insert(token.content);
  if (!config.complete) {  // then tokenizer.json lists them
    for (AddedToken& token : known) {
      if (token.special || !has_name(token.content)) continue;
      token.special = true;
      LK_RETURN_IF_ERROR(add(std::move(token), std::nullopt, place));
    }
  }
  if (config.added) {
    for (const auto& [id, described] : *config.added) {
      const bool repeated = !listed.insert(described.content).second && !config.complete;
      AddedToken token = repeated ? static_cast<const AddedToken&>(*find(described.content)) : described;
      token.special |= has_name(token.content);
      LK_RETURN_IF_ERROR(add(std::move(token), id, place));
    }
  }
  for (const TokenizerConfig::Named& named : config.named) {
    if (listed.contains(named.content)) continue;
    AddedToken token = named.described.value_or(AddedToken{.content = named.content});
    token.special = true;
    LK_RETURN_IF_ERROR(add(std::move(token), std::nullopt, place));
  }
  for (const TokenizerConfig::Extra& extra : config.extra) {
    if (listed.contains(extra.content)) continue;
    AddedToken token = extra.described.value_or(AddedToken{.content = extra.content, .special = true});
    token.special |= has_name(token.content);
    LK_RETURN_IF_ERROR(add(std::move(token), std::nullopt, place));
  }
  return {};
}

Status AddedTokens::index(const std::string& where) {
  for (size_t k = 0; k < tokens_.size(); ++k) {
    const Token& token = tokens_[k];
    if (raw_.num_nodes() + normalized_.num_nodes() > kMaxTrieNodes)
      return unsupported("{}: the texts of the added tokens are too long together", where);
    if (!(token.normalized ? normalized_ : raw_).insert(token.text, static_cast<int32_t>(k)))
      return data_loss("{}: \"{}\" has the same normalised text as another token", where, token.content);
  }
  return {};
}

Result<std::vector<AddedTokens::Part>> AddedTokens::split(std::string_view text, bool normalized,
                                                          WorkBudget& budget) const {
  std::vector<Part> parts;
  const TokenTrie& trie = normalized ? normalized_ : raw_;
  size_t done = 0;
  size_t spaces_end = 0;  // end of the last run of spaces walked: no run is walked twice
  if (!trie.empty()) {
    size_t from = 0;
    while (true) {
      LK_ASSIGN_OR_RETURN(const std::optional<TokenTrie::Match> match, trie.find(text, from, budget));
      if (!match.has_value()) break;
      from = match->end;
      const Token& token = tokens_[static_cast<size_t>(match->value)];
      if (split_special_ && token.special) continue;
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
