// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/member.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lk {
namespace {

const Member kMember{
    .id = "r1", .url = "http://10.0.0.5:8000", .incarnation = "i", .base = "b", .model = "m", .version = "1"};

TEST(MemberTest, IsReadAsItWasWritten) {
  EXPECT_EQ(parse_member("members/r1", format_member(kMember)).value(), kMember);
}

TEST(MemberTest, WhatIsNoMemberIsIgnoredWithOneLine) {
  std::vector<std::string> lines;
  MemberReader reader(
      [&](std::string_view event, std::string_view detail) { lines.push_back(fmt::format("{} {}", event, detail)); });
  Registry::Entries entries{{"members/r1", {format_member(kMember), 1}}};
  int64_t revision = 2;
  const std::vector<std::string> bad{"",
                                     "[]",
                                     "{",
                                     "null",
                                     R"({"form":2,"id":"x"})",
                                     R"({"form":"1"})",
                                     R"({"form":1,"id":7})",
                                     R"({"form":1,"id":"x"})",
                                     R"({"form":1,"id":"x","url":"http://a/path"})",
                                     R"({"form":1,"id":"x","url":"unix:/a"})",
                                     R"({"form":1,"id":"x","url":"http://u:p@a"})",
                                     R"({"form":1,"id":"../x","url":"http://a"})",
                                     R"({"form":1,"id":"other","url":"http://a"})",
                                     std::string(10000, ' ')};
  for (size_t i = 0; i < bad.size(); ++i) entries[fmt::format("members/x{}", i)] = {bad[i], revision++};
  EXPECT_THAT(reader.read(entries), testing::ElementsAre(kMember));
  EXPECT_EQ(lines.size(), bad.size());
  EXPECT_THAT(reader.read(entries), testing::ElementsAre(kMember));
  EXPECT_EQ(lines.size(), bad.size()) << "not again";
  entries["members/x0"] = {"[]", revision};
  (void)reader.read(entries);
  EXPECT_EQ(lines.size(), bad.size() + 1) << "another value";
}

TEST(RegistryUrlTest, NamesHostsAndAFleet) {
  for (const char* url :
       {"etcd://a:1/f", "etcd://a/f", "etcd://a:1,b:2,[::1]:3/prod-2", "etcds://a/f", "etcd://[::1]/f"})
    EXPECT_TRUE(open_registry({.url = url}).ok()) << url;
  for (const char* url : {"kubernetes://a:6443/default/llm", "kubernetes+http://[::1]:8001/ns-1/llm"})
    EXPECT_TRUE(open_registry({.url = url}).ok()) << url;
  for (const char* url : {"kubernetes:///default/llm", "kubernetes://a:6443/llm", "kubernetes://a/Default/llm",
                          "kubernetes://a/default/llm/x", "kubernetes://a/default/", "kubernetes://a/b.c/llm"})
    EXPECT_EQ(open_registry({.url = url}).status().code(), StatusCode::kInvalidArgument) << url;
  for (const char* url : {"", "http://a/f", "etcd://a", "etcd:///f", "etcd://a/", "etcd://a/f/g", "etcd://a/..",
                          "etcd://a:x/f", "etcd://a:1,,b/f", "etcd://u@a/f", "consul://a/f", "etcd://a?b/f"})
    EXPECT_EQ(open_registry({.url = url}).status().code(), StatusCode::kInvalidArgument) << url;
}

}  // namespace
}  // namespace lk
