// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/account_record.h"

#include <charconv>
#include <limits>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/serve/access/account_store.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr int64_t kForm = 1;
constexpr size_t kMaxValue = 256 << 10;  // of a tenant with all the patterns it may have
constexpr int64_t kAnyNumber = std::numeric_limits<int64_t>::max();

Result<json::object> read_value(std::string_view value) {
  if (value.size() > kMaxValue) return data_loss("{} bytes", value.size());
  Result<json::object> object = parse_json_object(value, "it");
  if (!object.ok()) return data_loss("{}", object.status().message());
  JsonFields fields(*object, "it");
  int64_t form = 0;
  fields.read_int("form", form, 0, kAnyNumber);
  if (fields.failed()) return data_loss("{}", fields.status().message());
  if (form != kForm) return unsupported("its form is {}, known here is {}", form, kForm);
  return object;
}

}  // namespace

std::string tenant_key(std::string_view name) { return fmt::format("{}{}", kTenants, name); }
std::string key_key(std::string_view id) { return fmt::format("{}{}", kKeys, id); }

std::string format_tenant(const TenantRecord& record) {
  const Tenant& tenant = record.tenant;
  return json_text(json::object{{"form", kForm},
                                {"removed", record.removed},
                                {"weight", tenant.weight},
                                {"max_in_flight", tenant.max_in_flight},
                                {"tokens_per_minute", tenant.tokens_per_minute},
                                {"max_adapters", tenant.max_adapters},
                                {"max_versions", tenant.max_versions},
                                {"max_sums", tenant.max_sums},
                                {"adapters", json::array(tenant.adapters.begin(), tenant.adapters.end())},
                                {"cache_salt", fmt::format("{:016x}", tenant.cache_salt)}});
}

std::string format_key(const ApiKey& key) {
  return json_text(json::object{{"form", kForm},
                                {"secret_sha256", key.secret_sha256},
                                {"tenant", key.tenant},
                                {"scopes", format_scopes(key.scopes)},
                                {"note", key.note},
                                {"created", key.created},
                                {"expires", key.expires},
                                {"revoked", key.revoked}});
}

Result<TenantRecord> parse_tenant_record(std::string_view name, std::string_view value) {
  LK_ASSIGN_OR_RETURN(const json::object object, read_value(value));
  TenantRecord record;
  Tenant& tenant = record.tenant;
  tenant.name = name.substr(std::min(kTenants.size(), name.size()));
  JsonFields fields(object, "it");
  fields.read_bool("removed", record.removed);
  fields.read_double("weight", tenant.weight);
  fields.read_int("max_in_flight", tenant.max_in_flight, 0, kAnyNumber);
  fields.read_int("tokens_per_minute", tenant.tokens_per_minute, 0, kAnyNumber);
  fields.read_int("max_adapters", tenant.max_adapters, 0, kAnyNumber);
  fields.read_int("max_versions", tenant.max_versions, 0, kAnyNumber);
  fields.read_int("max_sums", tenant.max_sums, 0, kAnyNumber);
  fields.read_strings("adapters", tenant.adapters);
  std::string salt;
  fields.read_string("cache_salt", salt, 16, 16);
  if (fields.failed()) return data_loss("{}", fields.status().message());
  const auto [end, error] = std::from_chars(salt.data(), salt.data() + salt.size(), tenant.cache_salt, 16);
  if (error != std::errc() || end != salt.data() + salt.size() || tenant.cache_salt == 0)
    return data_loss("it has no cache salt");
  if (const Status status = check_account(tenant); !status.ok()) return data_loss("{}", status.message());
  return record;
}

Result<ApiKey> parse_key_record(std::string_view name, std::string_view value) {
  LK_ASSIGN_OR_RETURN(const json::object object, read_value(value));
  ApiKey key;
  key.id = name.substr(std::min(kKeys.size(), name.size()));
  JsonFields fields(object, "it");
  std::string scopes;
  fields.read_string("secret_sha256", key.secret_sha256);
  fields.read_string("tenant", key.tenant);
  fields.read_string("scopes", scopes);
  fields.read_string("note", key.note);
  fields.read_int("created", key.created, 0, kAnyNumber);
  fields.read_int("expires", key.expires, 0, kAnyNumber);
  fields.read_bool("revoked", key.revoked);
  if (fields.failed()) return data_loss("{}", fields.status().message());
  const Result<uint8_t> known = parse_scopes(scopes);
  if (!known.ok()) return data_loss("{}", known.status().message());
  key.scopes = *known;
  if (const Status status = check_account(key); !status.ok()) return data_loss("{}", status.message());
  return key;
}

}  // namespace lk
