// SPDX-License-Identifier: Apache-2.0
// Streams: coalescing, disconnects, slow readers, many at once.
#include <mutex>
#include <set>

#include "net/raw_client.h"

namespace lk::testing {
namespace {

// Keeps every stream that was begun; tests write to them by posting.
struct Streams {
  std::mutex mutex;
  std::vector<std::shared_ptr<HttpReply>> replies;
  std::atomic<int> closed{0};

  HttpServer::Handler handler() {
    return [this](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
      if (request.path == "/echo") return echo(std::move(request), reply);
      if (request.path != "/silent") reply->begin_stream(200, {{"Cache-Control", "no-cache"}}, "text/event-stream");
      reply->on_close([this] { ++closed; });
      const std::lock_guard lock(mutex);
      replies.push_back(reply);
    };
  }
  size_t count() {
    const std::lock_guard lock(mutex);
    return replies.size();
  }
  std::shared_ptr<HttpReply> at(size_t i) {
    const std::lock_guard lock(mutex);
    return replies[i];
  }
  bool wait_for(size_t n) {
    return eventually([&] { return count() == n; });
  }
};

// Runs `f` on the reply's shard and waits for it.
void on_shard(HttpServer& server, const std::shared_ptr<HttpReply>& reply, const std::function<void()>& f) {
  std::atomic<bool> done{false};
  server.post(reply->shard(), [&] {
    f();
    done = true;
  });
  ASSERT_TRUE(eventually([&] { return done.load(); }));
}

TEST(HttpStream, SendsWhatIsWritten) {
  Streams streams;
  const auto server = start_server(local_options(), streams.handler());
  RawClient client(server->address(0));
  client.send(get("/stream") + get("/echo"));
  std::string head;
  ASSERT_TRUE(client.read_head(&head));  // at once, before the first event
  EXPECT_NE(head.find("Transfer-Encoding: chunked\r\n"), std::string::npos);
  EXPECT_NE(head.find("Content-Type: text/event-stream\r\n"), std::string::npos);
  EXPECT_NE(head.find("Cache-Control: no-cache\r\n"), std::string::npos);
  ASSERT_TRUE(streams.wait_for(1));
  const auto reply = streams.at(0);
  std::string chunk;
  for (int i = 0; i < 5; ++i) {
    on_shard(*server, reply, [&] {
      EXPECT_TRUE(reply->write("data: " + std::to_string(i) + "\n\n"));
      EXPECT_TRUE(reply->write(""));  // must not look like the end
    });
    ASSERT_TRUE(client.read_chunk(&chunk));
    EXPECT_EQ(chunk, "data: " + std::to_string(i) + "\n\n");
  }
  on_shard(*server, reply, [&] {
    reply->end();
    EXPECT_FALSE(reply->write("late"));
  });
  ASSERT_TRUE(client.read_chunk(&chunk));
  EXPECT_EQ(chunk, "");
  EXPECT_EQ(client.read().body, "GET /echo ");
  EXPECT_EQ(streams.closed, 0);
}

TEST(HttpStream, WritesOfOneCallbackLeaveTogether) {
  Streams streams;
  HttpServerOptions options = local_options();
  options.listen = {{"unix:/tmp/lk_stream_" + std::to_string(::getpid()) + ".sock", false}};
  const auto server = start_server(options, streams.handler());
  RawClient client(server->address(0));
  client.send(get("/stream"));
  std::string head;
  ASSERT_TRUE(client.read_head(&head));
  ASSERT_TRUE(streams.wait_for(1));
  const auto reply = streams.at(0);
  server->post(reply->shard(), [reply] {
    for (int i = 0; i < 100; ++i) reply->write("data: x\n\n");
  });
  char data[8192];
  EXPECT_EQ(::recv(client.fd(), data, sizeof data, 0), 100 * 14);  // "9\r\n" + 9 + "\r\n"
}

TEST(HttpStream, SeesDisconnects) {
  Streams streams;
  const auto server = start_server(local_options(2), streams.handler());
  RawClient a(server->address(0)), b(server->address(0)), c(server->address(0)), d(server->address(0));
  a.send(get("/stream"));
  b.send(get("/silent"));
  c.send(get("/stream"));
  d.send(get("/stream") + get("/pipelined"));
  ASSERT_TRUE(streams.wait_for(4));
  EXPECT_EQ(streams.closed, 0);
  a.close();
  EXPECT_TRUE(eventually([&] { return streams.closed == 1; }));
  b.close();  // before anything was answered
  EXPECT_TRUE(eventually([&] { return streams.closed == 2; }));
  c.half_close();  // counts as gone
  EXPECT_TRUE(eventually([&] { return streams.closed == 3; }));
  const linger reset{1, 0};
  ::setsockopt(d.fd(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  d.close();
  EXPECT_TRUE(eventually([&] { return streams.closed == 4; }));
  EXPECT_TRUE(eventually([&] { return server->stats().open_connections == 0; }));
  for (size_t i = 0; i < 4; ++i) {
    on_shard(*server, streams.at(i), [&] {
      EXPECT_FALSE(streams.at(i)->write("x"));
      streams.at(i)->end();
      bool called = false;  // told also when asked too late, but not from within the call
      streams.at(i)->on_close([&streams] { ++streams.closed; });
      EXPECT_FALSE(called);
    });
  }
  EXPECT_TRUE(eventually([&] { return streams.closed == 8; }));
  EXPECT_TRUE(server->wait_idle(std::chrono::seconds(kPatienceSeconds)));
}

TEST(HttpStream, AnAnswerGivenBeforeTheHalfCloseIsDelivered) {
  const auto server = start_server(local_options(), echo);
  const std::string body(6 << 20, 'x');
  RawClient client(server->address(0));
  std::thread sender([&] {
    client.send(post("/", body));
    client.half_close();
  });
  const RawResponse r = client.read();
  sender.join();
  EXPECT_TRUE(r.complete);
  EXPECT_TRUE(client.closed());
}

TEST(HttpStream, DroppedStreamIsNotEndedCleanly) {
  const auto server = start_server(local_options(), [](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/event-stream");
    reply->write("data: half\n\n");
  });
  RawClient client(server->address(0));
  client.send(get("/"));
  EXPECT_FALSE(client.read().complete);
  EXPECT_FALSE(client.timed_out());
}

TEST(HttpStream, CutsTheReaderThatFallsBehind) {
  Streams streams;
  HttpServerOptions options = local_options();
  options.limits.max_buffered_bytes = 64 << 10;
  const auto server = start_server(options, streams.handler());
  RawClient slow(server->address(0), 4096), good(server->address(0));
  slow.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(1));
  good.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(2));
  const std::string event(1000, 'x');
  int64_t written = 0;
  bool alive = true;
  while (alive && written < (64 << 20)) {
    on_shard(*server, streams.at(0), [&] { alive = streams.at(0)->write(event); });
    written += 1000;
  }
  EXPECT_FALSE(alive);
  EXPECT_GT(written, 64 << 10);
  EXPECT_TRUE(eventually([&] { return streams.closed == 1; }));
  EXPECT_EQ(server->stats().cut_slow_readers, 1);
  std::string head, chunk;  // the other stream is well
  on_shard(*server, streams.at(1), [&] { EXPECT_TRUE(streams.at(1)->write("ok")); });
  ASSERT_TRUE(good.read_head(&head));
  ASSERT_TRUE(good.read_chunk(&chunk));
  EXPECT_EQ(chunk, "ok");
}

TEST(HttpStream, OneLargeWriteToAReadyReaderIsNotCut) {
  const std::string big(3 << 20, 'x');
  HttpServerOptions options = local_options();
  options.limits.max_buffered_bytes = 4 << 20;
  const auto server = start_server(options, [&](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/plain");
    EXPECT_TRUE(reply->write(big));
    reply->end();
  });
  RawClient client(server->address(0));
  client.send(get("/"));
  EXPECT_TRUE(client.read().body == big);
}

TEST(HttpStream, CutsTheReaderThatTakesNothing) {
  Streams streams;
  HttpServerOptions options = local_options();
  options.limits.stall_timeout = std::chrono::milliseconds(200);
  options.limits.max_buffered_bytes = 64 << 20;
  const auto server = start_server(options, streams.handler());
  RawClient slow(server->address(0), 4096);
  slow.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(1));
  on_shard(*server, streams.at(0), [&] { EXPECT_TRUE(streams.at(0)->write(std::string(16 << 20, 'x'))); });
  EXPECT_TRUE(eventually([&] { return streams.closed == 1; }));
  EXPECT_EQ(server->stats().cut_slow_readers, 1);
  EXPECT_TRUE(eventually([&] { return server->stats().open_connections == 0; }));
}

TEST(HttpStream, CutsTheReaderThatTakesTooLittle) {
  Streams streams;
  HttpServerOptions options = local_options();
  options.limits.stall_timeout = std::chrono::milliseconds(200);
  options.limits.min_read_rate = int64_t{1} << 40;  // nobody is that fast
  const auto server = start_server(options, streams.handler());
  RawClient slow(server->address(0), 4096), idle(server->address(0));
  idle.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(1));
  slow.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(2));
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop && slow.fill()) {
    }
  });
  // Something always waits, and always some of it is taken.
  ASSERT_TRUE(eventually([&] {
    if (server->stats().output_bytes < (8 << 20))
      on_shard(*server, streams.at(1), [&] { streams.at(1)->write_parts({std::string(8 << 20, 'x')}); });
    return streams.closed == 1;
  }));
  stop = true;
  reader.join();
  EXPECT_EQ(server->stats().cut_slow_readers, 1);
  on_shard(*server, streams.at(0), [&] { EXPECT_TRUE(streams.at(0)->write("ok")); });  // nothing waited for this one
}

