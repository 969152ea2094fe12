// SPDX-License-Identifier: Apache-2.0
// The registry on a real etcd, which is stopped, killed, compacted and emptied meanwhile.
#include "lk/registry/etcd_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lk/registry/member.h"
#include "registry/seen.h"
#include "testing/etcd_process.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using testing::Etcd;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::kPatience;
using testing::Seen;

class EtcdRegistryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Etcd::is_installed()) GTEST_SKIP() << "etcd is not installed (apt-get install etcd-server)";
  }
  // Times short enough for a test; only how long things take depends on them.
  std::unique_ptr<EtcdRegistry> open(const Etcd& etcd, Seen& seen, std::chrono::seconds time_to_live = 15s) {
    return std::make_unique<EtcdRegistry>(etcd.client(), EtcdRegistry::Options{.prefix = "/lorikeet/test/",
                                                                               .time_to_live = time_to_live,
                                                                               .look = 500ms,
                                                                               .retry = 100ms,
                                                                               .log = seen.log()});
  }
  static bool put(Registry& registry, const std::string& name, const std::string& value) {
    for (const auto end = std::chrono::steady_clock::now() + kPatience; std::chrono::steady_clock::now() < end;)
      if (const auto done = registry.commit({.puts = {{name, value}}}); done.ok()) return *done;
    return false;
  }
};

TEST_F(EtcdRegistryTest, TransactionsHappenOnce) {
  Etcd etcd;
  Seen seen;
  const auto registry = open(etcd, seen);
  ASSERT_TRUE(put(*registry, "a/first", "1"));
  EXPECT_TRUE(registry->commit({.unchanged = {{"a/second", 0}}, .puts = {{"a/second", ""}}}).value());
  EXPECT_FALSE(registry->commit({.unchanged = {{"a/second", 0}}, .puts = {{"a/second", "x"}}}).value());
  const Registry::Entries entries = registry->list("a/").value();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries.at("a/second").value, "");
  const int64_t revision = entries.at("a/first").revision;
  EXPECT_TRUE(registry->commit({.unchanged = {{"a/first", revision}}, .removals = {"a/first"}}).value());
  EXPECT_FALSE(registry->commit({.unchanged = {{"a/first", revision}}, .puts = {{"a/first", "y"}}}).value());
  EXPECT_EQ(registry->list("a/").value().size(), 1u);
  EXPECT_THAT(registry->list("b/").value(), IsEmpty());
}

TEST_F(EtcdRegistryTest, ATransactionMayRestOnAWholeList) {
  Etcd etcd;
  Seen seen;
  const auto registry = open(etcd, seen);
  ASSERT_TRUE(put(*registry, "other", "1"));
  const auto commit = [&](int64_t newest, const std::string& name) {
    return registry->commit({.none_newer = {{"a/", newest}}, .puts = {{name, "1"}}}).value();
  };
  EXPECT_TRUE(commit(0, "a/1")) << "nothing is below it";
  EXPECT_FALSE(commit(0, "a/2"));
  const int64_t newest = Registry::newest_of(registry->list("a/").value());
  EXPECT_TRUE(commit(newest, "b")) << "what is not below it does not matter";
  EXPECT_TRUE(commit(newest, "a/2"));
  EXPECT_FALSE(commit(newest, "a/3"));
  EXPECT_EQ(registry->list("a/").value().size(), 2u);
}

TEST_F(EtcdRegistryTest, WatchesOutliveRestartsAndCompaction) {
  Etcd etcd;
  Seen seen;
  const auto registry = open(etcd, seen);
  registry->watch("members/", seen.on_change());
  ASSERT_TRUE(put(*registry, "members/a", "1"));
  ASSERT_TRUE(seen.wait_for_names({"members/a"}));
  etcd.kill(0);
  ASSERT_TRUE(seen.wait_for_line("registry_away"));
  {
    std::lock_guard lock(seen.mutex);
    EXPECT_EQ(seen.entries.size(), 1u) << "what was known goes on being true";
  }
  etcd.start(0);
  ASSERT_TRUE(put(*registry, "members/b", "1"));
  ASSERT_TRUE(seen.wait_for_names({"members/a", "members/b"}));
  ASSERT_TRUE(seen.wait_for_line("registry_back"));
  // What happened while nobody listened is no longer in its history.
  etcd.kill(0);
  etcd.start(0);
  {
    const auto other = etcd.client();
    std::optional<int64_t> revision;
    for (int i = 0; i < 600 && !revision; ++i) {
      std::this_thread::sleep_for(20ms);
      const auto gone = other->call("/v3/kv/deleterange", {{"key", to_base64("/lorikeet/test/members/a")}});
      if (gone.ok()) revision = etcd_number(gone->at("header").get_object(), "revision").value();
    }
    ASSERT_TRUE(revision);
    ASSERT_TRUE(other->call("/v3/kv/compaction", {{"revision", std::to_string(*revision)}}).ok());
  }
  ASSERT_TRUE(seen.wait_for_names({"members/b"}));
  ASSERT_TRUE(put(*registry, "members/c", "1"));
  ASSERT_TRUE(seen.wait_for_names({"members/b", "members/c"}));
}

