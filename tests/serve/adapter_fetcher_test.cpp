// SPDX-License-Identifier: Apache-2.0
// Adapters between caches, over HTTP, from holders of every kind.
#include "lk/serve/fleet/adapter_fetcher.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "lk/base/sha256.h"
#include "testing/raw_server.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using testing::RawPeer;
using testing::RawServer;
using testing::TempDir;

std::string sum(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return to_hex(hash.finish());
}

// A file of several pieces, a short one and an empty one.
struct Content {
  std::map<std::string, std::string> files{{"adapter_config.json", "{\"r\": 8}"}, {"empty", ""}};
  Content() {
    std::string& large = files["adapter_model.safetensors"];
    for (int64_t i = 0; std::ssize(large) < 2 * kBlobPiece + 12'345; ++i) large += std::to_string(i * 7919);
  }
  AdapterRecord record() const {
    AdapterRecord record{.name = "a", .version = 1, .digest = std::string(64, '0')};
    for (const auto& [name, bytes] : files) record.files.push_back({name, sum(bytes), std::ssize(bytes)});
    return record;
  }
  const std::string* find(const std::string& sha) const {
    for (const auto& [name, bytes] : files)
      if (sum(bytes) == sha) return &bytes;
    return nullptr;
  }
};

// What a holder does with a piece it was asked for; true: it answered.
using Fault = std::function<bool(RawPeer& peer, int64_t first, std::string_view piece, int64_t total)>;

void answer(RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
  peer.respond(piece, "206 Partial Content",
               fmt::format("Content-Range: bytes {}-{}/{}\r\n", first, first + std::ssize(piece) - 1, total));
}

class Holder {
 public:
  explicit Holder(const Content& content, Fault fault = {}, bool has_it = true)
      : server_([this, &content, fault, has_it](RawPeer& peer) {
          while (const auto request = peer.read_request()) {
            ++requests;
            if (request->head.find("authorization: Bearer k") == std::string::npos) {
              peer.respond("", "401 Unauthorized");
              continue;
            }
            const size_t at = request->head.find(kBlobPath) + kBlobPath.size();
            const std::string* bytes = has_it ? content.find(request->head.substr(at, 64)) : nullptr;
            if (!bytes) {
              peer.respond("", "404 Not Found");
              continue;
            }
            const size_t range = request->head.find("bytes=") + 6;
            const int64_t first = std::atoll(request->head.c_str() + range);
            const int64_t last = std::atoll(request->head.c_str() + request->head.find('-', range) + 1);
            const std::string_view piece =
                std::string_view(*bytes).substr(static_cast<size_t>(first), static_cast<size_t>(last - first + 1));
            if (!fault || !fault(peer, first, piece, std::ssize(*bytes)))
              answer(peer, first, piece, std::ssize(*bytes));
          }
        }) {}
  const std::string& url() const { return server_.url(); }
  std::atomic<int> requests{0};

