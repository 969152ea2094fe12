// SPDX-License-Identifier: Apache-2.0
#include "lk/text/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/text/tokenizer_json.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;
constexpr size_t kMaxTemplates = 64;
constexpr size_t kMaxTokens = size_t{1} << 20;  // of one file
constexpr std::string_view kStandardNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

bool is_standard(std::string_view name) {
  return std::find(std::begin(kStandardNames), std::end(kStandardNames), name) != std::end(kStandardNames);
}

// An empty object when there is no such file.
Result<json::object> read_object(const std::string& path) {
  if (!file_exists(path)) return json::object();
  LK_ASSIGN_OR_RETURN(const std::string bytes, read_file(path, kMaxConfigBytes));
  LK_ASSIGN_OR_RETURN(const ParsedJson parsed, ParsedJson::parse(bytes, path));
  if (!parsed.value().is_object()) return data_loss("{} must hold a JSON object", path);
  return json::object(parsed.value().get_object(), json::storage_ptr());  // the parse's own memory ends here
}

// {"content", "lstrip", ...}: flags that are missing are those of the package's AddedToken.
Result<AddedToken> read_token(const json::object& object, const std::string& what, bool special) {
  AddedToken token{.special = special};
  const json::value* content = object.if_contains("content");
  if (content == nullptr || !content->is_string())
    return data_loss("{} must be a string or have \"content\", which is one", what);
  token.content = std::string(view(content->get_string()));
  const auto flag = [&](std::string_view name, bool& out) -> Status {
    const json::value* value = object.if_contains(name);
    if (value == nullptr || value->is_null()) return {};
    if (!value->is_bool()) return data_loss("{}: \"{}\" must be true or false", what, name);
    out = value->get_bool();
    return {};
  };
  LK_RETURN_IF_ERROR(flag("single_word", token.single_word));
  LK_RETURN_IF_ERROR(flag("lstrip", token.lstrip));
  LK_RETURN_IF_ERROR(flag("rstrip", token.rstrip));
  LK_RETURN_IF_ERROR(flag("special", token.special));
  token.normalized = !token.special;
  LK_RETURN_IF_ERROR(flag("normalized", token.normalized));
  return token;
}

// A string, or an object that describes the token.
Result<TokenizerConfig::Extra> read_extra(const json::value& value, const std::string& what, bool special) {
  TokenizerConfig::Extra extra;
  if (const json::string* text = value.if_string()) {
    extra.content = std::string(view(*text));
  } else if (const json::object* object = value.if_object()) {
    LK_ASSIGN_OR_RETURN(extra.described, read_token(*object, what, special));
    extra.content = extra.described->content;
  } else {
    return data_loss("{} must be a string or have \"content\", which is one", what);
  }
  if (extra.content.empty()) return data_loss("{} is empty", what);
  return extra;
}

// Reads one directory's files into a TokenizerConfig.
class Reader {
 public:
  explicit Reader(const std::string& directory) : directory_(directory) {}

  Result<TokenizerConfig> read() {
    const std::string path = join_path(directory_, kTokenizerConfigFile);
    config_.where = path;
    LK_ASSIGN_OR_RETURN(const json::object object, read_object(path));
    LK_RETURN_IF_ERROR(read_listed(object, path));
    LK_RETURN_IF_ERROR(read_tokens(object, path, false));
    LK_RETURN_IF_ERROR(read_options(object, path));
    if (!config_.complete) LK_RETURN_IF_ERROR(read_older_files());
    LK_RETURN_IF_ERROR(read_templates(object, path));
    sort_names();
    return std::move(config_);
  }

 private:
  // The order in which tokens that tokenizer.json lacks get their ids.
  // The seven, then those that are described where they are named, then all others.
  void sort_names() {
    const auto place = [&](const TokenizerConfig::Named& token) {
      const auto at = std::find(std::begin(kStandardNames), std::end(kStandardNames), token.name);
      const bool late = at == std::end(kStandardNames) && !described_.contains(token.name);
      return at - std::begin(kStandardNames) + (late ? 1 : 0);
    };
    std::ranges::stable_sort(config_.named, {}, place);
  }
  Status name(std::string_view key, TokenizerConfig::Extra token) {
    const bool standard = is_standard(key);
    for (TokenizerConfig::Named& known : config_.named)
      if (known.name == key) {
        known.content = std::move(token.content);
        known.described = std::move(token.described);
        return {};
      }
    config_.named.push_back({.name = std::string(key),
                             .content = std::move(token.content),
                             .described = std::move(token.described),
                             .standard = standard});
    return {};
  }

