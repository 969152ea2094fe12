// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/routes.h"

#include <fmt/format.h>

#include <vector>

#include "lk/cluster/fleet_paths.h"
#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

using enum Access;
using enum RoutedAs;
using S = ServerImpl;
using Handler = void (ServerImpl::*)(const std::shared_ptr<Exchange>&);

// Where it answers, and what it costs: inference (with tokens as its answer: kGenerates), other work on what was sent,
// changes on the admin listener.
enum class Kind { kPlain, kAdminListener, kChanges, kWorks, kInfers, kGenerates };

constexpr Cost cost_of(Kind kind) {
  switch (kind) {
    case Kind::kInfers:
    case Kind::kGenerates:
      return Cost::kInference;
    case Kind::kWorks:
    case Kind::kChanges:
      return Cost::kWork;
    default:
      return Cost::kNothing;
  }
}

constexpr Route route(std::string_view method, std::string_view path, Access access, Kind kind, RoutedAs routed,
                      Handler handler, std::string_view id = {}, std::string_view summary = {},
                      std::string_view body = {}, std::string_view answer = {}, int status = 200,
                      std::string_view refusals = {}, std::string_view query = {}) {
  return {.method = method,
          .path = path,
          .access = access,
          .admin_listener = kind == Kind::kAdminListener || kind == Kind::kChanges,
          .cost = cost_of(kind),
          .dialect = Dialect::kOpenAi,
          .generates = kind == Kind::kGenerates,
          .routed = routed,
          .handler = handler,
          .doc = {.id = id,
                  .summary = summary,
                  .body = body,
                  .answer = answer,
                  .status = status,
                  .query = query,
                  .refusals = refusals}};
}

constexpr Route in(Dialect dialect, Route route) {
  route.dialect = dialect;
  return route;
}

using enum Kind;

