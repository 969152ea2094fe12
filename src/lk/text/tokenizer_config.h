// SPDX-License-Identifier: Apache-2.0
// What the files beside tokenizer.json say about tokens and chat templates: tokenizer_config.json, the older
// special_tokens_map.json and added_tokens.json, chat_template.jinja, additional_chat_templates/*.jinja.
// Source: PreTrainedTokenizerBase._from_pretrained and TokenizersBackend.__init__ of transformers 5.24, whose order of
// precedence this follows.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <boost/json/object.hpp>

#include "lk/base/status.h"

namespace lk {

// A token beside the model's vocabulary, as tokenizer.json and tokenizer_config.json describe it.
struct AddedToken {
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
  bool operator==(const AddedToken&) const = default;
};

// Everything that is read of a directory for its text, beside tokenizer.json; what guards and watches directories
// needs the names.
inline constexpr const char* kTokenizerFile = "tokenizer.json";
inline constexpr const char* kTokenizerConfigFile = "tokenizer_config.json";
inline constexpr const char* kSpecialTokensFile = "special_tokens_map.json";
inline constexpr const char* kAddedTokensFile = "added_tokens.json";
inline constexpr const char* kChatTemplateFile = "chat_template.jinja";
inline constexpr const char* kChatTemplateDirectory = "additional_chat_templates";

// The paths of the chat templates in the folder of a directory, sorted; none when it has no such folder.
std::vector<std::string> list_chat_templates(const std::string& directory);

struct TokenizerConfig {
  // A token by a name that templates and programs know it by: "bos_token", or one of the model's own.
  struct Named {
    std::string name;
    std::string content;
    std::optional<AddedToken> described;  // when the file says more than its text
    bool standard = false;                // one of the seven that every tokenizer has
    bool operator==(const Named&) const = default;
  };
  struct Extra {
    std::string content;
    std::optional<AddedToken> described;
    bool operator==(const Extra&) const = default;
  };
  struct Template {
    std::string name;  // "default", "tool_use", "rag", ...
    std::string source;
    std::string where;  // the file, for messages
  };

  // All empty when the directory has none of the files. kDataLoss names the file and what is wrong in it.
  static Result<TokenizerConfig> load(const std::string& directory);

  // What is said here, and else what `base` says. Its templates count only when there is none here.
  TokenizerConfig over(const TokenizerConfig& base) const;
  // Whether anything here changes which tokens a text becomes or shows.
  bool names_tokens() const;
  // Equal texts for what names the same tokens; a part of a tokenizer's digest.
  std::string token_key() const;
  const Named* find(std::string_view name) const;
  // The named tokens, as a template's variables.
  std::vector<std::pair<std::string, std::string>> variables() const;

  std::vector<Named> named;
  std::vector<std::string> unnamed;                    // names that the file sets to null: of no token
  std::vector<Extra> extra;                            // special, without a name
  std::optional<std::map<int32_t, AddedToken>> added;  // by id; nothing: no file lists them
  bool complete = false;                               // `added` is tokenizer_config.json's: all there are
  std::optional<bool> add_prefix_space;                // of the classes that look at it
  bool legacy = true;                                  // of Llama's class: the space goes before every piece of text
  bool split_special_tokens = false;                   // special tokens in a text are text
  std::string tokenizer_class;                         // without "Fast"
  std::vector<Template> templates;
  std::string where;  // the file that names tokens, for messages
};

}  // namespace lk
