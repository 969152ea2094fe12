// SPDX-License-Identifier: Apache-2.0
// A replica's part in a fleet, with a registry that loses answers, throws, or does not answer.
#include "lk/serve/fleet/fleet_adapters.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <ctime>
#include <fstream>
#include <future>

#include "lk/registry/adapter_record.h"
#include "serve/fake_registry.h"
#include "serve/registry_testing.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

using testing::FakeRegistry;

class FleetAdaptersTest : public testing::AdapterRegistryTest {
 protected:
  FleetAdaptersTest() {
    fleet_ =
        FleetAdapters::open({.directory = dir_.file("fleet")}, nullptr, std::make_unique<FakeRegistry>(state_)).value();
    open({.supply = fleet_.get()});
    fleet_->attach(*registry_, {});
    fleet_->join({.id = "r1", .url = "http://127.0.0.1:1"});
  }
  ~FleetAdaptersTest() override {
    fleet_->stop();
    registry_.reset();
  }
  Result<AdapterLease> publish(const std::string& name, const std::string& from) {
    std::promise<Result<AdapterLease>> promise;
    fleet_->changes().publish(
        {.name = name, .path = testing::kDemoAdapters + from, .trusted_path = true, .replace = true},
        [&](Result<AdapterLease> loaded) { promise.set_value(std::move(loaded)); });
    return promise.get_future().get();
  }
  Status remove(const std::string& target) {
    std::promise<Status> promise;
    fleet_->changes().remove(target, [&](const Status& status) { promise.set_value(status); });
    return promise.get_future().get();
  }
  Status set_alias(const std::string& alias, const std::string& target) {
    std::promise<Status> promise;
    fleet_->changes().set_alias(alias, target, [&](const Status& status) { promise.set_value(status); });
    return promise.get_future().get();
  }
  std::string target_of(const std::string& alias) {
    std::lock_guard lock(state_->mutex);
    const auto found = state_->entries.find(alias_key(alias));
    return found == state_->entries.end() ? "" : parse_alias(found->first, found->second.value).value();
  }
  AdapterRecord::State state_of(const std::string& key) {
    std::lock_guard lock(state_->mutex);
    return parse_adapter(key, state_->entries.at(key).value).value().state;
  }
  std::string catalog() {
    std::ifstream in(dir_.file("fleet/catalog.json"));
    return {std::istreambuf_iterator<char>(in), {}};
  }
  const std::shared_ptr<FakeRegistry::State> state_ = std::make_shared<FakeRegistry::State>();
  std::unique_ptr<FleetAdapters> fleet_;
};

TEST_F(FleetAdaptersTest, ALostAnswerIsNoRefusal) {
  state_->lose_answers = true;
  const auto published = publish("a", "tag");
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_EQ(state_->entries.size(), 1u) << "one number, and no other that stays pending";
  EXPECT_EQ(state_of("adapters/a/1"), AdapterRecord::State::kReady);
  const Status removed = remove("a");
  EXPECT_TRUE(removed.ok()) << removed.message();
  EXPECT_EQ(state_of("adapters/a/1"), AdapterRecord::State::kDeleted);
}

// However the versions went: an alias must not mean what somebody publishes later.
TEST_F(FleetAdaptersTest, AnAliasGoesWithTheLastVersion) {
  ASSERT_TRUE(publish("a", "tag").ok() && publish("a", "tag").ok());
  std::promise<Status> set;
  fleet_->changes().set_alias("b", "a", [&](const Status& status) { set.set_value(status); });
  ASSERT_TRUE(set.get_future().get().ok());
  const auto target = [&] { return parse_alias("aliases/b", state_->entries.at("aliases/b").value).value(); };
  EXPECT_TRUE(remove("a@2").ok());
  EXPECT_EQ(target(), "a");
  EXPECT_TRUE(remove("a@1").ok());
  EXPECT_EQ(target(), "");
}

