// SPDX-License-Identifier: Apache-2.0
// The table of routes: who may call what, and what the page about the API says of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lk/cluster/dialect.h"
#include "lk/cluster/router_gate.h"
#include "lk/serve/openai/openapi.h"

namespace lk {

class ServerImpl;
struct Exchange;

// Who may use a route.
enum class Access : uint8_t { kOpen, kAnyKey, kInfer, kAdapters, kAdmin, kMetrics, kFleet, kFederate };

// What a request of a route costs. What costs anything takes a place of its tenant's (TenantLimiter) at its head;
// inference is also refused there when the engine's queue is full.
enum class Cost : uint8_t { kNothing, kWork, kInference };

struct Route {
  std::string_view method, path;  // "/v1/adapters/{name}": the last part is the parameter, with its slashes
  Access access;
  bool admin_listener;  // moves to the admin listener when there is one
  Cost cost;
  Dialect dialect;  // of its refusals and streams
  bool generates;   // tokens; a stream of them goes on at another replica when its own is lost
  RoutedAs routed;  // what a router in front of replicas does with it
  void (ServerImpl::*handler)(const std::shared_ptr<Exchange>&);
  RouteDoc doc = {};
};
std::span<const Route> routes();

// Of a request that has none, OpenAI's.
inline Dialect dialect_of(const Route* route) { return route != nullptr ? route->dialect : Dialect::kOpenAi; }

// Whether a path is one of the route's.
bool matches(const Route& route, std::string_view path);
// Of whatever is asked for at a path, also with methods that it does not have.
Dialect dialect_at(std::string_view path);
// The route of a request, and what the parameter of its path is. `path_exists`: with this or another method. Routes
// that `hidden` wants are passed over.
using HiddenRoutes = std::function<bool(const Route&)>;
const Route* find_route(std::string_view method, std::string_view path, std::string* parameter, bool* path_exists,
                        const HiddenRoutes& hidden = {});
std::string allowed_methods(std::string_view path, const HiddenRoutes& hidden = {});  // "GET, POST"

// The page at /openapi.json.
std::string openapi_json(std::string_view version);

}  // namespace lk