  Status read_listed(const json::object& object, const std::string& path) {
    const json::value* listed = object.if_contains("added_tokens_decoder");
    if (listed == nullptr || listed->is_null()) return {};
    if (!listed->is_object()) return data_loss("{}: added_tokens_decoder must be an object", path);
    if (listed->get_object().size() > kMaxTokens) return data_loss("{}: added_tokens_decoder is too long", path);
    config_.added.emplace();
    config_.complete = true;
    for (const auto& [key, value] : listed->get_object()) {
      const std::string what = fmt::format("{}: added_tokens_decoder.{}", path, std::string_view(key));
      int32_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size() || id < 0)
        return data_loss("{} is not the id of a token", what);
      if (!value.is_object()) return data_loss("{} must be an object", what);
      LK_ASSIGN_OR_RETURN(AddedToken token, read_token(value.get_object(), what, false));
      if (token.content.empty()) return data_loss("{} is empty", what);
      config_.added->insert_or_assign(id, std::move(token));
    }
    return {};
  }

  // The tokens that have names, and the special ones without.
  Status read_tokens(const json::object& object, const std::string& path, bool older) {
    for (const auto& [key_text, value] : object) {
      const std::string_view key(key_text.data(), key_text.size());
      const std::string what = fmt::format("{}: {}", path, key);
      if (is_standard(key)) {
        if (value.is_null()) {
          config_.unnamed.emplace_back(key);
          continue;
        }
        LK_ASSIGN_OR_RETURN(TokenizerConfig::Extra token, read_extra(value, what, true));
        if (older) older_.insert(token.content);
        LK_RETURN_IF_ERROR(name(key, std::move(token)));
      } else if (key.ends_with("_token") && (value.is_string() || is_token(value))) {
        LK_ASSIGN_OR_RETURN(TokenizerConfig::Extra token, read_extra(value, what, true));
        if (token.described) described_.emplace(key);
        LK_RETURN_IF_ERROR(name(key, std::move(token)));
      } else if (key == "model_specific_special_tokens" || (key == "extra_special_tokens" && value.is_object())) {
        if (value.is_null()) continue;
        if (!value.is_object()) return data_loss("{} must be an object of names and tokens", what);
        for (const auto& [inner, token_value] : value.get_object()) {
          LK_ASSIGN_OR_RETURN(TokenizerConfig::Extra token,
                              read_extra(token_value, fmt::format("{}.{}", what, std::string_view(inner)), true));
          LK_RETURN_IF_ERROR(name({inner.data(), inner.size()}, std::move(token)));
        }
      }
    }
    const json::value* list = object.if_contains("extra_special_tokens");
    const auto empty = [](const json::value* value) {
      return value == nullptr || value->is_null() || (value->is_array() && value->get_array().empty()) ||
             (value->is_object() && value->get_object().empty());
    };
    const char* key = "extra_special_tokens";
    // The older name counts when the newer one is missing, empty, or only names tokens.
    if (empty(list) || list->is_object()) {
      if (const json::value* old = object.if_contains("additional_special_tokens"); !empty(old)) {
        list = old;
        key = "additional_special_tokens";
      }
    }
    if (empty(list) || list->is_object()) return {};
    if (!list->is_array()) return data_loss("{}: {} must be a list", path, key);
    if (list->get_array().size() > kMaxTokens) return data_loss("{}: {} is too long", path, key);
    if (older && key == std::string_view("additional_special_tokens")) config_.extra.clear();
    for (size_t i = 0; i < list->get_array().size(); ++i) {
      LK_ASSIGN_OR_RETURN(TokenizerConfig::Extra token,
                          read_extra(list->get_array()[i], fmt::format("{}: {}[{}]", path, key, i), true));
      config_.extra.push_back(std::move(token));
    }
    return {};
  }
  // An object that transformers wrote for a token; others under such a name are something else.
  static bool is_token(const json::value& value) {
    const json::object* object = value.if_object();
    const json::value* type = object != nullptr ? object->if_contains("__type") : nullptr;
    return type != nullptr && *type == "AddedToken";
  }

  Status read_options(const json::object& object, const std::string& path) {
    const auto flag = [&](std::string_view key) -> Result<std::optional<bool>> {
      const json::value* value = object.if_contains(key);
      if (value == nullptr || value->is_null()) return std::optional<bool>();
      if (!value->is_bool()) return data_loss("{}: {} must be true or false", path, key);
      return std::optional<bool>(value->get_bool());
    };
    LK_ASSIGN_OR_RETURN(config_.add_prefix_space, flag("add_prefix_space"));
    LK_ASSIGN_OR_RETURN(const std::optional<bool> split, flag("split_special_tokens"));
    config_.split_special_tokens = split.value_or(false);
    LK_ASSIGN_OR_RETURN(const std::optional<bool> legacy, flag("legacy"));
    config_.legacy = legacy.value_or(true);
    if (const json::value* name = object.if_contains("tokenizer_class"); name != nullptr && name->is_string()) {
      config_.tokenizer_class = std::string(view(name->get_string()));
      if (config_.tokenizer_class.ends_with("Fast"))
        config_.tokenizer_class.resize(config_.tokenizer_class.size() - std::string_view("Fast").size());
    }
    return {};
  }

  // special_tokens_map.json and added_tokens.json count only where tokenizer_config.json does not list all tokens.
  Status read_older_files() {
    const std::string map_path = join_path(directory_, kSpecialTokensFile);
    LK_ASSIGN_OR_RETURN(const json::object map, read_object(map_path));
    LK_RETURN_IF_ERROR(read_tokens(map, map_path, true));
    const std::string list_path = join_path(directory_, kAddedTokensFile);
    if (!file_exists(list_path)) return {};
    LK_ASSIGN_OR_RETURN(const json::object list, read_object(list_path));
    config_.added.emplace();
    for (const auto& [key, value] : list) {
      const std::string_view content(key.data(), key.size());
      if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() >= INT32_MAX || content.empty())
        return data_loss("{}: the id of \"{}\" must be an integer, not negative", list_path, content);
      // Those that tokenizer_config.json describes do not count: transformers compares texts here.
      const auto known = [&](const auto& token) { return token.content == content && !token.described; };
      const bool special =
          older_.contains(content) || std::ranges::any_of(config_.extra, known) ||
          std::ranges::any_of(config_.named, [&](const auto& token) { return token.standard && known(token); });
      (*config_.added)[static_cast<int32_t>(value.get_int64())] = {
          .content = std::string(content), .normalized = !special, .special = special};
    }
    return {};
  }

  // Files of their own come before what tokenizer_config.json holds.
  Status read_templates(const json::object& object, const std::string& path) {
    const std::string file = join_path(directory_, kChatTemplateFile);
    if (file_exists(file)) LK_RETURN_IF_ERROR(add_file("default", file));
    for (const std::string& path_of_one : list_chat_templates(directory_))
      LK_RETURN_IF_ERROR(add_file(std::filesystem::path(path_of_one).stem().string(), path_of_one));
    if (!config_.templates.empty()) return {};
    const json::value* value = object.if_contains("chat_template");
    if (value == nullptr || value->is_null()) return {};
    if (const json::string* text = value->if_string()) {
      config_.templates.push_back({"default", std::string(view(*text)), path});
      return {};
    }
    if (!value->is_array()) return data_loss("{}: chat_template must be a string or a list", path);
    for (const json::value& entry : value->get_array()) {
      const json::object* fields = entry.if_object();
      const json::value* name = fields != nullptr ? fields->if_contains("name") : nullptr;
      const json::value* text = fields != nullptr ? fields->if_contains("template") : nullptr;
      if (name == nullptr || !name->is_string() || text == nullptr || !text->is_string())
        return data_loss("{}: an entry of chat_template lacks \"name\" or \"template\"", path);
      LK_RETURN_IF_ERROR(add({std::string(view(name->get_string())), std::string(view(text->get_string())), path}));
    }
    return {};
  }
  Status add_file(const std::string& name, const std::string& path) {
    LK_ASSIGN_OR_RETURN(std::string source, read_file(path, kMaxTemplateBytes));
    return add({name, std::move(source), path});
  }
  // Of two with one name the last counts.
  Status add(TokenizerConfig::Template added) {
    std::erase_if(config_.templates, [&](const auto& known) { return known.name == added.name; });
    if (config_.templates.size() == kMaxTemplates)
      return unsupported("{}: more than {} chat templates", added.where, kMaxTemplates);
    config_.templates.push_back(std::move(added));
    return {};
  }

  const std::string& directory_;
  TokenizerConfig config_;
  std::set<std::string, std::less<>> described_;  // names whose tokens tokenizer_config.json describes
  std::set<std::string, std::less<>> older_;      // tokens that special_tokens_map.json names
};

}  // namespace

