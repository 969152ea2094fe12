// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/access_control.h"

#include <gmock/gmock.h>
#include <sqlite3.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <thread>

#include "lk/base/file.h"
#include "lk/serve/access/state_store.h"
#include "lk/serve/access/state_thread.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::ElementsAre;

class AccessControlTest : public ::testing::Test {
 protected:
  AccessControlTest() : store_(StateStore::open(dir_.file("state.db")).value()) {}
  std::unique_ptr<AccessControl> create(const AccessOptions& options = {}) {
    auto access = AccessControl::create(options, store_.get());
    EXPECT_TRUE(access.ok()) << access.status().message();
    return access.ok() ? std::move(*access) : nullptr;
  }
  // "action target" of each.
  static std::vector<std::string> words(const Result<std::vector<AccessChange>>& changes) {
    EXPECT_TRUE(changes.ok()) << changes.status().message();
    std::vector<std::string> all;
    if (changes.ok())
      for (const AccessChange& change : *changes) all.push_back(fmt::format("{} {}", change.action, change.target));
    return all;
  }
  static bool knows(const AccessControl& access, const std::string& key) {
    return access.ring()->authenticate("Bearer " + key, 1).ok();
  }

  testing::TempDir dir_;
  std::unique_ptr<StateStore> store_;
};

TEST_F(AccessControlTest, SeesWhatAnotherProcessChanged) {
  const auto access = create();
  EXPECT_TRUE(access->ring()->open());
  EXPECT_TRUE(words(access->refresh()).empty());
  auto other = StateStore::open(dir_.file("state.db")).value();
  ASSERT_TRUE(other->put_tenant({.name = "acme"}).ok());
  const auto made = other->create_key("acme", 1, "", 0).value();
  EXPECT_THAT(words(access->refresh()), ElementsAre("key_created " + made.key.id, "tenant_created acme"));
  EXPECT_TRUE(knows(*access, made.text));
  ASSERT_TRUE(other->put_tenant({.name = "acme", .max_sums = 1}).ok());
  ASSERT_TRUE(other->revoke_key(made.key.id).ok());
  EXPECT_THAT(words(access->refresh()), ElementsAre("key_revoked " + made.key.id, "tenant_changed acme"));
  EXPECT_FALSE(knows(*access, made.text));
  EXPECT_TRUE(words(access->refresh()).empty());
}

TEST_F(AccessControlTest, NeverOpensAgain) {
  ASSERT_TRUE(store_->put_tenant({.name = "acme"}).ok());
  const auto made = store_->create_key("acme", 1, "", 0).value();
  const auto access = create();
  sqlite3* handle = nullptr;
  ASSERT_EQ(sqlite3_open(dir_.file("state.db").c_str(), &handle), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(handle, "DELETE FROM keys", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(handle);
  EXPECT_EQ(access->refresh().status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(access->refresh().status().code(), StatusCode::kDataLoss) << "until it is put right";
  EXPECT_FALSE(access->ring()->open());
  EXPECT_TRUE(knows(*access, made.text));
}

TEST_F(AccessControlTest, RequiredKeysCloseAnEmptyServer) {
  const auto access = create({.require_keys = true});
  EXPECT_FALSE(access->ring()->open());
  EXPECT_FALSE(access->ring()->has_usable_key(1));
  EXPECT_FALSE(access->ring()->authenticate("", 1).ok());
}

TEST_F(AccessControlTest, PlainKeysInferAsTheDefaultTenant) {
  ASSERT_TRUE(store_->put_tenant({.name = "default", .max_in_flight = 3}).ok());
  ASSERT_TRUE(write_file_atomic(dir_.file("key"), "0123456789abcdef\r\nignored").ok());
  const auto access = create({.key_file = dir_.file("key"), .key_text = "fedcba9876543210"});
  EXPECT_FALSE(access->ring()->open());
  for (const auto& [key, source] : {std::pair{"0123456789abcdef", "file"}, {"fedcba9876543210", "environment"}}) {
    const auto who = access->ring()->authenticate(fmt::format("Bearer {}", key), 1);
    ASSERT_TRUE(who.ok());
    EXPECT_EQ(who->key_id, source);
    EXPECT_EQ(who->tenant->max_in_flight, 3);
    EXPECT_TRUE(who->has(Scope::kInfer));
    EXPECT_FALSE(who->has(Scope::kAdapters) || who->has(Scope::kMetrics) || who->has(Scope::kAdmin));
  }
  for (const char* wrong : {"0123456789abcde", "0123456789abcdef0", "", "lk-0123456789abcdef", "lk--0123456789abcdef"})
    EXPECT_FALSE(knows(*access, wrong)) << wrong;
  ASSERT_TRUE(write_file_atomic(dir_.file("key"), "another0123456789").ok());
  EXPECT_THAT(words(access->refresh()), ElementsAre("key_changed file"));
  EXPECT_TRUE(knows(*access, "another0123456789"));
  EXPECT_FALSE(knows(*access, "0123456789abcdef"));
  std::filesystem::remove(dir_.file("key"));
  EXPECT_FALSE(access->refresh().ok());
  EXPECT_TRUE(knows(*access, "another0123456789")) << "what cannot be read is not a revocation";
}

TEST(PlainKey, Form) {
  EXPECT_TRUE(make_plain_key("file", "sk-0123456789abc").ok());
  for (const std::string& bad :
       {std::string(), std::string("short"), std::string(15, 'x'), std::string(201, 'x'),
        std::string("with a space inside"), std::string("0123456789abcd\xc3\xa4"), std::string("lk-abc-0123456789")}) {
    const auto refused = make_plain_key("file", bad);
    EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_TRUE(bad.empty() || refused.status().message().find(bad) == std::string::npos) << "a message shows no key";
  }
}

TEST(StateThread, RunsChangesInOrderAndRefusesWhatWaitsAtTheEnd) {
  std::vector<int> order;
  std::promise<void> entered, leave;
  {
    StateThread thread([] {}, std::chrono::hours(1));
    ASSERT_TRUE(thread.try_post([&](const Status& turn) {
      EXPECT_TRUE(turn.ok());
      entered.set_value();
      leave.get_future().wait();
      order.push_back(1);
    }));
    entered.get_future().wait();
    int taken = 0;
    while (thread.try_post([](const Status&) {})) ++taken;
    EXPECT_EQ(taken, 256) << "no more than that wait";
    std::thread stopping([&] { thread.stop(); });
    leave.set_value();
    stopping.join();
    EXPECT_FALSE(thread.try_post([](const Status&) {}));
  }
  EXPECT_EQ(order.size(), 1u);
}

TEST(StateThread, TicksBetweenChanges) {
  std::promise<void> ticked;
  std::atomic<int> ticks{0};
  StateThread thread(
      [&] {
        if (++ticks == 3) ticked.set_value();
      },
      std::chrono::milliseconds(1));
  ticked.get_future().wait();
}

}  // namespace
}  // namespace lk
