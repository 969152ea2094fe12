// SPDX-License-Identifier: Apache-2.0
// What is chosen of a repository, and what of its answers is believed. Whole downloads: tests/cli/pull_test.py.
#include "lk/hub/hub_pull.h"

#include <gtest/gtest.h>

#include "lk/hub/blob_download.h"
#include "lk/hub/hub_connection.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using Files = std::vector<std::string>;

const HubKind kModel{.noun = "a model",
                     .marks = {"config.json"},
                     .weights = {"w.safetensors", "w.safetensors.index.json"},
                     .others = {"t.json", "more/*.jinja"}};
const HubKind kAdapter{
    .noun = "an adapter", .marks = {"adapter_config.json"}, .weights = {"a.safetensors"}, .others = {"t.json"}};
const HubKind kBoth[] = {kModel, kAdapter};

Files select(const Files& files, std::span<const HubKind> kinds) { return select_files(files, kinds, "it").value(); }

TEST(SelectFiles, TakesWhatAKindIsMadeOf) {
  EXPECT_EQ(
      select({"config.json", "w.safetensors", "w.bin", "x.py", "t.json", "more/a.jinja", "more/b/c.jinja", "more/a.py"},
             {&kModel, 1}),
      (Files{"config.json", "more/a.jinja", "t.json", "w.safetensors"}));
  // One file goes before shards, as the loader has it.
  EXPECT_EQ(select({"config.json", "w.safetensors", "w.safetensors.index.json"}, {&kModel, 1}),
            (Files{"config.json", "w.safetensors"}));
  EXPECT_EQ(select({"config.json", "w.safetensors.index.json"}, {&kModel, 1}),
            (Files{"config.json", "w.safetensors.index.json"}));
}

TEST(SelectFiles, TakesBothOfWhatIsBoth) {
  const Files files{"config.json", "w.safetensors", "adapter_config.json", "a.safetensors"};
  EXPECT_EQ(select(files, kBoth).size(), 4u);
  EXPECT_EQ(select(files, {&kAdapter, 1}), (Files{"a.safetensors", "adapter_config.json"}));
  // An adapter whose repository has its base's configuration.
  EXPECT_EQ(select({"config.json", "adapter_config.json", "a.safetensors"}, kBoth),
            (Files{"a.safetensors", "adapter_config.json"}));
}

TEST(SelectFiles, SaysWhatIsMissing) {
  const auto message = [](const Files& files) { return select_files(files, kBoth, "it").status().message(); };
  EXPECT_EQ(message({"config.json", "w.bin"}),
            "it is neither a model nor an adapter: it has no w.safetensors or w.safetensors.index.json; there are "
            "pickles, which can run code and are not read");
  EXPECT_EQ(message({"README.md"}),
            "it is neither a model nor an adapter: it has no config.json or adapter_config.json");
  EXPECT_EQ(message({}), "it is neither a model nor an adapter: it has no files");
}

TEST(BlobDigest, IsWhatTheETagLooksLike) {
  EXPECT_EQ(digest_of_etag(std::string(64, 'a')), BlobDigest::kSha256);
  EXPECT_EQ(digest_of_etag(std::string(40, '0')), BlobDigest::kGitSha1);
  for (const std::string& other : {std::string(), std::string(40, 'g'), std::string(64, 'A'), std::string(41, 'a')})
    EXPECT_EQ(digest_of_etag(other), BlobDigest::kNone);
}

TEST(HubUrl, IsHttpAlone) {
  if (HubConnection::open({}).status().code() == StatusCode::kUnsupported) GTEST_SKIP() << "built without libcurl";
  const auto url = [](const std::string& text, const std::string& base = "") { return parse_hub_url(text, base); };
  EXPECT_EQ(url("https://Hub.Example/a").value().origin, "https://hub.example:443");
  EXPECT_EQ(url("HTTP://hub.example:8080").value().origin, "http://hub.example:8080");
  EXPECT_EQ(url("/x?y=1", "https://hub.example/a/b").value().text, "https://hub.example/x?y=1");
  EXPECT_EQ(url("//other.example/x", "https://hub.example/").value().origin, "https://other.example:443");
  for (const char* bad : {"file:///etc/passwd", "ftp://a/b", "javascript:1", "hub.example", "", "http://",
                          "https://u:p@hub.example/", "https://u@hub.example/", "data:,x"})
    EXPECT_FALSE(url(bad).ok()) << bad;
  EXPECT_FALSE(url("file:///etc/passwd", "https://hub.example/").ok());
  // What looks like the hub and is not.
  EXPECT_NE(url("https://huggingface.co.example/").value().origin, "https://huggingface.co:443");
  EXPECT_NE(url("http://huggingface.co/").value().origin, "https://huggingface.co:443");
}

TEST(HubCache, HoldsRefsAndLinksBelowItsOwnDirectories) {
  const testing::TempDir dir;
  const std::string commit(40, 'c');
  const RepoCache cache = RepoCache::open(dir.path(), "a/b", true).value();
  EXPECT_EQ(cache.commit_of("main").value(), std::nullopt);
  ASSERT_TRUE(cache.set_ref("refs/pr/1", commit).ok());
  EXPECT_EQ(cache.commit_of("refs/pr/1").value(), commit);
  EXPECT_EQ(cache.commit_of("refs/pr").value(), std::nullopt);  // a directory
  EXPECT_EQ(cache.commit_of("refs/pr/1/2").status().code(), StatusCode::kPermissionDenied);
  dir.write("models--a--b/refs/bad", "../../..");
  EXPECT_EQ(cache.commit_of("bad").status().code(), StatusCode::kDataLoss);
  std::filesystem::create_directory(dir.file("models--a--b/blobs"));
  dir.write("models--a--b/blobs/e", "bytes");
  ASSERT_TRUE(cache.link(commit, "x/y.json", "e").ok());
  EXPECT_TRUE(cache.has(commit, "x/y.json").value());
  EXPECT_EQ(dir.read("models--a--b/snapshots/" + commit + "/x/y.json"), "bytes");
  EXPECT_TRUE(cache.has_blob("e", 5).value());
  EXPECT_FALSE(cache.has_blob("e", 6).value());
  EXPECT_EQ(list_cache(dir.path()).value().at(0).bytes, 5);
  EXPECT_TRUE(list_cache(dir.file("none")).value().empty());
}

}  // namespace
}  // namespace lk
