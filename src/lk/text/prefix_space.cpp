// SPDX-License-Identifier: Apache-2.0
#include "lk/text/prefix_space.h"

#include <algorithm>

#include <boost/json.hpp>

namespace lk {
namespace {

namespace json = boost::json;

// Classes that write the flag into their ByteLevel parts, and those that write it into Metaspace.
constexpr std::string_view kByteLevelClasses[] = {"GPT2Tokenizer",    "Qwen2Tokenizer",   "CohereTokenizer",
                                                  "GPTNeoXTokenizer", "CodeGenTokenizer", "RobertaTokenizer"};
constexpr std::string_view kMetaspaceClasses[] = {"LlamaTokenizer", "CodeLlamaTokenizer"};

bool is(const json::value& part, std::string_view type) {
  const json::object* object = part.if_object();
  const json::value* name = object != nullptr ? object->if_contains("type") : nullptr;
  return name != nullptr && name->is_string() && name->get_string() == json::string_view(type);
}

// Every part of a section, those inside of sequences too. False from `change` removes a part of a sequence.
template <class Change>
bool each_part(json::value& section, const char* list_key, const Change& change) {
  if (!is(section, "Sequence")) return change(section);
  json::value* list = section.get_object().if_contains(list_key);
  if (list == nullptr || !list->is_array()) return true;
  json::array& parts = list->get_array();
  const auto dropped =
      std::remove_if(parts.begin(), parts.end(), [&](json::value& part) { return !each_part(part, list_key, change); });
  parts.erase(dropped, parts.end());
  return true;
}

}  // namespace

std::optional<json::value> with_prefix_space(const TokenizerConfig& config, std::string_view key,
                                             const json::value& root) {
  if (!config.add_prefix_space || !root.is_object()) return std::nullopt;
  const json::value* section = root.get_object().if_contains(key);
  if (section == nullptr || !section->is_object()) return std::nullopt;
  const bool space = *config.add_prefix_space;
  const auto among = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), config.tokenizer_class) != std::end(names);
  };
  json::value changed = *section;
  if (among(kByteLevelClasses)) {
    if (key != "pre_tokenizer") return std::nullopt;
    each_part(changed, "pretokenizers", [&](json::value& part) {
      if (is(part, "ByteLevel")) part.get_object()["add_prefix_space"] = space;
      return true;
    });
  } else if (among(kMetaspaceClasses)) {
    const auto metaspace = [&](json::value& part) {
      if (!is(part, "Metaspace")) return true;
      json::object& object = part.get_object();
      const json::value* scheme = object.if_contains("prepend_scheme");
      const bool spaced = scheme == nullptr || *scheme != "never";
      if (spaced != space) object["prepend_scheme"] = !space ? "never" : config.legacy ? "always" : "first";
      object.erase("add_prefix_space");
      return true;
    };
    bool keep = true;
    if (key == "pre_tokenizer") {
      keep = each_part(changed, "pretokenizers", metaspace);
    } else if (key == "normalizer" && !space) {  // older files write the space with the normalizer
      keep = each_part(changed, "normalizers", [](json::value& part) { return !is(part, "Prepend"); });
    } else if (key == "decoder" && !space) {
      keep = each_part(changed, "decoders", [&](json::value& part) { return !is(part, "Strip") && metaspace(part); });
    } else if (key == "decoder") {
      keep = each_part(changed, "decoders", metaspace);
    }
    if (!keep) changed = nullptr;
  } else {
    return std::nullopt;
  }
  if (changed == *section) return std::nullopt;
  return changed;
}

}  // namespace lk
