// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/fleet_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

using namespace std::chrono_literals;
using Life = FleetView::Life;

const FleetView::Time kStart = FleetView::Time() + 1h;

std::unique_ptr<FleetView> fleet(int replicas, const std::string& policy = "cost") {
  FleetOptions options{.policy = policy};
  for (int i = 0; i < replicas; ++i) options.urls.push_back("http://r" + std::to_string(i) + ":8000");
  return FleetView::create(options).value();
}

ReplicaReport ready(const std::string& id) {
  return {.id = id,
          .model = "m",
          .numerics = "n1",
          .ready = true,
          .context = 2048,
          .page_bytes = 4096,
          .pages = 1000,
          .pages_free = 1000};
}

void tell(FleetView& view, int replica, const ReplicaReport& report, FleetView::Time now = kStart) {
  ASSERT_TRUE(view.report(replica, report, now).ok());
}

TEST(FleetViewTest, KnowsTheRoutersThatAnyReplicaHears) {
  const auto view = fleet(3);
  ReplicaReport one = ready("a"), two = ready("b"), three = ready("c");
  one.routers = {"r1", "r3"};
  two.routers = {"r1", "r2"};
  three.routers = {"r9"};
  tell(*view, 0, one);
  tell(*view, 1, two);
  tell(*view, 2, three);
  EXPECT_THAT(view->routers(kStart), testing::ElementsAre("r1", "r2", "r3", "r9"));
  view->lost(2, unavailable("gone"));
  EXPECT_THAT(view->routers(kStart), testing::ElementsAre("r1", "r2", "r3"));
  EXPECT_THAT(view->routers(kStart + 10s), testing::IsEmpty()) << "nobody hears them now";
  EXPECT_EQ(view->context(), 2048);
}

TEST(ReplicaReportTest, DeltasBringItUpToDate) {
  ReplicaReport first = ready("a"), there;
  first.adapters = {{"sql@1", {.digest = "d1", .bytes = 10, .on_device = true, .in_flight = 2}},
                    {"tag@1", {.digest = "d2"}}};
  ASSERT_TRUE(apply_report(format_report(first, nullptr), there).ok());
  EXPECT_EQ(format_report(there, nullptr), format_report(first, nullptr));
  ReplicaReport second = first;
  second.running = 7;
  second.routers = {"r1", "r2"};
  second.execute_seconds = 1.5;
  second.adapters["sql@1"].in_flight = 0;
  second.adapters.erase("tag@1");
  second.adapters["new@1"] = {.digest = "d3"};
  const std::string delta = format_report(second, &first);
  EXPECT_THAT(delta, testing::Not(testing::HasSubstr("d2")));
  ASSERT_TRUE(apply_report(delta, there).ok());
  EXPECT_EQ(format_report(there, nullptr), format_report(second, nullptr));
  ReplicaReport third = ready("b");  // after a restart
  ASSERT_TRUE(apply_report(format_report(third, nullptr), there).ok());
  EXPECT_TRUE(there.adapters.empty());
  for (const char* bad :
       {"", "[]", "{\"running\":-1}", "{\"ready\":1}", "{\"adapters\":[]}", "{\"adapters\":{\"a\":1}}",
        "{\"gone\":[1]}", "{\"routers\":1}", "{\"execute_seconds\":\"1\"}"}) {
    EXPECT_EQ(apply_report(bad, there).code(), StatusCode::kDataLoss) << bad;
    EXPECT_EQ(there.id, "b");
  }
}

