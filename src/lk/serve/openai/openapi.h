// SPDX-License-Identifier: Apache-2.0
// The description of the API (OpenAPI 3.1), made of what the server itself goes by: its routes and the tables of
// fields. Only the shapes of answers are written by hand, in answer_schemas.json.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "lk/base/json_form.h"

namespace lk {

// What the page says of a route; without an id it says nothing.
struct RouteDoc {
  std::string_view id = {};  // a client's name for the call
  std::string_view summary = {};
  std::string_view body = {};      // the schema of what is sent
  std::string_view answer = {};    // of what comes back; "text" is plain text, "events" server-sent events, "" nothing
  int status = 200;                // of a success
  std::string_view query = {};     // names of parameters: "wait"
  std::string_view refusals = {};  // statuses beside those that every such route has: "409"
};
struct DocumentedRoute {
  std::string_view method, path;  // "/v1/adapters/{name}"
  std::string_view tag;           // inference, adapters, operations
  bool open;                      // needs no key
  RouteDoc doc;
};
std::string openapi_page(std::span<const DocumentedRoute> routes, std::string_view version);

// A form and the name of its schema.
struct FormDoc {
  uint64_t form = 0;
  std::string_view name, about = {};
  std::string_view more = {};  // members of the schema, as JSON
};
// All tables, each with its forms.
struct FormTable {
  std::span<const Field> fields;
  std::span<const FormDoc> forms;
};
std::span<const FormTable> form_tables();

}  // namespace lk
