// SPDX-License-Identifier: Apache-2.0
// The table of routes: who may call what, and what the page about the API says of it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lk/serve/openai/openapi.h"

namespace lk {

class ServerImpl;
struct Exchange;

// Who may use a route.
enum class Access : uint8_t { kOpen, kAnyKey, kInfer, kAdapters, kAdmin, kMetrics, kFleet };

// What a request of a route costs. What costs anything takes a place of its tenant's (TenantLimiter) at its head;
// inference is also refused there when the engine's queue is full.
enum class Cost : uint8_t { kNothing, kWork, kInference };

struct Route {
  std::string_view method, path;  // "/v1/adapters/{name}": the last part is the parameter, with its slashes
  Access access;
  bool admin_listener;  // moves to the admin listener when there is one
  Cost cost;
  void (ServerImpl::*handler)(const std::shared_ptr<Exchange>&);
  RouteDoc doc = {};
};
std::span<const Route> routes();

// The page at /openapi.json.
std::string openapi_json(std::string_view version);

}  // namespace lk