TEST(FleetViewTest, LivesAndDies) {
  auto view = fleet(2);
  EXPECT_EQ(view->life(0, kStart), Life::kUnknown);
  EXPECT_FALSE(view->pick({}, kStart));
  ReplicaReport report = ready("a");
  report.ready = false;
  tell(*view, 0, report);
  EXPECT_EQ(view->life(0, kStart), Life::kStarting);
  EXPECT_FALSE(view->any_ready(kStart));
  report.ready = true;
  tell(*view, 0, report);
  EXPECT_EQ(view->life(0, kStart + 1s), Life::kReady);
  EXPECT_EQ(view->pick({}, kStart), 0);
  EXPECT_EQ(view->life(0, kStart + 1001ms), Life::kSilent);
  EXPECT_FALSE(view->pick({}, kStart + 1001ms));
  report.draining = true;
  tell(*view, 0, report, kStart + 2s);
  EXPECT_EQ(view->life(0, kStart + 2s), Life::kDraining);
  EXPECT_FALSE(view->pick({}, kStart + 2s)) << "nothing new for what drains";
  view->lost(0, unavailable("closed"), true);
  EXPECT_EQ(view->life(0, kStart + 9s), Life::kDraining) << "it ended its reports; its answers go on";
  view->lost(0, unavailable("refused"));  // nobody listens there any more
  EXPECT_EQ(view->life(0, kStart + 9s), Life::kDraining);
  tell(*view, 0, ready("b"), kStart + 2s);
  view->lost(0, unavailable("gone"));
  EXPECT_EQ(view->life(0, kStart + 2s), Life::kGone);
}

