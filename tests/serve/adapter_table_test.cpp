// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_table.h"

#include <gtest/gtest.h>

#include "lk/serve/adapters/load_waiters.h"

namespace lk {
namespace {

std::unique_ptr<KnownAdapter> known(const std::string& tenant = "", bool watched = false) {
  auto made = std::make_unique<KnownAdapter>();
  made->tenant = tenant;
  if (watched) made->root = std::make_shared<const std::string>("/srv");
  return made;
}

TEST(AdapterTable, NamesVersionsAndAliases) {
  AdapterTable table;
  EXPECT_EQ(table.find("a").slot, nullptr);
  table.know({"a", 0}, known("", true));
  EXPECT_EQ(table.find("a").version, 0);
  EXPECT_EQ(table.find("a@7").version, 0) << "its number is not known yet";
  EXPECT_NE(table.find("a@7").slot, nullptr);
  table.know({"a", 2}, known());
  table.know({"a", 1}, known());
  EXPECT_EQ(table.find("a").version, 2);
  EXPECT_EQ(table.find("a@1").version, 1);
  EXPECT_EQ(table.find("a@7").slot, nullptr);
  for (const char* text : {"a@", "a@0", "a@-1", "a@x", "a@1x", "a@99999999999999999999", "@1", ""})
    EXPECT_EQ(table.find(text).slot, nullptr) << text;
  table.aliases = {{"prod", "a@1"}, {"dev", "a"}, {"lost", "b"}};
  EXPECT_EQ(table.find("prod").version, 1);
  EXPECT_EQ(table.find("dev").version, 2);
  EXPECT_EQ(table.find("lost").slot, nullptr);
  table.erase({"a", 2});
  EXPECT_EQ(table.find("dev").version, 1) << "the highest that is left";
  EXPECT_TRUE(table.is_default({"a", 1}));
  table.erase({"a", 9});
  table.erase({"b", 1});
  table.erase({"a", 1});
  table.erase({"a", 0});
  EXPECT_EQ(table.name("a"), nullptr);
}

TEST(AdapterTable, CountsTroublesAndKnowsWhoOwnsWhat) {
  AdapterTable table;
  for (const char* name : {"a", "b", "c"}) table.know({name, 1}, known("t"));
  table.know({"d", 1}, known("u"));
  table.know({"e", 1}, known());
  EXPECT_EQ(table.owned_by("t").size(), 3u);
  EXPECT_EQ(table.owned_by("nobody").size(), 0u);
  table.set_trouble({"a", 1}, {.kind = Trouble::kChanged});
  table.set_trouble({"b", 1}, {.kind = Trouble::kChanged});
  table.set_trouble({"b", 1}, {.kind = Trouble::kNoMemory});
  EXPECT_EQ(table.num_troubled(Trouble::kChanged), 1);
  EXPECT_EQ(table.num_troubled(Trouble::kNoMemory), 1);
  EXPECT_EQ(table.troubled().size(), 2u);
  table.know({"a", 1}, known("u"));
  EXPECT_EQ(table.num_troubled(Trouble::kChanged), 0) << "known anew";
  EXPECT_EQ(table.owned_by("t").size(), 2u);
  EXPECT_EQ(table.owned_by("u").size(), 2u);
  for (const char* name : {"a", "b", "c", "d", "e"}) table.erase({name, 1});
  EXPECT_TRUE(table.owned_by("t").empty());
  EXPECT_TRUE(table.troubled().empty());
  EXPECT_EQ(table.num_troubled(Trouble::kNoMemory), 0);
}

TEST(LoadWaiters, AreBoundedInAllAndForEachTenant) {
  LoadWaiters waiters;
  const auto now = std::chrono::steady_clock::now();
  int64_t added = 0;
  const auto add = [&](const std::string& tenant, const std::string& name, std::chrono::seconds patience) {
    bool is_first = false;
    const bool taken = waiters.add({name, 1}, {.tenant = tenant, .deadline = now + patience, .done = {}}, is_first);
    added += taken;
    return taken ? (is_first ? 1 : 2) : 0;
  };
  using std::chrono::seconds;
  EXPECT_EQ(add("a", "x", seconds(10)), 1);
  EXPECT_EQ(add("a", "x", seconds(20)), 2) << "somebody asked for it already";
  while (add("a", "y", seconds(30)) != 0) {
  }
  EXPECT_EQ(added, LoadWaiters::kMaxOfTenant);
  for (int i = 0; i < 10; ++i)
    while (add(std::to_string(i), "z", seconds(40)) != 0) {
    }
  EXPECT_EQ(added, LoadWaiters::kMax);
  EXPECT_EQ(add("late", "x", seconds(1)), 0);
  // Who waited too long makes room; the load that he asked for goes on.
  EXPECT_EQ(waiters.take_late(now + seconds(10)).size(), 1u);
  EXPECT_EQ(add("late", "x", seconds(50)), 2);
  EXPECT_EQ(waiters.take({"x", 1}).size(), 2u);
  EXPECT_FALSE(waiters.contains({"x", 1}));
  EXPECT_TRUE(waiters.take({"x", 1}).empty());
  EXPECT_EQ(waiters.take_late(now + seconds(30)).size(), static_cast<size_t>(LoadWaiters::kMaxOfTenant) - 2);
  EXPECT_TRUE(waiters.contains({"y", 1}));
  EXPECT_EQ(add("a", "x", seconds(1)), 1);
}

}  // namespace
}  // namespace lk
