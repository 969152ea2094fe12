// SPDX-License-Identifier: Apache-2.0
// Bodies of /v1/keys and /v1/tenants.
#pragma once

#include <string>
#include <string_view>

#include "lk/base/json_form.h"
#include "lk/serve/access/tenants.h"
#include "lk/serve/openai/openai.h"

namespace lk {

enum AccessForm : uint32_t { kKeyCreateForm = 1 << 0, kTenantCreateForm = 1 << 1, kTenantPatchForm = 1 << 2 };

inline constexpr int64_t kMaxTenantLimit = int64_t{1} << 50;

// The store says what is a name, a note, a pattern.
inline constexpr Field kAccessFields[] = {
    rows::required(rows::pattern("tenant", kKeyCreateForm, rows::kOurs, 1, 256, "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")),
    rows::required(rows::texts("scopes", kKeyCreateForm, rows::kOurs, 1, 8, 1, 64,
                               "infer, adapters, metrics, fleet, federate, admin.")),
    rows::text("note", kKeyCreateForm, rows::kOurs, 0, 4096, "One line of at most 256 bytes."),
    rows::text("expires", kKeyCreateForm, rows::kOurs, 0, 64, "30d, 12h, 2w, a date such as 2027-01-31 (UTC), never."),
    rows::required(rows::pattern("name", kTenantCreateForm, rows::kOurs, 1, 256, "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")),
    rows::number("weight", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 1e-3, 1e6, "",
                 "Share of service among the tenants that want some; 1 at first."),
    rows::integer("max_in_flight", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 0, kMaxTenantLimit, "",
                  "Choices at a time; 0 = no limit."),
    rows::integer("tokens_per_minute", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 0, kMaxTenantLimit, "",
                  "Prompt and output tokens; 0 = no limit."),
    rows::integer("max_adapters", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 0, kMaxTenantLimit, "",
                  "Adapters that its keys loaded; 0 = no limit."),
    rows::integer("max_versions", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 0, kMaxTenantLimit, "",
                  "Versions of them that are kept; 0 = no limit."),
    rows::integer("max_sums", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 0, kMaxTenantLimit, "",
                  "Weighted sums that are cached for it; 0 = no limit."),
    rows::texts("adapters", kTenantCreateForm | kTenantPatchForm, rows::kOurs, 0, 1024, 1, 256,
                "Names it may use, with * and ?, \"base\" for the base model; empty = all."),
};

struct KeyCreate {
  std::string tenant, note;
  uint8_t scopes = 0;
  int64_t expires = 0;  // Unix seconds, 0 = never
};
ApiResult<KeyCreate> parse_key_create(std::string_view body);
// `form`: kTenantCreateForm or kTenantPatchForm. What is absent stays as `tenant` has it.
ApiResult<Tenant> parse_tenant(std::string_view body, Tenant tenant, AccessForm form);

}  // namespace lk