constexpr Route kRoutes[] = {
    route("POST", "/v1/chat/completions", kInfer, kGenerates, kOne, &S::chat, "createChatCompletion",
          "Answer a conversation", "ChatRequest", "ChatResponse"),
    route("POST", "/v1/completions", kInfer, kGenerates, kOne, &S::completions, "createCompletion", "Continue text",
          "CompletionRequest", "CompletionResponse"),
    in(Dialect::kResponses, route("POST", "/v1/responses", kInfer, kGenerates, kOne, &S::responses, "createResponse",
                                  "Answer a conversation of items (OpenAI's Responses, without storage)",
                                  "ResponsesRequest", "ResponsesResponse")),
    in(Dialect::kAnthropic,
       route("POST", "/v1/messages", kInfer, kGenerates, kOne, &S::messages, "createMessage",
             "Answer a conversation (Anthropic's Messages)", "MessagesRequest", "MessagesResponse")),
    in(Dialect::kAnthropic,
       route("POST", "/v1/messages/count_tokens", kInfer, kWorks, kOne, &S::count_tokens, "countMessageTokens",
             "How many tokens a conversation's prompt has", "CountTokensRequest", "CountTokensResponse")),
    route("POST", "/v1/embeddings", kInfer, kInfers, kOne, &S::embeddings, "createEmbedding",
          "Mean of the last hidden states, normalised", "EmbeddingRequest", "EmbeddingResponse"),
    route("POST", "/v1/score", kInfer, kInfers, kOne, &S::score, "createScore",
          "How likely label tokens come next, for each item", "ScoreRequest", "ScoreResponse"),
    route("POST", "/tokenize", kInfer, kWorks, kOne, &S::tokenize, "tokenize", "Text or messages to token ids",
          "TokenizeRequest", "TokenizeResponse"),
    route("POST", "/detokenize", kInfer, kWorks, kOne, &S::detokenize, "detokenize", "Token ids to text",
          "DetokenizeRequest", "DetokenizeResponse"),
    route("GET", "/v1/models", kInfer, kPlain, kModelList, &S::models, "listModels",
          "The base model and the adapters the tenant may use", "", "ModelList", 200, "", "limit after"),
    route("GET", "/v1/models/{id}", kInfer, kPlain, kWhoKnows, &S::model, "getModel", "One model", "", "Model"),
    route("POST", "/v1/load_lora_adapter", kAdapters, kChanges, kEverywhere, &S::vllm_load, "loadLoraAdapter",
          "Load an adapter (vLLM's route)", "LoadLoraRequest", "text"),
    route("POST", "/v1/unload_lora_adapter", kAdapters, kChanges, kEverywhere, &S::vllm_unload, "unloadLoraAdapter",
          "Unload an adapter (vLLM's route)", "UnloadLoraRequest", "text"),
    route("GET", "/v1/adapters", kAdapters, kAdminListener, kAdapterList, &S::list_adapters, "listAdapters",
          "All adapter versions", "", "AdapterList", 200, "", "limit after"),
    route("POST", "/v1/adapters", kAdapters, kChanges, kEverywhere, &S::post_adapter, "createAdapter",
          "Load an adapter: verified, and proven on a probe prompt, before it can be seen", "AdapterCreate", "Adapter",
          201, "409"),
    route("GET", "/v1/adapters/{name}", kAdapters, kAdminListener, kWhoKnows, &S::get_adapter, "getAdapter",
          "One adapter, by name or name@version", "", "Adapter"),
    route("PATCH", "/v1/adapters/{name}", kAdapters, kChanges, kEverywhere, &S::patch_adapter, "updateAdapter",
          "Pin, unpin, or point an alias at it", "AdapterPatch", "Adapter", 200, "409"),
    route("DELETE", "/v1/adapters/{name}", kAdapters, kChanges, kEverywhere, &S::delete_adapter, "deleteAdapter",
          "Unload: requests in flight finish, new ones no longer find it", "", "AdapterDeleted", 200, "", "wait"),
    route("GET", "/v1/keys", kAdmin, kAdminListener, kOwn, &S::administrate, "listKeys", "Keys, without their secrets",
          "", "KeyList", 200, "409"),
    route("POST", "/v1/keys", kAdmin, kChanges, kOwn, &S::administrate, "createKey",
          "Make a key; its secret is in this answer only", "KeyCreate", "KeyCreated", 201, "409"),
    route("GET", "/v1/keys/{id}", kAdmin, kAdminListener, kOwn, &S::administrate, "getKey",
          "One key, by the 12 characters of its public part", "", "Key", 200, "409"),
    route("DELETE", "/v1/keys/{id}", kAdmin, kChanges, kOwn, &S::administrate, "revokeKey",
          "Make a key useless for good; holds when this is answered", "", "Deleted", 200, "409"),
    route("GET", "/v1/tenants", kAdmin, kAdminListener, kOwn, &S::administrate, "listTenants",
          "Tenants with their limits", "", "TenantList", 200, "409"),
    route("POST", "/v1/tenants", kAdmin, kChanges, kOwn, &S::administrate, "createTenant", "Make a tenant",
          "TenantCreate", "Tenant", 201, "409"),
    route("GET", "/v1/tenants/{name}", kAdmin, kAdminListener, kOwn, &S::administrate, "getTenant", "One tenant", "",
          "Tenant", 200, "409"),
    route("PATCH", "/v1/tenants/{name}", kAdmin, kChanges, kOwn, &S::administrate, "updateTenant",
          "Change what is given", "TenantPatch", "Tenant", 200, "409"),
    route("DELETE", "/v1/tenants/{name}", kAdmin, kChanges, kOwn, &S::administrate, "deleteTenant",
          "Remove a tenant without usable keys", "", "Deleted", 200, "409"),
    route("GET", "/v1/usage", kAnyKey, kPlain, kUsageList, &S::usage, "getUsage",
          "Tokens by key since the start: the own one's, all for scope admin", "", "KeyUsageList"),
    route("GET", "/v1/status", kMetrics, kAdminListener, kOwn, &S::status, "getStatus", "Figures of this moment", "",
          "Status"),
    route("GET", "/metrics", kMetrics, kAdminListener, kOwn, &S::metrics, "metrics",
          "Prometheus text, under vLLM's names and as lorikeet_*", "", "text"),
    route("GET", kFleetStatePath, kFleet, kPlain, kOwn, &S::fleet_state, "getFleetState",
          "For routers: load, adapters in memory and life, as server-sent events", "", "events"),
    route("POST", "/v1/fleet/prefetch/{adapter}", kFleet, kPlain, kOwn, &S::fleet_prefetch, "prefetchAdapter",
          "From routers: requests for this adapter are expected, so read it into memory"),
    route("GET", "/v1/fleet/blobs/{sha256}", kFleet, kPlain, kOwn, &S::fleet_blob, "getFleetBlob",
          "For other replicas: a part of a file of a published adapter, by its SHA-256 (Range)", "", "bytes", 206),
    route("GET", "/health", kOpen, kPlain, kOwn, &S::health, "health", "200 while the engine works", "", "", 200,
          "503"),
    route("GET", "/healthz", kOpen, kPlain, kOwn, &S::health),
    route("GET", "/ping", kOpen, kPlain, kOwn, &S::health),
    route("GET", "/ready", kOpen, kPlain, kOwn, &S::ready, "ready", "200 when requests are accepted", "", "Ready", 200,
          "503"),
    route("GET", "/readyz", kOpen, kPlain, kOwn, &S::ready),
    route("GET", "/live", kOpen, kPlain, kOwn, &S::live, "live", "200 while the process should not be restarted", "",
          "Live", 200, "503"),
    route("GET", "/livez", kOpen, kPlain, kOwn, &S::live),
    route("GET", "/version", kOpen, kPlain, kOwn, &S::version, "version", "Version of the program", "", "Version"),
    route("GET", "/openapi.json", kOpen, kPlain, kOwn, &S::openapi, "openapi", "This document", "", "Document"),
    route("GET", "/", kOpen, kPlain, kOwn, &S::console),
    route("GET", "/console/{file}", kOpen, kPlain, kOwn, &S::console),
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

bool matches(const Route& route, std::string_view path) {
  const size_t brace = route.path.find('{');
  if (brace == std::string_view::npos) return path == route.path;
  return path.size() > brace && path.starts_with(route.path.substr(0, brace));
}

Dialect dialect_at(std::string_view path) {
  for (const Route& route : kRoutes)
    if (matches(route, path)) return route.dialect;
  return Dialect::kOpenAi;
}

const Route* find_route(std::string_view method, std::string_view path, std::string* parameter, bool* path_exists,
                        const HiddenRoutes& hidden) {
  for (const Route& route : kRoutes) {
    if (!matches(route, path) || (hidden && hidden(route))) continue;
    *path_exists = true;
    if (method != route.method && !(method == "HEAD" && route.method == "GET")) continue;
    if (const size_t brace = route.path.find('{'); brace != std::string_view::npos) *parameter = path.substr(brace);
    return &route;
  }
  return nullptr;
}

std::string allowed_methods(std::string_view path, const HiddenRoutes& hidden) {
  std::string methods;
  for (const char* method : {"GET", "POST", "PATCH", "DELETE"}) {
    std::string parameter;
    bool path_exists = false;
    if (find_route(method, path, &parameter, &path_exists, hidden))
      methods += methods.empty() ? method : fmt::format(", {}", method);
  }
  return methods;
}

std::string openapi_json(std::string_view version) {
  std::vector<DocumentedRoute> documented;
  for (const Route& route : kRoutes)
    documented.push_back({route.method, route.path, tag_of(route.access), route.access == kOpen, route.doc});
  return openapi_page(documented, version);
}

}  // namespace lk
