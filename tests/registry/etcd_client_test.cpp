// SPDX-License-Identifier: Apache-2.0
// The gateway's ways, from a scripted one: what is left out, cut in pieces, refused, compacted, or is no answer at all.
#include "lk/registry/etcd_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "lk/registry/etcd_registry.h"
#include "testing/raw_server.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using testing::RawPeer;
using testing::RawServer;

constexpr auto kPatience = 60s;

std::unique_ptr<EtcdClient> client_of(std::vector<std::string> urls) {
  return EtcdClient::create({.endpoints = std::move(urls), .timeout = 500ms}).value();
}

TEST(EtcdClientTest, Base64AndNumbersAsTheGatewayWritesThem) {
  for (const std::string& bytes :
       {std::string(), std::string("a"), std::string("ab"), std::string("abc"), std::string("\0\xff\n", 3)})
    EXPECT_EQ(from_base64(to_base64(bytes)).value(), bytes);
  EXPECT_EQ(to_base64("members/"), "bWVtYmVycy8=");
  for (const char* bad : {"a", "####", "YQ", "Y Q="}) EXPECT_FALSE(from_base64(bad).ok()) << bad;
  const boost::json::object object{
      {"text", "9223372036854775807"}, {"wide", "14841639068965178418"}, {"plain", 7}, {"bad", "7x"}, {"empty", ""},
      {"list", boost::json::array()}};
  EXPECT_EQ(etcd_number(object, "text").value(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(static_cast<uint64_t>(etcd_number(object, "wide").value()), 14841639068965178418u);
  EXPECT_EQ(etcd_number(object, "plain").value(), 7);
  EXPECT_EQ(etcd_number(object, "absent").value(), 0);
  for (const char* bad : {"bad", "empty", "list"}) EXPECT_FALSE(etcd_number(object, bad).ok()) << bad;
}

TEST(EtcdClientTest, AsksTheNextWhenOneDoesNotAnswer) {
  std::atomic<int> asked{0};
  RawServer hangs([&](RawPeer& peer) {
    ++asked;
    peer.wait_for_close();
  });
  RawServer no_leader([](RawPeer& peer) {
    while (peer.read_request())
      peer.respond(R"({"error":"etcdserver: no leader","code":14})", "503 Service Unavailable");
  });
  RawServer garbage([](RawPeer& peer) {
    while (peer.read_request()) peer.respond("<html>");
  });
  RawServer works([](RawPeer& peer) {
    while (peer.read_request()) peer.respond(R"({"header":{"revision":"5"}})");
  });
  const auto client = client_of({"http://127.0.0.1:1", hangs.url(), no_leader.url(), garbage.url(), works.url()});
  EXPECT_TRUE(client->call("/v3/kv/range", {}).ok());
  EXPECT_TRUE(client->call("/v3/kv/range", {}).ok());
  EXPECT_EQ(asked, 1) << "who answered is asked first";
  const auto nobody = client_of({no_leader.url()});
  EXPECT_EQ(nobody->call("/v3/kv/range", {}).status().code(), StatusCode::kUnavailable);
}

TEST(EtcdClientTest, RefusalsAreNotAskedForElsewhere) {
  RawServer refuses([](RawPeer& peer) {
    while (const auto request = peer.read_request())
      if (request->head.find("/v3/lease") != std::string::npos)
        peer.respond(R"({"error":"etcdserver: requested lease not found","code":5})", "404 Not Found");
      else
        peer.respond(R"({"error":"etcdserver: duplicate key given in txn request","code":3})", "400 Bad Request");
  });
  std::atomic<int> others{0};
  RawServer other([&](RawPeer& peer) {
    while (peer.read_request()) {
      ++others;
      peer.respond("{}");
    }
  });
  const auto client = client_of({refuses.url(), other.url()});
  EXPECT_EQ(client->call("/v3/lease/keepalive", {}).status().code(), StatusCode::kNotFound);
  const Status refused = client->call("/v3/kv/txn", {}).status();
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("duplicate key"));
  EXPECT_EQ(others, 0);
}

TEST(EtcdClientTest, WhoWaitsHearsOfTheEnd) {
  std::promise<void> asked;
  RawServer hangs([&](RawPeer& peer) {
    (void)peer.read_request();
    asked.set_value();
    peer.wait_for_close();
  });
  const auto client = EtcdClient::create({.endpoints = {hangs.url()}, .timeout = 600s}).value();
  std::thread stopper([&] {
    asked.get_future().wait();
    client->stop();
  });
  EXPECT_EQ(client->call("/v3/kv/range", {}).status().code(), StatusCode::kCancelled);
  stopper.join();
  EXPECT_EQ(client->call("/v3/kv/range", {}).status().code(), StatusCode::kCancelled);
}

// One key at first; then each connection that watches gets the next script.
class WatchTest : public ::testing::Test {
 protected:
  static std::string pair(const std::string& name, const std::string& value, int revision) {
    return fmt::format(R"({{"key":"{}","value":"{}","mod_revision":"{}"}})", to_base64("/p/" + name), to_base64(value),
                       revision);
  }
  static void send(RawPeer& peer, const std::string& line, size_t at_a_time) {
    for (size_t i = 0; i < line.size(); i += at_a_time) {
      const std::string piece = line.substr(i, at_a_time);
      peer.write(fmt::format("{:x}\r\n{}\r\n", piece.size(), piece));
    }
  }
  void run(std::function<void(RawPeer& peer, int watch, const std::string& body)> script) {
    server_ = std::make_unique<RawServer>([this, script](RawPeer& peer) {
      while (const auto request = peer.read_request()) {
        if (request->head.find("/v3/watch") == std::string::npos) {
          ++lists_;
          peer.respond(fmt::format(R"({{"header":{{"revision":"{}"}},"kvs":[{}]}})", revision_.load(),
                                   pair("a", std::to_string(value_), 3)));
          continue;
        }
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        script(peer, watches_++, request->body);
        return;
      }
    });
    registry_ = std::make_unique<EtcdRegistry>(
        client_of({server_->url()}),
        EtcdRegistry::Options{.prefix = "/p/", .look = 200ms, .retry = 20ms, .relist = relist_, .log = {}});
    registry_->watch("", [this](const Registry::Entries& entries) {
      std::lock_guard lock(mutex_);
      seen_ = entries;
      news_.notify_all();
    });
  }
  bool wait_for(const std::string& name, const std::string& value) {
    std::unique_lock lock(mutex_);
    return news_.wait_for(lock, kPatience, [&] { return seen_.contains(name) && seen_.at(name).value == value; });
  }
  std::atomic<int> lists_{0}, watches_{0}, revision_{10}, value_{1};
  std::chrono::milliseconds relist_ = 1h;
  std::mutex mutex_;
  std::condition_variable news_;
  Registry::Entries seen_;
  std::unique_ptr<RawServer> server_;
  std::unique_ptr<EtcdRegistry> registry_;  // goes first
};

TEST_F(WatchTest, GoesOnBehindTheLastEventWhateverTheHeaderSays) {
  std::mutex mutex;
  std::vector<std::string> bodies;
  run([&](RawPeer& peer, int watch, const std::string& body) {
    {
      std::lock_guard lock(mutex);
      bodies.push_back(body);
    }
    if (watch > 1) return peer.wait_for_close();
    // In pieces of three bytes; the header is ahead of the events, as when more of them are on their way.
    send(peer,
         R"({"result":{"header":{"revision":"900"},"created":true}})"
         "\n",
         3);
    send(peer,
         fmt::format("{{\"result\":{{\"header\":{{\"revision\":\"900\"}},\"events\":[{{\"kv\":{}}}]}}}}\n",
                     pair("b", "2", 12 + watch)),
         3);
    // ... and breaks off.
  });
  ASSERT_TRUE(wait_for("b", "2"));
  for (const auto end = std::chrono::steady_clock::now() + kPatience; watches_ < 3; std::this_thread::sleep_for(5ms))
    ASSERT_LT(std::chrono::steady_clock::now(), end);
  std::lock_guard lock(mutex);
  EXPECT_THAT(bodies[0], HasSubstr(R"("start_revision":"11")"));
  EXPECT_THAT(bodies[1], HasSubstr(R"("start_revision":"13")"));
  EXPECT_THAT(bodies[2], HasSubstr(R"("start_revision":"14")"));
}

TEST_F(WatchTest, ListsAgainWhereHistoryIsGoneOrStrange) {
  for (const char* line : {R"({"result":{"canceled":true,"compact_revision":"50"}})", R"({"error":{"message":"x"}})",
                           "nonsense", R"({"result":{"events":[{"type":"PUT"}]}})",
                           R"({"result":{"events":[{"kv":{"key":"!"}}]}})", R"({"result":{"events":7}})"}) {
    lists_ = 0;
    run([this, line](RawPeer& peer, int, const std::string&) {
      send(peer, std::string(line) + "\n", 1000);
      peer.wait_for_close();
    });
    ASSERT_TRUE(wait_for("a", "1")) << line;
    for (const auto end = std::chrono::steady_clock::now() + kPatience; lists_ < 3; std::this_thread::sleep_for(5ms))
      ASSERT_LT(std::chrono::steady_clock::now(), end) << line;
    registry_.reset();
  }
}

TEST_F(WatchTest, AStoreThatIsBehindItselfIsListedAgain) {
  run([&](RawPeer& peer, int, const std::string&) { peer.wait_for_close(); });
  ASSERT_TRUE(wait_for("a", "1"));
  const int watches = watches_;
  revision_ = 5;
  for (const auto end = std::chrono::steady_clock::now() + kPatience; watches_ == watches;
       std::this_thread::sleep_for(5ms))
    ASSERT_LT(std::chrono::steady_clock::now(), end);
}

TEST_F(WatchTest, WhatNoWatchSaidIsSeenInTheEnd) {
  relist_ = 300ms;
  run([&](RawPeer& peer, int, const std::string&) { peer.wait_for_close(); });
  ASSERT_TRUE(wait_for("a", "1"));
  value_ = 2;
  EXPECT_TRUE(wait_for("a", "2"));
}

}  // namespace
}  // namespace lk