TEST(FleetViewTest, OneReplicaUnderTwoNamesIsOne) {
  auto view = fleet(2);
  tell(*view, 0, ready("a"));
  EXPECT_EQ(view->report(1, ready("a"), kStart).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(view->life(1, kStart), Life::kUnknown);
  EXPECT_FALSE(FleetView::create({.urls = {"http://a", "http://a"}}).ok());
  EXPECT_TRUE(FleetView::create({}).ok()) << "they may come later";
  EXPECT_FALSE(FleetView::create({.urls = {"http://a"}, .policy = "best"}).ok());
}

TEST(FleetViewTest, GoesOnWhereNumericsAreAlike) {
  auto view = fleet(3);
  for (int i = 0; i < 3; ++i) {
    ReplicaReport report = ready(std::to_string(i));
    report.numerics = i == 2 ? "n2" : "n1";
    tell(*view, i, report);
  }
  const std::vector<int> first = {0}, both = {0, 1};
  EXPECT_EQ(view->pick({.excluded = first, .numerics = "n1"}, kStart), 1);
  EXPECT_EQ(view->pick({.excluded = both, .numerics = "n1"}, kStart), 2) << "better than nobody";
  EXPECT_FALSE(view->pick({.excluded = both, .numerics = "n1", .only = true}, kStart));
}

TEST(FleetViewTest, FullReplicasAreAskedLast) {
  auto view = fleet(2);
  for (int i = 0; i < 2; ++i) tell(*view, i, ready(std::to_string(i)));
  const int preferred = *view->pick({}, kStart);
  view->refused(preferred, kStart + 200ms);
  EXPECT_EQ(view->pick({}, kStart), 1 - preferred);
  EXPECT_EQ(view->pick({}, kStart + 300ms), preferred);
  view->refused(1 - preferred, kStart + 1s);
  view->refused(preferred, kStart + 1s);
  EXPECT_TRUE(view->pick({}, kStart)) << "it may have room by now";
}

TEST(FleetViewTest, AdaptersGoWhereTheyAreUntilThatCostsMore) {
  auto view = fleet(4);
  for (int i = 0; i < 4; ++i) {
    ReplicaReport report = ready(std::to_string(i));
    if (i == 2) report.adapters["sql"] = {.bytes = 1 << 20, .on_device = true};
    tell(*view, i, report);
  }
  const RoutedRequest request{.adapter = "sql", .prompt_tokens = 10, .predicted_output = 10};
  std::vector<int> counts(4);
  EXPECT_EQ(view->pick({.request = request}, kStart), 2);
  for (int k = 0; k < 400; ++k) {
    const int replica = view->pick({.request = request}, kStart).value();
    ++counts[static_cast<size_t>(replica)];
    (void)view->sent(replica, request, kStart);
  }
  EXPECT_EQ(*std::ranges::max_element(counts), counts[2]);
  for (const int count : counts) EXPECT_GT(count, 20) << "whoever waits there would wait longer than for a load";
  EXPECT_TRUE(view->others_know(0, "sql"));
  EXPECT_FALSE(view->others_know(2, "sql"));
  EXPECT_TRUE(view->is_base("m") && view->is_base("base") && view->is_base("") && !view->is_base("sql"));
}

// With equal replicas each policy spreads a mix of adapters, and `cost` keeps each where it was.
TEST(FleetViewTest, LoadIsSpreadAndAffinityKept) {
  for (const char* policy : {"cost", "p2c", "chbl", "rr", "dlora", "dlora-rr", "dlora-proactive"}) {
    auto view = fleet(4, policy);
    for (int i = 0; i < 4; ++i) tell(*view, i, ready(std::to_string(i)));
    std::vector<int> counts(4);
    std::vector<std::pair<int, StreamId>> all;
    for (int k = 0; k < 200; ++k) {
      const RoutedRequest request{
          .adapter = "a" + std::to_string(k % 16), .prompt_tokens = 100, .predicted_output = 100};
      const int replica = view->pick({.request = request}, kStart).value();
      ++counts[static_cast<size_t>(replica)];
      all.emplace_back(replica, view->sent(replica, request, kStart));
    }
    for (const int count : counts) EXPECT_THAT(count, testing::AllOf(testing::Ge(25), testing::Le(100))) << policy;
    for (const auto& [replica, id] : all) view->ended(replica, id, 100);
    for (const FleetView::Shown& shown : view->show(kStart)) EXPECT_EQ(shown.own_requests, 0);
  }
  auto view = fleet(4);
  for (int i = 0; i < 4; ++i) tell(*view, i, ready(std::to_string(i)));
  std::map<std::string, std::set<int>> homes;
  for (int k = 0; k < 200; ++k) {  // one at a time: nothing speaks against the favourite
    const RoutedRequest request{.adapter = "a" + std::to_string(k % 16), .prompt_tokens = 100, .predicted_output = 100};
    const int replica = view->pick({.request = request}, kStart).value();
    homes[request.adapter].insert(replica);
    view->ended(replica, view->sent(replica, request, kStart), 100);
  }
  std::set<int> used;
  for (const auto& [adapter, replicas] : homes) {
    EXPECT_EQ(replicas.size(), 1u) << adapter;
    used.insert(*replicas.begin());
  }
  EXPECT_EQ(used.size(), 4u);
}

TEST(FleetViewTest, PredictsByWhatAdaptersAnswered) {
  auto view = fleet(1);
  tell(*view, 0, ready("a"));
  const double guess = view->predicted_output("sql");
  for (int k = 0; k < 50; ++k) view->ended(0, view->sent(0, {.adapter = "sql"}, kStart), 10);
  view->ended(0, view->sent(0, {.adapter = "sql"}, kStart), std::nullopt);  // cut short: says nothing
  EXPECT_EQ(view->predicted_output("sql"), 10);
  EXPECT_LT(view->predicted_output("other"), guess) << "the mean has moved";
  EXPECT_GT(view->predicted_output("other"), 100);
}

// How many run at once is known: behind them one waits for a place.
TEST(FleetViewTest, PlacesThatAreTakenCost) {
  auto view = fleet(2);
  ReplicaReport busy = ready("a"), free = ready("b");
  busy.running = busy.max_running = 16;
  busy.waiting = 4;
  free.running = 15;
  free.max_running = 16;
  tell(*view, 0, busy);
  tell(*view, 1, free);
  for (int k = 0; k < 16; ++k)
    EXPECT_EQ(
        view->pick({.request = {.adapter = "a" + std::to_string(k), .prompt_tokens = 50, .predicted_output = 200}},
                   kStart),
        1);
}

TEST(FleetViewTest, AmongEqualsHomesAreFirst) {
  auto view = fleet(4);
  for (int i = 0; i < 4; ++i) tell(*view, i, ready(std::to_string(i)));
  for (int home = 0; home < 4; ++home) {
    Placement placement;
    placement.homes["sql"] = {view->url(home)};
    view->set_placement(std::make_shared<const Placement>(placement));
    EXPECT_EQ(view->pick({.request = {.adapter = "sql", .prompt_tokens = 50, .predicted_output = 200}}, kStart), home);
  }
}

TEST(FleetViewTest, APictureHasWhatRunsWhere) {
  auto view = fleet(3);
  for (int i = 0; i < 2; ++i) tell(*view, i, ready(std::to_string(i)));
  const StreamId one = view->sent(1, {.adapter = "sql", .prompt_tokens = 50, .predicted_output = 100}, kStart);
  view->token(1, one, 40);
  const StreamId other = view->sent(0, {.prompt_tokens = 5, .predicted_output = 10}, kStart + 2s);
  const FleetPicture picture = view->picture(kStart + 3s - 2500ms);
  ASSERT_EQ(picture.replicas.size(), 2u) << "nobody has heard of the third";
  ASSERT_EQ(picture.requests.size(), 2u);
  EXPECT_EQ(picture.requests[0].stream, one);
  EXPECT_EQ(picture.requests[0].at, 1);
  EXPECT_EQ(picture.requests[0].made, 40);
  EXPECT_EQ(picture.requests[0].left, 60);
  EXPECT_EQ(picture.requests[0].age_seconds, 0.5);
  EXPECT_EQ(picture.requests[1].stream, other);
}

TEST(FleetViewTest, BusyReplicasCostMore) {
  auto view = fleet(2);
  ReplicaReport busy = ready("a");
  busy.running = 50;
  busy.pages_free = 10;
  tell(*view, 0, busy);
  tell(*view, 1, ready("b"));
  for (int k = 0; k < 16; ++k)
    EXPECT_EQ(
        view->pick({.request = {.adapter = "a" + std::to_string(k), .prompt_tokens = 500, .predicted_output = 200}},
                   kStart),
        1);
}

TEST(FleetViewTest, ARestartForgetsWhatWasSentBefore) {
  auto view = fleet(1);
  tell(*view, 0, ready("a"));
  const StreamId old = view->sent(0, {.adapter = "sql"}, kStart);
  tell(*view, 0, ready("a"));
  EXPECT_EQ(view->show(kStart)[0].own_requests, 1);
  tell(*view, 0, ready("a2"));
  EXPECT_EQ(view->show(kStart)[0].own_requests, 0);
  view->ended(0, old, std::nullopt);  // its connection breaks later
  EXPECT_EQ(view->show(kStart)[0].own_requests, 0);
}

TEST(FleetViewTest, ReplicasComeAndGo) {
  const auto view = FleetView::create({.policy = "rr"}).value();
  EXPECT_FALSE(view->pick({}, kStart));
  EXPECT_THAT(view->set_urls({"http://a", "http://b"}), testing::ElementsAre(0, 1));
  EXPECT_TRUE(view->set_urls({"http://b", "http://a"}).empty()) << "nothing new";
  tell(*view, 0, ready("a"));
  tell(*view, 1, ready("b"));
  // One that should not be there any more stays as long as it speaks, and is given requests.
  EXPECT_TRUE(view->set_urls({"http://b"}).empty());
  EXPECT_EQ(view->listed(), 1);
  EXPECT_EQ(view->life(0, kStart), Life::kReady);
  EXPECT_FALSE(view->drop(0));
  // ... and as long as it has something of ours.
  const StreamId stream = view->sent(0, {}, kStart);
  view->lost(0, unavailable("gone"));
  EXPECT_FALSE(view->drop(0));
  view->ended(0, stream, std::nullopt);
  EXPECT_TRUE(view->drop(0));
  EXPECT_EQ(view->show(kStart).size(), 1u);
  EXPECT_FALSE(view->any_ready(kStart) && view->pick({}, kStart) == 0);
  // Its number is nobody else's: what still speaks of it does not mean another.
  EXPECT_THAT(view->set_urls({"http://b", "http://c"}), testing::ElementsAre(2));
  EXPECT_THAT(view->numbers(), testing::ElementsAre(1, 2));
  EXPECT_EQ(view->url(0), "");
  EXPECT_EQ(view->life(0, kStart), Life::kUnknown);
  EXPECT_EQ(view->report(0, ready("a"), kStart).code(), StatusCode::kNotFound);
  view->lost(0, unavailable("gone"));
  view->refused(0, kStart);
  view->token(0, stream, 1);
  view->ended(0, stream, 10);
  EXPECT_EQ(view->life(2, kStart), Life::kUnknown);
  // One that is listed is never dropped.
  view->lost(1, unavailable("gone"));
  EXPECT_FALSE(view->drop(1));
}

}  // namespace
}  // namespace lk
