// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/tenant_limiter.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

namespace lk {
namespace {

class LimiterTest : public ::testing::Test {
 protected:
  using Clock = TenantLimiter::Clock;
  using Place = TenantLimiter::Place;
  Clock::time_point at(double seconds) const {
    return Clock::time_point(std::chrono::hours(1)) +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  // A request whose head and body come at once. Its place, when it is let in.
  TenantLimiter::Decision ask(Place& place, const Tenant& tenant, int64_t tokens, double seconds, int64_t choices = 1) {
    const auto entered = limiter_.enter(std::make_shared<const Tenant>(tenant), place, at(seconds));
    if (!entered.admitted) return entered;
    const auto decision = place.admit(tokens, choices, at(seconds));
    if (!decision.admitted) place.finish(0, at(seconds));
    return decision;
  }
  // One that ends at once, having used what it was charged.
  TenantLimiter::Decision use(const Tenant& tenant, int64_t tokens, double seconds) {
    Place place;
    const auto decision = ask(place, tenant, tokens, seconds);
    if (decision.admitted) place.finish(tokens, at(seconds));
    return decision;
  }
  TenantLimiter limiter_{1000};
};

// Routers divide what a tenant may have: their parts add up to the limit.
TEST_F(LimiterTest, HasItsPartOfEveryLimit) {
  for (const int64_t limit : {3, 4, 8, 17}) {
    const Tenant tenant{.name = "a", .max_in_flight = limit};
    int64_t all = 0;
    for (int64_t rank = 0; rank < 3; ++rank) {
      TenantLimiter limiter;
      limiter.set_share(rank, 3);
      std::vector<Place> places(20);
      for (Place& place : places)
        all += limiter.enter(std::make_shared<const Tenant>(tenant), place, at(0)).admitted ? 1 : 0;
    }
    EXPECT_EQ(all, limit);
  }
  const Tenant tenant{.name = "b", .tokens_per_minute = 600};
  limiter_.set_share(1, 2);
  EXPECT_TRUE(use(tenant, 300, 0).admitted);
  EXPECT_FALSE(use(tenant, 100, 10).admitted) << "50 came back";
  limiter_.set_share(0, 1);  // the other router is gone
  EXPECT_TRUE(use(tenant, 100, 15).admitted) << "50, and 50 more at the whole rate";
  limiter_.set_share(0, 2);
  EXPECT_TRUE(use(tenant, 300, 75).admitted);
  EXPECT_FALSE(use(tenant, 10, 75).admitted) << "no more than half a minute's tokens are kept";
}

TEST_F(LimiterTest, ALargeRequestIsNotRefusedForeverBecauseThereAreMoreRouters) {
  const Tenant tenant{.name = "a", .max_in_flight = 8};
  limiter_.set_share(0, 2);
  Place small, large;
  ASSERT_TRUE(ask(small, tenant, 1, 0).admitted);
  const auto refused = ask(large, tenant, 1, 0, 6);
  EXPECT_FALSE(refused.admitted);
  EXPECT_FALSE(refused.never);
  small.finish(0);
  EXPECT_TRUE(ask(large, tenant, 1, 0, 6).admitted);
  EXPECT_FALSE(ask(small, tenant, 1, 0).admitted);
  large.finish(0);
  EXPECT_TRUE(ask(large, tenant, 1, 0, 9).never);
}

TEST_F(LimiterTest, CountsWhatIsInFlightFromTheHeadOn) {
  const Tenant tenant{.name = "a", .max_in_flight = 2}, other{.name = "b", .max_in_flight = 1};
  Place first, second, third, fourth;
  EXPECT_TRUE(limiter_.enter(std::make_shared<const Tenant>(tenant), first, at(0)).admitted);  // only its head is known
  EXPECT_TRUE(ask(second, tenant, 10, 0).admitted);
  const auto refused = limiter_.enter(std::make_shared<const Tenant>(tenant), third, at(0));
  EXPECT_FALSE(refused.admitted);
  EXPECT_FALSE(refused.never);
  EXPECT_FALSE(third);
  EXPECT_EQ(refused.reason, "too many requests in flight: 2 of 2");
  EXPECT_GT(refused.retry_after_seconds, 0);
  EXPECT_TRUE(ask(fourth, other, 10, 0).admitted);
  second.finish(7, at(1));
  EXPECT_TRUE(ask(third, tenant, 10, 1).admitted);
  first = {};  // its client went away before the body came
  EXPECT_TRUE(ask(second, tenant, 10, 1).admitted);
  const auto usage = limiter_.usage();
  EXPECT_EQ(usage.at("a").in_flight, 2);
  EXPECT_EQ(usage.at("a").requests, 3);
  EXPECT_EQ(usage.at("a").refused, 1);
  EXPECT_EQ(usage.at("a").used_tokens, 7);
}

TEST_F(LimiterTest, ChoicesCountLikeRequestsAlsoWhenNothingElseIsInFlight) {
  const Tenant tenant{.name = "t", .max_in_flight = 4};
  Place first, second, third;
  EXPECT_TRUE(ask(first, tenant, 0, 0, 3).admitted);
  const auto refused = ask(second, tenant, 0, 0, 2);
  EXPECT_FALSE(refused.admitted);
  EXPECT_FALSE(refused.never);
  EXPECT_EQ(refused.reason, "too many requests in flight: 3 of 4, and 2 more are asked for");
  EXPECT_TRUE(ask(second, tenant, 0, 0, 1).admitted);
  first = {}, second = {};
  const auto never = ask(third, tenant, 0, 0, 5);
  EXPECT_FALSE(never.admitted);
  EXPECT_TRUE(never.never) << "asking again is no use";
  EXPECT_EQ(never.reason, "5 answers are asked for at once, at most 4 may be in flight");
  EXPECT_EQ(limiter_.usage().at("t").in_flight, 0);
  EXPECT_TRUE(ask(third, tenant, 0, 0, 4).admitted);
  EXPECT_EQ(limiter_.usage().at("t").in_flight, 4);
}

TEST_F(LimiterTest, AnEmptyBucketIsKnownAtTheHead) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 60};
  EXPECT_TRUE(use(tenant, 60, 0).admitted);
  Place place;
  const auto refused = limiter_.enter(std::make_shared<const Tenant>(tenant), place, at(0));
  EXPECT_FALSE(refused.admitted);
  EXPECT_NEAR(refused.retry_after_seconds, 1, 1e-6);
  EXPECT_TRUE(limiter_.enter(std::make_shared<const Tenant>(tenant), place, at(0), 0).admitted) << "it needs none";
  EXPECT_TRUE(limiter_.enter(std::make_shared<const Tenant>(tenant), place, at(1)).admitted);
  Place second;
  EXPECT_FALSE(limiter_.enter(std::make_shared<const Tenant>(tenant), second, at(1)).admitted)
      << "the one token is held until the first is known to need more or less";
  place.finish(0, at(1));
  EXPECT_TRUE(limiter_.enter(std::make_shared<const Tenant>(tenant), second, at(1)).admitted);
}

TEST_F(LimiterTest, BucketRefillsAndSaysWhen) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 600};  // 10 a second
  EXPECT_TRUE(use(tenant, 600, 0).admitted);
  Place place;
  const auto refused = ask(place, tenant, 100, 1);
  EXPECT_FALSE(refused.admitted);
  EXPECT_NEAR(refused.retry_after_seconds, 9, 1e-6);
  EXPECT_EQ(refused.reason, "token limit reached: 100 tokens wanted, 10 left of 600 per minute");
  EXPECT_FALSE(use(tenant, 100, 9.9).admitted);
  EXPECT_TRUE(use(tenant, 100, 10).admitted);
  EXPECT_FALSE(use(tenant, 1, 10).admitted);
  EXPECT_TRUE(use(tenant, 600, 10'000).admitted);  // never more than one minute's worth
  EXPECT_FALSE(use(tenant, 1, 10'000).admitted);
}

TEST_F(LimiterTest, FinishCorrectsTheReservation) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 600};
  Place first, second;
  ASSERT_TRUE(ask(first, tenant, 500, 0).admitted);
  first.finish(200, at(0));  // 400 left
  EXPECT_FALSE(ask(first, tenant, 401, 0).admitted);
  ASSERT_TRUE(ask(first, tenant, 400, 0).admitted);
  first.finish(500, at(0));  // used more: 100 below zero
  EXPECT_NEAR(ask(first, tenant, 50, 0).retry_after_seconds, 10.1, 1e-6) << "until there is one, at the head";
  EXPECT_NEAR(ask(first, tenant, 50, 10.1).retry_after_seconds, 4.9, 1e-6);
  EXPECT_TRUE(ask(first, tenant, 50, 15).admitted);
  first.finish(0, at(3600));  // a full bucket gets no fuller
  EXPECT_TRUE(ask(first, tenant, 601, 3600).admitted);
  EXPECT_NEAR(ask(second, tenant, 599, 3600).retry_after_seconds, 0.2, 0.01);
}

TEST_F(LimiterTest, MoreThanTheBucketEntersWhenItIsFull) {
  const Tenant tenant{.name = "a", .tokens_per_minute = 600};
  ASSERT_TRUE(use(tenant, 10, 0).admitted);
  Place place;
  EXPECT_NEAR(ask(place, tenant, 1200, 0).retry_after_seconds, 1, 1e-6);
  ASSERT_TRUE(ask(place, tenant, 1200, 1).admitted);  // 600 below zero
  Place late;
  EXPECT_NEAR(ask(late, tenant, 10, 1).retry_after_seconds, 60.1, 1e-6);
  EXPECT_TRUE(ask(late, tenant, 10, 62).admitted);
  place.finish(1200, at(62));
}

TEST_F(LimiterTest, LimitsMayChangeBetweenRequests) {
  Tenant tenant{.name = "a"};
  Place first, second;
  ASSERT_TRUE(ask(first, tenant, 1 << 30, 0).admitted);
  tenant.tokens_per_minute = 60;
  first.finish(5, at(0));
  EXPECT_TRUE(ask(first, tenant, 60, 0).admitted);
  EXPECT_FALSE(ask(second, tenant, 1, 0).admitted);
  tenant.tokens_per_minute = 0;
  EXPECT_TRUE(ask(second, tenant, 1000, 0).admitted);
  first = {};
  EXPECT_TRUE(ask(first, tenant, 0, -5).admitted);  // a clock that goes back harms nothing
}

TEST_F(LimiterTest, BodiesAreBoundedInAllAndSharedByWeight) {
  const auto flood = std::make_shared<const Tenant>(Tenant{.name = "flood"});
  const auto light = std::make_shared<const Tenant>(Tenant{.name = "light"});
  std::vector<Place> held(5);
  for (Place& place : held) ASSERT_TRUE(limiter_.enter(flood, place).admitted);
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(held[i].hold(250));  // 1000, all there is
  EXPECT_FALSE(held[4].hold(1));
  Place one, more;
  ASSERT_TRUE(limiter_.enter(light, one).admitted);
  EXPECT_TRUE(one.hold(400)) << "who holds less than its share is not refused for what another took";
  EXPECT_TRUE(one.hold(500)) << "as its body grows";
  ASSERT_TRUE(limiter_.enter(light, more).admitted);
  EXPECT_FALSE(more.hold(1)) << "beyond its share it is";
  EXPECT_EQ(limiter_.held_bytes(), 1500);
  held.clear();
  EXPECT_EQ(limiter_.held_bytes(), 500);
  EXPECT_TRUE(more.hold(500));
  EXPECT_TRUE(more.hold(0));
  EXPECT_FALSE(more.hold(1001)) << "more than all that is ever held";
  one = {}, more = {};
  EXPECT_EQ(limiter_.held_bytes(), 0);
}

TEST_F(LimiterTest, WithoutKeysAddressesHoldWhatTheirRequestsDo) {
  const auto nobody = std::make_shared<const Tenant>(Tenant{.name = ""});
  Place one, again, other;
  ASSERT_TRUE(limiter_.enter(nobody, one, {}, 0, "peer a").admitted);
  ASSERT_TRUE(limiter_.enter(nobody, again, {}, 0, "peer a").admitted);
  ASSERT_TRUE(limiter_.enter(nobody, other, {}, 0, "peer b").admitted);
  EXPECT_TRUE(one.hold(1000));
  EXPECT_FALSE(again.hold(1));
  EXPECT_TRUE(other.hold(500)) << "the other's share";
  EXPECT_FALSE(other.hold(501));
  one = std::move(other);  // gives back what it held, and holds what the other did
  EXPECT_EQ(limiter_.held_bytes(), 500);
  EXPECT_TRUE(again.hold(500));
  one = {}, again = {};
  EXPECT_EQ(limiter_.held_bytes(), 0);
}

TEST_F(LimiterTest, ForgetsTenantsThatAreGone) {
  const Tenant stays{.name = "stays"}, gone{.name = "gone"}, busy{.name = "busy"};
  Place place;
  ASSERT_TRUE(ask(place, busy, 1, 0).admitted);
  for (const Tenant& tenant : {stays, gone}) ASSERT_TRUE(use(tenant, 1, 0).admitted);
  const auto keep = [](const std::string& name) { return name == "stays"; };
  limiter_.retain(keep);
  EXPECT_EQ(limiter_.usage().size(), 2u);
  EXPECT_EQ(limiter_.usage().at("stays").requests, 1);
  EXPECT_EQ(limiter_.usage().at("busy").in_flight, 1) << "it still has a request";
  place.finish(1, at(1));
  limiter_.retain(keep);
  EXPECT_EQ(limiter_.usage().size(), 1u);
}

TEST_F(LimiterTest, ManyThreadsKeepTheCount) {
  const Tenant tenant{.name = "a", .max_in_flight = 3, .tokens_per_minute = 1'000'000'000};
  std::vector<std::thread> threads;
  std::atomic<int64_t> admitted{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        Place place;
        if (!ask(place, tenant, 5, i).admitted) continue;
        ++admitted;
        place.finish(2, at(i));
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