TEST_F(EtcdRegistryTest, DataThatIsLostIsAnnouncedAgain) {
  Etcd etcd;
  Seen seen;
  const auto registry = open(etcd, seen, 6s);
  registry->watch("members/", seen.on_change());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(put(*registry, "other", std::to_string(i)));
  registry->announce({.name = "members/a", .value = "mine"});
  ASSERT_TRUE(seen.wait_for_names({"members/a"}));
  const int64_t before = seen.entries.at("members/a").revision;
  etcd.kill(0);
  etcd.forget(0);
  etcd.start(0);
  ASSERT_TRUE(seen.wait([&] {
    const auto found = seen.entries.find("members/a");
    return found != seen.entries.end() && found->second.revision < before;
  })) << seen.lines;
}

TEST_F(EtcdRegistryTest, AMemberThatHangsOrIsKilledHoldsUpNobody) {
  Etcd etcd(3);
  Seen seen, other_seen;
  const auto registry = open(etcd, seen);
  const auto other = open(etcd, other_seen, 4s);
  registry->watch("members/", seen.on_change());
  other->announce({.name = "members/a", .value = "mine"});
  ASSERT_TRUE(seen.wait_for_names({"members/a"}));
  for (int round = 0; round < 3; ++round) {
    // Whoever it is that both speak with: each in turn.
    etcd.signal(round, SIGSTOP);
    const std::string name = fmt::format("members/b{}", round);
    ASSERT_TRUE(put(*other, name, "1"));
    ASSERT_TRUE(seen.wait([&] { return seen.entries.contains(name); }));
    etcd.signal(round, SIGCONT);
    etcd.kill(round);
    ASSERT_TRUE(put(*other, name, "2"));
    ASSERT_TRUE(seen.wait([&] { return seen.entries.at(name).value == "2"; }));
    etcd.start(round);
  }
  EXPECT_TRUE(seen.entries.contains("members/a")) << "it lived all the time";
}

TEST_F(EtcdRegistryTest, PlacesGoWithTheirProcess) {
  Etcd etcd;
  Seen seen;
  const auto watcher = open(etcd, seen);
  watcher->watch("members/", seen.on_change());
  {
    Seen lines;
    const auto replica = open(etcd, lines, 2s);
    replica->announce({.name = "members/dies", .value = "1"});
    ASSERT_TRUE(seen.wait_for_names({"members/dies"}));
  }
  ASSERT_TRUE(seen.wait_for_names({})) << "its lease ended";
  Seen lines;
  const auto replica = open(etcd, lines, 600s);
  replica->announce({.name = "members/leaves", .value = "1"});
  ASSERT_TRUE(seen.wait_for_names({"members/leaves"}));
  replica->announce({.name = "members/leaves", .value = "2"});
  ASSERT_TRUE(seen.wait([&] { return seen.entries.size() == 1 && seen.entries.begin()->second.value == "2"; }));
  replica->withdraw();
  ASSERT_TRUE(seen.wait_for_names({}));
}

TEST_F(EtcdRegistryTest, TwoOfOneNameAndAnotherBase) {
  Etcd etcd;
  Seen seen, first_lines, second_lines, third_lines;
  const auto watcher = open(etcd, seen);
  watcher->watch("members/", seen.on_change());
  const Member first{.id = "r1", .url = "http://a:1", .incarnation = "1", .base = "B"};
  Member second = first;
  second.url = "http://b:1";
  second.incarnation = "2";
  auto one = open(etcd, first_lines, 3s);
  one->announce(announcement_of(first));
  ASSERT_TRUE(seen.wait_for_names({"members/r1"}));
  const auto two = open(etcd, second_lines, 3s);
  two->announce(announcement_of(second));
  ASSERT_TRUE(second_lines.wait_for_line("registry_name_taken"));
  EXPECT_EQ(seen.entries.at("members/r1").value, format_member(first));
  // Another base stays out, whatever its name.
  const auto three = open(etcd, third_lines, 3s);
  three->announce(announcement_of({.id = "r3", .url = "http://c:1", .incarnation = "3", .base = "C"}));
  ASSERT_TRUE(third_lines.wait_for_line("registry_disagrees"));
  EXPECT_EQ(seen.entries.size(), 1u);
  // A restart at the same address takes its place at once; its former self, should it live, does not take it back.
  Member again = first;
  again.incarnation = "4";
  Seen again_lines;
  const auto restarted = open(etcd, again_lines, 3s);
  restarted->announce(announcement_of(again));
  ASSERT_TRUE(seen.wait([&] { return seen.entries.at("members/r1").value == format_member(again); }));
  ASSERT_TRUE(first_lines.wait_for_line("registry_name_taken"));
  restarted->withdraw();
  // Whoever waited is there when the place is free.
  one.reset();
  ASSERT_TRUE(seen.wait([&] {
    return seen.entries.contains("members/r1") && seen.entries.at("members/r1").value != format_member(again);
  }));
}

}  // namespace
}  // namespace lk
