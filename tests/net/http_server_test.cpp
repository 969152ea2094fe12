// SPDX-License-Identifier: Apache-2.0
// Requests and answers: methods, bodies, keep-alive, pipelining, failures of the handler, drain.
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <mutex>
#include <stdexcept>

#include "net/raw_client.h"

namespace lk::testing {
namespace {

TEST(HttpServer, AnswersAndKeepsTheConnection) {
  const auto server = start_server(local_options(), echo);
  RawClient client(server->address(0));
  ASSERT_TRUE(client.connected());
  for (int i = 0; i < 3; ++i) {
    client.send(post("/v1/x%20y?a=b", "hello"));
    const RawResponse r = client.read();
    EXPECT_EQ(r.status, 200);
    EXPECT_EQ(r.body, "POST /v1/x y hello");
    EXPECT_FALSE(r.has("Connection: close"));
    EXPECT_TRUE(r.has("Date: "));
  }
  EXPECT_EQ(server->stats().connections, 1);
  EXPECT_EQ(server->stats().requests, 3);
}

TEST(HttpServer, GivesTheHandlerWhatWasSent) {
  HttpRequest seen;
  const auto server = start_server(local_options(), [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    seen = request;
    echo(std::move(request), reply);
  });
  RawClient client(server->address(0));
  client.send(
      "GET http://example.com/a%2Fb?q=%20&r HTTP/1.1\r\nHost: example.com\r\nX-Thing:  spaced out \r\nx-thing: "
      "two\r\n\r\n");
  EXPECT_EQ(client.read().status, 200);
  EXPECT_EQ(seen.target, "http://example.com/a%2Fb?q=%20&r");
  EXPECT_EQ(seen.path, "/a/b");
  EXPECT_EQ(seen.query, "q=%20&r");
  EXPECT_EQ(seen.header("x-thing"), "spaced out");
  EXPECT_EQ(seen.header("absent"), "");
  EXPECT_EQ(seen.peer, "127.0.0.1");
  EXPECT_EQ(seen.listener, 0);
}

TEST(HttpServer, ServesPipelinedRequestsInOrder) {
  const auto server = start_server(local_options(), echo);
  RawClient client(server->address(0));
  std::string all;
  for (int i = 0; i < 1000; ++i) all += i % 2 ? get("/" + std::to_string(i)) : post("/" + std::to_string(i), "b");
  std::thread sender([&] { client.send(all); });
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(client.read().body, (i % 2 ? "GET /" : "POST /") + std::to_string(i) + (i % 2 ? " " : " b"));
  }
  sender.join();
}

TEST(HttpServer, ServesPipelinedRequestsThatAreAnsweredLater) {
  std::unique_ptr<HttpServer> server;
  std::atomic<int> running{0}, most{0};
  server = start_server(local_options(), [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    most = std::max(most.load(), ++running);
    server->post(reply->shard(), [&running, request, reply] {
      --running;
      echo(request, reply);
    });
  });
  RawClient client(server->address(0));
  std::string all;
  for (int i = 0; i < 50; ++i) all += post("/" + std::to_string(i), std::string(3000, 'x'));
  std::thread sender([&] { client.send(all); });
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(client.read().body, "POST /" + std::to_string(i) + " " + std::string(3000, 'x'));
  sender.join();
  EXPECT_EQ(most, 1);  // one at a time
}

TEST(HttpServer, BytewiseRequest) {
  const auto server = start_server(local_options(), echo);
  RawClient client(server->address(0));
  const int on = 1;
  ::setsockopt(client.fd(), IPPROTO_TCP, 1 /* TCP_NODELAY */, &on, sizeof on);
  for (const char c : post("/slow", "body") + get("/next")) client.send(std::string_view(&c, 1));
  EXPECT_EQ(client.read().body, "POST /slow body");
  EXPECT_EQ(client.read().body, "GET /next ");
}

TEST(HttpServer, ChunkedRequest) {
  const auto server = start_server(local_options(), echo);
  RawClient client(server->address(0));
  const std::string chunked =
      "POST /c HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5;ext=\"v\"\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n";
  client.send(chunked + get("/after"));
  EXPECT_EQ(client.read().body, "POST /c hello world");
  EXPECT_EQ(client.read().body, "GET /after ");
}

TEST(HttpServer, HeadHasNoBody) {
  const auto server = start_server(local_options(), [](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    if (request.path != "/stream") return echo(std::move(request), reply);
    reply->begin_stream(200, {}, "text/event-stream");
    EXPECT_TRUE(reply->write("data: x\n\n"));
    reply->end();
  });
  RawClient client(server->address(0));
  for (const char* path : {"/plain", "/stream", "/plain"}) {
    client.send("HEAD " + std::string(path) + " HTTP/1.1\r\nHost: t\r\n\r\n");
    const RawResponse r = client.read(true);
    EXPECT_EQ(r.status, 200);
    EXPECT_EQ(r.has("Content-Length: 12\r\n"), std::string_view(path) == "/plain") << r.head;
  }
  client.send(get("/last"));
  EXPECT_EQ(client.read().body, "GET /last ");  // nothing of the bodies came before it
}

TEST(HttpServer, OldClients) {
  const auto server = start_server(local_options(), [](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    if (request.path != "/stream") return echo(std::move(request), reply);
    reply->begin_stream(200, {}, "text/event-stream");
    reply->write("one");
    reply->write("two");
    reply->end();
  });
  RawClient stream(server->address(0));
  stream.send("GET /stream HTTP/1.0\r\n\r\n");
  const RawResponse r = stream.read();
  EXPECT_FALSE(r.has("chunked"));
  EXPECT_TRUE(r.has("Connection: close"));
  EXPECT_EQ(r.body, "onetwo");
  RawClient kept(server->address(0));
  kept.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n");
  const RawResponse first = kept.read();
  EXPECT_TRUE(first.has("Connection: keep-alive"));
  EXPECT_EQ(first.body, "GET /a ");
  EXPECT_TRUE(kept.read().has("Connection: close"));
  EXPECT_TRUE(kept.closed());
}

TEST(HttpServer, ContinuesOnlyWhenAskedTo) {
  const auto server = start_server(local_options(), echo);
  RawClient client(server->address(0));
  client.send("POST /e HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read().status, 100);
  client.send("body");
  EXPECT_EQ(client.read().body, "POST /e body");
  client.send("GET /none HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n\r\n");  // no body: nothing to continue with
  EXPECT_EQ(client.read().status, 200);
  client.send("POST /e HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nExpect: cake\r\n\r\n");
  EXPECT_EQ(client.read().status, 417);
  EXPECT_TRUE(client.closed());
}

TEST(HttpServer, FilterAnswersBeforeTheBody) {
  std::atomic<int> handled{0};
  const auto server = start_server(
      local_options(),
      [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
        ++handled;
        echo(std::move(request), reply);
      },
      [](const HttpRequest& head) -> std::optional<HttpResponse> {
        EXPECT_TRUE(head.body.empty());
        EXPECT_EQ(head.peer, "127.0.0.1");
        if (head.header("authorization") == "Bearer ok") return std::nullopt;
        if (head.path == "/throw") throw std::runtime_error("secret");
        return HttpResponse{401, {{"WWW-Authenticate", "Bearer"}}, "application/json", "{}"};
      });
  RawClient client(server->address(0));
  client.send(post("/a", "short body") + post("/b", "x", "Authorization: Bearer ok\r\n"));
  const RawResponse refused = client.read();
  EXPECT_EQ(refused.status, 401);
  EXPECT_TRUE(refused.has("WWW-Authenticate: Bearer\r\n"));
  EXPECT_EQ(client.read().body, "POST /b x");  // the connection survived, the refused body was skipped
  client.send("POST /big HTTP/1.1\r\nHost: t\r\nContent-Length: 4000000\r\n\r\npart of it");
  const RawResponse big = client.read();  // at once, without the rest of the body
  EXPECT_EQ(big.status, 401);
  EXPECT_TRUE(big.has("Connection: close"));
  EXPECT_TRUE(client.closed());
  RawClient expecting(server->address(0));
  expecting.send("POST /e HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(expecting.read().status, 401);  // no 100 before it
  EXPECT_TRUE(expecting.closed());
  RawClient throwing(server->address(0));
  throwing.send(get("/throw"));
  const RawResponse failed = throwing.read();
  EXPECT_EQ(failed.status, 500);
  EXPECT_EQ(failed.body.find("secret"), std::string::npos);
  EXPECT_EQ(handled, 1);
}

TEST(HttpServer, HandlerFailuresBecome500) {
  std::vector<std::thread> threads;
  const auto server = start_server(local_options(), [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    if (request.path == "/throw") throw std::runtime_error("secret detail");
    if (request.path == "/throw_odd") throw 42;
    if (request.path == "/drop") return;
    if (request.path == "/drop_elsewhere")
      threads.emplace_back([moved = std::move(reply)]() mutable { moved = nullptr; });
    if (request.path == "/throw_after") {
      echo(std::move(request), reply);
      throw std::runtime_error("late");
    }
  });
  RawClient client(server->address(0));
  for (const char* path : {"/throw", "/throw_odd", "/drop", "/drop_elsewhere"}) {
    client.send(get(path));
    const RawResponse r = client.read();
    EXPECT_EQ(r.status, 500) << path;
    EXPECT_NE(r.body.find("\"type\":\"server_error\""), std::string::npos) << r.body;
    EXPECT_EQ(r.body.find("secret"), std::string::npos);
  }
  client.send(get("/throw_after") + get("/drop"));
  EXPECT_EQ(client.read().status, 200);
  EXPECT_EQ(client.read().status, 500);
  for (auto& thread : threads) thread.join();
}

TEST(HttpServer, HeaderValuesCannotSplitTheResponse) {
  const auto server = start_server(local_options(), [](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    reply->respond({200, {{"X-Id", "a\r\nSet-Cookie: evil"}}, "text/plain", "ok"});
  });
  RawClient client(server->address(0));
  client.send(get("/"));
  EXPECT_TRUE(client.read().has("X-Id: aSet-Cookie: evil\r\n"));
}

TEST(HttpServer, BigBodiesBothWays) {
  const auto server = start_server(local_options(), echo);
  RawClient client(server->address(0));
  std::string body(8 << 20, 'x');
  for (size_t i = 0; i < body.size(); i += 997) body[i] = static_cast<char>('a' + i % 26);
  std::thread sender([&] { client.send(post("/big", body)); });
  const RawResponse r = client.read();
  sender.join();
  EXPECT_EQ(r.status, 200);
  EXPECT_TRUE(r.body == "POST /big " + body);
}

TEST(HttpServer, Ipv6AndUnixSockets) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("lk_http_" + std::to_string(::getpid()) + ".sock")).string();
  HttpServerOptions options = local_options();
  options.listen.push_back({"[::1]:0", false});
  options.listen.push_back({"unix:" + path, false});
  std::mutex mutex;
  std::vector<std::pair<std::string, int>> peers;
  const auto handler = [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    {
      const std::lock_guard lock(mutex);
      peers.emplace_back(request.peer, request.listener);
    }
    echo(std::move(request), reply);
  };
  {  // a socket file left behind by a server that died
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::strncpy(a.sun_path, path.c_str(), sizeof a.sun_path - 1);
    ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
    ::close(fd);
  }
  auto server = start_server(options, handler);
  ASSERT_NE(server, nullptr);
  for (int i = 0; i < 3; ++i) {
    RawClient client(server->address(i));
    ASSERT_TRUE(client.connected()) << server->address(i);
    client.send(get("/"));
    EXPECT_EQ(client.read().status, 200);
  }
  EXPECT_EQ(peers, (std::vector<std::pair<std::string, int>>{{"127.0.0.1", 0}, {"::1", 1}, {"unix", 2}}));
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  const auto second = HttpServer::start({.listen = {{"unix:" + path, false}}}, nullptr, handler);
  EXPECT_FALSE(second.ok());  // somebody listens there
  EXPECT_EQ(RawClient(server->address(2)).connected(), true);
  server = nullptr;
  EXPECT_FALSE(std::filesystem::exists(path));
}

// What a route that anybody may ask keeps of a body is what an attacker's connections hold together.
TEST(HttpServer, TakesNoLongBodyThatNobodyAnswersFor) {
  class Admitted : public HttpAdmission {
    std::optional<HttpResponse> on_body(int64_t) override { return std::nullopt; }
  };
  const auto server = start_server(local_options(), echo, [](HttpRequest& head) -> std::optional<HttpResponse> {
    if (head.path == "/in") head.admission = std::make_shared<Admitted>();
    return std::nullopt;
  });
  const std::string small(kUnadmittedBody, 'x'), large(kUnadmittedBody + 1, 'x');
  const auto chunked = [](const std::string& path, const std::string& body) {
    return fmt::format("POST {} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n", path,
                       body.size(), body);
  };
  RawClient client(server->address(0));
  for (const std::string& request :
       {post("/", small), chunked("/", small), post("/in", large), chunked("/in", large)}) {
    client.send(request);
    EXPECT_EQ(client.read().status, 200);
  }
  for (const std::string& request : {post("/", large), chunked("/", large),
                                     std::string("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 8000000\r\n\r\n")}) {
    RawClient refused(server->address(0));
    refused.send(request);
    EXPECT_EQ(refused.read().status, 413);
    EXPECT_TRUE(refused.closed());
  }
}

TEST(HttpServer, LetsNobodyInBeforeAccept) {
  std::atomic<bool> ready = false, early = false;
  const auto handler = [&](const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
    if (!ready) early = true;
    echo(request, reply);
  };
  const auto server = HttpServer::open(local_options(), nullptr, handler).value();
  RawClient client(server->address(0));
  ASSERT_TRUE(client.connected());  // by the kernel; it waits for its turn
  client.send(get("/"));
  for (int turn = 0; turn < 3; ++turn) {  // the loops run: what is made meanwhile may post to them
    std::promise<void> ran;
    server->post(0, [&] { ran.set_value(); });
    ran.get_future().wait();
  }
  ready = true;
  server->accept();
  EXPECT_EQ(client.read().status, 200);
  EXPECT_FALSE(early);
}

TEST(HttpServer, RefusesBadOptions) {
  const auto error = [](const HttpServerOptions& options) {
    const auto server = HttpServer::start(options, nullptr, echo);
    return server.ok() ? std::string() : server.status().message();
  };
  const auto listen = [](const std::string& address) { return HttpServerOptions{.listen = {{address, false}}}; };
  EXPECT_EQ(error({}), "") << "its shards serve what is posted to them";
  for (const char* address : {"", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:99999", "127.0.0.1:8a", "::1:80",
                              "unix:", "nowhere.invalid:80"}) {
    EXPECT_NE(error(listen(address)), "") << address;
  }
  EXPECT_NE(error(listen("unix:" + std::string(200, 'x'))), "");
  HttpServerOptions tls{.listen = {{"127.0.0.1:0", true}}};
  EXPECT_NE(error(tls).find("TLS certificate"), std::string::npos);
  const auto server = start_server(local_options(), echo);
  EXPECT_NE(error(listen(server->address(0))).find("cannot listen"), std::string::npos);
}

TEST(HttpServer, DrainFinishesWhatIsInFlight) {
  std::mutex mutex;
  std::vector<std::shared_ptr<HttpReply>> held;
  const auto server = start_server(local_options(2), [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    if (request.path == "/now") return echo(std::move(request), reply);
    if (request.path == "/stream") reply->begin_stream(200, {}, "text/event-stream");
    const std::lock_guard lock(mutex);
    held.push_back(reply);
  });
  RawClient idle(server->address(0)), waiting(server->address(0)), streaming(server->address(0));
  idle.send(get("/now"));
  EXPECT_EQ(idle.read().status, 200);
  EXPECT_TRUE(server->wait_idle(std::chrono::seconds(kPatienceSeconds)));
  waiting.send(get("/wait"));
  streaming.send(get("/stream"));
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(mutex);
    return held.size() == 2;
  }));
  const std::string address = server->address(0);
  server->stop_accepting();
  EXPECT_FALSE(server->wait_idle(std::chrono::milliseconds(20)));
  EXPECT_TRUE(idle.closed());
  EXPECT_FALSE(RawClient(address).connected());
  for (auto& reply : std::exchange(held, {})) {
    server->post(reply->shard(), [reply] {
      reply->write("data: x\n\n");
      reply->end();
      reply->respond({200, {}, "text/plain", "done"});
    });
  }
  const RawResponse answer = waiting.read();
  EXPECT_EQ(answer.body, "done");
  EXPECT_TRUE(answer.has("Connection: close"));
  EXPECT_EQ(streaming.read().body, "data: x\n\n");
  EXPECT_TRUE(streaming.closed());
  EXPECT_TRUE(server->wait_idle(std::chrono::seconds(kPatienceSeconds)));
}

