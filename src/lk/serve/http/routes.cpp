// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/routes.h"

#include <vector>

#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

using enum Access;
using S = ServerImpl;
using Handler = void (ServerImpl::*)(const std::shared_ptr<Exchange>&);

// Where it answers, and what it costs: inference, other work on what was sent, changes on the admin listener.
enum class Kind { kPlain, kAdminListener, kChanges, kWorks, kInfers };

constexpr Cost cost_of(Kind kind) {
  switch (kind) {
    case Kind::kInfers:
      return Cost::kInference;
    case Kind::kWorks:
    case Kind::kChanges:
      return Cost::kWork;
    default:
      return Cost::kNothing;
  }
}

constexpr Route route(std::string_view method, std::string_view path, Access access, Kind kind, Handler handler,
                      std::string_view id = {}, std::string_view summary = {}, std::string_view body = {},
                      std::string_view answer = {}, int status = 200, std::string_view refusals = {},
                      std::string_view query = {}) {
  return {.method = method,
          .path = path,
          .access = access,
          .admin_listener = kind == Kind::kAdminListener || kind == Kind::kChanges,
          .cost = cost_of(kind),
          .handler = handler,
          .doc = {.id = id,
                  .summary = summary,
                  .body = body,
                  .answer = answer,
                  .status = status,
                  .query = query,
                  .refusals = refusals}};
}

using enum Kind;

