// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/access_requests.h"

#include <ctime>
#include <vector>

#include "lk/serve/access/access_json.h"
#include "lk/serve/openai/parse.h"

namespace lk {

using AccessFields = FormFields<kAccessFields>;

ApiResult<KeyCreate> parse_key_create(std::string_view body) {
  const ApiResult<boost::json::object> root = openai::read_body(body, {});
  if (!root.ok()) return root.error;
  JsonErrors errors;
  AccessFields fields(*root.value, kKeyCreateForm, "", errors);
  KeyCreate key;
  std::vector<std::string> scopes;
  std::string expires;
  fields.read("tenant", key.tenant);
  fields.read("scopes", scopes);
  fields.read("note", key.note);
  fields.read("expires", expires);
  fields.refuse_unknown();
  if (key.tenant.empty()) errors.set("tenant", "\"tenant\" must be given");
  if (scopes.empty()) errors.set("scopes", "\"scopes\" must be given: " + scope_names());
  for (const std::string& scope : scopes) {
    const Result<uint8_t> parsed = parse_scopes(scope);
    if (parsed.ok())
      key.scopes |= *parsed;
    else
      errors.set("scopes", parsed.status().message());
  }
  const Result<int64_t> parsed = parse_expiry(expires, std::time(nullptr));
  if (parsed.ok())
    key.expires = *parsed;
  else
    errors.set("expires", parsed.status().message());
  if (errors.failed()) return openai::field_error(errors);
  return key;
}

ApiResult<Tenant> parse_tenant(std::string_view body, Tenant tenant, AccessForm form) {
  const ApiResult<boost::json::object> root = openai::read_body(body, {});
  if (!root.ok()) return root.error;
  JsonErrors errors;
  AccessFields fields(*root.value, form, "", errors);
  if (form == kTenantCreateForm) fields.read("name", tenant.name);
  fields.read("weight", tenant.weight);
  fields.read("max_in_flight", tenant.max_in_flight);
  fields.read("tokens_per_minute", tenant.tokens_per_minute);
  fields.read("max_adapters", tenant.max_adapters);
  fields.read("max_versions", tenant.max_versions);
  fields.read("max_sums", tenant.max_sums);
  fields.read("adapters", tenant.adapters);
  fields.refuse_unknown();
  if (form == kTenantCreateForm && tenant.name.empty()) errors.set("name", "\"name\" must be given");
  if (errors.failed()) return openai::field_error(errors);
  return tenant;
}

}  // namespace lk
