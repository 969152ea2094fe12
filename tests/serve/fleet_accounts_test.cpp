// SPDX-License-Identifier: Apache-2.0
// Tenants and keys of a fleet, at two of its processes.
#include "lk/serve/fleet/fleet_accounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <ctime>
#include <fstream>

#include "lk/serve/access/access_control.h"
#include "serve/fake_registry.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using testing::FakeRegistry;
using ::testing::HasSubstr;
using ::testing::Not;

class FleetAccountsTest : public ::testing::Test {
 protected:
  std::unique_ptr<FleetAccounts> open(const std::string& file = "") {
    return FleetAccounts::open(std::make_unique<FakeRegistry>(state_), file.empty() ? "" : dir_.file(file)).value();
  }
  static bool opens(FleetAccounts& accounts, const std::string& key) {
    return AccessControl::create({.require_keys = true}, &accounts)
        .value()
        ->ring()
        ->authenticate("Bearer " + key, std::time(nullptr))
        .ok();
  }
  std::string make_key_at(FleetAccounts& accounts, const std::string& tenant = "t") {
    EXPECT_TRUE(accounts
                    .change_tenant(
                        tenant, [](Tenant&) { return Status(); }, true)
                    .ok());
    return accounts.create_key(tenant, static_cast<uint8_t>(Scope::kInfer), "", 0).value().text;
  }
  static std::string id_of(const std::string& key) { return key.substr(3, key.find('-', 3) - 3); }

  testing::TempDir dir_;
  const std::shared_ptr<FakeRegistry::State> state_ = std::make_shared<FakeRegistry::State>();
};

TEST_F(FleetAccountsTest, AKeyOfOneOpensAllUntilAnyRevokesIt) {
  const auto one = open(), other = open();
  const std::string key = make_key_at(*one);
  EXPECT_TRUE(opens(*one, key)) << "before it was answered";
  EXPECT_TRUE(one->changed().value());
  EXPECT_FALSE(one->changed().value());
  state_->tell_watchers();
  EXPECT_TRUE(other->changed().value());
  EXPECT_TRUE(opens(*other, key));
  EXPECT_EQ(one->tenants().value(), other->tenants().value()) << "the cache's salt, too";
  EXPECT_NE(other->tenants().value().at(0).cache_salt, 0u);
  EXPECT_TRUE(other->revoke_key(id_of(key)).ok());
  EXPECT_FALSE(opens(*other, key));
  state_->tell_watchers();
  EXPECT_FALSE(opens(*one, key));
  EXPECT_EQ(one->revoke_key("nobody").code(), StatusCode::kNotFound);
  EXPECT_EQ(one->create_key("nobody", 1, "", 0).status().code(), StatusCode::kNotFound);
}

