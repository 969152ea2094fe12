// SPDX-License-Identifier: Apache-2.0
#include <sqlite3.h>

#include "serve/registry_testing.h"

namespace lk {
namespace {

using testing::AdapterRegistryTest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Heard;
using testing::Hold;
using testing::kDemoAdapters;

TEST_F(AdapterRegistryTest, ResolvesEveryFormOfANameAndNothingElse) {
  const AdapterLease sql = must_load("sql", "sql");
  EXPECT_EQ(sql->version, 1);
  EXPECT_EQ(sql->rank, 16);
  EXPECT_GT(sql->host_bytes, 0);
  EXPECT_GT(sql->probe_shift, 0);
  EXPECT_THAT(sql->targets, ElementsAre("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"));
  for (const char* base : {"", "base", "demo"}) {
    const auto resolved = resolve(base);
    ASSERT_TRUE(resolved.ok()) << base;
    EXPECT_EQ(resolved->adapter, nullptr);
    EXPECT_EQ(resolved->name, "demo");
  }
  for (const char* name : {"sql", "sql@1", "demo:sql", "base:sql", "demo:sql@1"}) {
    const auto resolved = resolve(name);
    ASSERT_TRUE(resolved.ok()) << name;
    EXPECT_EQ(resolved->adapter, sql);
  }
  for (const char* name : {"math", "sql@2", "sql@0", "sql@", "sql@-1", "sql@1x", "sql@99999999999999999999",
                           "other:sql", "demo:", ":sql", "demo:demo", "SQL", "sql ", "@1"})
    EXPECT_EQ(code_of(name), StatusCode::kNotFound) << name;
}

TEST_F(AdapterRegistryTest, TenantsSeeOnlyWhatTheyMayUse) {
  must_load("sql", "sql");
  must_load("math", "math");
  ASSERT_TRUE(registry_->set_alias("sums", "math").ok());
  const Tenant tenant{.name = "t", .adapters = {"sq*"}};
  EXPECT_TRUE(registry_->resolve("sql", tenant).ok());
  const Status forbidden = registry_->resolve("math", tenant).status();
  EXPECT_EQ(forbidden.code(), StatusCode::kNotFound);
  std::string words = registry_->resolve("nada", tenant).status().message();
  words.replace(words.find("nada"), 4, "math");
  EXPECT_EQ(forbidden.message(), words) << "the same words as for what does not exist";
  for (const char* name : {"math@1", "sums", "demo:math", "base", "demo", "", "sql+math", "math*2"})
    EXPECT_EQ(registry_->resolve(name, tenant).status().code(), StatusCode::kNotFound) << name;
  EXPECT_TRUE(registry_->resolve("sql*0.5", tenant).ok());
  const Tenant by_alias{.name = "a", .adapters = {"sums"}};
  EXPECT_TRUE(registry_->resolve("sums", by_alias).ok());
  EXPECT_FALSE(registry_->resolve("math", by_alias).ok());
}

TEST_F(AdapterRegistryTest, RefusedLoadsLeaveNothing) {
  must_load("sql", "sql");
  ASSERT_TRUE(registry_->set_alias("alias", "sql").ok());
  const int64_t bytes = registry_->host_stats().bytes;
  EXPECT_EQ(load("sql", "math").status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(load("alias", "math", {.replace = true}).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(load("base", "math", {.replace = true}).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(load("demo", "math", {.replace = true}).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(load("../x", "math").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(load("a@b", "math").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(load("new", "/nowhere").status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(load("new", dir_.path()).ok()) << "no adapter in it";
  dir_.write("adapter_config.json", "{}");
  dir_.write("adapter_model.safetensors", "garbage");
  EXPECT_FALSE(load("new", dir_.path()).ok());
  // A client's path must lie in a root.
  EXPECT_EQ(registry_->load_and_wait({.name = "new", .path = std::filesystem::absolute(kDemoAdapters + "math")})
                .status()
                .code(),
            StatusCode::kPermissionDenied);
  testing::copy_adapter("math", dir_.file("inside"));
  EXPECT_TRUE(registry_->load_and_wait({.name = "inside", .path = "inside"}).ok());
  EXPECT_TRUE(registry_->unload("inside", nullptr).ok());
  EXPECT_TRUE(wait_for_host_bytes(bytes));
  EXPECT_EQ(version_of("sql"), 1);
  EXPECT_EQ(version_of("alias"), 1);
  EXPECT_EQ(registry_->list(service_->engine->snapshot(), "", 100).entries.size(), 1u);
  EXPECT_EQ(must_load("new", "math")->version, 1) << "the failures took no number";
  EXPECT_EQ(registry_->num_loading(), 0);
}

TEST_F(AdapterRegistryTest, ListsAreReadPageByPage) {
  for (const char* name : {"c", "a", "e"}) must_load(name, "tag");
  must_load("c", "dates", {.replace = true, .keep_previous = true});
  for (const auto& [alias, target] : {std::pair("b", "a"), {"d", "c@1"}, {"z", "e"}})
    ASSERT_TRUE(registry_->set_alias(alias, target).ok());
  // However long the pages are, all of them together are the list.
  for (const size_t limit : {1, 2, 3, 6, 100}) {
    std::string names, versions, after;
    for (bool more = true; more;) {
      const AdapterRegistry::NamePage page = registry_->list_names(after, limit);
      EXPECT_LE(page.entries.size(), limit);
      ASSERT_FALSE(page.entries.empty());
      for (const AdapterRegistry::Listed& entry : page.entries)
        names += entry.name + (entry.target.empty() ? " " : "=" + entry.target + " ");
      after = page.entries.back().name;
      more = page.has_more;
    }
    EXPECT_EQ(names, "a b=a c d=c@1 e z=e ");
    after = "";
    for (bool more = true; more;) {
      const AdapterRegistry::AdapterPage page = registry_->list(service_->engine->snapshot(), after, limit);
      for (const AdapterSnapshot& entry : page.entries) {
        after = fmt::format("{}@{}", entry.name, entry.version);
        versions += after + (entry.is_default ? "* " : " ");
      }
      more = page.has_more;
    }
    EXPECT_EQ(versions, "a@1* c@1 c@2* e@1* ");
  }
  const auto only = [](const std::string& name) { return name >= "d"; };
  EXPECT_EQ(registry_->list_names("", 2, only).entries.at(0).name, "d");
  EXPECT_TRUE(registry_->list_names("", 2, only).has_more);
  EXPECT_FALSE(registry_->list_names("", 3, only).has_more);
  EXPECT_EQ(registry_->list(service_->engine->snapshot(), "c", 9).entries.at(0).name, "e")
      << "behind all of its versions";
  EXPECT_EQ(registry_->list_names("cc", 1).entries.at(0).name, "d") << "what it names may be gone";
  EXPECT_TRUE(registry_->list_names("zz", 1).entries.empty());
}

TEST_F(AdapterRegistryTest, ProbeRefusesWeightsThatOverflow) {
  // Passes the checks of loading, which know bounds only; gate times up does not stay finite.
  testing::copy_adapter("sql", dir_.file("huge"), 1e18f);
  const Status status = load("huge", dir_.file("huge")).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.message();
  EXPECT_THAT(status.message(), HasSubstr("probe"));
  EXPECT_EQ(code_of("huge"), StatusCode::kNotFound);
  EXPECT_TRUE(wait_for_host_bytes(0));
  EXPECT_TRUE(service_->wait_on_engine([](TextEngine& engine) { return engine.pool().resident_adapters().empty(); }));
  service_->expect_idle_pool();
  // Pages that held what overflowed do not spoil whoever has them next.
  const AdapterLease good = must_load("huge", "sql");
  ASSERT_NE(good, nullptr);
  EXPECT_EQ(good->version, 1);
  EXPECT_NE(tokens_of(good), tokens_of(nullptr));
}

TEST_F(AdapterRegistryTest, AFreshSnapshotShowsWhatTheProbeLeft) {
  for (int i = 0; i < 20; ++i) {
    const AdapterLease adapter = must_load("sql", "sql", {.replace = true});
    const auto shown = registry_->find("sql", service_->engine->fresh_snapshot());
    ASSERT_TRUE(shown);
    EXPECT_EQ(shown->tier, "device") << i;
    EXPECT_EQ(shown->running + shown->waiting, 0) << i;
  }
}

TEST_F(AdapterRegistryTest, ReplacedVersionServesItsRequestsToTheEndAndIsFreedThen) {
  AdapterLease first = must_load("x", "sql");
  const AdapterLease reference = must_load("reference", "sql");
  const std::vector<int32_t> expected = tokens_of(reference, 200);
  const AdapterId old = first->id();
  auto heard = std::make_shared<Heard>();
  {
    Hold hold(*service_);  // the request is not over before the replacement begins
    start(heard, first, 200);
    first.reset();
    auto replaced = std::make_shared<std::promise<void>>();
    registry_->load({.name = "x", .path = kDemoAdapters + "math", .trusted_path = true, .replace = true},
                    [replaced](const Result<AdapterLease>& loaded) {
                      EXPECT_TRUE(loaded.ok());
                      replaced->set_value();
                    });
  }
  EXPECT_TRUE(service_->wait_on_engine([&](TextEngine&) { return version_of("x") == 2; }));
  const AdapterLease second = resolve("x")->adapter;
  EXPECT_EQ(code_of("x@1"), StatusCode::kNotFound);
  ASSERT_TRUE(heard->wait_for_ends());
  EXPECT_EQ(heard->choice().tokens, expected) << "what it began with";
  EXPECT_EQ(tokens_of(second, 200), tokens_of(must_load("math", "math"), 200));
  EXPECT_TRUE(wait_until_absent(old));
}

TEST_F(AdapterRegistryTest, KeptVersionsAndAliases) {
  must_load("x", "sql");
  must_load("x", "math", {.replace = true, .keep_previous = true});
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_EQ(version_of("x@1"), 1);
  ASSERT_TRUE(registry_->set_alias("prod", "x@1").ok());
  ASSERT_TRUE(registry_->set_alias("edge", "x").ok());
  EXPECT_EQ(version_of("prod"), 1);
  EXPECT_EQ(version_of("edge"), 2);
  must_load("x", "tag", {.replace = true});  // retires version 2; 1 has an alias
  EXPECT_EQ(version_of("prod"), 1) << "an alias keeps its version";
  EXPECT_EQ(version_of("edge"), 3);
  EXPECT_EQ(code_of("x@2"), StatusCode::kNotFound);
  ASSERT_TRUE(registry_->set_alias("prod", "x@3").ok());  // flips at once
  EXPECT_EQ(version_of("prod"), 3);
  EXPECT_EQ(registry_->aliases(), (std::map<std::string, std::string>{{"edge", "x"}, {"prod", "x@3"}}));

  EXPECT_EQ(registry_->set_alias("x", "x@1").code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(registry_->set_alias("base", "x").code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(registry_->set_alias("demo", "x").code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(registry_->set_alias("y", "prod").code(), StatusCode::kNotFound) << "no alias of an alias";
  EXPECT_EQ(registry_->set_alias("y", "x@9").code(), StatusCode::kNotFound);
  EXPECT_EQ(registry_->set_alias("a b", "x").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(registry_->remove_alias("y").code(), StatusCode::kNotFound);
  ASSERT_TRUE(registry_->remove_alias("edge").ok());
  EXPECT_EQ(code_of("edge"), StatusCode::kNotFound);

  // The default goes: the highest one left takes its place; its exact alias goes with it.
  EXPECT_EQ(*registry_->unload("x@3", nullptr), 1);
  EXPECT_EQ(version_of("x"), 1);
  EXPECT_EQ(code_of("prod"), StatusCode::kNotFound);
  EXPECT_EQ(registry_->unload("x@3", nullptr).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(must_load("x", "sql", {.replace = true})->version, 4) << "numbers are not used again";
}

TEST_F(AdapterRegistryTest, UnloadReportsEachVersionOnceWhenItsLastRequestEnded) {
  must_load("x", "sql");
  must_load("x", "math", {.replace = true, .keep_previous = true});
  ASSERT_TRUE(registry_->set_alias("alias", "x").ok());
  auto heard = std::make_shared<Heard>();
  const RequestId id = start(heard, resolve("x@1")->adapter, 490);
  ASSERT_TRUE(heard->wait_for_tokens(1));
  std::mutex mutex;
  std::vector<AdapterRegistry::Freed> freed;
  std::promise<void> first, both;
  const Result<int> count = registry_->unload("x", [&](const AdapterRegistry::Freed& report) {
    std::lock_guard lock(mutex);
    freed.push_back(report);
    if (freed.size() == 1) first.set_value();
    if (freed.size() == 2) both.set_value();
  });
  ASSERT_EQ(*count, 2);
  EXPECT_EQ(code_of("x"), StatusCode::kNotFound);
  EXPECT_EQ(code_of("x@1"), StatusCode::kNotFound);
  EXPECT_EQ(code_of("alias"), StatusCode::kNotFound);
  EXPECT_EQ(registry_->unload("x", nullptr).status().code(), StatusCode::kNotFound);
  first.get_future().wait();
  service_->engine->cancel(id);
  both.get_future().wait();
  ASSERT_TRUE(heard->wait_for_ends());
  service_->on_engine([](TextEngine&) {});
  std::lock_guard lock(mutex);
  ASSERT_EQ(freed.size(), 2u);
  if (heard->choice().completion.finish == FinishReason::kCancelled) {
    EXPECT_EQ(freed[0].version, 2) << "version 1 still had a request";
  }
  EXPECT_NE(freed[0].version, freed[1].version);
  for (const auto& report : freed) {
    EXPECT_EQ(report.name, "x");
    EXPECT_GT(report.page_bytes, 0);
    EXPECT_GT(report.host_bytes, 0);
  }
  EXPECT_EQ(registry_->host_stats().bytes, 0);
}

TEST_F(AdapterRegistryTest, HostMemoryIsBoundedAlsoWhenLoadsRunSideBySide) {
  const int64_t bytes = must_load("one", "sql")->host_bytes;
  open({.num_threads = 4, .max_host_bytes = bytes * 5 / 2});
  std::vector<std::future<StatusCode>> loads;
  for (int i = 0; i < 8; ++i) {
    auto promise = std::make_shared<std::promise<StatusCode>>();
    loads.push_back(promise->get_future());
    registry_->load({.name = fmt::format("a{}", i), .path = kDemoAdapters + "sql", .trusted_path = true},
                    [promise](const Result<AdapterLease>& loaded) { promise->set_value(loaded.status().code()); });
  }
  for (auto& load : loads) EXPECT_EQ(load.get(), StatusCode::kOk);
  EXPECT_TRUE(service_->wait_on_engine([&](TextEngine&) { return registry_->host_stats().bytes <= bytes * 5 / 2; }));
  for (const AdapterLease& version : registry_->versions()) ASSERT_TRUE(registry_->unload(version->name, nullptr).ok());
  EXPECT_TRUE(wait_for_host_bytes(0));
  EXPECT_NE(must_load("again", "sql"), nullptr);
}

TEST_F(AdapterRegistryTest, WhatHostMemoryDroppedIsReadAgainAndAnswersTheSame) {
  const int64_t bytes = must_load("one", "sql")->host_bytes;
  // Host memory for two of four.
  open({.max_host_bytes = bytes * 5 / 2});
  const std::vector<std::string> names{"sql", "math", "tag", "dates"};
  std::map<std::string, std::vector<int32_t>> expected;
  for (const std::string& name : names) expected[name] = tokens_of(must_load(name, name));
  for (int round = 0; round < 3; ++round)
    for (const std::string& name : names) {
      push_out_of_pages(resolve(name)->adapter);
      EXPECT_EQ(tokens_of(resolve(name)->adapter), expected[name]) << name;
    }
  const HostTier::Stats stats = registry_->host_stats();
  EXPECT_GT(stats.num_reads, 0);
  EXPECT_GT(stats.num_drops, 2);
  EXPECT_EQ(stats.num_failed_reads, 0);
  EXPECT_TRUE(service_->wait_on_engine([&](TextEngine&) { return registry_->host_stats().bytes <= bytes * 5 / 2; }));
  for (const AdapterSnapshot& adapter : registry_->list(service_->engine->snapshot(), "", 100).entries)
    EXPECT_EQ(adapter.host_bytes > 0, resolve(adapter.name)->adapter->host()->on_host());
  push_out_of_pages(resolve("sql")->adapter);
  registry_->host_tier().drop_all();
  EXPECT_TRUE(service_->wait_on_engine(
      [&](TextEngine&) { return registry_->find("sql", service_->engine->snapshot())->tier == "disk"; }));
}

TEST_F(AdapterRegistryTest, WhatChangedOnDiskFailsOnlyItsOwnRequests) {
  namespace fs = std::filesystem;
  for (const char* name : {"a", "b", "c"})
    fs::copy(kDemoAdapters + "sql", dir_.file(name), fs::copy_options::recursive);
  const AdapterLease a = must_load("a", dir_.file("a")), b = must_load("b", dir_.file("b")),
                     c = must_load("c", dir_.file("c"));
  const std::vector<int32_t> expected = tokens_of(a);
  const auto push_out = [&](const AdapterLease& adapter) {
    registry_->host_tier().drop_all();
    push_out_of_pages(adapter);
  };
  // Gone before its copy was dropped: it is kept, because nobody could bring it back.
  fs::remove_all(a->path);
  push_out(a);
  EXPECT_TRUE(a->host()->on_host());
  EXPECT_EQ(tokens_of(a), expected);
  // Changed after it was dropped: its requests fail with the reason, nobody else's.
  push_out(b);
  ASSERT_FALSE(b->host()->on_host());
  fs::copy_file(kDemoAdapters + "math/adapter_model.safetensors", dir_.file("b/adapter_model.safetensors"),
                fs::copy_options::overwrite_existing);
  auto heard = std::make_shared<Heard>();
  start(heard, b, 4);
  ASSERT_TRUE(heard->wait_for_ends());
  EXPECT_EQ(heard->choice().completion.finish, FinishReason::kError);
  EXPECT_EQ(heard->choice().completion.error.code(), StatusCode::kDataLoss);
  EXPECT_THAT(heard->choice().completion.error.message(), HasSubstr("are not what they were when it was loaded"));
  EXPECT_EQ(registry_->host_stats().num_failed_reads, 1);
  EXPECT_EQ(tokens_of(c), expected) << "read again from its own directory";
}

TEST_F(AdapterRegistryTest, LoadsThatWaitForTheEngineDoNotHoldUpReaders) {
  open({.num_threads = 4, .num_readers = 1});
  std::promise<void> blocked, go_on;
  ASSERT_TRUE(service_->engine->call([&](TextEngine&) {
    blocked.set_value();
    go_on.get_future().wait();
  }));
  blocked.get_future().wait();
  std::vector<std::future<Status>> loads;
  const auto start = [&](const std::string& name, const std::string& path) {
    auto promise = std::make_shared<std::promise<Status>>();
    loads.push_back(promise->get_future());
    registry_->load({.name = name, .path = path, .trusted_path = true},
                    [promise](const Result<AdapterLease>& loaded) { promise->set_value(loaded.status()); });
  };
  for (const char* name : {"a", "b", "c"}) start(name, kDemoAdapters + "sql");
  start("d", kDemoAdapters + "missing");
  ASSERT_EQ(loads[3].wait_for(testing::kPatience), std::future_status::ready)
      << "the only reader is free while the others wait";
  EXPECT_EQ(loads[3].get().code(), StatusCode::kNotFound);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(loads[static_cast<size_t>(i)].wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  go_on.set_value();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(loads[static_cast<size_t>(i)].get().ok());
}

TEST_F(AdapterRegistryTest, PinsHoldPagesAndAreRefusedWhenTheyDoNotFit) {
  must_load("sql", "sql", {.pinned = true});
  EXPECT_TRUE(resolve("sql")->adapter->pinned);
  const AdapterId id = resolve("sql")->adapter->id();
  EXPECT_TRUE(service_->wait_on_engine([id](TextEngine& engine) { return engine.pool().num_pins(id) == 1; }));
  ASSERT_TRUE(registry_->set_pinned("sql", false).ok());
  service_->on_engine([id](TextEngine& engine) { EXPECT_EQ(engine.pool().num_pins(id), 0); });
  EXPECT_EQ(registry_->set_pinned("nada", true).code(), StatusCode::kNotFound);
  ASSERT_TRUE(registry_->set_pinned("sql", true).ok());
  must_load("sql", "math", {.replace = true});
  EXPECT_TRUE(wait_until_absent(id)) << "a retired version is not held by its pin";
  // In a pool with room for one and a half adapters the second pin does not fit.
  int64_t adapter_bytes = 0;
  service_->on_engine([&](TextEngine& engine) {
    adapter_bytes = engine.engine().footprint(resolve("sql")->adapter->id()) * engine.engine().page_bytes();
  });
  open({}, nullptr, adapter_bytes * 3 / 2 + (1 << 18));
  must_load("a", "math", {.pinned = true});
  EXPECT_EQ(load("b", "math", {.pinned = true}).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(code_of("b"), StatusCode::kNotFound);
}

class StoredRegistryTest : public AdapterRegistryTest {
 protected:
  StoredRegistryTest() {
    store_ = StateStore::open(dir_.file("state.db")).value();
    open({}, store_.get());
  }
  ~StoredRegistryTest() override { registry_.reset(); }
  std::unique_ptr<StateStore> store_;
};

TEST_F(StoredRegistryTest, VersionsAreNeverUsedAgainAlsoAfterARestart) {
  EXPECT_EQ(must_load("x", "sql")->version, 1);
  EXPECT_EQ(must_load("x", "sql", {.replace = true})->version, 2);
  ASSERT_TRUE(registry_->unload("x", nullptr).ok());
  open({}, store_.get());
  EXPECT_EQ(must_load("x", "math")->version, 3);
  ASSERT_TRUE(registry_->unload("x", nullptr).ok());
  open({}, store_.get());
  EXPECT_EQ(must_load("x", "tag", {.persist = false})->version, 4) << "nor by an adapter that is not stored";
  EXPECT_TRUE(store_->adapters()->empty());
}

TEST_F(StoredRegistryTest, WhatALoadThrowsFailsThatLoadAlone) {
  store_->on_failed_write([](const Status&) -> Status { throw std::runtime_error("no room for a message"); });
  ASSERT_EQ(std::remove(dir_.file("state.db").c_str()), 0);  // so that nothing can be stored
  const auto failed = load("x", "sql");
  EXPECT_EQ(failed.status().code(), StatusCode::kInternal);
  EXPECT_THAT(failed.status().message(), ::testing::HasSubstr("no room for a message"));
  EXPECT_EQ(code_of("x"), StatusCode::kNotFound);
  EXPECT_EQ(must_load("x", "sql", {.persist = false})->name, "x") << "its loader and its name are free again";
}

TEST_F(StoredRegistryTest, StoreFollowsTheRegistry) {
  must_load("x", "sql");
  must_load("x", "math", {.replace = true, .keep_previous = true, .pinned = true});
  must_load("file", "tag", {.persist = false});
  ASSERT_TRUE(registry_->set_pinned("file", true).ok());
  ASSERT_TRUE(registry_->set_alias("old", "x@1").ok());
  ASSERT_TRUE(registry_->set_alias("new", "x").ok());
  auto stored = store_->adapters().value();
  ASSERT_EQ(stored.size(), 2u) << "a pin does not make an operator's adapter a stored one";
  EXPECT_EQ(stored[0].version, 1);
  EXPECT_FALSE(stored[0].is_default);
  EXPECT_TRUE(stored[1].is_default);
  EXPECT_TRUE(stored[1].pinned);
  EXPECT_EQ(store_->aliases()->size(), 2u);

  // Restored under their numbers, in any order.
  open({}, store_.get());
  for (auto it = stored.rbegin(); it != stored.rend(); ++it)
    must_load(it->name, std::filesystem::absolute(it->path),
              {.replace = true, .keep_previous = true, .pinned = it->pinned, .version = it->version});
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_EQ(version_of("x@1"), 1);
  ASSERT_TRUE(registry_->set_alias("old", "x@1").ok());
  ASSERT_TRUE(registry_->set_alias("new", "x").ok());
  ASSERT_TRUE(registry_->unload("x@1", nullptr).ok());
  EXPECT_EQ(store_->adapters()->size(), 1u);
  EXPECT_EQ(store_->aliases()->size(), 1u) << "aliases go with what they meant";
  ASSERT_TRUE(registry_->unload("x", nullptr).ok());
  EXPECT_TRUE(store_->adapters()->empty());
  EXPECT_TRUE(store_->aliases()->empty());
}

TEST_F(StoredRegistryTest, WhatCannotBeStoredIsNotInEffect) {
  must_load("x", "sql");
  must_load("x", "math", {.replace = true, .keep_previous = true});
  must_load("y", "tag", {.pinned = true});
  ASSERT_TRUE(registry_->set_alias("prod", "x@1").ok());
  store_->set_patience(std::chrono::milliseconds(20));
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open(dir_.file("state.db").c_str(), &other), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  const auto refused = [](const Status& status) { return status.code() == StatusCode::kUnavailable; };
  EXPECT_TRUE(refused(registry_->unload("x", nullptr).status()));
  EXPECT_TRUE(refused(registry_->unload("x@1", nullptr).status()));
  EXPECT_TRUE(refused(registry_->remove_alias("prod")));
  EXPECT_TRUE(refused(registry_->set_alias("prod", "y")));
  EXPECT_TRUE(refused(registry_->set_alias("next", "y")));
  EXPECT_TRUE(refused(registry_->set_pinned("x", true)));
  EXPECT_TRUE(refused(registry_->set_pinned("y", false)));
  EXPECT_TRUE(refused(registry_->change("x", true, "next")));
  EXPECT_TRUE(refused(load("z", "dates").status()));
  EXPECT_TRUE(refused(load("x", "dates", {.replace = true}).status()));
  EXPECT_TRUE(refused(load("x", "dates", {.replace = true, .persist = false}).status()))
      << "it would retire stored ones";
  sqlite3_close(other);

  EXPECT_EQ(version_of("x"), 2);
  EXPECT_EQ(version_of("prod"), 1);
  EXPECT_EQ(code_of("next"), StatusCode::kNotFound);
  EXPECT_EQ(code_of("z"), StatusCode::kNotFound);
  EXPECT_FALSE(resolve("x")->adapter->pinned);
  EXPECT_TRUE(resolve("y")->adapter->pinned);
  EXPECT_EQ(store_->adapters()->size(), 3u);
  EXPECT_EQ(store_->aliases()->size(), 1u);
  ASSERT_TRUE(registry_->change("x", true, "next").ok());
  EXPECT_EQ(version_of("next"), 2);
  ASSERT_TRUE(registry_->unload("x", nullptr).ok());
  EXPECT_EQ(store_->aliases()->size(), 0u);
}

// Loads, replacements, unloads, aliases and requests from several threads; afterwards nothing is left.
TEST_F(AdapterRegistryTest, ConcurrentChangesAndRequests) {
  open({.num_threads = 3});
  const std::vector<std::string> sources{"sql", "math", "tag", "dates"};
  std::vector<std::thread> threads;
  std::atomic<int> expected_frees{0}, frees{0}, served{0};
  for (uint64_t seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] {
      Rng rng(seed);
      for (int i = 0; i < 25; ++i) {
        const std::string name = fmt::format("n{}", rng.below(3));
        switch (rng.below(7)) {
          case 0:
          case 1:
            (void)load(name, sources[rng.below(4)], {.replace = rng.below(2) == 0, .keep_previous = rng.below(3) == 0});
            break;
          case 2: {
            const auto count = registry_->unload(rng.below(2) == 0 ? name : name + "@1",
                                                 [&](const AdapterRegistry::Freed&) { ++frees; });
            if (count.ok()) expected_frees += *count;
            break;
          }
          case 3:
            (void)registry_->set_alias("alias", name);
            break;
          case 4:
            (void)registry_->list(service_->engine->snapshot(), "", 100).entries;
            break;
          case 5:
            (void)registry_->set_pinned(name, rng.below(2) == 0);
            break;
          default: {
            const auto resolved = resolve(rng.below(3) == 0 ? "n0*0.5+n1" : rng.below(2) == 0 ? "alias" : name);
            if (!resolved.ok()) break;
            EXPECT_EQ(tokens_of(resolved->adapter, 4).size(), 4u);
            ++served;
          }
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const char* name : {"n0", "n1", "n2"})
    if (const auto count = registry_->unload(name, [&](const AdapterRegistry::Freed&) { ++frees; }); count.ok())
      expected_frees += *count;
  EXPECT_TRUE(service_->wait_on_engine([&](TextEngine& engine) {
    return frees == expected_frees && engine.pool().resident_adapters().empty();
  })) << frees
      << " of " << expected_frees;
  EXPECT_TRUE(wait_for_host_bytes(0));
  EXPECT_TRUE(registry_->versions().empty());
  EXPECT_GT(expected_frees, 0);
}

TEST_F(AdapterRegistryTest, LoadsEndWhenTheServerStops) {
  std::vector<std::future<StatusCode>> loads;
  for (int i = 0; i < 12; ++i) {
    auto promise = std::make_shared<std::promise<StatusCode>>();
    loads.push_back(promise->get_future());
    registry_->load({.name = fmt::format("a{}", i), .path = kDemoAdapters + "sql", .trusted_path = true},
                    [promise](const Result<AdapterLease>& loaded) { promise->set_value(loaded.status().code()); });
  }
  service_->engine->stop();
  registry_.reset();
  for (auto& load : loads) {
    const StatusCode code = load.get();
    EXPECT_TRUE(code == StatusCode::kOk || code == StatusCode::kUnavailable) << to_string(code);
  }
  service_.reset();
}

// Somebody copies over the file of a loaded adapter, in place: the server has its own bytes (a map would be SIGBUS).
TEST_F(AdapterRegistryTest, AdapterSurvivesItsFileBeingTruncated) {
  testing::copy_adapter("sql", dir_.file("sql"));
  const AdapterLease adapter = must_load("sql", dir_.file("sql"));
  const std::vector<int32_t> before = tokens_of(adapter);
  std::filesystem::resize_file(dir_.file("sql/adapter_model.safetensors"), 10);
  service_->on_engine([](TextEngine& engine) {
    const_cast<UnifiedPool&>(engine.pool()).evict_all();
  });  // so that it is copied into pages again
  EXPECT_EQ(tokens_of(adapter), before);
}

}  // namespace
}  // namespace lk
