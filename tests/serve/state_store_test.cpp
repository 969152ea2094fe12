// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/state_store.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <ctime>
#include <filesystem>
#include <set>
#include <thread>

#include "lk/base/file.h"

namespace lk {
namespace {

constexpr uint8_t kInfer = 1;

class StateStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "lorikeet-state-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = dir_ + "/sub/state.db";
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<StateStore> open() {
    auto store = StateStore::open(path_);
    EXPECT_TRUE(store.ok()) << store.status().message();
    return store.ok() ? std::move(*store) : nullptr;
  }
  // Somebody else's hand in the file.
  void sql(const std::string& statements) {
    sqlite3* handle = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &handle), SQLITE_OK);
    char* error = nullptr;
    EXPECT_EQ(sqlite3_exec(handle, statements.c_str(), nullptr, nullptr, &error), SQLITE_OK) << error;
    sqlite3_close(handle);
  }
  Status open_fails() {
    const auto store = StateStore::open(path_);
    EXPECT_FALSE(store.ok());
    EXPECT_NE(store.status().message().find(path_), std::string::npos) << store.status().message();
    return store.status();
  }

  std::string dir_, path_;
};

TEST_F(StateStoreTest, NewFileIsPrivateAndEmpty) {
  auto store = open();
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(store->put_tenant({.name = "a"}).ok());
  for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/sub")) {
    struct stat info {};
    ASSERT_EQ(::stat(entry.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << entry.path();  // also the log and its index
  }
  store.reset();
  ASSERT_EQ(::chmod(path_.c_str(), 0644), 0);
  store = open();
  struct stat info {};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(StateStoreTest, AChangeOfATenantIsReadAndWrittenInOne) {
  auto store = open(), other = open();
  ASSERT_TRUE(store->create_tenant({.name = "acme", .max_in_flight = 3}).ok());
  EXPECT_EQ(store->create_tenant({.name = "acme"}).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(store->change_tenant("nobody", [](Tenant&) { return Status(); }).status().code(), StatusCode::kNotFound);
  other->set_patience(std::chrono::milliseconds(1));
  const Result<Tenant> changed = store->change_tenant("acme", [&](Tenant& tenant) {
    EXPECT_FALSE(other->put_tenant({.name = "acme", .max_sums = 7}).ok()) << "nobody comes between";
    tenant.weight = 2;
    tenant.name = "somebody else's";  // is not what is changed here
    return Status();
  });
  ASSERT_TRUE(changed.ok()) << changed.status().message();
  other->set_patience(std::chrono::seconds(5));
  ASSERT_TRUE(other->change_tenant("acme", [](Tenant& tenant) { return tenant.max_sums = 7, Status(); }).ok());
  const std::vector<Tenant> tenants = store->tenants().value();
  ASSERT_EQ(tenants.size(), 1u);
  EXPECT_EQ(tenants[0].name, "acme");
  EXPECT_EQ(tenants[0].weight, 2);
  EXPECT_EQ(tenants[0].max_in_flight, 3);
  EXPECT_EQ(tenants[0].max_sums, 7);
  EXPECT_EQ(store->change_tenant("acme", [](Tenant& tenant) { return tenant.weight = -1, Status(); }).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_FALSE(store->change_tenant("acme", [](Tenant&) { return invalid_argument("no"); }).ok());
  EXPECT_EQ(store->tenants().value()[0].weight, 2);
  ASSERT_TRUE(store
                  ->change_tenant(
                      "new", [](Tenant& tenant) { return tenant.weight = 5, Status(); }, true)
                  .ok());
  EXPECT_EQ(store->tenants().value()[1].weight, 5);
}

TEST_F(StateStoreTest, TenantsRoundTripAndKeepTheirSalt) {
  auto store = open();
  ASSERT_TRUE(store
                  ->put_tenant({.name = "acme",
                                .weight = 2.5,
                                .max_in_flight = 4,
                                .tokens_per_minute = 1000,
                                .adapters = {"a*", "base"}})
                  .ok());
  const Tenant first = store->tenants()->at(0);
  EXPECT_EQ(first.weight, 2.5);
  EXPECT_EQ(first.max_in_flight, 4);
  EXPECT_EQ(first.tokens_per_minute, 1000);
  EXPECT_EQ(first.adapters, (std::vector<std::string>{"a*", "base"}));
  EXPECT_NE(first.cache_salt, 0u);
  ASSERT_TRUE(store->put_tenant({.name = "acme", .cache_salt = 7}).ok());
  store.reset();
  store = open();
  ASSERT_EQ(store->tenants()->size(), 1u);
  EXPECT_EQ(store->tenants()->at(0).cache_salt, first.cache_salt);
  EXPECT_EQ(store->tenants()->at(0).weight, 1);
  EXPECT_TRUE(store->tenants()->at(0).adapters.empty());
  for (const Tenant& bad : {Tenant{.name = ""}, Tenant{.name = "a b"}, Tenant{.name = "a", .weight = 0},
                            Tenant{.name = "a", .weight = -1}, Tenant{.name = "a", .weight = NAN},
                            Tenant{.name = "a", .max_in_flight = -1}, Tenant{.name = "a", .tokens_per_minute = -1},
                            Tenant{.name = "a", .adapters = {""}}, Tenant{.name = "a", .adapters = {"x,y"}}})
    EXPECT_EQ(store->put_tenant(bad).code(), StatusCode::kInvalidArgument);
}

TEST_F(StateStoreTest, KeysRoundTripThroughTheRing) {
  auto store = open();
  EXPECT_EQ(store->create_key("acme", kInfer, "", 0).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(store->put_tenant({.name = "acme"}).ok());
  EXPECT_TRUE(store->load_key_ring()->open());
  const auto made = store->create_key("acme", 3, "CI on \xc3\xa4pfel", 0);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_EQ(made->text.size(), 3u + 12 + 1 + 43);
  EXPECT_TRUE(made->text.starts_with("lk-" + made->key.id + "-"));
  const int64_t now = std::time(nullptr);
  const auto found = store->load_key_ring()->authenticate("Bearer " + made->text, now);
  ASSERT_TRUE(found.ok()) << found.status().message();
  EXPECT_EQ(found->tenant->name, "acme");
  EXPECT_EQ(found->scopes, 3);
  EXPECT_EQ(store->keys()->at(0).note, "CI on \xc3\xa4pfel");

  std::string changed = made->text;
  changed.back() = changed.back() == 'a' ? 'b' : 'a';
  EXPECT_FALSE(store->load_key_ring()->authenticate("Bearer " + changed, now).ok());
  // The secret is nowhere in the file.
  const std::string secret = made->text.substr(16);
  store.reset();
  for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/sub"))
    EXPECT_EQ(read_file(entry.path())->find(secret), std::string::npos) << entry.path();
  store = open();

  const auto expiring = store->create_key("acme", kInfer, "", now + 1000);
  ASSERT_TRUE(expiring.ok());
  EXPECT_TRUE(store->load_key_ring()->authenticate("Bearer " + expiring->text, now + 999).ok());
  EXPECT_FALSE(store->load_key_ring()->authenticate("Bearer " + expiring->text, now + 1000).ok());
  EXPECT_EQ(store->create_key("acme", kInfer, "", now - 1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store->create_key("acme", 0, "", 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store->create_key("acme", kAllScopes + 1, "", 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store->create_key("acme", kInfer, "two\nlines", 0).status().code(), StatusCode::kInvalidArgument);

  ASSERT_TRUE(store->revoke_key(made->key.id).ok());
  EXPECT_FALSE(store->load_key_ring()->authenticate("Bearer " + made->text, now).ok());
  EXPECT_EQ(store->revoke_key("nobody").code(), StatusCode::kNotFound);
}

TEST_F(StateStoreTest, KeysAreAllDifferent) {
  auto store = open();
  ASSERT_TRUE(store->put_tenant({.name = "a"}).ok());
  std::set<std::string> ids, texts;
  for (int i = 0; i < 50; ++i) {
    const auto made = store->create_key("a", kInfer, "", 0);
    ASSERT_TRUE(made.ok());
    ids.insert(made->key.id);
    texts.insert(made->text.substr(16));
  }
  EXPECT_EQ(ids.size(), 50u);
  EXPECT_EQ(texts.size(), 50u);
}

TEST_F(StateStoreTest, RemovingTheLastTenantDoesNotOpenTheServer) {
  auto store = open();
  ASSERT_TRUE(store->put_tenant({.name = "acme"}).ok());
  const uint64_t salt = store->tenants()->at(0).cache_salt;
  const auto made = store->create_key("acme", kInfer, "", 0);
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(store->remove_tenant("acme").code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(store->revoke_key(made->key.id).ok());
  ASSERT_TRUE(store->remove_tenant("acme").ok());
  EXPECT_EQ(store->remove_tenant("acme").code(), StatusCode::kNotFound);
  EXPECT_TRUE(store->tenants()->empty());
  EXPECT_FALSE(store->load_key_ring()->open());
  EXPECT_EQ(store->create_key("acme", kInfer, "", 0).status().code(), StatusCode::kNotFound);
  // One of the same name later is another tenant: new salt, old keys stay dead.
  ASSERT_TRUE(store->put_tenant({.name = "acme"}).ok());
  EXPECT_NE(store->tenants()->at(0).cache_salt, salt);
  EXPECT_FALSE(store->load_key_ring()->authenticate("Bearer " + made->text, 0).ok());
}

TEST_F(StateStoreTest, AdapterVersionsAreNeverUsedAgain) {
  auto store = open();
  const std::string digest(64, 'a');
  EXPECT_EQ(store->last_version("sql")->version, 0);
  ASSERT_TRUE(store->put_adapter({.name = "sql", .version = 1, .path = "/a/sql", .digest = digest}).ok());
  ASSERT_TRUE(
      store->put_adapter({.name = "sql", .version = 2, .path = "/a/sql2", .digest = digest, .pinned = true}).ok());
  ASSERT_EQ(store->adapters()->size(), 2u);
  EXPECT_FALSE(store->adapters()->at(0).is_default);  // the later default took over
  EXPECT_TRUE(store->adapters()->at(1).is_default && store->adapters()->at(1).pinned);
  ASSERT_TRUE(
      store->put_adapter({.name = "sql", .version = 1, .path = "/a/moved", .digest = digest}).ok());  // an update
  EXPECT_TRUE(store->adapters()->at(0).is_default);
  EXPECT_EQ(store->adapters()->at(0).path, "/a/moved");
  ASSERT_TRUE(store->remove_adapter("sql", 2).ok());
  EXPECT_EQ(store->remove_adapter("sql", 2).code(), StatusCode::kNotFound);
  store.reset();
  store = open();
  EXPECT_EQ(store->last_version("sql")->version, 2);
  EXPECT_EQ(store->put_adapter({.name = "sql", .version = 2, .path = "/b"}).code(), StatusCode::kAlreadyExists);
  EXPECT_TRUE(store->put_adapter({.name = "sql", .version = 3, .path = "/b"}).ok());
  EXPECT_TRUE(store->put_adapter({.name = "other", .version = 2, .path = "/b"}).ok());
  for (const StoredAdapter& bad :
       {StoredAdapter{.name = "../x", .version = 9, .path = "/b"},
        StoredAdapter{.name = "x", .version = 0, .path = "/b"}, StoredAdapter{.name = "x", .version = 1, .path = ""},
        StoredAdapter{.name = "x", .version = 1, .path = "/a\n"},
        StoredAdapter{.name = "x", .version = 1, .path = "/a", .digest = "zz"}})
    EXPECT_EQ(store->put_adapter(bad).code(), StatusCode::kInvalidArgument);
}

TEST_F(StateStoreTest, Aliases) {
  auto store = open();
  ASSERT_TRUE(store->put_alias({.alias = "prod", .name = "sql", .version = 2}).ok());
  ASSERT_TRUE(store->put_alias({.alias = "prod", .name = "sql", .version = 3}).ok());
  ASSERT_EQ(store->aliases()->size(), 1u);
  EXPECT_EQ(store->aliases()->at(0).version, 3);
  EXPECT_EQ(store->put_alias({.alias = "a//b", .name = "sql"}).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(store->remove_alias("prod").ok());
  EXPECT_EQ(store->remove_alias("prod").code(), StatusCode::kNotFound);
}

TEST_F(StateStoreTest, AdaptersBelongToABase) {
  const std::string one(64, '1'), two(64, '2'), digest(64, 'd');
  auto store = open();
  // From before bases were told apart.
  ASSERT_TRUE(store->put_adapter({.name = "old", .version = 1, .path = "/old"}).ok());
  ASSERT_TRUE(store->put_alias({.alias = "prod", .name = "old"}).ok());
  EXPECT_FALSE(store->use_base("short").ok());
  ASSERT_TRUE(store->use_base(one).ok());
  EXPECT_EQ(store->adapters()->size(), 1u);
  EXPECT_EQ(store->aliases()->size(), 1u);
  ASSERT_TRUE(store->put_adapter({.name = "x", .version = 1, .path = "/x", .digest = digest}).ok());
  EXPECT_EQ(store->last_version("x")->digest, digest);
  EXPECT_EQ(*store->num_of_other_bases(), 0);

  store = open();
  ASSERT_TRUE(store->use_base(two).ok());
  EXPECT_TRUE(store->adapters()->empty());
  EXPECT_TRUE(store->aliases()->empty());
  EXPECT_EQ(*store->num_of_other_bases(), 2);
  EXPECT_EQ(store->last_version("x")->version, 1) << "numbers are not used twice";
  EXPECT_EQ(store->last_version("x")->digest, "") << "what was version 1 there is nothing here";
  EXPECT_EQ(store->put_adapter({.name = "x", .version = 1, .path = "/y"}).ok(), false);
  ASSERT_TRUE(store->put_adapter({.name = "x", .version = 2, .path = "/y"}).ok());
  ASSERT_TRUE(store->put_alias({.alias = "prod", .name = "x", .version = 2}).ok());
  ASSERT_TRUE(store->remove_alias("prod").ok());
  ASSERT_TRUE(store->put_version("z", 4, digest).ok());
  EXPECT_EQ(store->last_version("z")->version, 4);
  ASSERT_TRUE(store->put_version("z", 3, std::string(64, 'e')).ok()) << "an older one says nothing";
  EXPECT_EQ(store->last_version("z")->digest, digest);

  store = open();
  ASSERT_TRUE(store->use_base(one).ok());
  ASSERT_EQ(store->adapters()->size(), 2u);
  EXPECT_TRUE(store->adapters()->at(1).is_default) << "what the name means elsewhere changes nothing";
  ASSERT_EQ(store->aliases()->size(), 1u);
  EXPECT_EQ(store->aliases()->at(0).name, "old");
}

TEST_F(StateStoreTest, NewerOrForeignFilesAreRefused) {
  open().reset();
  sql("PRAGMA user_version = 4");
  EXPECT_EQ(open_fails().code(), StatusCode::kFailedPrecondition);
  path_ = dir_ + "/other.db";
  sql("CREATE TABLE recipes(x)");
  EXPECT_EQ(open_fails().code(), StatusCode::kInvalidArgument);
  path_ = dir_;
  EXPECT_FALSE(StateStore::open(path_).ok());
  EXPECT_FALSE(StateStore::open("").ok());
  EXPECT_FALSE(StateStore::open("/dev/null").ok());
  EXPECT_FALSE(StateStore::open("/proc/nowhere/state.db").ok());
}

// As the first version wrote them.
TEST_F(StateStoreTest, OlderFilesAreUpgraded) {
  std::filesystem::create_directories(dir_ + "/sub");
  sql("CREATE TABLE tenants(name TEXT PRIMARY KEY, weight REAL NOT NULL, max_in_flight INTEGER NOT NULL, "
      "tokens_per_minute INTEGER NOT NULL, adapters TEXT NOT NULL, cache_salt INTEGER NOT NULL, removed INTEGER NOT "
      "NULL "
      "DEFAULT 0) STRICT;"
      "CREATE TABLE keys(id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, tenant TEXT NOT NULL REFERENCES "
      "tenants(name), "
      "scopes INTEGER NOT NULL, note TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, revoked "
      "INTEGER "
      "NOT NULL DEFAULT 0) STRICT;"
      "CREATE TABLE adapters(name TEXT NOT NULL, version INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, "
      "pinned INTEGER NOT NULL, is_default INTEGER NOT NULL, PRIMARY KEY(name, version)) STRICT;"
      "CREATE TABLE adapter_versions(name TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;"
      "CREATE TABLE aliases(alias TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL) STRICT;"
      "INSERT INTO tenants VALUES('a', 2, 3, 4, 'x*', 5, 0); INSERT INTO adapters VALUES('x', 1, '/x', '', 1, 1);"
      "INSERT INTO aliases VALUES('prod', 'x', 1);"
      "PRAGMA application_id = 1280004948; PRAGMA user_version = 1");
  for (int i = 0; i < 2; ++i) {
    auto store = open();
    ASSERT_NE(store, nullptr);
    EXPECT_EQ(store->tenants()->at(0).weight, 2);
    EXPECT_EQ(store->tenants()->at(0).max_adapters, 0);
    EXPECT_EQ(store->adapters()->at(0).tenant, "");
    ASSERT_EQ(store->aliases()->size(), 1u);
    EXPECT_EQ(store->aliases()->at(0).alias, "prod");
  }
}

// Holds the file for writing, as another process would.
class Holder {
 public:
  explicit Holder(const std::string& path, const char* how = "BEGIN IMMEDIATE") {
    EXPECT_EQ(sqlite3_open(path.c_str(), &handle_), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(handle_, how, nullptr, nullptr, nullptr), SQLITE_OK);
  }
  ~Holder() { sqlite3_close(handle_); }

 private:
  sqlite3* handle_ = nullptr;
};

TEST_F(StateStoreTest, WritesToAHeldFileFailInTimeAndReadsGoOn) {
  auto store = open();
  ASSERT_TRUE(store->put_tenant({.name = "a"}).ok());
  store->set_patience(std::chrono::milliseconds(50));
  std::vector<Status> reasons;
  std::thread waiting;
  store->on_failed_write([&](const Status& reason) {
    reasons.push_back(reason);
    return unavailable("not stored");
  });
  {
    const Holder holder(path_);
    const Status refused = store->put_tenant({.name = "b"});
    EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
    EXPECT_EQ(refused.message(), "not stored");
    ASSERT_EQ(reasons.size(), 1u);
    EXPECT_NE(reasons[0].message().find(path_), std::string::npos);
    // A writer that waits keeps no reader.
    store->set_patience(std::chrono::seconds(60));
    waiting = std::thread([&] { EXPECT_TRUE(store->put_tenant({.name = "c"}).ok()); });
    EXPECT_EQ(store->tenants()->size(), 1u);
    EXPECT_EQ(store->last_version("x")->version, 0);
  }
  waiting.join();
  EXPECT_EQ(store->tenants()->size(), 2u);
  EXPECT_EQ(store->put_tenant({.name = "a b"}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(reasons.size(), 1u) << "a refusal is no failure of the file";
}

TEST_F(StateStoreTest, NothingIsWrittenToAFileThatWasMovedAway) {
  auto store = open();
  EXPECT_FALSE(*store->changed());
  std::filesystem::rename(path_, path_ + ".old");
  EXPECT_EQ(store->put_tenant({.name = "a"}).code(), StatusCode::kDataLoss);
  EXPECT_EQ(store->changed().status().code(), StatusCode::kDataLoss);
  ASSERT_TRUE(write_file_atomic(path_, std::string(8192, 'x')).ok());
  EXPECT_EQ(store->put_tenant({.name = "a"}).code(), StatusCode::kDataLoss) << "nor when another took its place";
  std::filesystem::rename(path_ + ".old", path_);
  EXPECT_TRUE(store->put_tenant({.name = "a"}).ok());
}

TEST_F(StateStoreTest, ChangesOfOthersAreSeenOnce) {
  auto store = open(), other = open();
  EXPECT_FALSE(*store->changed());
  ASSERT_TRUE(other->put_tenant({.name = "a"}).ok());
  EXPECT_TRUE(*store->changed());
  EXPECT_FALSE(*store->changed());
}

TEST_F(StateStoreTest, WhatBelongsTogetherIsStoredTogether) {
  auto store = open();
  ASSERT_TRUE(store->put_adapter({.name = "x", .version = 1, .path = "/x"}).ok());
  EXPECT_FALSE(store
                   ->put(StoredAdapter{.name = "x", .version = 1, .path = "/x", .pinned = true},
                         StateStore::Alias{.alias = "..", .name = "x"})
                   .ok());
  EXPECT_FALSE(store->adapters()->at(0).pinned);
  ASSERT_TRUE(store
                  ->put(StoredAdapter{.name = "x", .version = 1, .path = "/x", .pinned = true, .tenant = "acme"},
                        StateStore::Alias{.alias = "y", .name = "x"})
                  .ok());
  EXPECT_TRUE(store->adapters()->at(0).pinned);
  EXPECT_EQ(store->adapters()->at(0).tenant, "acme");
  ASSERT_TRUE(store->put_adapter({.name = "x", .version = 2, .path = "/x2"}, {1}).ok());
  ASSERT_EQ(store->adapters()->size(), 1u);
  ASSERT_TRUE(store->remove({{"x", 2}, {"x", 7}}, {"y", "z"}).ok());
  EXPECT_TRUE(store->adapters()->empty());
  EXPECT_TRUE(store->aliases()->empty());
}

TEST_F(StateStoreTest, DamagedFilesAreNamed) {
  open().reset();
  const std::string good = *read_file(path_);
  ASSERT_GT(good.size(), 4096u);
  std::filesystem::remove(path_);
  for (const size_t size : {size_t{1}, size_t{100}, size_t{4096}, good.size() / 2}) {
    ASSERT_TRUE(write_file_atomic(path_, good.substr(0, size)).ok());
    EXPECT_EQ(open_fails().code(), StatusCode::kDataLoss) << size;
  }
  ASSERT_TRUE(write_file_atomic(path_, std::string(8192, 'x')).ok());
  EXPECT_EQ(open_fails().code(), StatusCode::kDataLoss);
  for (size_t page = 1; page * 4096 < good.size(); ++page) {  // the root page of each table and index
    std::string damaged = good;
    for (size_t i = 0; i < 64; ++i) damaged[page * 4096 + i] = static_cast<char>(0xff);
    ASSERT_TRUE(write_file_atomic(path_, damaged).ok());
    EXPECT_EQ(open_fails().code(), StatusCode::kDataLoss) << page;
  }
}

TEST_F(StateStoreTest, HostileRowsAreRefusedOnReading) {
  open().reset();
  const std::string key =
      "INSERT INTO keys VALUES('abcdefghijkl', '" + std::string(64, '0') + "', 'a', 1, '', 0, 0, 0);";
  const std::string tenant =
      "INSERT INTO tenants(name, weight, max_in_flight, tokens_per_minute, adapters, cache_salt) VALUES('a', 1, 0, 0, "
      "'', 5);";
  const std::string clear =
      "PRAGMA foreign_keys = OFF; DELETE FROM keys; DELETE FROM tenants; DELETE FROM adapters; DELETE FROM "
      "aliases_of_bases;";
  sql(clear + tenant + key);
  ASSERT_TRUE(open()->load_key_ring().ok());
  for (const std::string& change :
       {std::string("UPDATE tenants SET name = '../../etc'"), std::string("UPDATE tenants SET weight = -1"),
        std::string("UPDATE tenants SET weight = 9e999"), std::string("UPDATE tenants SET cache_salt = 0"),
        std::string("UPDATE tenants SET adapters = 'a,,b'"), std::string("UPDATE tenants SET adapters = ','"),
        std::string("UPDATE tenants SET max_in_flight = -5"), std::string("UPDATE tenants SET max_sums = -1"),
        std::string("UPDATE keys SET id = 'short'"), std::string("UPDATE keys SET secret_sha256 = ''"),
        std::string("UPDATE keys SET scopes = 255"), std::string("UPDATE keys SET scopes = 257"),
        std::string("UPDATE keys SET note = char(27) || '[2J'"),
        std::string("UPDATE keys SET note = CAST(x'ff' AS TEXT)"),
        std::string("UPDATE keys SET note = 'a' || char(0) || 'b'"), std::string("UPDATE keys SET expires = -1"),
        std::string("UPDATE keys SET tenant = ''")}) {
    sql(clear + tenant + key + "PRAGMA foreign_keys = OFF; " + change);
    EXPECT_EQ(open()->load_key_ring().status().code(), StatusCode::kDataLoss) << change;
  }
  sql(clear + "INSERT INTO adapters VALUES('a/../b', 1, '/x', '', 0, 0, '', '')");
  EXPECT_EQ(open()->adapters().status().code(), StatusCode::kDataLoss);
  sql(clear + "INSERT INTO aliases_of_bases VALUES('', 'ok', '..', 0)");
  EXPECT_EQ(open()->aliases().status().code(), StatusCode::kDataLoss);
  sql(clear + "DROP TABLE aliases_of_bases; CREATE VIEW aliases_of_bases AS SELECT 'a' alias, 'b' name");
  EXPECT_FALSE(open()->aliases().ok());
}

TEST_F(StateStoreTest, HandlesInSeveralThreadsSeeEachOther) {
  auto first = open(), second = open();
  ASSERT_TRUE(first->put_tenant({.name = "a"}).ok());
  EXPECT_EQ(second->tenants()->size(), 1u);
  const auto create = [](StateStore& store) {
    for (int i = 0; i < 30; ++i) EXPECT_TRUE(store.create_key("a", kInfer, "", 0).ok());
  };
  std::thread one([&] { create(*first); }), two([&] { create(*second); }), three([&] { create(*second); });
  one.join();
  two.join();
  three.join();
  EXPECT_EQ(first->keys()->size(), 90u);
}

TEST_F(StateStoreTest, TwoProcessesCreateAndWriteOneFile) {
  std::vector<pid_t> children;
  for (int c = 0; c < 2; ++c) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      auto store = StateStore::open(path_);
      bool good = store.ok() && (*store)->put_tenant({.name = "a"}).ok();
      for (int i = 0; good && i < 30; ++i) good = (*store)->create_key("a", kInfer, "", 0).ok();
      ::_exit(good ? 0 : 1);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  EXPECT_EQ(open()->keys()->size(), 60u);
}

TEST_F(StateStoreTest, KilledWriterLosesNothingThatWasAcknowledged) {
  ASSERT_TRUE(open()->put_tenant({.name = "a"}).ok());
  std::set<std::string> acknowledged;
  for (int round = 0; round < 5; ++round) {
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      auto store = StateStore::open(path_);
      for (int64_t i = 0; store.ok(); ++i) {
        const auto made = (*store)->create_key("a", kInfer, std::string(200, 'n'), 0);
        if (!made.ok() || ::write(pipe[1], made->key.id.data(), 12) != 12) break;
        if (i % 7 == 0) (void)(*store)->put_tenant({.name = "a", .weight = static_cast<double>(i + 1)});
      }
      ::_exit(1);
    }
    ::close(pipe[1]);
    char id[12];
    for (int i = 0; i < 5 + 11 * round; ++i) {
      ASSERT_EQ(::read(pipe[0], id, sizeof id), static_cast<ssize_t>(sizeof id));
      acknowledged.emplace(id, sizeof id);
    }
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
    while (::read(pipe[0], id, sizeof id) == static_cast<ssize_t>(sizeof id)) acknowledged.emplace(id, sizeof id);
    ::close(pipe[0]);
    auto store = open();
    ASSERT_NE(store, nullptr);
    std::set<std::string> stored;
    const auto keys = store->keys();
    ASSERT_TRUE(keys.ok()) << keys.status().message();
    for (const ApiKey& key : *keys) stored.insert(key.id);
    for (const std::string& wanted : acknowledged) EXPECT_TRUE(stored.contains(wanted));
    EXPECT_TRUE(store->create_key("a", kInfer, "", 0).ok());
  }
}

TEST_F(StateStoreTest, LockedFileIsAnErrorNotAHang) {
  auto store = open();
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &other), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_TRUE(store->tenants().ok());  // readers are not held up
  EXPECT_EQ(store->put_tenant({.name = "a"}).code(), StatusCode::kUnavailable);
  ASSERT_EQ(sqlite3_exec(other, "ROLLBACK", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_TRUE(store->put_tenant({.name = "a"}).ok());
  sqlite3_close(other);
}

}  // namespace
}  // namespace lk