TEST(HttpStream, ALargeEventIsNoReasonToCut) {
  Streams streams;
  HttpServerOptions options = local_options();
  options.limits.max_buffered_bytes = 1000;
  const auto server = start_server(options, streams.handler());
  RawClient client(server->address(0), 4096);
  client.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(1));
  const std::string large(8 << 20, 'x');
  on_shard(*server, streams.at(0), [&] {
    EXPECT_TRUE(streams.at(0)->write_parts(split_into_parts(large)));
    EXPECT_TRUE(streams.at(0)->write("behind it"));  // the large one has not left yet
    streams.at(0)->end();
  });
  const RawResponse r = client.read();
  EXPECT_TRUE(r.complete);
  EXPECT_TRUE(r.body == large + "behind it");
  EXPECT_EQ(server->stats().cut_slow_readers, 0);
}

TEST(HttpStream, SilenceIsReportedUntilTheEnd) {
  Streams streams;
  HttpServerOptions options = local_options();
  options.limits.header_timeout = std::chrono::milliseconds(50);  // looks often
  const auto server = start_server(options, streams.handler());
  RawClient client(server->address(0));
  client.send(get("/silent"));
  ASSERT_TRUE(streams.wait_for(1));
  const auto reply = streams.at(0);
  std::atomic<int> pings{0};
  on_shard(*server, reply, [&] {
    reply->on_silence(std::chrono::milliseconds(20), [&] {
      if (pings == 0) reply->begin_stream(200, {}, "text/event-stream");
      if (pings == 3) return reply->end();  // from within the call
      reply->write(": ping\n\n");
      ++pings;
    });
  });
  const RawResponse r = client.read();
  EXPECT_TRUE(r.complete);
  EXPECT_EQ(r.body, ": ping\n\n: ping\n\n: ping\n\n");
  EXPECT_EQ(streams.closed, 0);
}

