// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/principal_json.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

TEST(PrincipalJsonTest, TravelsWithoutLimits) {
  const Tenant tenant{.name = "acme",
                      .weight = 2.5,
                      .max_in_flight = 3,
                      .tokens_per_minute = 100,
                      .adapters = {"sql-*", "base"},
                      .max_adapters = 4,
                      .max_versions = 5,
                      .max_sums = 6,
                      .cache_salt = 0xfedcba9876543210};
  const Principal who{.tenant = std::make_shared<const Tenant>(tenant), .scopes = 3, .key_id = "abcdefghijkl"};
  const Result<Principal> there = parse_principal(format_principal(who));
  ASSERT_TRUE(there.ok()) << there.status().message();
  EXPECT_EQ(there->scopes, 3);
  EXPECT_EQ(there->key_id, "abcdefghijkl");
  Tenant expected = tenant;
  expected.max_in_flight = expected.tokens_per_minute = 0;
  EXPECT_EQ(*there->tenant, expected);
}

TEST(PrincipalJsonTest, WhatIsLeftOutIsNotGranted) {
  for (const char* bad :
       {"", "[]", "{}", R"({"tenant":"a","scopes":1,"salt":"1"})",
        R"({"tenant":"a","scopes":1,"salt":"1","adapters":null})", R"({"tenant":"a","scopes":1,"adapters":[]})",
        R"({"tenant":"a","salt":"1","adapters":[]})", R"({"tenant":"a","scopes":1,"salt":"x","adapters":[]})",
        R"({"tenant":"a","scopes":64,"salt":"1","adapters":[]})",
        R"({"tenant":"../a","scopes":1,"salt":"1","adapters":[]})",
        R"({"tenant":"a","scopes":1,"salt":"1","adapters":[1]})",
        R"({"tenant":"a","scopes":1,"salt":"1","adapters":[],"weight":0})"})
    EXPECT_FALSE(parse_principal(bad).ok()) << bad;
}

}  // namespace
}  // namespace lk
