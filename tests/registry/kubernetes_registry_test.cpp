// SPDX-License-Identifier: Apache-2.0
// The registry on a stand-in of a Kubernetes API server.
#include "lk/registry/kubernetes_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "lk/registry/member.h"
#include "registry/seen.h"
#include "testing/kubernetes_stand_in.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::KubernetesStandIn;
using testing::Seen;
namespace json = boost::json;

constexpr const char* kSlices = "endpointslices";

json::object endpoint(const std::string& pod, const std::string& address, bool terminating = false) {
  return {{"addresses", json::array{address}},
          {"conditions", {{"ready", !terminating}, {"terminating", terminating}}},
          {"targetRef", {{"kind", "Pod"}, {"name", pod}, {"uid", "uid-" + pod}}}};
}

json::object slice(const std::string& name, json::array endpoints, const std::string& service = "llm") {
  return {{"metadata", {{"name", name}, {"labels", {{"kubernetes.io/service-name", service}}}}},
          {"addressType", "IPv4"},
          {"ports", json::array{json::object{{"name", "http"}, {"port", 8000}}}},
          {"endpoints", std::move(endpoints)}};
}

TEST(KubernetesObjectsTest, NamesAreKeysOfData) {
  for (const char* name : {"adapters/org%2Fa_b/12", "base", "plan/current", "a_2F", "\xff"}) {
    const std::string key = to_data_key(name);
    EXPECT_EQ(from_data_key(key), name);
    EXPECT_EQ(key.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"),
              std::string::npos)
        << key;
  }
  EXPECT_NE(to_data_key("a/b"), to_data_key("a_2Fb"));
}

