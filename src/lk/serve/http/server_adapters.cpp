// SPDX-License-Identifier: Apache-2.0
// Models and adapters: OpenAI's /v1/models, vLLM's load and unload endpoints, and our own /v1/adapters.
#include <ctime>

#include <boost/json/serialize.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/http/query_value.h"
#include "lk/serve/http/server_impl.h"
#include "lk/serve/openai/adapter_requests.h"

namespace lk {
namespace {

namespace json = boost::json;

// vLLM's errors: type by status, integer code.
void vllm_error(const std::shared_ptr<Exchange>& exchange, int status, std::string_view type, std::string_view message,
                std::string_view param = {}) {
  const json::value about = param.empty() ? json::value(nullptr) : json::value(param);
  exchange->respond(
      status,
      json_text(json::object{{"error", {{"message", message}, {"type", type}, {"param", about}, {"code", status}}}}));
}

// What is wrong with a field.
ApiError about(const Status& status, std::string_view field) {
  ApiError error = api_error(status);
  error.param = field;
  return error;
}

void vllm_error(const std::shared_ptr<Exchange>& exchange, const ApiError& error) {
  vllm_error(exchange, error.status, "BadRequestError", error.message, error.param);
}

void vllm_error(const std::shared_ptr<Exchange>& exchange, const Status& status) {
  switch (status.code()) {
    case StatusCode::kNotFound:
      return vllm_error(exchange, 404, "NotFoundError", status.message());
    case StatusCode::kAlreadyExists:
      return vllm_error(exchange, 400, "InvalidUserInput", status.message());
    case StatusCode::kPermissionDenied:
      return vllm_error(exchange, 403, "PermissionDeniedError", status.message());
    case StatusCode::kUnavailable:
      return vllm_error(exchange, 503, "ServiceUnavailableError", status.message());
    case StatusCode::kIoError:
    case StatusCode::kInternal:
      return vllm_error(exchange, 500, "InternalServerError", "the adapter could not be loaded; see the log");
    default:
      return vllm_error(exchange, 400, "BadRequestError", status.message());
  }
}

}  // namespace

// What another tenant's key loaded is that tenant's to change; what nobody's did (--lora, --lora-dir) is everybody's
// who may use it.
Status ServerImpl::check_owner(const Exchange& exchange, const std::string& name) const {
  const std::shared_ptr<const Tenant> limits = exchange.limits();
  if (!limits || name.empty()) return Status();
  const std::string owner = registry_->owner_of(name);
  if (owner.empty() || owner == limits->name) return Status();
  return permission_denied("\"{}\" belongs to another tenant", name);
}

// Loader thread.
void ServerImpl::adapter_load_ended(const Exchange& exchange, std::string_view name,
                                    const Result<AdapterLease>& loaded) {
  metrics_->adapter_load(loaded.ok() ? (*loaded)->load_seconds : 0, loaded.ok());
  if (!loaded.ok()) return audit(exchange, "adapter_load", name, loaded.status());
  const AdapterVersion& adapter = **loaded;
  const std::string exact = fmt::format("{}@{}", adapter.name, adapter.version);
  audit(exchange, adapter.replaced > 0 ? "adapter_replace" : "adapter_load", exact, Status());
  log_->write(LogLevel::kInfo, "adapter_loaded",
              {{"adapter", exact}, {"digest", adapter.digest}, {"seconds", adapter.load_seconds}});
  for (const std::string& warning : adapter.warnings)
    log_->write(LogLevel::kWarning, "adapter_warning", {{"adapter", adapter.name}, {"reason", warning}});
}

// --- vLLM

void ServerImpl::vllm_load(const std::shared_ptr<Exchange>& exchange) {
  if (options_.adapters.roots.empty())
    return vllm_error(exchange, 404, "NotFoundError",
                      "loading adapters at run time is off: start the server with --lora-root DIR");
  const ApiResult<AdapterLoad> parsed = parse_vllm_load(exchange->request.body);
  if (!parsed.ok()) return vllm_error(exchange, parsed.error);
  const AdapterLoad* load = &*parsed.value;
  if (load->name.empty() || load->path.empty())
    return vllm_error(exchange, 400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.");
  if (!exchange->principal.tenant->may_use(load->name))
    return vllm_error(exchange, 403, "PermissionDeniedError", "this tenant may not use that adapter name");
  if (const Status status = check_adapter_name("adapter name", load->name); !status.ok())
    return vllm_error(exchange, about(status, "lora_name"));
  const std::shared_ptr<const Tenant> limits = exchange->limits();
  load_adapter({.name = load->name,
                .path = load->path,
                .replace = load->in_place,
                .tenant = limits ? limits->name : "",
                .limits = limits},
               [this, exchange, asked = load->name](Result<AdapterLease> loaded) {
                 adapter_load_ended(*exchange, asked, loaded);
                 exchange->post([exchange, status = loaded.ok() ? Status() : loaded.status(),
                                 name = loaded.ok() ? (*loaded)->name : ""] {
                   if (!status.ok()) return vllm_error(exchange, status);
                   exchange->respond(200, fmt::format("Success: LoRA adapter '{}' added successfully.", name),
                                     "text/plain; charset=utf-8");
                 });
               });
}

void ServerImpl::vllm_unload(const std::shared_ptr<Exchange>& exchange) {
  const ApiResult<std::string> parsed = parse_vllm_unload(exchange->request.body);
  if (!parsed.ok()) return vllm_error(exchange, parsed.error);
  const std::string& name = *parsed.value;
  if (name.empty())
    return vllm_error(exchange, 400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.");
  if (!exchange->principal.tenant->may_use(name))
    return vllm_error(exchange, 404, "NotFoundError", fmt::format("The lora adapter '{}' cannot be found.", name));
  if (const Status status = check_owner(*exchange, name); !status.ok()) return vllm_error(exchange, status);
  take_out_of_fleet(exchange, name, [this, exchange, name](const Status& fleet, bool was_fleets) {
    if (!fleet.ok()) return exchange->post([exchange, fleet] { vllm_error(exchange, fleet); });
    change(exchange, [this, exchange, name, was_fleets] {
      const Result<int> unloaded = registry_->unload(name, nullptr);
      Status status = unloaded.ok() ? Status() : unloaded.status();
      if (was_fleets && status.code() == StatusCode::kNotFound) status = Status();  // the fleet's news came first
      audit(*exchange, "adapter_unload", name, status);
      exchange->post([exchange, name, status] {
        if (!status.ok()) return vllm_error(exchange, status);
        exchange->respond(200, fmt::format("Success: LoRA adapter '{}' removed successfully.", name),
                          "text/plain; charset=utf-8");
      });
    });
  });
}

// --- /v1/adapters

void ServerImpl::post_adapter(const std::shared_ptr<Exchange>& exchange) {
  const ApiResult<AdapterLoad> parsed = parse_adapter_create(exchange->request.body);
  if (!parsed.ok()) return exchange->fail(parsed.error);
  const AdapterLoad* load = &*parsed.value;
  if (options_.adapters.roots.empty())
    return exchange->fail(
        permission_denied("loading adapters at run time is off: start the server with --lora-root DIR"));
  if (!exchange->principal.tenant->may_use(load->name))
    return exchange->fail(permission_denied("this tenant may not use that adapter name"));
  if (const Status status = check_adapter_name("adapter name", load->name); !status.ok())
    return exchange->fail(about(status, "name"));
  AdapterRegistry::LoadRequest request{.name = load->name,
                                       .path = load->path,
                                       .replace = load->in_place,
                                       .keep_previous = load->keep_previous,
                                       .pinned = load->pinned,
                                       .limits = exchange->limits()};
  if (request.limits) request.tenant = request.limits->name;
  load_adapter(std::move(request), [this, exchange, name = load->name](Result<AdapterLease> loaded) {
    adapter_load_ended(*exchange, name, loaded);
    if (!loaded.ok()) {
      exchange->post([exchange, status = loaded.status()] {
        ApiError error = api_error(status, exchange->id);
        if (status.code() == StatusCode::kAlreadyExists)
          error.status = 409, error.param = "name";
        else if (error.status < 500 && error.status != 429)
          error.param = "path";  // its name is right
        exchange->fail(error);
      });
      return;
    }
    const std::string exact = fmt::format("{}@{}", (*loaded)->name, (*loaded)->version);
    const std::optional<AdapterSnapshot> adapter = registry_->find(exact, service_->fresh_snapshot());
    std::string body = adapter ? adapter_json(*exchange, *adapter) : json_text(json::object{{"id", exact}});
    exchange->post([exchange, body = std::move(body)] { exchange->respond(201, body); });
  });
}

// {"pinned": bool} and/or {"alias": NAME}, which means this adapter from now on.
void ServerImpl::patch_adapter(const std::shared_ptr<Exchange>& exchange) {
  const ApiResult<AdapterChange> parsed = parse_adapter_patch(exchange->request.body);
  if (!parsed.ok()) return exchange->fail(parsed.error);
  const AdapterChange& change = *parsed.value;
  const std::optional<AdapterSnapshot> known = registry_->find(exchange->parameter, {});
  const Tenant& tenant = *exchange->principal.tenant;
  if (!known || !tenant.may_use(known->name))
    return exchange->fail(not_found("there is no adapter \"{}\"", exchange->parameter));
  if (!change.alias.empty() && !tenant.may_use(change.alias))
    return exchange->fail(permission_denied("this tenant may not use that alias"));
  for (const std::string& name : {exchange->parameter, change.alias})
    if (const Status status = check_owner(*exchange, name); !status.ok()) return exchange->fail(status);
  const auto refuse = [exchange](const Status& status) {
    ApiError error = api_error(status, exchange->id);
    if (status.code() == StatusCode::kAlreadyExists || status.code() == StatusCode::kResourceExhausted)
      error.status = 409;
    if (error.status < 500 && status.code() != StatusCode::kNotFound)
      error.param = status.code() == StatusCode::kResourceExhausted ? "pinned" : "alias";
    exchange->fail(error);
  };
  const auto apply = [this, exchange, change, refuse] {
    const Status status = registry_->change(exchange->parameter, change.pinned, change.alias);
    if (change.pinned) audit(*exchange, *change.pinned ? "adapter_pin" : "adapter_unpin", exchange->parameter, status);
    if (!change.alias.empty())
      audit(*exchange, "alias_set", fmt::format("{} -> {}", change.alias, exchange->parameter), status);
    const std::optional<AdapterSnapshot> adapter = registry_->find(exchange->parameter, service_->fresh_snapshot());
    exchange->post([exchange, status, refuse, body = adapter ? adapter_json(*exchange, *adapter) : ""] {
      if (status.ok() && !body.empty()) return exchange->respond(200, body);
      refuse(status.ok() ? not_found("there is no adapter \"{}\"", exchange->parameter) : status);
    });
  };
  const auto go_on = [this, exchange, apply, refuse, alias = change.alias] {
    if (!fleet_ || alias.empty() || !registry_->is_fleet(exchange->parameter)) return this->change(exchange, apply);
    // What this server would refuse must not be written where all of them read it.
    if (const Status status = registry_->check_alias(alias, exchange->parameter); !status.ok()) return refuse(status);
    fleet_->changes().set_alias(alias, exchange->parameter, [this, exchange, apply, refuse](const Status& status) {
      exchange->post([this, exchange, apply, refuse, status] {
        if (!status.ok()) return refuse(status);
        this->change(exchange, apply);
      });
    });
  };
  // One that is only known is loaded before it is pinned.
  if (!change.pinned.value_or(false) || known->state == "loaded") return go_on();
  const auto deadline = exchange->arrival + std::chrono::duration_cast<Clock::duration>(
                                                std::chrono::duration<double>(options_.default_timeout_seconds));
  registry_->load_cold(exchange->parameter, tenant.name, deadline,
                       [exchange, go_on](const Result<AdapterLease>& loaded) {
                         if (!loaded.ok()) return exchange->refuse(model_error(loaded.status(), exchange->id));
                         exchange->post(go_on);
                       });
}

// Answers when the memory is free: at once without requests in flight, else when the last one ended (?wait=0: at once
// in any case).
void ServerImpl::delete_adapter(const std::shared_ptr<Exchange>& exchange) {
  const std::string& name = exchange->parameter;
  if (!exchange->principal.tenant->may_use(name.substr(0, name.find('@'))))
    return exchange->fail(not_found("there is no adapter \"{}\"", name));
  if (const Status status = check_owner(*exchange, name); !status.ok()) return exchange->fail(status);
  const std::string asked = query_value(exchange->request.query, "wait").value_or("1");
  if (asked != "0" && asked != "1")
    return exchange->fail(ApiError{.message = "\"wait\" must be 0 or 1", .param = "wait"});
  const bool wait = asked == "1";
  take_out_of_fleet(exchange, name, [this, exchange, name, wait](const Status& fleet, bool was_fleets) {
    if (!fleet.ok()) return exchange->post([exchange, fleet] { exchange->fail(fleet); });
    unload_and_answer(exchange, name, wait, was_fleets);
  });
}

void ServerImpl::unload_and_answer(const std::shared_ptr<Exchange>& exchange, const std::string& name, bool wait,
                                   bool was_fleets) {
  change(exchange, [this, exchange, name, wait, was_fleets] {
    if (const Status status = registry_->remove_alias(name); status.code() != StatusCode::kNotFound) {
      audit(*exchange, "alias_remove", name, status);
      return exchange->post([exchange, name, status] {
        if (!status.ok()) return exchange->fail(status);
        exchange->respond(200, json_text(json::object{{"id", name}, {"object", "adapter.alias"}, {"deleted", true}}));
      });
    }
    struct Receipt {
      std::mutex mutex;
      int expected = -1, freed = 0;
      int64_t page_bytes = 0, host_bytes = 0;
    };
    auto receipt = std::make_shared<Receipt>();
    const auto answer = [exchange, name, receipt](bool complete) {
      json::object body{{"id", name}, {"object", "adapter"}, {"deleted", true}, {"versions", receipt->expected}};
      if (complete) {
        body["freed_bytes"] = receipt->page_bytes + receipt->host_bytes;
        body["freed_device_bytes"] = receipt->page_bytes;
        body["freed_host_bytes"] = receipt->host_bytes;
      }
      exchange->post(
          [exchange, status = complete ? 200 : 202, text = json_text(body)] { exchange->respond(status, text); });
    };
    const Result<int> unloaded = registry_->unload(name, [receipt, answer, wait](const AdapterRegistry::Freed& freed) {
      bool complete = false;
      {
        std::lock_guard lock(receipt->mutex);
        ++receipt->freed;
        receipt->page_bytes += freed.page_bytes;
        receipt->host_bytes += freed.host_bytes;
        complete = receipt->freed == receipt->expected;
      }
      if (complete && wait) answer(true);
    });
    const bool gone_already = was_fleets && unloaded.status().code() == StatusCode::kNotFound;  // the news came first
    audit(*exchange, "adapter_unload", name, unloaded.ok() || gone_already ? Status() : unloaded.status());
    if (gone_already)
      return exchange->post([exchange, name] {
        exchange->respond(200, json_text(json::object{{"id", name}, {"object", "adapter"}, {"deleted", true}}));
      });
    if (!unloaded.ok()) return exchange->post([exchange, status = unloaded.status()] { exchange->fail(status); });
    bool complete = false;
    {
      std::lock_guard lock(receipt->mutex);
      receipt->expected = *unloaded;
      complete = receipt->freed == receipt->expected;
    }
    if (!wait)
      answer(false);
    else if (complete)
      answer(true);
  });
}

}  // namespace lk
