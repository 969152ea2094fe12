// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/admission_queue.h"

#include <gtest/gtest.h>

#include <map>

#include "lk/base/rng.h"

namespace lk {
namespace {

using Account = AdmissionQueue::Account;
using Share = AdmissionQueue::Share;

TEST(SharedBound, WhoIsBelowItsShareGetsWhatItLacks) {
  SharedBound<int> places(12);
  EXPECT_TRUE(places.try_take(1, 1, 12)) << "alone it may have everything";
  EXPECT_FALSE(places.try_take(1, 1, 1));
  EXPECT_EQ(places.share(2, 1), 6);
  EXPECT_TRUE(places.try_take(2, 1, 6));
  EXPECT_FALSE(places.try_take(2, 1, 1)) << "that was its share";
  EXPECT_TRUE(places.try_take(3, 2, 6)) << "half of all, by weight";
  EXPECT_FALSE(places.fits(4, 1, 1)) << "never more than twice the capacity";
  places.give_back(1, 12);
  EXPECT_EQ(places.used(), 12);
  EXPECT_TRUE(places.try_take(1, 1, 3));
  EXPECT_FALSE(places.try_take(1, 1, 1));
  for (const auto& [owner, amount] : {std::pair{1, 3}, {2, 6}, {3, 6}}) places.give_back(owner, amount);
  EXPECT_EQ(places.used(), 0);
  EXPECT_EQ(places.share(1, 1), 12) << "the weights of those who are gone do not count";
  EXPECT_FALSE(places.fits(1, 1, 13));
}

TEST(SharedBound, TheSmallestWeightStillGetsOne) {
  SharedBound<int> places(10);
  ASSERT_TRUE(places.try_take(1, 1000, 10));
  EXPECT_EQ(places.share(2, 1), 0);
  EXPECT_TRUE(places.try_take(2, 1, 1));
  EXPECT_FALSE(places.try_take(2, 1, 1));
}

// Whatever many owners do: at most twice the capacity, and nobody who is below its share is refused while there is any.
TEST(SharedBound, HoldsWhateverHappens) {
  Rng rng(7);
  SharedBound<int> places(50);
  std::map<int, int64_t> held;
  const double weights[] = {1, 1, 2, 5, 0.25};
  for (int step = 0; step < 20'000; ++step) {
    const int owner = static_cast<int>(rng.below(5));
    const double weight = weights[owner];
    const auto amount = static_cast<int64_t>(rng.below(8)) + 1;
    if (rng.below(2) == 0) {
      const int64_t used = places.used(), own = held[owner];
      const bool below = own + amount <= places.share(owner, weight);
      const bool taken = places.try_take(owner, weight, amount);
      EXPECT_TRUE(taken || used + amount > 50) << "while some is free";
      EXPECT_TRUE(taken || !below || used + amount > 100) << "below its share";
      EXPECT_FALSE(taken && used + amount > 50 && !below && own > 0) << "beyond its share";
      if (taken) held[owner] += amount;
    } else if (const int64_t back = std::min(held[owner], amount); back > 0) {
      places.give_back(owner, back);
      held[owner] -= back;
    }
    int64_t sum = 0;
    for (const auto& [id, has] : held) sum += has;
    ASSERT_EQ(places.used(), sum);
    ASSERT_LE(sum, 100);
  }
}

TEST(AdmissionQueue, BoundsRequestsAndTokensAlsoWhenNothingWaits) {
  AdmissionQueue queue({.requests = 3, .tokens = 100});
  const Account account{.id = 1};
  for (const auto& [share, limit] : {std::pair<Share, const char*>{{.requests = 4}, "more than may wait: 3"},
                                     {{.requests = 1, .tokens = 101}, "more than may wait: 100"}}) {
    const auto refused = queue.admit(account, share, {});
    EXPECT_EQ(refused.status.code(), StatusCode::kInvalidArgument) << "it can never enter";
    EXPECT_NE(refused.status.message().find(limit), std::string::npos) << refused.status.message();
  }
  EXPECT_TRUE(queue.admit(account, {1, 10}, {}).status.ok());
  EXPECT_TRUE(queue.admit(account, {2, 50}, {}).status.ok());
  AdmissionQueue::Admission refused = queue.admit(account, {1, 1}, {});
  EXPECT_EQ(refused.status.code(), StatusCode::kUnavailable);
  EXPECT_NE(refused.status.message().find("3 requests are waiting"), std::string::npos) << refused.status.message();
  EXPECT_GE(refused.retry_after_seconds, 1);
  EXPECT_FALSE(queue.look(account, {}).status.ok());
  queue.leave(1, {2, 50});
  EXPECT_TRUE(queue.look(account, {}).status.ok());
  refused = queue.admit(account, {1, 91}, {});
  EXPECT_NE(refused.status.message().find("of 10 tokens are waiting"), std::string::npos) << refused.status.message();
  EXPECT_TRUE(queue.admit(account, {1, 90}, {}).status.ok());
  EXPECT_EQ(queue.waiting().requests, 2);
  EXPECT_EQ(queue.waiting().tokens, 100) << "what was refused takes no room";
}

TEST(AdmissionQueue, TheFloodIsRefusedNotTheLightTenant) {
  AdmissionQueue queue({.requests = 64, .tokens = 6400});
  const Account flood{.id = 1}, light{.id = 2, .weight = 100};
  const Share one{.requests = 1, .tokens = 100, .prompt_tokens = 50};
  int64_t taken = 0;
  while (queue.admit(flood, one, {}).status.ok()) ++taken;
  EXPECT_EQ(taken, 64);
  for (int i = 0; i < 60; ++i) {
    EXPECT_TRUE(queue.look(light, {}).status.ok());
    EXPECT_TRUE(queue.admit(light, one, {}).status.ok()) << i;
    EXPECT_FALSE(queue.look(flood, {}).status.ok()) << "at its head already";
  }
  for (int i = 0; i < 60; ++i) queue.leave(2, one);
  for (int i = 0; i < 64; ++i) queue.leave(1, one);
  EXPECT_EQ(queue.waiting().requests, 0);
}

TEST(AdmissionQueue, AWaitIsThatBehindWhatTheTenantsWeightAllows) {
  const StartRate rate(1e-6 * 100);  // prompt tokens a microsecond: 100 a second
  for (const bool fair : {true, false}) {
    AdmissionQueue queue({.requests = 1000, .tokens = 1 << 30, .wait_seconds = 60, .fair = fair});
    const Account flood{.id = 1}, light{.id = 2}, heavy{.id = 3, .weight = 3};
    ASSERT_TRUE(queue.admit(flood, {.prompt_tokens = 5000}, rate).status.ok()) << "an empty queue is no wait";
    ASSERT_TRUE(queue.admit(flood, {.prompt_tokens = 5000}, rate, 51.0).status.ok());
    EXPECT_EQ(queue.admit(flood, {.prompt_tokens = 1}, rate).status.code(), StatusCode::kUnavailable);
    const auto admitted = queue.admit(light, {.prompt_tokens = 500}, rate, 5.0);
    EXPECT_EQ(admitted.status.ok(), fair) << "the first of a tenant waits for nobody's queue";
    if (!fair) continue;
    EXPECT_NEAR(queue.wait_seconds(light, rate), 10, 0.1) << "its own 500 and as many of the other's";
    ASSERT_TRUE(queue.admit(heavy, {.prompt_tokens = 300}, rate).status.ok());
    EXPECT_NEAR(queue.wait_seconds(heavy, rate), 5, 0.1) << "its own 300 and 100 of each other";
    EXPECT_NEAR(queue.longest_wait_seconds(rate), 108, 0.1);
    const auto impatient = queue.admit(light, {.prompt_tokens = 1}, rate, 9.0);
    EXPECT_EQ(impatient.status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_NEAR(impatient.retry_after_seconds, 6.5, 0.6);
  }
}

}  // namespace
}  // namespace lk
