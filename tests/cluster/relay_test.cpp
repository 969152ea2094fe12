// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/relay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

using namespace std::chrono_literals;
using Why = Relay::Why;

class RelayTest : public ::testing::Test, public Relay::Host {
 protected:
  void SetUp() override {
    view_ = FleetView::create({.urls = {"http://a", "http://b", "http://c"}, .policy = "rr"}).value();
    for (int i = 0; i < 3; ++i) tell(i);
  }
  void tell(int replica, bool draining = false) {
    ASSERT_TRUE(view_
                    ->report(replica,
                             {.id = std::to_string(replica), .numerics = "n", .ready = !draining, .draining = draining},
                             now_)
                    .ok());
  }
  Relay& start(bool streams = true) {
    relay_ = std::make_unique<Relay>(*view_, *this, Relay::Options{.streams = streams});
    relay_->start({}, now_);
    return *relay_;
  }
  // Time goes on; these replicas report meanwhile.
  void pass(std::chrono::milliseconds time, std::initializer_list<int> alive) {
    for (const auto end = now_ + time; now_ < end;) {
      now_ += 50ms;
      for (const int replica : alive) tell(replica);
      relay_->tick(now_);
    }
  }
  void token(Relay::SourceId source, int64_t first, bool done = false) {
    relay_->group(source, "t", {.first = first, .tokens = {static_cast<int32_t>(first)}, .done = done}, now_);
  }

  void send(const Relay::Source& source, Why why) override { asked_.emplace_back(source.id, source.replica, why); }
  void cancel(Relay::SourceId source) override { cancelled_.push_back(source); }
  void show(std::string_view, const Relay::Source& source) override { shown_.push_back(source.id); }
  void finish() override { ++finished_; }
  void give_up() override { ++given_up_; }

  FleetView::Time now_ = FleetView::Time() + 1h;
  std::unique_ptr<FleetView> view_;
  std::unique_ptr<Relay> relay_;
  std::vector<std::tuple<Relay::SourceId, int, Why>> asked_;
  std::vector<Relay::SourceId> cancelled_, shown_;
  int finished_ = 0, given_up_ = 0;
};

TEST_F(RelayTest, OneReplicaGivesItAll) {
  start();
  token(1, 0);
  token(1, 1, true);
  relay_->group(1, "end", {.end = true}, now_);
  EXPECT_EQ(finished_, 1);
  EXPECT_EQ(shown_.size(), 3u);
  EXPECT_EQ(asked_.size(), 1u);
  EXPECT_TRUE(relay_->over());
  relay_->tick(now_ + 1h);
  EXPECT_EQ(finished_ + given_up_, 1);
}

TEST_F(RelayTest, ALostOneIsFollowedAtOnceAndItsLateTokensAreNobodys) {
  start();
  token(1, 0);
  relay_->lost(1, now_);
  ASSERT_EQ(asked_.size(), 2u);
  EXPECT_EQ(std::get<2>(asked_[1]), Why::kLost);
  token(1, 1);
  EXPECT_EQ(shown_.size(), 1u);
  token(2, 1);
  EXPECT_EQ(shown_.size(), 2u);
}

TEST_F(RelayTest, ASilentReplicaIsHedgedAndMayComeBack) {
  start();
  token(1, 0);
  pass(2000ms, {1, 2});  // its replica, 0, says nothing
  ASSERT_EQ(asked_.size(), 2u);
  EXPECT_EQ(std::get<2>(asked_[1]), Why::kSilent);
  token(1, 1);  // back again, and first
  EXPECT_TRUE(cancelled_.empty()) << "the other one has not caught up";
  token(2, 1);
  token(2, 2);
  EXPECT_THAT(cancelled_, testing::ElementsAre(1));
  EXPECT_EQ(relay_->num_mismatches(), 0);
}

TEST_F(RelayTest, TwoSilentOnesAreNotWaitedFor) {
  start();
  token(1, 0);
  pass(2000ms, {1, 2});
  const int second = std::get<1>(asked_.at(1));
  pass(3000ms, {3 - second});  // neither of the two
  ASSERT_GE(asked_.size(), 3u);
  EXPECT_EQ(std::get<1>(asked_[2]), 3 - second);
  token(std::get<0>(asked_[2]), 1);
  EXPECT_EQ(shown_.size(), 2u);
}

