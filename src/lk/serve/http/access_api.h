// SPDX-License-Identifier: Apache-2.0
// AccessApi: /v1/keys and /v1/tenants, of who judges keys: a server, or a router.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "lk/serve/access/account_store.h"
#include "lk/serve/openai/openai.h"

namespace lk {

// Told of every change that was tried: "key_create", the key's or tenant's name, and whether it is stored.
using AccessAudit = std::function<void(const char* action, std::string_view target, const Status& outcome)>;

// One request about keys or tenants, read. Both functions are for the thread that waits for the file.
struct AccessJob {
  int success = 200;
  bool changes = false;
  std::function<Result<std::string>(const AccessAudit& audit)> run;  // the answer's body
  // To run when the client left before it was answered: nobody knows of the key that was made. May be empty.
  std::function<void(const AccessAudit& audit)> undo;
};

// `path` without its parameter: "/v1/keys", "/v1/tenants/{name}". What is malformed is refused at once. `gone`: whether
// the client has left; any thread.
ApiResult<AccessJob> read_access_job(AccountStore& store, std::string_view method, std::string_view path,
                                     const std::string& parameter, const std::string& body, std::function<bool()> gone);

// 409 for what is there already or must not be, else as every failure.
ApiError access_error(const Status& status, std::string_view request_id);
// 409: whoever was asked keeps no keys and tenants. "the server", "the router".
ApiError no_access_state(std::string_view who);

}  // namespace lk
