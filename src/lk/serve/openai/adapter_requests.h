// SPDX-License-Identifier: Apache-2.0
// Bodies that manage adapters: vLLM's load and unload, and our own /v1/adapters.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "lk/base/json_form.h"
#include "lk/base/names.h"
#include "lk/serve/openai/openai.h"

namespace lk {

enum AdapterForm : uint32_t {
  kAdapterCreateForm = 1 << 0,
  kAdapterPatchForm = 1 << 1,
  kLoadLoraForm = 1 << 2,
  kUnloadLoraForm = 1 << 3,
};

inline constexpr Field kAdapterFields[] = {
    rows::required(rows::pattern("name", kAdapterCreateForm, rows::kOurs, 0, 256, kAdapterNamePattern)),
    rows::required(
        rows::text("path", kAdapterCreateForm, rows::kOurs, 0, 4096, "A PEFT directory within the configured roots.")),
    rows::flag("replace", kAdapterCreateForm, rows::kOurs, "true",
               "A new version of an adapter of that name; with false, a taken name is an error."),
    rows::flag("keep_previous", kAdapterCreateForm, rows::kOurs, "false",
               "Replaced versions stay addressable as name@version."),
    rows::flag("pinned", kAdapterCreateForm, rows::kOurs, "false", "Never evicted from the device."),
    rows::flag("pinned", kAdapterPatchForm, rows::kOurs, "", "Never evicted from the device."),
    rows::pattern("alias", kAdapterPatchForm, rows::kOurs, 0, 256, kAdapterNamePattern,
                  "From now on this alias means the adapter of the path."),
    rows::required(rows::text("lora_name", kLoadLoraForm | kUnloadLoraForm, rows::kVllm, 0, 256)),
    rows::required(rows::text("lora_path", kLoadLoraForm, rows::kVllm, 0, 4096)),
    rows::flag("load_inplace", kLoadLoraForm, rows::kVllm, "false", "Replace an adapter of that name."),
    rows::ignored("lora_int_id", kUnloadLoraForm, rows::kVllm),
};

struct AdapterLoad {
  std::string name, path;
  bool in_place = false, pinned = false, keep_previous = false;
};
// vLLM's may lack a name or a path: its error says so in its own words.
ApiResult<AdapterLoad> parse_vllm_load(std::string_view body);
ApiResult<AdapterLoad> parse_adapter_create(std::string_view body);
ApiResult<std::string> parse_vllm_unload(std::string_view body);  // the name, or ""

struct AdapterChange {
  std::optional<bool> pinned;
  std::string alias;
};
ApiResult<AdapterChange> parse_adapter_patch(std::string_view body);

}  // namespace lk
