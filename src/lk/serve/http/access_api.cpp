// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/access_api.h"

#include <algorithm>
#include <ctime>
#include <memory>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/access/access_json.h"
#include "lk/serve/access/access_requests.h"

namespace lk {
namespace {

namespace json = boost::json;

std::string list_json(json::array data) {
  return json_text(json::object{{"object", "list"}, {"data", std::move(data)}});
}

template <class Entries, class Format>
Result<std::string> listed(const Result<Entries>& entries, Format&& format) {
  if (!entries.ok()) return entries.status();
  json::array data;
  for (const auto& entry : *entries) data.push_back(format(entry));
  return list_json(std::move(data));
}

json::object shown(const ApiKey& key) { return key_json(key, std::time(nullptr)); }

// --- Keys

Result<std::string> get_key(AccountStore& store, const std::string& id) {
  LK_ASSIGN_OR_RETURN(const std::vector<ApiKey> keys, store.keys());
  const auto it = std::ranges::find(keys, id, &ApiKey::id);
  if (it == keys.end()) return not_found("no key \"{}\"", id);
  return json_text(shown(*it));
}

Status revoke(AccountStore& store, const std::string& id, const AccessAudit& audit) {
  const Status status = store.revoke_key(id);
  audit("key_revoke", id, status);
  return status;
}

AccessJob create_key(AccountStore& store, KeyCreate asked, std::function<bool()> gone) {
  const auto id = std::make_shared<std::string>();
  AccessJob job{.success = 201, .changes = true};
  job.run = [&store, id, asked = std::move(asked),
             gone = std::move(gone)](const AccessAudit& audit) -> Result<std::string> {
    if (gone()) return unavailable("the client left");
    Result<AccountStore::NewKey> made = store.create_key(asked.tenant, asked.scopes, asked.note, asked.expires);
    audit("key_create", made.ok() ? made->key.id : asked.tenant, made.status());
    if (!made.ok()) return made.status();
    *id = made->key.id;
    json::object body = shown(made->key);
    body["key"] = made->text;  // only here and now
    return json_text(body);
  };
  // A key that nobody was told must not stay usable.
  job.undo = [&store, id](const AccessAudit& audit) { (void)revoke(store, *id, audit); };
  return job;
}

Result<std::string> delete_key(AccountStore& store, const std::string& id, const AccessAudit& audit) {
  LK_RETURN_IF_ERROR(revoke(store, id, audit));
  return json_text(json::object{{"id", id}, {"object", "api_key"}, {"deleted", true}});
}

// --- Tenants

Result<std::string> get_tenant(AccountStore& store, const std::string& name) {
  LK_ASSIGN_OR_RETURN(const std::vector<Tenant> tenants, store.tenants());
  const auto it = std::ranges::find(tenants, name, &Tenant::name);
  if (it == tenants.end()) return not_found("no tenant \"{}\"", name);
  return json_text(tenant_json(*it));
}

Result<std::string> create_tenant(AccountStore& store, const Tenant& tenant, const AccessAudit& audit) {
  Status status = store.create_tenant(tenant);
  if (status.code() == StatusCode::kAlreadyExists) status = already_exists("{}; PATCH changes it", status.message());
  audit("tenant_create", tenant.name, status);
  if (!status.ok()) return status;
  return json_text(tenant_json(tenant));
}

Result<std::string> patch_tenant(AccountStore& store, const std::string& name, const std::string& body,
                                 const AccessAudit& audit) {
  const Result<Tenant> changed = store.change_tenant(name, [&](Tenant& tenant) {
    tenant = *parse_tenant(body, tenant, kTenantPatchForm).value;
    return Status();
  });
  audit("tenant_change", name, changed.status());
  if (!changed.ok()) return changed.status();
  return json_text(tenant_json(*changed));
}

Result<std::string> delete_tenant(AccountStore& store, const std::string& name, const AccessAudit& audit) {
  const Status status = store.remove_tenant(name);
  audit("tenant_remove", name, status);
  if (!status.ok()) return status;
  return json_text(json::object{{"name", name}, {"object", "tenant"}, {"deleted", true}});
}

}  // namespace

ApiResult<AccessJob> read_access_job(AccountStore& store, std::string_view method, std::string_view path,
                                     const std::string& parameter, const std::string& body,
                                     std::function<bool()> gone) {
  AccountStore* const at = &store;
  const bool of_keys = path.starts_with("/v1/keys");
  const bool of_one = path.find('{') != std::string_view::npos;
  AccessJob job{.changes = true};
  if (method == "POST" && of_keys) {
    ApiResult<KeyCreate> asked = parse_key_create(body);
    if (!asked.ok()) return asked.error;
    return create_key(store, std::move(*asked.value), std::move(gone));
  }
  if (method == "POST") {
    ApiResult<Tenant> tenant = parse_tenant(body, {}, kTenantCreateForm);
    if (!tenant.ok()) return tenant.error;
    job.success = 201;
    job.run = [at, tenant = std::move(*tenant.value)](const AccessAudit& audit) {
      return create_tenant(*at, tenant, audit);
    };
  } else if (method == "PATCH") {
    if (const ApiResult<Tenant> parsed = parse_tenant(body, {}, kTenantPatchForm); !parsed.ok()) return parsed.error;
    job.run = [at, parameter, body](const AccessAudit& audit) { return patch_tenant(*at, parameter, body, audit); };
  } else if (method == "DELETE") {
    job.run = [at, parameter, of_keys](const AccessAudit& audit) {
      return of_keys ? delete_key(*at, parameter, audit) : delete_tenant(*at, parameter, audit);
    };
  } else {
    job.changes = false;
    if (of_one)
      job.run = [at, parameter, of_keys](const AccessAudit&) {
        return of_keys ? get_key(*at, parameter) : get_tenant(*at, parameter);
      };
    else
      job.run = [at, of_keys](const AccessAudit&) {
        return of_keys ? listed(at->keys(), shown) : listed(at->tenants(), tenant_json);
      };
  }
  return job;
}

ApiError access_error(const Status& status, std::string_view request_id) {
  ApiError error = api_error(status, request_id);
  if (status.code() == StatusCode::kAlreadyExists || status.code() == StatusCode::kFailedPrecondition)
    error.status = 409;
  return error;
}

ApiError no_access_state(std::string_view who) {
  return {.status = 409,
          .message = fmt::format("{} runs without a state file: it keeps no keys and tenants", who),
          .code = "no_state"};
}

}  // namespace lk
