// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/pooling.h"

#include <array>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr size_t kMaxBytes = size_t{1} << 20;

// The directory of the Pooling module, "1_Pooling" as a rule; empty without one.
Result<std::string> pooling_directory(const std::string& directory) {
  const std::string path = join_path(directory, "modules.json");
  if (!file_exists(path)) {
    const std::string usual = join_path(directory, "1_Pooling");
    return is_directory(usual) ? usual : std::string();
  }
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(path, kMaxBytes));
  boost::system::error_code error;
  const json::value modules = json::parse(text, error);
  if (error || !modules.is_array()) return invalid_argument("{}: not a list of modules", path);
  std::string found;
  for (const json::value& module : modules.get_array()) {
    if (!module.is_object()) return invalid_argument("{}: not a list of modules", path);
    JsonFields fields(module.get_object(), path);
    std::string type, own;
    fields.read_string("type", type);
    fields.read_string("path", own);
    LK_RETURN_IF_ERROR(fields.status());
    const std::string kind = type.substr(type.rfind('.') + 1);
    if (kind == "Transformer" || kind == "Normalize") continue;
    if (kind != "Pooling")
      return unsupported(
          "{}: module {} changes the embeddings and is not supported; supported: Transformer, Pooling, "
          "Normalize. Give --pooling to do without it",
          path, kind);
    if (own.empty() || own.find('/') != std::string::npos || own.front() == '.')
      return invalid_argument("{}: '{}' is not a plain directory name", path, own);
    found = join_path(directory, own);
  }
  return found;
}

}  // namespace

Result<Pooling> load_pooling(const std::string& directory) {
  LK_ASSIGN_OR_RETURN(const std::string own, pooling_directory(directory));
  if (own.empty()) return Pooling::kMean;
  const std::string path = join_path(own, "config.json");
  LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(path));
  JsonFields fields(object, path);
  std::string wanted;
  const json::value* mode = fields.find("pooling_mode");  // newer files name it
  if (mode != nullptr) {                                  // one, or a list of those that are joined
    std::vector<std::string> names;
    fields.read_one_or_more("pooling_mode", names, 16, 1, 64);
    for (const std::string& name : names) wanted += (wanted.empty() ? "" : "+") + name;
  } else {
    constexpr std::array<std::pair<const char*, const char*>, 6> kFlags{
        {{"pooling_mode_cls_token", "cls"},
         {"pooling_mode_mean_tokens", "mean"},
         {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"},
         {"pooling_mode_max_tokens", "max"},
         {"pooling_mode_weightedmean_tokens", "weightedmean"},
         {"pooling_mode_lasttoken", "lasttoken"}}};
    for (const auto& [key, name] : kFlags) {
      bool set = false;
      fields.read_bool(key, set);
      if (!set) continue;
      wanted += (wanted.empty() ? "" : "+") + std::string(name);
    }
  }
  bool include_prompt = true;
  fields.read_bool("include_prompt", include_prompt);
  LK_RETURN_IF_ERROR(fields.status());
  if (wanted == "cls") return Pooling::kFirst;
  if (wanted == "lasttoken" || wanted == "last") return Pooling::kLast;
  // Sums that differ in length only.
  if (wanted.empty() || wanted == "mean" || wanted == "mean_sqrt_len_tokens") return Pooling::kMean;
  return unsupported(
      "{}: pooling \"{}\" is not supported; supported: mean, lasttoken, cls. Give --pooling to choose one", path,
      wanted);
}

}  // namespace lk