 private:
  RawServer server_;
};

class AdapterFetcherTest : public ::testing::Test {
 protected:
  void open(std::vector<std::string> urls, int64_t max_bytes = int64_t{1} << 30) {
    cache_ = AdapterCache::open(directory_.file("cache"), max_bytes).value();
    fetcher_ = AdapterFetcher::create({.fleet_key = "k", .piece_timeout = 1000ms, .first_pause = 10ms, .rounds = 3},
                                      *cache_, [urls](const AdapterRecord&) { return urls; })
                   .value();
  }
  Status fetch(const AdapterRecord& record) {
    std::promise<Status> promise;
    fetcher_->fetch(record, [&](const Status& status) { promise.set_value(status); });
    return promise.get_future().get();
  }
  void expect_whole() {
    const auto held = cache_->hold(content_.record().content());
    ASSERT_TRUE(held);
    for (const auto& [name, bytes] : content_.files) {
      std::ifstream in(cache_->path(content_.record().content()) + "/" + name, std::ios::binary);
      const std::string there{std::istreambuf_iterator<char>(in), {}};
      EXPECT_TRUE(there == bytes) << name;
    }
  }
  bool nothing_is_left() {
    return cache_->stats().bytes == 0 && std::filesystem::is_empty(directory_.file("cache/incoming")) &&
           std::filesystem::is_empty(directory_.file("cache/adapters"));
  }
  TempDir directory_;
  Content content_;
  std::unique_ptr<AdapterCache> cache_;
  std::unique_ptr<AdapterFetcher> fetcher_;
};

TEST_F(AdapterFetcherTest, BringsWhatIsMissingOnce) {
  Holder holder(content_);
  open({holder.url()});
  std::vector<std::future<Status>> ends;
  std::vector<std::promise<Status>> promises(8);
  for (auto& promise : promises) {
    ends.push_back(promise.get_future());
    fetcher_->fetch(content_.record(), [&promise](const Status& status) { promise.set_value(status); });
  }
  for (auto& end : ends) EXPECT_TRUE(end.get().ok());
  expect_whole();
  EXPECT_EQ(holder.requests, 4) << "three pieces and a short file";
  EXPECT_TRUE(fetch(content_.record()).ok());
  EXPECT_EQ(holder.requests, 4) << "it is here";
}

TEST_F(AdapterFetcherTest, GoesOnElsewhereWhereAHolderBrokeOff) {
  Holder breaks(content_, [](RawPeer& peer, int64_t first, std::string_view, int64_t) {
    return first > 0 && peer.respond("", "500 Internal Server Error");
  });
  Holder without(content_, {}, false);
  Holder whole(content_);
  open({without.url(), breaks.url(), "http://127.0.0.1:1", whole.url()});
  EXPECT_TRUE(fetch(content_.record()).ok());
  expect_whole();
  EXPECT_EQ(whole.requests, 2) << "what the other had given is not asked for again";
}

TEST_F(AdapterFetcherTest, WhoLiesIsNotBelieved) {
  const auto other_bytes = [](RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
    std::string bytes(piece);
    bytes[bytes.size() / 2] ^= 1;
    answer(peer, first, bytes, total);
    return true;
  };
  Holder liar(content_, other_bytes), whole(content_);
  open({liar.url(), whole.url()});
  EXPECT_TRUE(fetch(content_.record()).ok());
  expect_whole();
  EXPECT_EQ(fetcher_->stats().wrong, 1);
}

TEST_F(AdapterFetcherTest, AWrongPieceOfOneIsNotBlamedOnAnother) {
  Holder liar(content_, [](RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
    if (total < kBlobPiece) return false;
    if (first > 0) return peer.respond("", "503 Service Unavailable");
    answer(peer, first, std::string(piece.size(), 'x'), total);
    return true;
  });
  Holder whole(content_);
  open({liar.url(), whole.url()});
  EXPECT_TRUE(fetch(content_.record()).ok());
  expect_whole();
}

TEST_F(AdapterFetcherTest, OnlyLiarsAreTriedABoundedNumberOfTimes) {
  Holder liar(content_, [](RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
    answer(peer, first, std::string(piece.size(), 'x'), total);
    return true;
  });
  open({liar.url()});
  const Status status = fetch(content_.record());
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.message();
  EXPECT_LE(liar.requests, 3) << "not asked again for this adapter";
  EXPECT_TRUE(nothing_is_left());
}

TEST_F(AdapterFetcherTest, AnEmptyFileOfAnotherSumIsGivenUpAtOnce) {
  Holder holder(content_);
  open({holder.url()});
  AdapterRecord record = content_.record();
  for (AdapterRecord::File& file : record.files)
    if (file.bytes == 0) file.sha256 = std::string(64, 'a');
  const Status status = fetch(record);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.message();
  EXPECT_TRUE(nothing_is_left());
}

TEST_F(AdapterFetcherTest, WhoNeverEndsOrSendsTooMuchIsLeft) {
  Holder hangs(content_, [](RawPeer& peer, int64_t, std::string_view, int64_t) {
    peer.write("HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nabc");
    peer.wait_for_close();
    return true;
  });
  Holder floods(content_, [](RawPeer& peer, int64_t first, std::string_view, int64_t) {
    peer.write(fmt::format(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-9/9\r\nTransfer-Encoding: chunked\r\n\r\n", first));
    const std::string chunk = fmt::format("{:x}\r\n{}\r\n", 1 << 20, std::string(1 << 20, 'x'));
    while (peer.write(chunk)) {
    }
    return true;
  });
  Holder elsewhere(content_, [](RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
    answer(peer, first + 1, piece, total);
    return true;
  });
  Holder whole(content_);
  open({hangs.url(), floods.url(), elsewhere.url(), whole.url()});
  EXPECT_TRUE(fetch(content_.record()).ok());
  expect_whole();
}

// As slowly as it can without being silent: neither a piece in many parts nor parts of a piece keep a thread.
TEST_F(AdapterFetcherTest, WhoIsSlowIsAskedOnce) {
  std::atomic<int> parts = 0;
  Holder trickles(content_, [](RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
    if (total < kBlobPiece) return false;
    peer.write(
        fmt::format("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{}\r\nContent-Length: {}\r\n\r\n",
                    first, first + std::ssize(piece) - 1, total, piece.size()));
    while (peer.write("x")) std::this_thread::sleep_for(20ms);
    return true;
  });
  Holder crumbles(content_, [&](RawPeer& peer, int64_t first, std::string_view piece, int64_t total) {
    ++parts;
    answer(peer, first, piece.substr(0, 1), total);
    return true;
  });
  Holder whole(content_);
  open({trickles.url(), crumbles.url(), whole.url()});
  EXPECT_TRUE(fetch(content_.record()).ok());
  expect_whole();
  EXPECT_EQ(trickles.requests, 2) << "the short file, and the first piece of the long one";
  EXPECT_EQ(parts, 1);
}

TEST_F(AdapterFetcherTest, NoHolderAndNoKey) {
  open({});
  EXPECT_EQ(fetch(content_.record()).code(), StatusCode::kUnavailable);
  Holder holder(content_);
  fetcher_ = AdapterFetcher::create({.fleet_key = "wrong", .first_pause = 1ms, .rounds = 2}, *cache_,
                                    [&](const AdapterRecord&) { return std::vector<std::string>{holder.url()}; })
                 .value();
  EXPECT_THAT(fetch(content_.record()).message(), HasSubstr("scope fleet"));
  EXPECT_TRUE(nothing_is_left());
}

TEST_F(AdapterFetcherTest, DiskIsBounded) {
  Holder holder(content_);
  const int64_t bytes = content_.record().bytes();
  open({holder.url()}, bytes - 1);
  const Status status = fetch(content_.record());
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << "no client's budget";
  EXPECT_THAT(status.message(), HasSubstr("--fleet-disk"));
  EXPECT_EQ(holder.requests, 0) << "before anything is fetched";
  EXPECT_TRUE(nothing_is_left());
}

TEST_F(AdapterFetcherTest, LeavesWithItsServer) {
  Holder hangs(content_, [](RawPeer& peer, int64_t, std::string_view, int64_t) {
    peer.wait_for_close();
    return true;
  });
  open({hangs.url()});
  std::promise<Status> promise;
  fetcher_->fetch(content_.record(), [&](const Status& status) { promise.set_value(status); });
  fetcher_.reset();
  EXPECT_FALSE(promise.get_future().get().ok());
}

class AdapterCacheTest : public ::testing::Test {
 protected:
  std::string put(AdapterCache& cache, const std::string& bytes) {
    std::filesystem::create_directories(directory_.file("source"));
    directory_.write("source/adapter_config.json", bytes);
    return AdapterRecord{.files = cache.add(directory_.file("source"), {"adapter_config.json", "missing"}).value()}
        .content();
  }
  TempDir directory_;
};

TEST_F(AdapterCacheTest, SurvivesRestartsAndHalfWrittenThings) {
  std::string content;
  {
    const auto cache = AdapterCache::open(directory_.file("c"), 1000).value();
    content = put(*cache, "one");
    EXPECT_FALSE(AdapterCache::open(directory_.file("c"), 1000).ok()) << "somebody has it";
  }
  std::filesystem::create_directories(directory_.file("c/adapters/without-manifest"));
  std::filesystem::create_directories(directory_.file("c/incoming/half"));
  {
    const auto cache = AdapterCache::open(directory_.file("c"), 1000).value();
    EXPECT_TRUE(cache->has(content));
    EXPECT_TRUE(cache->find(sum("one")));
    EXPECT_EQ(cache->stats().bytes, 3);
    EXPECT_FALSE(std::filesystem::exists(directory_.file("c/adapters/without-manifest")));
    EXPECT_FALSE(std::filesystem::exists(directory_.file("c/incoming/half")));
  }
  directory_.write("c/adapters/" + content + "/adapter_config.json", "longer than it was");
  EXPECT_FALSE(AdapterCache::open(directory_.file("c"), 1000).value()->has(content));
}

// Between the look at a directory and the copy of its files somebody may put a link there.
TEST_F(AdapterCacheTest, WhatIsReadMustLieBeneathTheRoots) {
  const auto cache = AdapterCache::open(directory_.file("cache"), 1 << 20).value();
  namespace fs = std::filesystem;
  fs::create_directories(directory_.file("root/a"));
  fs::create_directories(directory_.file("root/b"));
  std::ofstream(directory_.file("secret")) << "secret";
  std::ofstream(directory_.file("root/b/blob")) << "weights";
  fs::create_symlink(directory_.file("secret"), directory_.file("root/a/config"));
  fs::create_symlink("../b/blob", directory_.file("root/a/weights"));
  const auto add = [&](const std::string& name) {
    return cache->add(directory_.file("root/a"), {name}, {directory_.file("elsewhere"), directory_.file("root")})
        .status()
        .code();
  };
  EXPECT_EQ(add("config"), StatusCode::kPermissionDenied);
  EXPECT_EQ(add("weights"), StatusCode::kOk) << "as hubs keep files";
  EXPECT_EQ(add("nothing"), StatusCode::kNotFound);
  EXPECT_EQ(cache->stats().adapters, 1);
}

TEST_F(AdapterCacheTest, WhatIsPublishedOrHeldStays) {
  const auto cache = AdapterCache::open(directory_.file("c"), 10).value();
  const std::string published = put(*cache, "1234");
  const std::string held = put(*cache, "abcd");
  cache->release(held);
  auto hold = cache->hold(held);
  std::filesystem::create_directories(directory_.file("big"));
  directory_.write("big/adapter_config.json", "567890");
  EXPECT_EQ(cache->add(directory_.file("big"), {"adapter_config.json"}).status().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(cache->has(published) && cache->has(held)) << "a refusal takes nothing";
  hold.reset();
  EXPECT_TRUE(cache->add(directory_.file("big"), {"adapter_config.json"}).ok());
  EXPECT_TRUE(cache->has(published));
  EXPECT_FALSE(cache->has(held));
  EXPECT_FALSE(std::filesystem::exists(cache->path(held)));
  EXPECT_EQ(cache->stats().bytes, 10);
}

// The manifest's temporary file is a pipe that nobody reads: the disk does not answer.
TEST_F(AdapterCacheTest, NobodyWhoLooksWaitsForTheDisk) {
  const auto cache = AdapterCache::open(directory_.file("c"), 1000).value();
  const std::string known = put(*cache, "known");
  directory_.write("source/adapter_config.json", "slow");
  const AdapterRecord::File file{.name = "adapter_config.json", .sha256 = sum("slow"), .bytes = 4};
  const std::string slow = AdapterRecord{.files = {file}}.content();
  const std::string pipe = directory_.file(fmt::format("c/manifests/{}.json.tmp.{}", slow, ::getpid()));
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::future<bool> added = std::async(
      std::launch::async, [&] { return cache->add(directory_.file("source"), {"adapter_config.json"}).ok(); });
  for (const auto end = std::chrono::steady_clock::now() + 60s; !std::filesystem::exists(cache->path(slow));
       std::this_thread::sleep_for(1ms))
    ASSERT_LT(std::chrono::steady_clock::now(), end);
  std::future<void> looked = std::async(std::launch::async, [&] {
    EXPECT_TRUE(cache->hold(known) && cache->find(sum("known")) && !cache->has(slow));
    EXPECT_EQ(cache->stats().adapters, 1);
    EXPECT_TRUE(put(*cache, "another") != known) << "another content does not wait either";
  });
  EXPECT_EQ(looked.wait_for(20s), std::future_status::ready);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);  // it goes on
  EXPECT_FALSE(added.get()) << "a pipe cannot be synced";
  looked.get();
  ::close(reader);
  EXPECT_FALSE(cache->has(slow));
  EXPECT_FALSE(std::filesystem::exists(cache->path(slow)));
  EXPECT_EQ(cache->stats().bytes, 12);
  EXPECT_EQ(put(*cache, "slow"), slow);
  EXPECT_TRUE(cache->hold(slow));
}

}  // namespace
}  // namespace lk