TEST(HttpServer, DrainServesWhatHadArrived) {
  for (int round = 0; round < 20; ++round) {
    const auto server = start_server(local_options(2), echo);
    RawClient client(server->address(0));
    client.send(get("/warm"));
    EXPECT_EQ(client.read().status, 200);
    client.send(get("/raced"));
    server->stop_accepting();
    EXPECT_EQ(client.read().status, 200);
    EXPECT_TRUE(client.closed());
    EXPECT_TRUE(server->wait_idle(std::chrono::seconds(kPatienceSeconds)));
  }
}

TEST(HttpServer, ReplyMayOutliveTheServer) {
  std::shared_ptr<HttpReply> kept;
  std::atomic<bool> closed{false}, has{false};
  auto server = start_server(local_options(), [&](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/event-stream");
    reply->on_close([&] { closed = true; });
    kept = reply;
    has = true;
  });
  RawClient client(server->address(0));
  client.send(get("/"));
  ASSERT_TRUE(eventually([&] { return has.load(); }));
  server = nullptr;
  EXPECT_TRUE(closed);
  kept = nullptr;
}

TEST(HttpServer, PostRunsInOrderOnTheShard) {
  auto server = start_server(local_options(2), echo);
  ASSERT_EQ(server->num_shards(), 2);
  std::vector<int> order[2];
  std::atomic<int> done{0};
  for (int i = 0; i < 10000; ++i) {
    server->post(i % 2, [&, i] {
      order[i % 2].push_back(i);
      ++done;
    });
  }
  ASSERT_TRUE(eventually([&] { return done == 10000; }));
  for (int s = 0; s < 2; ++s) {
    for (size_t i = 0; i < 5000; ++i) ASSERT_EQ(order[s][i], static_cast<int>(2 * i) + s);
  }
}

}  // namespace
}  // namespace lk::testing
