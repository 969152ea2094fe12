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
enum class Access : uint8_t { kOpen, kAnyKey, kInfer, kAdapters, kAdmin, kMetrics };

struct Route {
  std::string_view method, path;  // "/v1/adapters/{name}": the last part is the parameter, with its slashes
  Access access;
  bool admin_listener;  // moves to the admin listener when there is one
  bool sheds;           // inference: refused before the body is read when the server is full
  void (ServerImpl::*handler)(const std::shared_ptr<Exchange>&);
  RouteDoc doc = {};
};
std::span<const Route> routes();

// The page at /openapi.json.
std::string openapi_json(std::string_view version);

}  // namespace lk
