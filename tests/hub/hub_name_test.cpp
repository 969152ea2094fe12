// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_name.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

TEST(HubName, IsRepositorySubfolderAndRevision) {
  const HubName plain = parse_hub_name("Qwen/Qwen3-0.6B").value();
  EXPECT_EQ(plain.repo, "Qwen/Qwen3-0.6B");
  EXPECT_EQ(plain.subfolder, "");
  EXPECT_EQ(plain.revision, "main");
  const HubName whole = parse_hub_name("hf://bob/runs/out/checkpoint-10@refs/pr/7").value();
  EXPECT_EQ(whole.repo, "bob/runs");
  EXPECT_EQ(whole.subfolder, "out/checkpoint-10");
  EXPECT_EQ(whole.revision, "refs/pr/7");
  EXPECT_EQ(whole.text(), "bob/runs/out/checkpoint-10@refs/pr/7");
  EXPECT_EQ(parse_hub_name("gpt2").value().repo, "gpt2");
}

TEST(HubName, IsWhatTheHubAllows) {
  for (const char* good : {"a/b", "A_1/b.c", "_a/b_", "0/1", "openai-community/gpt2@v1.0", "a/b/c.d/e f"})
    EXPECT_TRUE(parse_hub_name(good).ok()) << good;
  for (const char* bad : {"",         "/",         "a/",          "/a",       "a//b",     ".a/b",    "a/.b",
                          "a/b.",     "a-/b",      "a/-b",        "a--b/c",   "a..b/c",   "a/b.git", "a b/c",
                          "a/b@",     "a/b@.x",    "a/b@x/../y",  "a/b@x//y", "a/b@/x",   "a/b/..",  "a/b/../c",
                          "a/b/./c",  "a/b//c",    "a/b/.hidden", "a/b\\c",   "a/b/c\\d", "a\n/b",   "caf\xc3\xa9/b",
                          "a/b/\x7f", "http://a/b"})
    EXPECT_FALSE(parse_hub_name(bad).ok()) << bad;
  EXPECT_FALSE(parse_hub_name(std::string("a/b\0c", 5)).ok());
  EXPECT_FALSE(parse_hub_name("a/" + std::string(97, 'b')).ok());
  EXPECT_FALSE(parse_hub_name("a/b/" + std::string(256, 'c')).ok());
}

TEST(HubName, IsToldFromPaths) {
  for (const char* name : {"a/b", "a/b/c", "a/b@main", "hf://a", "hf://a/b", "hf://.."})
    EXPECT_TRUE(looks_like_hub_name(name)) << name;
  for (const char* path : {"a", "./a/b", "../a/b", "/a/b", "~/a/b", "a/", "a/b/", ".", "", "a/../b"})
    EXPECT_FALSE(looks_like_hub_name(path)) << path;
}

TEST(HubName, TurnsIntoADirectoryAndAnAddress) {
  EXPECT_EQ(repo_directory_name("Qwen/Qwen3-0.6B"), "models--Qwen--Qwen3-0.6B");
  EXPECT_EQ(url_quote("refs/pr/7", false), "refs%2Fpr%2F7");
  EXPECT_EQ(url_quote("a b/c?#%", true), "a%20b/c%3F%23%25");
}

TEST(HubName, OnlyPlainETagsNameBlobs) {
  for (const char* good : {"7cb18dc9bafbfcf74629a4b760af1b160957a83e", "a-b_c.d+e=", "0"})
    EXPECT_TRUE(is_blob_name(good)) << good;
  for (const char* bad :
       {"", ".", "..", ".x", "a/b", "../a", "/a", "a b", "a\"b", "a\\b", "x.incomplete", "x.lock", "\xc3\xa9"})
    EXPECT_FALSE(is_blob_name(bad)) << bad;
  EXPECT_FALSE(is_blob_name(std::string(201, 'a')));
  EXPECT_FALSE(is_blob_name(std::string("a\0", 2)));
}

}  // namespace
}  // namespace lk