TEST_F(FleetAccountsTest, SecretsAreNowhereInPlain) {
  std::string key;
  {
    const auto accounts = open("keys.json");
    key = make_key_at(*accounts);
  }
  const std::string secret = key.substr(key.rfind('-') + 1);
  ASSERT_GT(secret.size(), 40u);
  for (const auto& [name, entry] : state_->entries) EXPECT_THAT(entry.value, Not(HasSubstr(secret)));
  std::ifstream in(dir_.file("keys.json"));
  const std::string kept{std::istreambuf_iterator<char>(in), {}};
  EXPECT_THAT(kept, HasSubstr(id_of(key)));
  EXPECT_THAT(kept, Not(HasSubstr(secret)));
  struct stat info {};
  ASSERT_EQ(::stat(dir_.file("keys.json").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(FleetAccountsTest, WithoutTheRegistryEverythingHoldsAndNothingChanges) {
  std::string key;
  {
    const auto accounts = open("keys.json");
    key = make_key_at(*accounts);
    state_->is_away = true;
    EXPECT_TRUE(opens(*accounts, key));
    EXPECT_EQ(accounts->revoke_key(id_of(key)).code(), StatusCode::kUnavailable);
    EXPECT_EQ(accounts->create_key("t", 1, "", 0).status().code(), StatusCode::kUnavailable);
    EXPECT_TRUE(opens(*accounts, key));
  }
  const auto again = open("keys.json");
  std::vector<std::string> lines;
  again->set_log([&](std::string_view what, std::string_view) { lines.emplace_back(what); });
  EXPECT_THAT(lines, ElementsAre("registry_away"));
  EXPECT_TRUE(opens(*again, key));
  const auto fresh = open();
  EXPECT_FALSE(opens(*fresh, key)) << "nothing is known, and nobody is let in";
}

// A store that lost its data, or came back from an old copy.
TEST_F(FleetAccountsTest, NothingComesBackAndNothingIsLost) {
  const auto one = open();
  const std::string kept = make_key_at(*one), gone = make_key_at(*one);
  const auto copy = state_->entries;
  ASSERT_TRUE(one->revoke_key(id_of(gone)).ok());
  state_->entries.clear();
  state_->tell_watchers();
  EXPECT_TRUE(opens(*one, kept));
  state_->entries = copy;
  state_->tell_watchers();
  EXPECT_TRUE(opens(*one, kept));
  EXPECT_FALSE(opens(*one, gone));
}

TEST_F(FleetAccountsTest, OfTwoAtOneMomentNeitherUndoesTheOther) {
  const auto accounts = open();
  ASSERT_TRUE(accounts->create_tenant({.name = "t"}).ok());
  EXPECT_EQ(accounts->create_tenant({.name = "t"}).code(), StatusCode::kAlreadyExists);
  state_->meanwhile = [](auto& state) {
    TenantRecord record = parse_tenant_record("tenants/t", state.entries.at("tenants/t").value).value();
    record.tenant.max_in_flight = 7;
    state.put("tenants/t", format_tenant(record));
  };
  const Result<Tenant> changed = accounts->change_tenant("t", [](Tenant& tenant) {
    tenant.weight = 3;
    return Status();
  });
  ASSERT_TRUE(changed.ok()) << changed.status().message();
  EXPECT_EQ(changed->max_in_flight, 7);
  EXPECT_EQ(accounts->tenants().value().at(0).weight, 3);
  // A key that is made while its tenant goes.
  const AccountStore::NewKey late = make_key("t", 1, "", 0).value();
  state_->meanwhile = [&](auto& state) { state.put(key_key(late.key.id), format_key(late.key)); };
  EXPECT_EQ(accounts->remove_tenant("t").code(), StatusCode::kFailedPrecondition);
  // And a tenant that goes while a key is made for it.
  ASSERT_TRUE(accounts->revoke_key(late.key.id).ok());
  state_->meanwhile = [](auto& state) {
    TenantRecord record = parse_tenant_record("tenants/t", state.entries.at("tenants/t").value).value();
    record.removed = true;
    state.put("tenants/t", format_tenant(record));
  };
  EXPECT_EQ(accounts->create_key("t", 1, "", 0).status().code(), StatusCode::kNotFound);
}

TEST_F(FleetAccountsTest, ATenantThatComesBackIsAnotherOne) {
  const auto accounts = open();
  const std::string key = make_key_at(*accounts);
  EXPECT_EQ(accounts->remove_tenant("t").code(), StatusCode::kFailedPrecondition) << "it has a usable key";
  ASSERT_TRUE(accounts->revoke_key(id_of(key)).ok());
  const uint64_t salt = accounts->tenants().value().at(0).cache_salt;
  // More expired keys than one transaction holds: all are revoked with it.
  for (int i = 0; i < 250; ++i) {
    AccountStore::NewKey old = make_key("t", 1, "", 0).value();
    old.key.expires = 1;
    state_->put(key_key(old.key.id), format_key(old.key));
  }
  EXPECT_TRUE(accounts->remove_tenant("t").ok());
  EXPECT_TRUE(accounts->tenants().value().empty());
  const std::vector<ApiKey> left = accounts->keys().value();
  for (const ApiKey& key_left : left) EXPECT_TRUE(key_left.revoked);
  EXPECT_EQ(left.size(), 251u);
  EXPECT_EQ(accounts->remove_tenant("t").code(), StatusCode::kNotFound);
  EXPECT_TRUE(accounts->create_tenant({.name = "t"}).ok());
  EXPECT_NE(accounts->tenants().value().at(0).cache_salt, salt);
}

TEST_F(FleetAccountsTest, WhatIsNoRecordOpensNothing) {
  const auto accounts = open();
  const std::string key = make_key_at(*accounts);
  std::vector<std::string> lines;
  accounts->set_log([&](std::string_view what, std::string_view reason) {
    EXPECT_EQ(what, "account_ignored");
    lines.emplace_back(reason.substr(0, reason.find(':')));
  });
  const std::string form = R"({"form":2})";
  state_->put("keys/abcdefghijkl", form);
  state_->put("keys/x", R"({"form":1,"secret_sha256":"","tenant":"t","scopes":"admin"})");
  state_->put("tenants/u", R"({"form":1,"weight":-1,"cache_salt":"0000000000000001"})");
  state_->put("tenants/v", R"({"form":1,"weight":1,"cache_salt":"0000000000000000"})");
  state_->tell_watchers();
  state_->tell_watchers();
  EXPECT_THAT(lines, ::testing::UnorderedElementsAre("keys/abcdefghijkl", "keys/x", "tenants/u", "tenants/v"));
  EXPECT_EQ(accounts->keys().value().size(), 1u);
  EXPECT_TRUE(opens(*accounts, key));
}

TEST_F(FleetAccountsTest, ALostAnswerIsNoRefusal) {
  const auto accounts = open();
  state_->lose_answers = true;
  EXPECT_TRUE(opens(*accounts, make_key_at(*accounts)));
  EXPECT_EQ(accounts->keys().value().size(), 1u);
}

}  // namespace
}  // namespace lk