TEST(HttpStream, ReadsAheadOnlyALittle) {
  Streams streams;
  const auto server = start_server(local_options(), streams.handler());
  RawClient client(server->address(0));
  client.send(get("/stream"));
  ASSERT_TRUE(streams.wait_for(1));
  const int before = static_cast<int>(server->stats().bytes_in);
  std::thread sender([&] { client.send(std::string(32 << 20, 'x')); });
  EXPECT_TRUE(eventually([&] { return server->stats().bytes_in - before >= (64 << 10); }));
  on_shard(*server, streams.at(0), [&] { EXPECT_TRUE(streams.at(0)->write("still here")); });
  EXPECT_LT(server->stats().bytes_in - before, 1 << 20);
  on_shard(*server, streams.at(0), [&] { streams.at(0)->end(); });  // what follows is no request
  std::string head;
  ASSERT_TRUE(client.read_head(&head));
  std::string chunk;
  ASSERT_TRUE(client.read_chunk(&chunk));
  ASSERT_TRUE(client.read_chunk(&chunk));
  EXPECT_EQ(client.read().status, 431);
  ::shutdown(client.fd(), SHUT_RDWR);  // the sender may be in the middle of it
  sender.join();
}

TEST(HttpStream, ManyStreamsInStep) {
  constexpr int kStreams = 500, kEvents = 20;
  Streams streams;
  const auto server = start_server(local_options(2), streams.handler());
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->address(0)));
    ASSERT_TRUE(clients.back()->send(get("/stream")));
  }
  ASSERT_TRUE(streams.wait_for(kStreams));
  std::set<int> shards;
  for (int event = 0; event < kEvents; ++event) {
    for (int shard = 0; shard < 2; ++shard) {
      server->post(shard, [&, shard, event] {
        for (const auto& reply : streams.replies) {
          if (reply->shard() != shard) continue;
          reply->write("data: " + std::to_string(event) + "\n\n");
          if (event + 1 == kEvents) reply->end();
        }
      });
    }
  }
  for (const auto& reply : streams.replies) shards.insert(reply->shard());
  EXPECT_EQ(shards.size(), 2U);
  std::string expected;
  for (int event = 0; event < kEvents; ++event) expected += "data: " + std::to_string(event) + "\n\n";
  for (const auto& client : clients) {
    const RawResponse r = client->read();
    ASSERT_TRUE(r.complete);
    ASSERT_EQ(r.body, expected);
  }
  EXPECT_TRUE(server->wait_idle(std::chrono::seconds(kPatienceSeconds)));
  EXPECT_EQ(streams.closed, 0);
}

// Clients come and go at random while others write: nothing may be lost, called twice or leak.
TEST(HttpStream, Churn) {
  Streams streams;
  auto server = start_server(local_options(2), streams.handler());
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    while (!stop) {
      for (int shard = 0; shard < 2; ++shard) {
        server->post(shard, [&, shard] {
          const std::lock_guard lock(streams.mutex);
          for (const auto& reply : streams.replies) {
            if (reply->shard() == shard) reply->write("data: x\n\n");
          }
        });
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  std::vector<std::thread> clients;
  for (int t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        RawClient client(server->address(0));
        client.send(get("/stream"));
        if ((i + t) % 3 == 0) continue;
        std::string text;
        EXPECT_TRUE(client.read_head(&text));
        EXPECT_TRUE((i + t) % 3 == 2 || client.read_chunk(&text));
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_TRUE(eventually(
      [&] { return streams.closed == static_cast<int>(streams.count()) && server->stats().open_connections == 0; }));
  stop = true;
  writer.join();
  EXPECT_TRUE(server->wait_idle(std::chrono::seconds(kPatienceSeconds)));
  server = nullptr;
}

}  // namespace
}  // namespace lk::testing
