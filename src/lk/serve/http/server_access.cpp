// SPDX-License-Identifier: Apache-2.0
// Keys, tenants and what was used: /v1/keys and /v1/tenants for those who administrate, /v1/usage for everybody's own.
#include <ctime>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/access/access_json.h"
#include "lk/serve/access/access_requests.h"
#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

namespace json = boost::json;

std::string list_json(json::array data) {
  return json_text(json::object{{"object", "list"}, {"data", std::move(data)}});
}

ApiError access_error(const Status& status, const Exchange& exchange) {
  ApiError error = api_error(status, exchange.id);
  if (status.code() == StatusCode::kAlreadyExists || status.code() == StatusCode::kFailedPrecondition)
    error.status = 409;
  return error;
}

const Tenant* find_tenant(const std::vector<Tenant>& tenants, std::string_view name) {
  const auto it = std::ranges::find(tenants, name, &Tenant::name);
  return it == tenants.end() ? nullptr : &*it;
}

}  // namespace

// Runs on the state thread, which is where the store is read and written; what it returns is the body of a success.
// What changed holds before it is answered. `undo` (may be empty) runs there, too, when the client had left by then.
void ServerImpl::administrate(const std::shared_ptr<Exchange>& exchange, int success,
                              std::function<Result<std::string>()> task, std::function<void()> undo) {
  if (!store_)
    return exchange->fail(ApiError{.status = 409,
                                   .message = "the server runs without a state file: it keeps no keys and tenants",
                                   .code = "no_state"});
  change(exchange, [this, exchange, success, task = std::move(task), undo = std::move(undo)] {
    const Result<std::string> body = task();
    if (!body.ok()) return exchange->refuse(access_error(body.status(), *exchange));
    if (exchange->request.method != "GET") {
      if (const Status status = apply_access(access_->refresh()); !status.ok())
        log_->write(LogLevel::kError, "keys_not_readable", {{"reason", status.message()}});
    }
    exchange->post([this, exchange, success, undo, body = *body] {
      if (!exchange->gone || !undo) {
        exchange->respond(success, body, "application/json", {{"cache-control", "no-store"}});
      } else if (!state_->try_post([undo](const Status&) { undo(); })) {  // also when nothing else has a turn any more
        log_->write(LogLevel::kError, "change_not_undone", {{"id", exchange->id}});
      }
    });
  });
}

// --- Keys

void ServerImpl::list_keys(const std::shared_ptr<Exchange>& exchange) {
  administrate(exchange, 200, [this]() -> Result<std::string> {
    LK_ASSIGN_OR_RETURN(const std::vector<ApiKey> keys, store_->keys());
    json::array data;
    for (const ApiKey& key : keys) data.push_back(key_json(key, std::time(nullptr)));
    return list_json(std::move(data));
  });
}

void ServerImpl::get_key(const std::shared_ptr<Exchange>& exchange) {
  administrate(exchange, 200, [this, id = exchange->parameter]() -> Result<std::string> {
    LK_ASSIGN_OR_RETURN(const std::vector<ApiKey> keys, store_->keys());
    const auto it = std::ranges::find(keys, id, &ApiKey::id);
    if (it == keys.end()) return not_found("no key \"{}\"", id);
    return json_text(key_json(*it, std::time(nullptr)));
  });
}

void ServerImpl::post_key(const std::shared_ptr<Exchange>& exchange) {
  ApiResult<KeyCreate> parsed = parse_key_create(exchange->request.body);
  if (!parsed.ok()) return exchange->fail(parsed.error);
  const auto id = std::make_shared<std::string>();
  const auto make = [this, exchange, id, asked = std::move(*parsed.value)]() -> Result<std::string> {
    if (exchange->gone) return unavailable("the client left");
    Result<StateStore::NewKey> made = store_->create_key(asked.tenant, asked.scopes, asked.note, asked.expires);
    audit(*exchange, "key_create", made.ok() ? made->key.id : asked.tenant, made.status());
    if (!made.ok()) return made.status();
    *id = own_change_ = made->key.id;
    json::object body = key_json(made->key, std::time(nullptr));
    body["key"] = made->text;  // only here and now
    return json_text(body);
  };
  // A key that nobody was told must not stay usable.
  administrate(exchange, 201, make, [this, exchange, id] {
    if (revoke(*exchange, *id).ok()) (void)apply_access(access_->refresh());
  });
}

// State thread.
Status ServerImpl::revoke(const Exchange& exchange, const std::string& id) {
  const Status status = store_->revoke_key(id);
  audit(exchange, "key_revoke", id, status);
  if (status.ok()) own_change_ = id;
  return status;
}

