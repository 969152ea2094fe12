// SPDX-License-Identifier: Apache-2.0
// Sizes, times, rates and numbers of connections.
#include <fcntl.h>
#include <sys/resource.h>

#include <ctime>

#include "net/raw_client.h"

namespace lk::testing {
namespace {

using std::chrono::milliseconds;

TEST(HttpLimits, HeaderBytes) {
  HttpServerOptions options = local_options();
  options.limits.max_header_bytes = 1000;
  const auto server = start_server(options, echo);
  RawClient fits(server->address(0)), large(server->address(0)), endless(server->address(0));
  fits.send(get("/", "X: " + std::string(900, 'x') + "\r\n"));
  EXPECT_EQ(fits.read().status, 200);
  large.send(get("/", "X: " + std::string(1000, 'x') + "\r\n"));
  EXPECT_EQ(large.read().status, 431);
  EXPECT_TRUE(large.closed());
  endless.send("GET /" + std::string(1000, 'x'));
  EXPECT_EQ(endless.read().status, 431);
  EXPECT_EQ(server->stats().bad_requests, 2);
}

TEST(HttpLimits, BodyBytes) {
  HttpServerOptions options = local_options();
  options.limits.max_body_bytes = 1000;
  const auto server = start_server(options, echo);
  RawClient fits(server->address(0)), declared(server->address(0)), expecting(server->address(0)),
      chunked(server->address(0));
  fits.send(post("/", std::string(1000, 'x')));
  EXPECT_EQ(fits.read().status, 200);
  declared.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1001\r\n\r\n");  // answered before a byte of it
  const RawResponse r = declared.read();
  EXPECT_EQ(r.status, 413);
  EXPECT_NE(r.body.find("\"code\":\"request_too_large\""), std::string::npos) << r.body;
  EXPECT_TRUE(declared.closed());
  expecting.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(expecting.read().status, 413);
  chunked.send("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" + std::string(500, 'x') +
               "\r\n1f5\r\n");
  EXPECT_EQ(chunked.read().status, 413);
  EXPECT_TRUE(chunked.closed());
}

TEST(HttpLimits, BodyBytesOfAllConnections) {
  HttpServerOptions options = local_options();
  options.limits.max_body_bytes = options.limits.max_total_body_bytes = 100'000;
  const auto server = start_server(options, echo);
  RawClient first(server->address(0)), second(server->address(0)), third(server->address(0));
  const std::string half(60'000, 'x');
  first.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 60001\r\n\r\n" + half);
  ASSERT_TRUE(eventually([&] { return server->stats().bytes_in > 60'000; }));
  second.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 60000\r\n\r\n" + half);
  EXPECT_EQ(second.read().status, 503);
  first.send("x");
  EXPECT_EQ(first.read().status, 200);
  third.send(post("/", half));  // what was counted was given back
  EXPECT_EQ(third.read().status, 200);
}

TEST(HttpLimits, HeaderTime) {
  HttpServerOptions options = local_options();
  options.limits.header_timeout = milliseconds(100);
  const auto server = start_server(options, echo);
  RawClient silent(server->address(0)), slow(server->address(0));
  slow.send("GET / HTTP/1.1\r\nHost");
  const RawResponse r = slow.read();
  EXPECT_EQ(r.status, 408);
  EXPECT_NE(r.body.find("\"code\":\"request_timeout\""), std::string::npos) << r.body;
  EXPECT_TRUE(slow.closed());
  EXPECT_TRUE(silent.closed());
  EXPECT_EQ(server->stats().cut_slow_writers, 1);
}

TEST(HttpLimits, EveryConnectionIsJudgedAlsoAmongMany) {
  HttpServerOptions options = local_options();
  options.num_shards = 2;
  options.limits.header_timeout = milliseconds(400);  // a round of several ticks
  const auto server = start_server(options, echo);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 101; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->address(0)));
    clients.back()->send("GET / HTTP/1.1\r\nHost");
  }
  clients[7]->close();  // gone before its turn comes
  for (size_t i = 0; i < clients.size(); ++i) {
    if (i == 7) continue;
    EXPECT_EQ(clients[i]->read().status, 408);
  }
  EXPECT_EQ(server->stats().cut_slow_writers, 100);
  RawClient later(server->address(0));
  later.send(get("/"));
  EXPECT_EQ(later.read().status, 200);
}

TEST(HttpLimits, BodyTime) {
  HttpServerOptions options = local_options();
  options.limits.body_timeout = milliseconds(200);
  options.limits.min_body_rate = 0;
  const auto server = start_server(options, echo);
  RawClient client(server->address(0));
  client.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nfive.");
  EXPECT_EQ(client.read().status, 408);
  EXPECT_TRUE(client.closed());
  EXPECT_EQ(server->stats().cut_slow_writers, 1);
}

TEST(HttpLimits, BodyRate) {
  HttpServerOptions options = local_options();
  options.limits.body_timeout = std::chrono::hours(1);
  options.limits.min_body_rate = 1'000'000'000'000;  // judged after 5 s at the latest; nobody is that fast
  const auto server = start_server(options, echo);
  RawClient client(server->address(0));
  client.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nfive.");
  EXPECT_EQ(client.read().status, 408);
}

TEST(HttpLimits, IdleTime) {
  HttpServerOptions options = local_options();
  options.limits.idle_timeout = milliseconds(100);
  const auto server = start_server(options, echo);
  RawClient client(server->address(0));
  client.send(get("/"));
  EXPECT_EQ(client.read().status, 200);
  EXPECT_TRUE(client.closed());
  EXPECT_EQ(server->stats().cut_slow_writers, 0);
}

// Answers "/large" with so many bytes, in parts, on behalf of the account that the query names.
HttpServer::Handler large_answers(size_t bytes) {
  return [bytes](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    if (request.path != "/large") return echo(std::move(request), reply);
    reply->charge(request.query);
    reply->respond({200, {}, "text/plain", "", split_into_parts(std::string(bytes, 'x'))});
  };
}

constexpr size_t kLarge = 16 << 20;  // more than the kernel takes for a reader with a small window

TEST(HttpLimits, ALargeAnswerArrivesWholeAndInOrder) {
  std::string body;
  for (int i = 0; body.size() < kLarge; ++i) body += std::to_string(i) + " ";
  const auto server = start_server(local_options(), [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    if (request.path != "/large") return echo(std::move(request), reply);
    reply->respond({200, {}, "text/plain", "first ", split_into_parts(body)});
  });
  RawClient client(server->address(0));
  client.send("HEAD /large HTTP/1.1\r\nHost: t\r\n\r\n" + get("/large") + get("/next"));
  const RawResponse head = client.read(true);
  EXPECT_TRUE(head.has("Content-Length: " + std::to_string(body.size() + 6))) << head.head;
  EXPECT_TRUE(client.read().body == "first " + body);
  EXPECT_EQ(client.read().body, "GET /next ");
  EXPECT_TRUE(eventually([&] { return server->stats().output_bytes == 0; }));
}

TEST(HttpLimits, AReaderOfALargeAnswerIsNotIdle) {
  HttpServerOptions options = local_options();
  options.limits.idle_timeout = milliseconds(50);
  const auto server = start_server(options, large_answers(kLarge));
  RawClient client(server->address(0), 4096);
  client.send(get("/large"));
  std::this_thread::sleep_for(milliseconds(400));  // can only make the test miss a fault
  EXPECT_TRUE(client.read().complete);
}

TEST(HttpLimits, OutputOfAnAccount) {
  HttpServerOptions options = local_options(2);
  options.limits.max_output_bytes_per_account = 5 * kLarge / 4;
  const auto server = start_server(options, large_answers(kLarge));
  std::vector<std::unique_ptr<RawClient>> slow;
  for (int i = 0; i < 3; ++i) {
    slow.push_back(std::make_unique<RawClient>(server->address(0), 4096));
    slow.back()->send(get("/large?greedy"));
  }
  // The first is owed its answer; what would come on top of it is refused, and says so.
  ASSERT_TRUE(eventually([&] { return server->stats().refused_outputs == 2; }));
  EXPECT_LE(server->stats().output_bytes, options.limits.max_output_bytes_per_account);
  RawClient other(server->address(0));
  other.send(get("/large?modest"));
  EXPECT_EQ(other.read().body.size(), kLarge);
  int refused = 0;
  for (auto& client : slow) {
    const RawResponse r = client->read();
    EXPECT_TRUE(r.complete);
    if (r.status == 200) continue;
    EXPECT_EQ(r.status, 503);
    EXPECT_TRUE(r.has("Retry-After: "));
    EXPECT_NE(r.body.find("wait to be read"), std::string::npos) << r.body;
    ++refused;
  }
  EXPECT_EQ(refused, 2);
  EXPECT_TRUE(eventually([&] { return server->stats().output_bytes == 0; }));
  slow[0]->send(get("/large?greedy"));  // read, and so is the place
  EXPECT_EQ(slow[0]->read().body.size(), kLarge);
}

TEST(HttpLimits, OutputOfAllAccounts) {
  HttpServerOptions options = local_options();
  options.limits.max_total_output_bytes = 3 * kLarge;
  options.limits.max_output_bytes_per_account = 100 * kLarge;
  const auto server = start_server(options, large_answers(kLarge));
  std::vector<std::unique_ptr<RawClient>> slow;
  const auto ask = [&](const std::string& account) {
    slow.push_back(std::make_unique<RawClient>(server->address(0), 4096));
    slow.back()->send(get("/large?" + account));
  };
  for (int i = 0; i < 6; ++i) ask("greedy");
  ASSERT_TRUE(eventually([&] { return server->stats().requests == 6 && server->stats().refused_outputs >= 2; }));
  RawClient barrier(server->address(0));  // behind the last of them
  barrier.send(get("/"));
  EXPECT_EQ(barrier.read().status, 200);
  const int64_t refused = server->stats().refused_outputs;
  RawClient other(server->address(0));  // holds less than its share
  other.send(get("/large?modest"));
  EXPECT_EQ(other.read().body.size(), kLarge);
  EXPECT_EQ(server->stats().refused_outputs, refused);
  slow.clear();  // those that leave give back what they held
  EXPECT_TRUE(eventually([&] { return server->stats().output_bytes == 0; }));
}

TEST(HttpLimits, APendingAnswerHasNoTimeLimit) {
  HttpServerOptions options = local_options();
  options.limits.idle_timeout = options.limits.header_timeout = options.limits.body_timeout =
      options.limits.stall_timeout = milliseconds(50);
  std::shared_ptr<HttpReply> held;
  std::atomic<bool> has{false};
  const auto server = start_server(options, [&](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    held = reply;
    has = true;
  });
  RawClient client(server->address(0));
  client.send(get("/"));
  ASSERT_TRUE(eventually([&] { return has.load(); }));
  std::this_thread::sleep_for(milliseconds(300));  // can only make the test miss a fault
  server->post(0, [&] { std::exchange(held, nullptr)->respond({200, {}, "text/plain", "late"}); });
  EXPECT_EQ(client.read().body, "late");
}

TEST(HttpLimits, Connections) {
  for (const bool per_address : {false, true}) {
    HttpServerOptions options = local_options(2);
    (per_address ? options.limits.max_connections_per_address : options.limits.max_connections) = 3;
    const auto server = start_server(options, echo);
    std::vector<std::unique_ptr<RawClient>> clients;
    for (int i = 0; i < 3; ++i) {
      clients.push_back(std::make_unique<RawClient>(server->address(0)));
      clients.back()->send(get("/"));
      EXPECT_EQ(clients.back()->read().status, 200);
    }
    for (int i = 0; i < 5; ++i) {
      RawClient extra(server->address(0));
      extra.send(get("/"));
      const RawResponse r = extra.read();
      EXPECT_EQ(r.status, 503);
      EXPECT_TRUE(r.has("Retry-After: "));
      EXPECT_NE(r.body.find("\"error\""), std::string::npos);
      EXPECT_TRUE(extra.closed());
    }
    EXPECT_EQ(server->stats().refused_connections, 5);
    EXPECT_EQ(server->stats().requests, 3);
    clients.pop_back();
    EXPECT_TRUE(eventually([&] { return server->stats().open_connections == 2; }));
    RawClient again(server->address(0));  // the place is free again
    again.send(get("/"));
    EXPECT_EQ(again.read().status, 200);
  }
}

double thread_cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// UBSan looks at an object's type through a pipe, for which there is no descriptor left here.
[[gnu::no_sanitize("vptr")]] int64_t connections_of(const HttpServer& server) { return server.stats().connections; }

TEST(HttpLimits, OutOfDescriptorsDoesNotSpin) {
  const auto server = start_server(local_options(), echo);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  RawClient first(server->address(0)), second(server->address(0));
  first.send(get("/"));
  second.send(get("/"));
  EXPECT_EQ(first.read().status, 200);
  EXPECT_EQ(second.read().status, 200);
  RawClient waiting(server->address(0));
  waiting.send(get("/"));
  EXPECT_EQ(waiting.read().status, 200);
  const int next = ::dup(0);
  ::close(next);
  const rlimit none{static_cast<rlim_t>(next), before.rlim_max};
  const int socket_fd = ::socket(AF_INET, SOCK_STREAM, 0);  // the last one
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string address = server->address(0);
  a.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  EXPECT_EQ(::connect(socket_fd, reinterpret_cast<sockaddr*>(&a), sizeof a), 0);  // by the kernel; accept() fails
  const double cpu = thread_cpu_seconds();
  std::this_thread::sleep_for(milliseconds(400));
  EXPECT_LT(thread_cpu_seconds() - cpu, 0.3);
  first.send(get("/"));  // others are served
  EXPECT_EQ(first.read().status, 200);
  EXPECT_EQ(connections_of(*server), 3);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(eventually([&] { return server->stats().connections == 4; }));
  ::close(socket_fd);
}

}  // namespace
}  // namespace lk::testing
