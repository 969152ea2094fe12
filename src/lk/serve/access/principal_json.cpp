// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/principal_json.h"

#include <boost/json.hpp>

#include <charconv>
#include <limits>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"

namespace lk {
namespace {

constexpr int64_t kMany = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxKeyId = 64;
constexpr size_t kSaltDigits = 16;

}  // namespace

std::string format_principal(const Principal& principal) {
  const Tenant& tenant = *principal.tenant;
  boost::json::object out{{"tenant", tenant.name},
                          {"key", principal.key_id},
                          {"scopes", principal.scopes},
                          {"weight", tenant.weight},
                          {"salt", fmt::format("{:x}", tenant.cache_salt)},
                          {"adapters", boost::json::array(tenant.adapters.begin(), tenant.adapters.end())}};
  for (const auto& [name, limit] :
       {std::pair("max_adapters", tenant.max_adapters), std::pair("max_versions", tenant.max_versions),
        std::pair("max_sums", tenant.max_sums)})
    if (limit > 0) out[name] = limit;
  return json_text(out);
}

Result<Principal> parse_principal(std::string_view json) {
  LK_ASSIGN_OR_RETURN(const boost::json::object object, parse_json_object(json, "the principal"));
  JsonFields fields(object, "the principal");
  Tenant tenant;
  Principal principal;
  std::string salt;
  int64_t scopes = 0;
  fields.read_string("tenant", tenant.name, 0, 128);
  fields.read_string("key", principal.key_id, 0, kMaxKeyId);
  fields.read_int("scopes", scopes, 0, kAllScopes);
  fields.read_double("weight", tenant.weight, 1e-3, 1e6);
  fields.read_string("salt", salt, 0, kSaltDigits);
  fields.read_strings("adapters", tenant.adapters);
  fields.read_int("max_adapters", tenant.max_adapters, 0, kMany);
  fields.read_int("max_versions", tenant.max_versions, 0, kMany);
  fields.read_int("max_sums", tenant.max_sums, 0, kMany);
  LK_RETURN_IF_ERROR(fields.status());
  // No list would mean all adapters, no salt everybody's prompts: both must have been meant.
  for (const char* name : {"tenant", "scopes", "adapters", "salt"})
    if (!fields.has(name)) return invalid_argument("the principal: \"{}\" is missing", name);
  if (!tenant.name.empty()) LK_RETURN_IF_ERROR(check_name("tenant", tenant.name));
  const char* end = salt.data() + salt.size();
  if (!salt.empty() && std::from_chars(salt.data(), end, tenant.cache_salt, 16).ptr != end)
    return invalid_argument("the principal: \"salt\" is no hexadecimal number");
  principal.scopes = static_cast<uint8_t>(scopes);
  principal.tenant = std::make_shared<const Tenant>(std::move(tenant));
  return principal;
}

}  // namespace lk