void ServerImpl::delete_key(const std::shared_ptr<Exchange>& exchange) {
  administrate(exchange, 200, [this, exchange]() -> Result<std::string> {
    const std::string& id = exchange->parameter;
    LK_RETURN_IF_ERROR(revoke(*exchange, id));
    return json_text(json::object{{"id", id}, {"object", "api_key"}, {"deleted", true}});
  });
}

// --- Tenants

void ServerImpl::list_tenants(const std::shared_ptr<Exchange>& exchange) {
  administrate(exchange, 200, [this]() -> Result<std::string> {
    LK_ASSIGN_OR_RETURN(const std::vector<Tenant> tenants, store_->tenants());
    json::array data;
    for (const Tenant& tenant : tenants) data.push_back(tenant_json(tenant));
    return list_json(std::move(data));
  });
}

void ServerImpl::get_tenant(const std::shared_ptr<Exchange>& exchange) {
  administrate(exchange, 200, [this, name = exchange->parameter]() -> Result<std::string> {
    LK_ASSIGN_OR_RETURN(const std::vector<Tenant> tenants, store_->tenants());
    const Tenant* tenant = find_tenant(tenants, name);
    if (tenant == nullptr) return not_found("no tenant \"{}\"", name);
    return json_text(tenant_json(*tenant));
  });
}

void ServerImpl::post_tenant(const std::shared_ptr<Exchange>& exchange) {
  ApiResult<Tenant> parsed = parse_tenant(exchange->request.body, {}, kTenantCreateForm);
  if (!parsed.ok()) return exchange->fail(parsed.error);
  administrate(exchange, 201, [this, exchange, tenant = std::move(*parsed.value)]() -> Result<std::string> {
    Status status = store_->create_tenant(tenant);
    if (status.code() == StatusCode::kAlreadyExists) status = already_exists("{}; PATCH changes it", status.message());
    audit(*exchange, "tenant_create", tenant.name, status);
    if (!status.ok()) return status;
    own_change_ = tenant.name;
    return json_text(tenant_json(tenant));
  });
}

void ServerImpl::patch_tenant(const std::shared_ptr<Exchange>& exchange) {
  // Its fields are checked before anything waits for the file.
  if (const ApiResult<Tenant> parsed = parse_tenant(exchange->request.body, {}, kTenantPatchForm); !parsed.ok())
    return exchange->fail(parsed.error);
  administrate(exchange, 200, [this, exchange]() -> Result<std::string> {
    const std::string& name = exchange->parameter;
    const Result<Tenant> changed = store_->change_tenant(name, [&](Tenant& tenant) {
      tenant = *parse_tenant(exchange->request.body, tenant, kTenantPatchForm).value;
      return Status();
    });
    audit(*exchange, "tenant_change", name, changed.status());
    if (!changed.ok()) return changed.status();
    own_change_ = name;
    return json_text(tenant_json(*changed));
  });
}

void ServerImpl::delete_tenant(const std::shared_ptr<Exchange>& exchange) {
  administrate(exchange, 200, [this, exchange]() -> Result<std::string> {
    const std::string& name = exchange->parameter;
    const Status status = store_->remove_tenant(name);
    audit(*exchange, "tenant_remove", name, status);
    if (!status.ok()) return status;
    own_change_ = name;
    return json_text(json::object{{"name", name}, {"object", "tenant"}, {"deleted", true}});
  });
}

// --- Usage

// Since the start, by key. Admin sees all keys, everybody else the own one.
void ServerImpl::usage(const std::shared_ptr<Exchange>& exchange) {
  const Principal& who = exchange->principal;
  json::array data;
  for (const auto& [key, entry] : usage_.all()) {
    if (!who.has(Scope::kAdmin) && key != who.key_id) continue;
    data.push_back(json::object{{"key", key.empty() ? json::value(nullptr) : json::value(key)},
                                {"tenant", entry.tenant},
                                {"requests", entry.usage.requests},
                                {"prompt_tokens", entry.usage.prompt_tokens},
                                {"cached_tokens", entry.usage.cached_tokens},
                                {"output_tokens", entry.usage.output_tokens}});
  }
  const auto since =
      std::time(nullptr) - static_cast<int64_t>(std::chrono::duration<double>(Clock::now() - started_).count());
  exchange->respond(200, json_text(json::object{{"object", "list"}, {"since", since}, {"data", std::move(data)}}));
}

}  // namespace lk