TEST_F(RelayTest, ARefusedMoveIsNotAskedForAgainAndAgain) {
  start();
  token(1, 0);
  tell(0, true);
  relay_->tick(now_);
  ASSERT_EQ(asked_.size(), 2u);
  EXPECT_EQ(std::get<2>(asked_[1]), Why::kDrains);
  relay_->lost(2, now_);  // 409, or other tokens
  for (int64_t i = 1; i < 100; ++i) {
    now_ += 50ms;
    tell(0, true), tell(1), tell(2);
    token(1, i);
    relay_->tick(now_);
    if (relay_->num_sources() > 1) relay_->lost(std::get<0>(asked_.back()), now_);
  }
  EXPECT_LE(asked_.size(), 3u) << "each of the others once";
  EXPECT_EQ(shown_.size(), 100u) << "who drains goes on";
}

TEST_F(RelayTest, AnAnswerThatHasBegunWaitsForSomebody) {
  start();
  token(1, 0);
  for (int i = 0; i < 3; ++i) view_->lost(i, unavailable("gone"));
  relay_->lost(1, now_);
  EXPECT_EQ(given_up_, 0);
  pass(5000ms, {});
  EXPECT_EQ(asked_.size(), 1u);
  pass(500ms, {2});
  ASSERT_EQ(asked_.size(), 2u);
  token(2, 1);
  EXPECT_EQ(shown_.size(), 2u);
  view_->lost(2, unavailable("gone"));
  relay_->lost(2, now_);
  pass(31s, {});
  EXPECT_EQ(given_up_, 1);
}

TEST_F(RelayTest, APlannedMoveRunsBesideUntilItHasCaughtUp) {
  start();
  token(1, 0);
  const StreamId stream = relay_->source(1)->stream;
  EXPECT_FALSE(relay_->move(stream, 0, now_)) << "it is there";
  EXPECT_FALSE(relay_->move(stream + 1, 1, now_)) << "another stream";
  EXPECT_FALSE(relay_->move(stream, 7, now_)) << "nobody";
  EXPECT_TRUE(relay_->move(stream, 2, now_));
  ASSERT_EQ(asked_.size(), 2u);
  EXPECT_EQ(asked_[1], (std::tuple(Relay::SourceId{2}, 2, Why::kPlanned)));
  EXPECT_FALSE(relay_->move(stream, 1, now_)) << "one at a time";
  token(1, 1);  // who had it goes on
  EXPECT_TRUE(cancelled_.empty());
  token(2, 1);  // known
  token(2, 2);
  EXPECT_THAT(cancelled_, testing::ElementsAre(1));
  EXPECT_EQ(shown_.size(), 3u);
  EXPECT_EQ(view_->counts().planned, 1);
}

TEST_F(RelayTest, APlannedMoveThatFailsChangesNothing) {
  start();
  token(1, 0);
  EXPECT_TRUE(relay_->move(relay_->source(1)->stream, 2, now_));
  relay_->lost(2, now_);
  token(1, 1, true);
  relay_->group(1, "", {.end = true}, now_);
  EXPECT_EQ(finished_, 1);
}

TEST_F(RelayTest, WhatWaitsLeavesAtOnce) {
  start();
  const StreamId stream = relay_->source(1)->stream;
  EXPECT_TRUE(relay_->move(stream, 1, now_));
  EXPECT_THAT(cancelled_, testing::ElementsAre(1));
  EXPECT_EQ(relay_->num_sources(), 1);
  EXPECT_EQ(view_->picture(now_).requests.at(0).request.moves, 1);
  // Who it was moved to refuses: it is nobody's fault, and another one is asked.
  relay_->lost(2, now_);
  EXPECT_EQ(relay_->num_sources(), 1);
}

TEST_F(RelayTest, OnlyStreamsAreMoved) {
  start(false);
  EXPECT_FALSE(relay_->move(relay_->source(1)->stream, 1, now_));
  EXPECT_FALSE(view_->picture(now_).requests.at(0).request.can_move);
}

TEST_F(RelayTest, NobodyWaitsForWhatHasNotBegun) {
  for (int i = 0; i < 3; ++i) view_->lost(i, unavailable("gone"));
  start();
  EXPECT_EQ(given_up_, 1);
}

TEST_F(RelayTest, WhatEverybodyRefusesIsGivenUp) {
  start();
  token(1, 0);
  for (Relay::SourceId id = 1; given_up_ == 0 && id < 10; ++id) relay_->lost(id, now_, true);
  EXPECT_EQ(given_up_, 1);
  EXPECT_EQ(asked_.size(), 3u);
}

TEST_F(RelayTest, OtherTokensEndTheirSender) {
  start();
  token(1, 0);
  pass(2000ms, {1, 2});
  relay_->group(2, "t", {.first = 0, .tokens = {7}}, now_);
  EXPECT_EQ(relay_->num_mismatches(), 1);
  EXPECT_THAT(cancelled_, testing::ElementsAre(2));
  token(1, 1);
  EXPECT_EQ(shown_.size(), 2u);
}

}  // namespace
}  // namespace lk
