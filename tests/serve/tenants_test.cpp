// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/tenants.h"

#include <gtest/gtest.h>

#include "lk/base/sha256.h"

namespace lk {
namespace {

std::string hash_of(const std::string& secret) {
  Sha256 hash;
  hash.update(secret.data(), secret.size());
  return to_hex(hash.finish());
}

ApiKey key_of(const std::string& id, const std::string& secret, const std::string& tenant = "acme") {
  return {.id = id, .secret_sha256 = hash_of(secret), .tenant = tenant, .scopes = static_cast<uint8_t>(Scope::kInfer)};
}

TEST(Scopes, ParseAndFormat) {
  EXPECT_EQ(*parse_scopes("infer"), 1);
  EXPECT_EQ(*parse_scopes("adapters, infer"), 3);
  EXPECT_EQ(*parse_scopes("admin"), 4);
  EXPECT_EQ(format_scopes(7), "infer,adapters,admin");
  EXPECT_EQ(format_scopes(*parse_scopes("adapters,infer")), "infer,adapters");
  for (const char* bad : {"", ",", "infer,", "root", "Infer", "infer adapters"})
    EXPECT_FALSE(parse_scopes(bad).ok()) << bad;
}

TEST(Principal, AdminIncludesTheOtherScopes) {
  Principal principal{.tenant = std::make_shared<Tenant>(), .scopes = static_cast<uint8_t>(Scope::kAdmin)};
  EXPECT_TRUE(principal.has(Scope::kInfer) && principal.has(Scope::kAdapters) && principal.has(Scope::kAdmin));
  principal.scopes = static_cast<uint8_t>(Scope::kInfer);
  EXPECT_TRUE(principal.has(Scope::kInfer));
  EXPECT_FALSE(principal.has(Scope::kAdapters) || principal.has(Scope::kAdmin));
}

TEST(Tenant, AllowList) {
  Tenant tenant{.name = "acme"};
  EXPECT_TRUE(tenant.may_use("anything") && tenant.may_use("base") && tenant.may_use(""));
  tenant.adapters = {"sql-*", "json"};
  EXPECT_TRUE(tenant.may_use("sql-v1") && tenant.may_use("json"));
  EXPECT_FALSE(tenant.may_use("legal") || tenant.may_use("base") || tenant.may_use("") || tenant.may_use("json2"));
  tenant.adapters = {"base"};
  EXPECT_TRUE(tenant.may_use("") && tenant.may_use("base"));
}

TEST(KeyRing, RightKeyGivesItsTenant) {
  const KeyRing ring({{.name = "acme", .weight = 3}}, {key_of("abc", "s3-cret")});
  for (const char* header : {"Bearer lk-abc-s3-cret", "bearer lk-abc-s3-cret", "BEARER   lk-abc-s3-cret "}) {
    const auto found = ring.authenticate(header, 100);
    ASSERT_TRUE(found.ok()) << header;
    EXPECT_EQ(found->tenant->weight, 3);
    EXPECT_EQ(found->key_id, "abc");
    EXPECT_TRUE(found->has(Scope::kInfer));
    EXPECT_FALSE(found->has(Scope::kAdmin));
  }
}

TEST(KeyRing, EverythingElseIsRefusedAlike) {
  ApiKey revoked = key_of("gone", "secret"), expired = key_of("old", "secret"),
         orphan = key_of("orphan", "secret", "nobody"), broken = key_of("broken", "");
  revoked.revoked = true;
  expired.expires = 50;
  broken.secret_sha256 = "00";
  const KeyRing ring({{.name = "acme"}},
                     {key_of("abc", "secret"), revoked, expired, orphan, broken, key_of("void", "")});
  const std::string refusal = ring.authenticate("", 100).status().message();
  const std::string long_key = "Bearer lk-abc-" + std::string(100'000, 'x');
  for (const std::string& header : {std::string(),
                                    std::string("Bearer"),
                                    std::string("Bearer "),
                                    std::string("Bearer lk-"),
                                    std::string("Bearer lk-abc"),
                                    std::string("Bearer lk-abc-"),
                                    std::string("Bearer lk-abc-secre"),
                                    std::string("Bearer lk-abc-secret2"),
                                    std::string("Bearer lk-abc-Secret"),
                                    std::string("Bearer lk-xyz-secret"),
                                    std::string("Bearer lk-gone-secret"),
                                    std::string("Bearer lk-old-secret"),
                                    std::string("Bearer lk-orphan-secret"),
                                    std::string("Bearer lk-void-"),
                                    std::string("Bearer lk-broken-"),
                                    std::string("Basic lk-abc-secret"),
                                    std::string("lk-abc-secret"),
                                    std::string("Bearerlk-abc-secret"),
                                    std::string("Bearer xx-abc-secret"),
                                    std::string("Bearer lk--secret"),
                                    std::string("Bearer lk-abc-secret\0", 21),
                                    std::string("\xff\xfe\x00", 3),
                                    "Bearer lk-abc-" + hash_of("secret"),
                                    long_key}) {
    const auto found = ring.authenticate(header, 100);
    EXPECT_EQ(found.status().code(), StatusCode::kUnauthenticated) << header;
    EXPECT_EQ(found.status().message(), refusal);
  }
  EXPECT_TRUE(ring.authenticate("Bearer lk-old-secret", 49).ok());
  EXPECT_FALSE(ring.authenticate("Bearer lk-old-secret", 50).ok());
}

TEST(KeyRing, OpenOnlyWithoutAnyKey) {
  const KeyRing none;
  ASSERT_TRUE(none.authenticate("", 0).ok());
  EXPECT_TRUE(none.authenticate("", 0)->has(Scope::kAdmin));
  EXPECT_NE(none.authenticate("nonsense", 0)->tenant, nullptr);
  ApiKey revoked = key_of("a", "b");
  revoked.revoked = true;
  const KeyRing closed({}, {revoked});  // the last key was revoked and its tenant removed
  EXPECT_FALSE(closed.open());
  EXPECT_FALSE(closed.authenticate("", 0).ok());
  const KeyRing limited({{.name = "default", .max_in_flight = 2}}, {});
  EXPECT_EQ(limited.authenticate("", 0)->tenant->max_in_flight, 2);
}

TEST(KeyRing, KnowsItsTenants) {
  const KeyRing ring({{.name = "acme"}}, {});
  for (const char* name : {"acme", "default", ""}) EXPECT_TRUE(ring.knows(name)) << name;
  EXPECT_FALSE(ring.knows("gone"));
}

}  // namespace
}  // namespace lk
