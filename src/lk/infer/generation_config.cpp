// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/generation_config.h"

#include <algorithm>
#include <limits>

#include "lk/base/file.h"
#include "lk/infer/request_fields.h"

namespace lk {

Result<GenerationDefaults> load_generation_defaults(const std::string& directory) {
  GenerationDefaults defaults;
  const std::string path = join_path(directory, "generation_config.json");
  if (!file_exists(path)) return defaults;
  LK_ASSIGN_OR_RETURN(const boost::json::object object, load_json_object(path));
  RequestFields fields(object, kGenerationConfigForm, path);
  const auto read = [&](RequestFields::Name name, auto& out) {
    if (fields.find(name) != nullptr) fields.read(name, out.emplace());
  };
  read("temperature", defaults.temperature);
  read("top_p", defaults.top_p);
  read("min_p", defaults.min_p);
  read("repetition_penalty", defaults.repetition_penalty);
  read("top_k", defaults.top_k);
  if (defaults.top_k) defaults.top_k = std::max<int64_t>(*defaults.top_k, 0);  // 0 and -1: off
  // -1 appears in the wild for "none".
  fields.read_ints("eos_token_id", defaults.eos_token_ids, -1, std::numeric_limits<int32_t>::max());
  std::erase(defaults.eos_token_ids, -1);
  LK_RETURN_IF_ERROR(fields.status());
  return defaults;
}

}  // namespace lk