TEST(KubernetesObjectsTest, WhatDoesNotFitIsRefusedAndWhatIsStrangeIsPassedOver) {
  KubernetesEntries entries;
  ASSERT_TRUE(apply({.puts = {{"a/1", std::string(600'000, 'x')}}}, entries));
  EXPECT_TRUE(format_entries(entries, "ConfigMap", "n", false).ok());
  EXPECT_EQ(format_entries(entries, "Secret", "n", true).ok(), true);
  ASSERT_TRUE(apply({.puts = {{"a/2", std::string(600'000, 'x')}}}, entries));
  EXPECT_EQ(format_entries(entries, "ConfigMap", "n", false).status().code(), StatusCode::kResourceExhausted);
  const KubernetesEntries read = read_entries(
      json::object{{"metadata", {{"resourceVersion", "7"}}},
                   {"data", {{"a_2F1", "3 v"}, {"a_2F2", "none"}, {"a_2F3", 7}, {"a_2F4", "5"}, {"revision", "9"}}}},
      false);
  EXPECT_EQ(read.resource_version, "7");
  EXPECT_EQ(read.revision, 9);
  ASSERT_EQ(read.entries.size(), 1u);
  EXPECT_EQ(read.entries.at("a/1").value, "v");
}

class KubernetesRegistryTest : public ::testing::Test {
 protected:
  std::unique_ptr<KubernetesRegistry> open(KubernetesClient::Options client = {}) {
    if (client.url.empty()) client.url = "http://" + api_.address();
    return std::make_unique<KubernetesRegistry>(KubernetesClient::create(client).value(),
                                                KubernetesRegistry::Options{.name_space = "ns",
                                                                            .fleet = "llm",
                                                                            .time_to_live = 1s,
                                                                            .renew = 50ms,
                                                                            .announce = 50ms,
                                                                            .retry = 10ms,
                                                                            .log = seen_.log()});
  }
  KubernetesStandIn api_;
  Seen seen_;
};

TEST_F(KubernetesRegistryTest, TransactionsHappenOnceAndAsAWhole) {
  const auto one = open(), other = open();
  EXPECT_THAT(one->list("a/").value(), IsEmpty());
  EXPECT_TRUE(one->commit({.unchanged = {{"a/1", 0}}, .puts = {{"a/1", "{}"}, {"b/1", ""}}}).value());
  EXPECT_FALSE(other->commit({.unchanged = {{"a/1", 0}}, .puts = {{"a/1", "x"}}}).value());
  const Registry::Entries entries = other->list("a/").value();
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(entries.at("a/1").value, "{}");
  const int64_t revision = entries.at("a/1").revision;
  EXPECT_FALSE(other->commit({.none_newer = {{"a/", 0}}, .puts = {{"a/2", "x"}}}).value());
  EXPECT_TRUE(other->commit({.none_newer = {{"a/", revision}}, .puts = {{"c", "x"}}}).value());
  EXPECT_TRUE(other->commit({.unchanged = {{"a/1", revision}}, .removals = {"a/1"}}).value());
  EXPECT_FALSE(one->commit({.unchanged = {{"a/1", revision}}, .puts = {{"a/1", "y"}}}).value());
  EXPECT_EQ(one->list("b/").value().at("b/1").value, "");
  EXPECT_EQ(one->commit({.puts = {{"keys/a", "x"}, {"adapters/a/1", "x"}}}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(KubernetesRegistryTest, ManyWritersOfOneObjectLoseNothing) {
  std::vector<std::thread> writers;
  std::atomic<int> done = 0;
  for (int writer = 0; writer < 3; ++writer)
    writers.emplace_back([&, writer] {
      const auto registry = open();
      for (int i = 0; i < 20; ++i)
        while (!registry->commit({.puts = {{fmt::format("a/{}-{}", writer, i), "1"}}}).ok()) continue;
      ++done;
    });
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(open()->list("a/").value().size(), 60u);
}

TEST_F(KubernetesRegistryTest, KeysAreInASecret) {
  const auto registry = open();
  ASSERT_TRUE(registry->commit({.puts = {{"keys/a", "value"}}}).value());
  EXPECT_EQ(registry->list("keys/").value().at("keys/a").value, "value");
  EXPECT_TRUE(api_.get("secrets", "lorikeet-llm").at("data").get_object().contains("keys_2Fa"));
  EXPECT_TRUE(api_.get("configmaps", "lorikeet-llm").empty());
}

TEST_F(KubernetesRegistryTest, WatchesGoOnBehindBreaksBookmarksAndForgottenHistory) {
  const auto registry = open(), other = open();
  registry->watch("a/", seen_.on_change());
  ASSERT_TRUE(seen_.wait_for_names({}));
  ASSERT_TRUE(other->commit({.puts = {{"a/1", "1"}, {"b/1", "1"}}}).value());
  ASSERT_TRUE(seen_.wait_for_names({"a/1"}));
  api_.end_watches();
  ASSERT_TRUE(other->commit({.puts = {{"a/2", "1"}}}).value());
  ASSERT_TRUE(seen_.wait_for_names({"a/1", "a/2"}));
  api_.send_bookmarks();
  api_.forget_history();
  ASSERT_TRUE(other->commit({.puts = {{"a/3", "1"}}, .removals = {"a/1"}}).value());
  ASSERT_TRUE(seen_.wait_for_names({"a/2", "a/3"}));
  // Away, and back: what was known stays, and nobody is told anything.
  {
    std::lock_guard lock(api_.mutex());
    api_.is_away = true;
  }
  api_.end_watches();
  ASSERT_TRUE(seen_.wait_for_line("registry_away"));
  EXPECT_EQ(other->commit({.puts = {{"a/4", "1"}}}).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(seen_.names(), (std::vector<std::string>{"a/2", "a/3"}));
  {
    std::lock_guard lock(api_.mutex());
    api_.is_away = false;
  }
  ASSERT_TRUE(seen_.wait_for_line("registry_back"));
  ASSERT_TRUE(other->commit({.puts = {{"a/4", "1"}}}).value());
  ASSERT_TRUE(seen_.wait_for_names({"a/2", "a/3", "a/4"}));
}

TEST_F(KubernetesRegistryTest, MembersAreTheServicesEndpoints) {
  const auto registry = open();
  registry->watch(std::string(kMembers), seen_.on_change());
  api_.put(kSlices, slice("llm-1", {endpoint("pod-a", "10.0.0.1"), endpoint("pod-b", "10.0.0.2")}));
  api_.put(kSlices, slice("other-1", {endpoint("pod-x", "10.0.0.9")}, "other"));
  ASSERT_TRUE(seen_.wait_for_names({"members/pod-a", "members/pod-b"}));
  MemberReader reader([](std::string_view, std::string_view) {});
  std::vector<Member> members = reader.read(registry->list(std::string(kMembers)).value());
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].url, "http://10.0.0.1:8000");
  EXPECT_EQ(members[0].incarnation, "uid-pod-a");
  // What one says of itself goes with its address.
  const auto pod = open();
  Member self{.id = "pod-b", .url = "http://10.0.0.2:8000", .incarnation = "i", .base = "digest"};
  pod->announce(announcement_of(self));
  ASSERT_TRUE(seen_.wait([&] { return !api_.get("configmaps", "lorikeet-llm").empty(); }, 20ms));
  members = reader.read(registry->list(std::string(kMembers)).value());
  EXPECT_EQ(members[1], self);
  EXPECT_EQ(registry->list("base").value().size(), 1u);
  // One that ends takes nothing new.
  api_.put(kSlices, slice("llm-1", {endpoint("pod-a", "10.0.0.1"), endpoint("pod-b", "10.0.0.2", true)}));
  ASSERT_TRUE(seen_.wait_for_names({"members/pod-a"}));
  api_.remove(kSlices, "llm-1");
  ASSERT_TRUE(seen_.wait_for_names({}));
}

TEST_F(KubernetesRegistryTest, AnotherBaseIsNotIntroduced) {
  const auto one = open(), other = open();
  one->announce(announcement_of({.id = "a", .url = "http://10.0.0.1:8000", .base = "x"}));
  ASSERT_TRUE(seen_.wait([&] { return !api_.get("configmaps", "lorikeet-llm").empty(); }, 20ms));
  other->announce(announcement_of({.id = "b", .url = "http://10.0.0.2:8000", .base = "y"}));
  ASSERT_TRUE(seen_.wait_for_line("registry_refuses: members/b: base of this fleet"));
}

TEST_F(KubernetesRegistryTest, APlaceHasOneHolderAndFencesTheOthersOut) {
  auto one = open();
  const auto other = open();
  const std::string place = "leader/planner";
  const auto ask = [&](Registry& registry, const std::string& value) {
    registry.announce({.name = place, .value = value, .may_replace = {}, .agreed = {}});
  };
  const auto holder = [&] {
    const auto entries = other->list("leader/");
    return entries.ok() && entries->contains(place) ? entries->at(place).value : "";
  };
  ask(*one, "one");
  ASSERT_TRUE(seen_.wait([&] { return holder() == "one"; }, 20ms));
  ask(*other, "other");
  const int64_t fence = other->list("leader/").value().at(place).revision;
  EXPECT_TRUE(one->commit({.unchanged = {{place, fence}}, .puts = {{"plan/current", "1"}}}).value());
  // It goes on for as long as it renews, however often others look.
  const std::string renewed = read_lease(api_.get("leases", "lorikeet-llm-leader-planner")).renewed;
  ASSERT_TRUE(seen_.wait(
      [&] { return read_lease(api_.get("leases", "lorikeet-llm-leader-planner")).renewed != renewed; }, 20ms));
  EXPECT_EQ(holder(), "one");
  one->withdraw();
  ASSERT_TRUE(seen_.wait([&] { return holder() == "other"; }, 20ms)) << "given back, taken at once";
  EXPECT_FALSE(one->commit({.unchanged = {{place, fence}}, .puts = {{"plan/current", "2"}}}).value());
  EXPECT_EQ(other->list("plan/").value().at("plan/current").value, "1");
  // One that is silent loses it.
  one = open();
  ask(*one, "third");
  other->close();
  const auto reader = open();
  ASSERT_TRUE(seen_.wait(
      [&] {
        const auto entries = reader->list("leader/");
        return entries.ok() && entries->contains(place) && entries->at(place).value == "third";
      },
      20ms));
  EXPECT_EQ(read_lease(api_.get("leases", "lorikeet-llm-leader-planner")).transitions, 2);
}

// Tokens are exchanged every hour; what is in the file now counts.
TEST_F(KubernetesRegistryTest, TheTokenIsReadAgain) {
  testing::TempDir dir;
  const auto write = [&](const std::string& text) { std::ofstream(dir.file("token")) << text << "\n"; };
  write("first");
  {
    std::lock_guard lock(api_.mutex());
    api_.token = "first";
  }
  const auto registry = open({.url = "http://" + api_.address(), .token_file = dir.file("token")});
  EXPECT_TRUE(registry->list("a/").ok());
  {
    std::lock_guard lock(api_.mutex());
    api_.token = "second";
  }
  EXPECT_EQ(registry->list("a/").status().code(), StatusCode::kPermissionDenied);
  write("second");
  EXPECT_TRUE(registry->list("a/").ok());
  std::filesystem::remove(dir.file("token"));
  EXPECT_TRUE(registry->list("a/").ok()) << "the last one, while there is none";
}

TEST_F(KubernetesRegistryTest, AWriteWhoseAnswerIsLostHasHappened) {
  const auto registry = open();
  {
    std::lock_guard lock(api_.mutex());
    api_.fail_writes_once = 1;
  }
  EXPECT_EQ(registry->commit({.unchanged = {{"a/1", 0}}, .puts = {{"a/1", "v"}}}).status().code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(registry->list("a/").value().at("a/1").value, "v");
}

TEST_F(KubernetesRegistryTest, WhoWaitsHearsOfTheEnd) {
  auto registry = open();
  registry->watch("a/", seen_.on_change());
  ASSERT_TRUE(seen_.wait_for_names({}));
  registry->close();
  EXPECT_EQ(registry->list("a/").status().code(), StatusCode::kCancelled);
  registry.reset();
}

}  // namespace
}  // namespace lk
