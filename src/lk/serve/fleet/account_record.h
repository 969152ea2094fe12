// SPDX-License-Identifier: Apache-2.0
// Tenants and keys as a fleet's registry has them, below tenants/NAME and keys/ID. Of keys no more than the state file
// has: the SHA-256 of the secret.
#pragma once

#include <string>
#include <string_view>

#include "lk/serve/access/tenants.h"

namespace lk {

inline constexpr std::string_view kTenants = "tenants/", kKeys = "keys/";

struct TenantRecord {
  Tenant tenant;
  bool removed = false;  // it stays: its revoked keys name it, and what comes back by that name is another one
};

std::string tenant_key(std::string_view name);
std::string key_key(std::string_view id);
std::string format_tenant(const TenantRecord& record);
std::string format_key(const ApiKey& key);
// kUnsupported: of a form that is not known here; kDataLoss: it is none.
Result<TenantRecord> parse_tenant_record(std::string_view name, std::string_view value);
Result<ApiKey> parse_key_record(std::string_view name, std::string_view value);

}  // namespace lk
