// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/tenants.h"

#include <gtest/gtest.h>

#include <thread>

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

class LimiterTest : public ::testing::Test {
 protected:
  using Clock = TenantLimiter::Clock;
  Clock::time_point at(double seconds) const {
    return Clock::time_point(std::chrono::hours(1)) +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  TenantLimiter limiter_;
};

TEST_F(LimiterTest, CountsWhatIsInFlight) {
  const Tenant tenant{.name = "a", .max_in_flight = 2}, other{.name = "b", .max_in_flight = 1};
  EXPECT_TRUE(limiter_.admit(tenant, 10, at(0)).admitted);
  EXPECT_TRUE(limiter_.admit(tenant, 10, at(0)).admitted);
  const auto refused = limiter_.admit(tenant, 10, at(0));
  EXPECT_FALSE(refused.admitted);
  EXPECT_EQ(refused.reason, "too many requests in flight: 2 of 2");
  EXPECT_GT(refused.retry_after_seconds, 0);
  EXPECT_TRUE(limiter_.admit(other, 10, at(0)).admitted);
  limiter_.finish(tenant, 10, 7, at(1));
  EXPECT_TRUE(limiter_.admit(tenant, 10, at(1)).admitted);
  const auto usage = limiter_.usage();
  EXPECT_EQ(usage.at("a").in_flight, 2);
  EXPECT_EQ(usage.at("a").requests, 3);
  EXPECT_EQ(usage.at("a").refused, 1);
  EXPECT_EQ(usage.at("a").used_tokens, 7);
}

TEST_F(LimiterTest, ChoicesCountLikeRequests) {
  TenantLimiter limiter;
  const Tenant tenant{.name = "t", .max_in_flight = 4};
  const auto now = TenantLimiter::Clock::time_point();
  EXPECT_TRUE(limiter.admit(tenant, 0, now, 3).admitted);
  EXPECT_FALSE(limiter.admit(tenant, 0, now, 2).admitted);
  EXPECT_TRUE(limiter.admit(tenant, 0, now, 1).admitted);
  limiter.finish(tenant, 0, 0, now, 3);
  limiter.finish(tenant, 0, 0, now, 1);
  EXPECT_TRUE(limiter.admit(tenant, 0, now, 16).admitted) << "alone, more than the limit may enter together";
  EXPECT_FALSE(limiter.admit(tenant, 0, now, 1).admitted);
  EXPECT_EQ(limiter.usage().at("t").in_flight, 16);
}

TEST_F(LimiterTest, BucketRefillsAndSaysWhen) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 600};  // 10 a second
  EXPECT_TRUE(limiter_.admit(tenant, 600, at(0)).admitted);
  const auto refused = limiter_.admit(tenant, 100, at(0));
  EXPECT_FALSE(refused.admitted);
  EXPECT_NEAR(refused.retry_after_seconds, 10, 1e-6);
  EXPECT_EQ(refused.reason, "token limit reached: 100 tokens wanted, 0 left of 600 per minute");
  EXPECT_FALSE(limiter_.admit(tenant, 100, at(9.9)).admitted);
  EXPECT_TRUE(limiter_.admit(tenant, 100, at(10)).admitted);
  EXPECT_FALSE(limiter_.admit(tenant, 1, at(10)).admitted);
  EXPECT_TRUE(limiter_.admit(tenant, 600, at(10'000)).admitted);  // never more than one minute's worth
  EXPECT_FALSE(limiter_.admit(tenant, 1, at(10'000)).admitted);
}

TEST_F(LimiterTest, FinishCorrectsTheReservation) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 600};
  ASSERT_TRUE(limiter_.admit(tenant, 500, at(0)).admitted);
  limiter_.finish(tenant, 500, 200, at(0));  // 400 left
  EXPECT_FALSE(limiter_.admit(tenant, 401, at(0)).admitted);
  ASSERT_TRUE(limiter_.admit(tenant, 400, at(0)).admitted);
  limiter_.finish(tenant, 400, 500, at(0));  // used more: 100 below zero
  EXPECT_NEAR(limiter_.admit(tenant, 50, at(0)).retry_after_seconds, 15, 1e-6);
  EXPECT_TRUE(limiter_.admit(tenant, 50, at(15)).admitted);
  limiter_.finish(tenant, 50, 0, at(3600));  // a full bucket gets no fuller
  EXPECT_TRUE(limiter_.admit(tenant, 601, at(3600)).admitted);
  EXPECT_NEAR(limiter_.admit(tenant, 599, at(3600)).retry_after_seconds, 60, 0.2);
}

TEST_F(LimiterTest, MoreThanTheBucketEntersWhenItIsFull) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 600};
  ASSERT_TRUE(limiter_.admit(tenant, 10, at(0)).admitted);
  EXPECT_NEAR(limiter_.admit(tenant, 1200, at(0)).retry_after_seconds, 1, 1e-6);
  EXPECT_TRUE(limiter_.admit(tenant, 1200, at(1)).admitted);  // 600 below zero
  EXPECT_NEAR(limiter_.admit(tenant, 10, at(1)).retry_after_seconds, 61, 1e-6);
  EXPECT_TRUE(limiter_.admit(tenant, 10, at(62)).admitted);
}

TEST_F(LimiterTest, LimitsMayChangeBetweenRequests) {
  Tenant tenant{.name = "a"};
  ASSERT_TRUE(limiter_.admit(tenant, 1 << 30, at(0)).admitted);
  tenant.tokens_per_minute = 60;
  limiter_.finish(tenant, 1 << 30, 5, at(0));
  EXPECT_TRUE(limiter_.admit(tenant, 60, at(0)).admitted);
  EXPECT_FALSE(limiter_.admit(tenant, 1, at(0)).admitted);
  tenant.tokens_per_minute = 0;
  EXPECT_TRUE(limiter_.admit(tenant, 1000, at(0)).admitted);
  EXPECT_TRUE(limiter_.admit(tenant, 0, at(-5)).admitted);  // a clock that goes back harms nothing
}

TEST_F(LimiterTest, ForgetsTenantsThatAreGone) {
  const Tenant stays{.name = "stays"}, gone{.name = "gone"}, busy{.name = "busy"};
  for (const Tenant& tenant : {stays, gone, busy}) ASSERT_TRUE(limiter_.admit(tenant, 1, at(0)).admitted);
  for (const Tenant& tenant : {stays, gone}) limiter_.finish(tenant, 1, 1, at(0));
  const auto keep = [](const std::string& name) { return name == "stays"; };
  limiter_.retain(keep);
  EXPECT_EQ(limiter_.usage().size(), 2u);
  EXPECT_EQ(limiter_.usage().at("stays").requests, 1);
  EXPECT_EQ(limiter_.usage().at("busy").in_flight, 1) << "it still has a request";
  limiter_.finish(busy, 1, 1, at(1));
  limiter_.retain(keep);
  EXPECT_EQ(limiter_.usage().size(), 1u);
}

TEST(KeyRing, KnowsItsTenants) {
  const KeyRing ring({{.name = "acme"}}, {});
  for (const char* name : {"acme", "default", ""}) EXPECT_TRUE(ring.knows(name)) << name;
  EXPECT_FALSE(ring.knows("gone"));
}

TEST_F(LimiterTest, ManyThreadsKeepTheCount) {
  const Tenant tenant{.name = "a", .max_in_flight = 3, .tokens_per_minute = 1'000'000'000};
  std::vector<std::thread> threads;
  std::atomic<int64_t> admitted{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        if (!limiter_.admit(tenant, 5, at(i)).admitted) continue;
        ++admitted;
        limiter_.finish(tenant, 5, 2, at(i));
      }
    });
  for (std::thread& thread : threads) thread.join();
  const auto usage = limiter_.usage().at("a");
  EXPECT_EQ(usage.in_flight, 0);
  EXPECT_EQ(usage.requests, admitted);
  EXPECT_EQ(usage.used_tokens, 2 * admitted);
  EXPECT_EQ(usage.requests + usage.refused, 8000);
}

}  // namespace
}  // namespace lk