constexpr Route kRoutes[] = {
    route("POST", "/v1/chat/completions", kInfer, kInfers, &S::chat, "createChatCompletion", "Answer a conversation",
          "ChatRequest", "ChatResponse"),
    route("POST", "/v1/completions", kInfer, kInfers, &S::completions, "createCompletion", "Continue text",
          "CompletionRequest", "CompletionResponse"),
    route("POST", "/v1/embeddings", kInfer, kInfers, &S::embeddings, "createEmbedding",
          "Mean of the last hidden states, normalised", "EmbeddingRequest", "EmbeddingResponse"),
    route("POST", "/tokenize", kInfer, kWorks, &S::tokenize, "tokenize", "Text or messages to token ids",
          "TokenizeRequest", "TokenizeResponse"),
    route("POST", "/detokenize", kInfer, kWorks, &S::detokenize, "detokenize", "Token ids to text", "DetokenizeRequest",
          "DetokenizeResponse"),
    route("GET", "/v1/models", kInfer, kPlain, &S::models, "listModels",
          "The base model and the adapters the tenant may use", "", "ModelList", 200, "", "limit after"),
    route("GET", "/v1/models/{id}", kInfer, kPlain, &S::model, "getModel", "One model", "", "Model"),
    route("POST", "/v1/load_lora_adapter", kAdapters, kChanges, &S::vllm_load, "loadLoraAdapter",
          "Load an adapter (vLLM's route)", "LoadLoraRequest", "text"),
    route("POST", "/v1/unload_lora_adapter", kAdapters, kChanges, &S::vllm_unload, "unloadLoraAdapter",
          "Unload an adapter (vLLM's route)", "UnloadLoraRequest", "text"),
    route("GET", "/v1/adapters", kAdapters, kAdminListener, &S::list_adapters, "listAdapters", "All adapter versions",
          "", "AdapterList", 200, "", "limit after"),
    route("POST", "/v1/adapters", kAdapters, kChanges, &S::post_adapter, "createAdapter",
          "Load an adapter: verified, and proven on a probe prompt, before it can be seen", "AdapterCreate", "Adapter",
          201, "409"),
    route("GET", "/v1/adapters/{name}", kAdapters, kAdminListener, &S::get_adapter, "getAdapter",
          "One adapter, by name or name@version", "", "Adapter"),
    route("PATCH", "/v1/adapters/{name}", kAdapters, kChanges, &S::patch_adapter, "updateAdapter",
          "Pin, unpin, or point an alias at it", "AdapterPatch", "Adapter", 200, "409"),
    route("DELETE", "/v1/adapters/{name}", kAdapters, kChanges, &S::delete_adapter, "deleteAdapter",
          "Unload: requests in flight finish, new ones no longer find it", "", "AdapterDeleted", 200, "", "wait"),
    route("GET", "/v1/keys", kAdmin, kAdminListener, &S::list_keys, "listKeys", "Keys, without their secrets", "",
          "KeyList", 200, "409"),
    route("POST", "/v1/keys", kAdmin, kChanges, &S::post_key, "createKey",
          "Make a key; its secret is in this answer only", "KeyCreate", "KeyCreated", 201, "409"),
    route("GET", "/v1/keys/{id}", kAdmin, kAdminListener, &S::get_key, "getKey",
          "One key, by the 12 characters of its public part", "", "Key", 200, "409"),
    route("DELETE", "/v1/keys/{id}", kAdmin, kChanges, &S::delete_key, "revokeKey",
          "Make a key useless for good; holds when this is answered", "", "Deleted", 200, "409"),
    route("GET", "/v1/tenants", kAdmin, kAdminListener, &S::list_tenants, "listTenants", "Tenants with their limits",
          "", "TenantList", 200, "409"),
    route("POST", "/v1/tenants", kAdmin, kChanges, &S::post_tenant, "createTenant", "Make a tenant", "TenantCreate",
          "Tenant", 201, "409"),
    route("GET", "/v1/tenants/{name}", kAdmin, kAdminListener, &S::get_tenant, "getTenant", "One tenant", "", "Tenant",
          200, "409"),
    route("PATCH", "/v1/tenants/{name}", kAdmin, kChanges, &S::patch_tenant, "updateTenant", "Change what is given",
          "TenantPatch", "Tenant", 200, "409"),
    route("DELETE", "/v1/tenants/{name}", kAdmin, kChanges, &S::delete_tenant, "deleteTenant",
          "Remove a tenant without usable keys", "", "Deleted", 200, "409"),
    route("GET", "/v1/usage", kAnyKey, kPlain, &S::usage, "getUsage",
          "Tokens by key since the start: the own one's, all for scope admin", "", "KeyUsageList"),
    route("GET", "/v1/status", kMetrics, kAdminListener, &S::status, "getStatus", "Figures of this moment", "",
          "Status"),
    route("GET", "/metrics", kMetrics, kAdminListener, &S::metrics, "metrics",
          "Prometheus text, under vLLM's names and as lorikeet_*", "", "text"),
    route("GET", "/v1/fleet/state", kFleet, kPlain, &S::fleet_state, "getFleetState",
          "For routers: load, adapters in memory and life, as server-sent events", "", "events"),
    route("GET", "/health", kOpen, kPlain, &S::health, "health", "200 while the engine works", "", "", 200, "503"),
    route("GET", "/healthz", kOpen, kPlain, &S::health),
    route("GET", "/ping", kOpen, kPlain, &S::health),
    route("GET", "/ready", kOpen, kPlain, &S::ready, "ready", "200 when requests are accepted", "", "Ready", 200,
          "503"),
    route("GET", "/readyz", kOpen, kPlain, &S::ready),
    route("GET", "/live", kOpen, kPlain, &S::live, "live", "200 while the process should not be restarted", "", "Live",
          200, "503"),
    route("GET", "/livez", kOpen, kPlain, &S::live),
    route("GET", "/version", kOpen, kPlain, &S::version, "version", "Version of the program", "", "Version"),
    route("GET", "/openapi.json", kOpen, kPlain, &S::openapi, "openapi", "This document", "", "Document"),
    route("GET", "/", kOpen, kPlain, &S::console),
    route("GET", "/console/{file}", kOpen, kPlain, &S::console),
};

std::string_view tag_of(Access access) {
  switch (access) {
    case kInfer:
      return "inference";
    case kAdapters:
      return "adapters";
    case kAdmin:
      return "access";
    default:
      return "operations";
  }
}

}  // namespace

std::span<const Route> routes() { return kRoutes; }

std::string openapi_json(std::string_view version) {
  std::vector<DocumentedRoute> documented;
  for (const Route& route : kRoutes)
    documented.push_back({route.method, route.path, tag_of(route.access), route.access == kOpen, route.doc});
  return openapi_page(documented, version);
}

}  // namespace lk