std::vector<std::string> list_chat_templates(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  std::filesystem::directory_iterator at(join_path(directory, kChatTemplateDirectory), error);
  for (; !error && at != std::filesystem::directory_iterator() && paths.size() <= kMaxTemplates; at.increment(error))
    if (at->path().extension() == ".jinja") paths.push_back(at->path().string());
  std::ranges::sort(paths);
  return paths;
}

Result<TokenizerConfig> TokenizerConfig::load(const std::string& directory) { return Reader(directory).read(); }

const TokenizerConfig::Named* TokenizerConfig::find(std::string_view name) const {
  for (const Named& token : named)
    if (token.name == name) return &token;
  return nullptr;
}

std::vector<std::pair<std::string, std::string>> TokenizerConfig::variables() const {
  std::vector<std::pair<std::string, std::string>> all;
  for (const Named& token : named) all.emplace_back(token.name, token.content);
  return all;
}

TokenizerConfig TokenizerConfig::over(const TokenizerConfig& base) const {
  TokenizerConfig both = *this;
  for (const Named& token : base.named)
    if (find(token.name) == nullptr && std::ranges::count(unnamed, token.name) == 0) both.named.push_back(token);
  for (const Extra& token : base.extra)
    if (std::ranges::none_of(extra, [&](const Extra& own) { return own.content == token.content; }))
      both.extra.push_back(token);
  if (base.added) {
    if (!both.added) both.added.emplace();
    for (const auto& [id, token] : *base.added) both.added->emplace(id, token);
  }
  both.complete = complete || base.complete;
  if (!both.add_prefix_space) both.add_prefix_space = base.add_prefix_space;
  both.split_special_tokens = split_special_tokens || base.split_special_tokens;
  if (both.tokenizer_class.empty()) both.tokenizer_class = base.tokenizer_class;
  both.legacy = legacy && base.legacy;
  if (both.templates.empty()) both.templates = base.templates;
  if (!names_tokens()) both.where = base.where;
  return both;
}

bool TokenizerConfig::names_tokens() const {
  return !named.empty() || !extra.empty() || (added && !added->empty()) || add_prefix_space || split_special_tokens;
}

std::string TokenizerConfig::token_key() const {
  std::string key;
  const auto put = [&](std::string_view text) { key += fmt::format("{}:{};", text.size(), text); };
  const auto put_token = [&](const std::string& content, const std::optional<AddedToken>& token) {
    put(content);
    if (token)
      key += fmt::format("{:d}{:d}{:d}{:d}{:d};", token->single_word, token->lstrip, token->rstrip, token->normalized,
                         token->special);
  };
  for (const Named& token : named) {
    put(token.name);
    put_token(token.content, token.described);
  }
  key += "|";
  for (const Extra& token : extra) put_token(token.content, token.described);
  key += added ? fmt::format("|{:d}", complete) : "|-";
  if (added)
    for (const auto& [id, token] : *added) {
      key += fmt::format("{};", id);
      put_token(token.content, token);
    }
  key += fmt::format("|{}{:d}{:d}", add_prefix_space ? (*add_prefix_space ? "t" : "f") : "-", split_special_tokens,
                     legacy);
  put(tokenizer_class);
  return key;
}

}  // namespace lk
