// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/adapter_requests.h"

#include "lk/serve/openai/parse.h"

namespace lk {
namespace {

using AdapterFields = FormFields<kAdapterFields>;

// `read` takes the fields of the body and fills the result.
template <class T, class Read>
ApiResult<T> parse(std::string_view body, AdapterForm form, Read read) {
  const ApiResult<boost::json::object> root = openai::read_body(body, {});
  if (!root.ok()) return root.error;
  JsonErrors errors;
  AdapterFields fields(*root.value, form, "", errors);
  T out;
  read(fields, out);
  if (errors.failed()) return openai::field_error(errors);
  return out;
}

}  // namespace

ApiResult<AdapterLoad> parse_vllm_load(std::string_view body) {
  return parse<AdapterLoad>(body, kLoadLoraForm, [](AdapterFields& fields, AdapterLoad& load) {
    fields.read("lora_name", load.name);
    fields.read("lora_path", load.path);
    fields.read("load_inplace", load.in_place);
  });
}

ApiResult<AdapterLoad> parse_adapter_create(std::string_view body) {
  return parse<AdapterLoad>(body, kAdapterCreateForm, [](AdapterFields& fields, AdapterLoad& load) {
    load.in_place = true;
    fields.read("name", load.name);
    fields.read("path", load.path);
    fields.read("replace", load.in_place);
    fields.read("pinned", load.pinned);
    fields.read("keep_previous", load.keep_previous);
    fields.refuse_unknown();
    if (load.name.empty() || load.path.empty())
      fields.errors().set(load.name.empty() ? "name" : "path", "\"name\" and \"path\" must be given");
  });
}

ApiResult<std::string> parse_vllm_unload(std::string_view body) {
  return parse<std::string>(body, kUnloadLoraForm,
                            [](AdapterFields& fields, std::string& name) { fields.read("lora_name", name); });
}

ApiResult<AdapterChange> parse_adapter_patch(std::string_view body) {
  return parse<AdapterChange>(body, kAdapterPatchForm, [](AdapterFields& fields, AdapterChange& change) {
    bool pinned = false;
    fields.read("pinned", pinned);
    if (fields.has("pinned")) change.pinned = pinned;
    fields.read("alias", change.alias);
    fields.refuse_unknown();
    if (!change.pinned && change.alias.empty()) fields.errors().set("", "give \"pinned\" or \"alias\"");
  });
}

}  // namespace lk