// What is refused must leave no record: it would mean something once the name is free, or somebody takes it.
TEST_F(FleetAdaptersTest, ARefusedAliasIsWrittenNowhere) {
  ASSERT_TRUE(publish("a", "tag").ok() && publish("q", "tag").ok());
  const auto alias = [&](const std::string& name, const std::string& target) {
    std::promise<Status> set;
    fleet_->changes().set_alias(name, target, [&](const Status& status) { set.set_value(status); });
    return set.get_future().get().code();
  };
  EXPECT_EQ(alias("q", "a"), StatusCode::kAlreadyExists);
  EXPECT_EQ(alias("a", "a"), StatusCode::kAlreadyExists);
  EXPECT_EQ(alias("b", "nobody"), StatusCode::kNotFound);
  EXPECT_EQ(alias("b", "a@7"), StatusCode::kNotFound);
  for (const auto& [key, entry] : state_->entries) EXPECT_FALSE(key.starts_with("aliases/")) << key;
  EXPECT_EQ(alias("b", "a@1"), StatusCode::kOk);
  EXPECT_TRUE(remove("q").ok());
  EXPECT_EQ(alias("q", "a"), StatusCode::kOk) << "the name is free now";
}

// Each looks for the other's key, finds none, and writes its own: one of the two is refused, whoever is first.
TEST_F(FleetAdaptersTest, OfTwoAtOneMomentOneGetsTheName) {
  ASSERT_TRUE(publish("a", "tag").ok());
  state_->meanwhile = [](auto& state) { state.put(alias_key("n"), format_alias("a")); };
  EXPECT_EQ(publish("n", "tag").status().code(), StatusCode::kAlreadyExists);
  EXPECT_FALSE(state_->entries.contains("adapters/n/1"));
  const AdapterRecord pending{.state = AdapterRecord::State::kPending, .created = std::time(nullptr)};
  state_->meanwhile = [&](auto& state) { state.put("adapters/m/1", format_adapter(pending)); };
  EXPECT_EQ(set_alias("m", "a").code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(target_of("m"), "");
  // Nobody comes to finish that one any more.
  state_->put("adapters/o/1", format_adapter({.state = AdapterRecord::State::kPending, .created = 1}));
  EXPECT_TRUE(set_alias("o", "a").ok());
  EXPECT_FALSE(state_->entries.contains("adapters/o/1"));
}

TEST_F(FleetAdaptersTest, AnAliasThatComesWhileItsAdapterGoesDoesNotStay) {
  ASSERT_TRUE(publish("a", "tag").ok());
  state_->meanwhile = [](auto& state) { state.put(alias_key("b"), format_alias("a")); };
  EXPECT_TRUE(remove("a").ok());
  EXPECT_EQ(state_of("adapters/a/1"), AdapterRecord::State::kDeleted);
  EXPECT_EQ(target_of("b"), "");
}

TEST_F(FleetAdaptersTest, AliasesStayWithAVersionThatComesWhileTheLastOneGoes) {
  ASSERT_TRUE(publish("a", "tag").ok());
  ASSERT_TRUE(set_alias("b", "a").ok());
  state_->meanwhile = [](auto& state) {
    AdapterRecord next = parse_adapter("adapters/a/1", state.entries.at("adapters/a/1").value).value();
    state.put("adapters/a/2", format_adapter(next));
  };
  EXPECT_TRUE(remove("a@1").ok());
  EXPECT_EQ(state_of("adapters/a/2"), AdapterRecord::State::kReady);
  EXPECT_EQ(target_of("b"), "a");
}

TEST_F(FleetAdaptersTest, MoreThanOneTransactionHoldsIsRemoved) {
  ASSERT_TRUE(publish("a", "tag").ok() && publish("a", "tag").ok());
  for (int i = 0; i < 250; ++i) state_->put(alias_key(fmt::format("b{}", i)), format_alias(i % 2 ? "a" : "a@1"));
  EXPECT_TRUE(remove("a").ok());
  for (int i = 0; i < 250; ++i) EXPECT_EQ(target_of(fmt::format("b{}", i)), "") << i;
  EXPECT_EQ(state_of("adapters/a/2"), AdapterRecord::State::kDeleted);
}

TEST_F(FleetAdaptersTest, NothingOfAPublicationThatFailsStays) {
  state_->throw_at = "\"ready\"";
  EXPECT_EQ(publish("a", "tag").status().code(), StatusCode::kInternal);
  EXPECT_EQ(state_of("adapters/a/1"), AdapterRecord::State::kDeleted);
  EXPECT_NE(code_of("a@1"), StatusCode::kOk);
  for (const auto& item : std::filesystem::directory_iterator(dir_.file("fleet/manifests"))) {
    std::ifstream in(item.path());
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    EXPECT_EQ(text.find("\"here\""), std::string::npos) << "it may make room";
  }
  state_->throw_at.clear();
  const auto again = publish("a", "tag");
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ((*again)->version, 2);
}

// A name that is the base's, a quota, a directory without an adapter, one whose files are no adapter.
TEST_F(FleetAdaptersTest, WhatIsRefusedLeavesNothing) {
  EXPECT_EQ(publish("base", "tag").status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(publish("x", "../../tests").status().code(), StatusCode::kNotFound) << "no adapter lies there";
  std::filesystem::create_directories(dir_.file("broken"));
  dir_.write("broken/adapter_config.json", "{}");
  dir_.write("broken/adapter_model.safetensors", "nothing");
  const auto load = [&](const std::string& name, const std::string& path, std::shared_ptr<const Tenant> limits) {
    std::promise<Result<AdapterLease>> promise;
    fleet_->changes().publish(
        {.name = name, .path = path, .trusted_path = true, .replace = true, .tenant = "t", .limits = limits},
        [&](Result<AdapterLease> loaded) { promise.set_value(std::move(loaded)); });
    return promise.get_future().get().status();
  };
  EXPECT_FALSE(load("x", dir_.file("broken"), nullptr).ok());
  const auto one = std::make_shared<Tenant>();
  one->name = "t";
  one->max_adapters = 1;
  ASSERT_TRUE(load("x", testing::kDemoAdapters + std::string("tag"), one).ok());
  EXPECT_EQ(load("y", testing::kDemoAdapters + std::string("sql"), one).code(), StatusCode::kResourceExhausted);
  ASSERT_EQ(state_->entries.size(), 1u);
  int published = 0;
  EXPECT_EQ(state_of("adapters/x/1"), AdapterRecord::State::kReady) << "no number was used up";
  for (const auto& item : std::filesystem::directory_iterator(dir_.file("fleet/manifests"))) {
    std::ifstream in(item.path());
    published += std::string(std::istreambuf_iterator<char>(in), {}).find("\"here\"") != std::string::npos;
  }
  EXPECT_EQ(published, 1) << "the others' files may make room";
}

TEST_F(FleetAdaptersTest, NumbersThatAreNoneAndAbandonedOnesAreNobodysWay) {
  const auto put = [&](const std::string& key, AdapterRecord record) {
    record.state = AdapterRecord::State::kPending;
    state_->entries[key] = {.value = format_adapter(record), .revision = ++state_->revision};
  };
  const int64_t now = std::time(nullptr);
  put("adapters/a/2147483648", {});
  put("adapters/a/07", {});
  put("adapters/a/3", {.created = now - 100'000});  // its process is gone
  put("adapters/a/4", {.created = now});            // under way
  const auto published = publish("a", "tag");
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_EQ((*published)->version, 5);
  EXPECT_FALSE(state_->entries.contains("adapters/a/3"));
  EXPECT_TRUE(state_->entries.contains("adapters/a/4"));
  put("adapters/b/2147483647", {.created = now});
  EXPECT_EQ(publish("b", "tag").status().code(), StatusCode::kResourceExhausted);
}

// Numbers stay for good, also those of what was deleted: one tenant cannot use up the registry.
TEST_F(FleetAdaptersTest, ATenantHasSoManyNumbers) {
  Registry::Entries entries;
  for (int64_t i = 1; i <= kMostVersionsOfTenant; ++i)
    entries[adapter_key("n", i)] = {format_adapter({.state = AdapterRecord::State::kDeleted, .tenant = "t"}), i};
  state_->watches.at(std::string(kAdapters))(entries);
  const auto publish_as = [&](const std::string& tenant, const std::string& name) {
    std::promise<Result<AdapterLease>> promise;
    fleet_->changes().publish({.name = name,
                               .path = testing::kDemoAdapters + std::string("tag"),
                               .trusted_path = true,
                               .replace = true,
                               .tenant = tenant},
                              [&](Result<AdapterLease> loaded) { promise.set_value(std::move(loaded)); });
    return promise.get_future().get().status().code();
  };
  EXPECT_EQ(publish_as("t", "a"), StatusCode::kResourceExhausted);
  EXPECT_EQ(publish_as("u", "b"), StatusCode::kOk);
  EXPECT_TRUE(remove("b").ok());
  EXPECT_EQ(parse_adapter("adapters/b/1", state_->entries.at("adapters/b/1").value)->tenant, "u") << "it counts";
}

TEST(PublicationPaceTest, ManyAtOnceAndThenAFewASecond) {
  PublicationPace pace;
  PublicationPace::Time now{};
  for (int i = 0; i < kPublicationsAtOnce; ++i) EXPECT_TRUE(pace.enter("t", now).ok());
  EXPECT_EQ(pace.enter("t", now).code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(pace.enter("u", now).ok());
  now += 2s;
  EXPECT_TRUE(pace.enter("t", now).ok());
  EXPECT_FALSE(pace.enter("t", now).ok());
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(pace.enter("", now).ok());
}

// What is being proved elsewhere may never be anything.
TEST_F(FleetAdaptersTest, NobodyKeepsWhatIsPending) {
  const AdapterRecord pending{.name = "a", .version = 1, .state = AdapterRecord::State::kPending};
  state_->watches.at(std::string(kAdapters))({{"adapters/a/1", {format_adapter(pending), 1}}});
  fleet_->stop();
  EXPECT_EQ(catalog().find("adapters/a"), std::string::npos);
}

// However often it is seen: nothing is new for the file.
TEST_F(FleetAdaptersTest, WhatIsPendingWritesNoCatalog) {
  const auto see = [&] {
    Registry::Entries entries;
    entries["adapters/a/1"] = {format_adapter({.state = AdapterRecord::State::kPending}), 1};
    entries["adapters/b/1"] = {format_adapter({.state = AdapterRecord::State::kDeleted}), 2};
    state_->watches.at(std::string(kAdapters))(entries);
  };
  see();
  fleet_->stop();
  EXPECT_THAT(catalog(), HasSubstr("adapters/b/1"));
  std::filesystem::remove(dir_.file("fleet/catalog.json"));
  see();
  fleet_->stop();  // would write what is not on disk
  EXPECT_EQ(catalog(), "");
}

TEST_F(FleetAdaptersTest, WhoWaitsHearsOfTheEnd) {
  state_->hang = true;
  std::vector<std::promise<Status>> promises(5);
  for (auto& promise : promises)
    fleet_->changes().remove("a", [&promise](const Status& status) { promise.set_value(status); });
  {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [&] { return state_->hanging == 2; });
  }
  fleet_->stop();
  for (auto& promise : promises) {
    std::future<Status> end = promise.get_future();
    ASSERT_EQ(end.wait_for(0s), std::future_status::ready) << "when stop() has returned";
    EXPECT_FALSE(end.get().ok());
  }
  std::promise<Status> late;
  fleet_->fetch("x", [&](const Status& status) { late.set_value(status); });
  EXPECT_FALSE(late.get_future().get().ok());
  EXPECT_EQ(fleet_->fetch_stats().waiting, 0);
}

// The catalog's temporary file is a pipe that nobody reads: the disk does not answer, and changes go on.
TEST_F(FleetAdaptersTest, ChangesDoNotWaitForTheCatalog) {
  const std::string pipe = dir_.file(fmt::format("fleet/catalog.json.tmp.{}", ::getpid()));
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::future<void> changes = std::async(std::launch::async, [&] {
    Registry::Entries entries;
    for (int i = 1; i <= 100; ++i) {
      entries[alias_key(fmt::format("alias-{}", i))] = {.value = format_alias("nobody"), .revision = i};
      state_->watches.at(std::string(kAliases))(entries);
    }
  });
  EXPECT_EQ(changes.wait_for(60s), std::future_status::ready);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);  // it goes on; a pipe cannot be synced
  changes.get();
  fleet_->stop();
  ::close(reader);
  EXPECT_THAT(catalog(), HasSubstr("alias-100"));
}

}  // namespace
}  // namespace lk
