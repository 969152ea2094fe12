// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_client.h"

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <condition_variable>
#include <cstdio>
#include <future>
#include <latch>

#include "testing/raw_server.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using testing::RawPeer;
using testing::RawServer;

struct Answer {
  int code = 0;
  HttpHeaders headers;
  std::string body;
  Status status;
};

std::unique_ptr<HttpClient> make_client(const HttpClientOptions& options = {}) {
  return HttpClient::create(options).value();
}

std::future<Answer> start(HttpClient& client, ClientRequest request, int64_t* id = nullptr) {
  struct Pending {
    Answer answer;
    std::promise<Answer> promise;
  };
  auto pending = std::make_shared<Pending>();
  auto future = pending->promise.get_future();
  const int64_t number =
      client.send(std::move(request), {.on_head =
                                           [pending](int code, const HttpHeaders& headers) {
                                             pending->answer.code = code;
                                             pending->answer.headers = headers;
                                           },
                                       .on_data = [pending](std::string_view bytes) { pending->answer.body += bytes; },
                                       .on_done =
                                           [pending](Status status) {
                                             pending->answer.status = std::move(status);
                                             pending->promise.set_value(pending->answer);
                                           }});
  if (id) *id = number;
  return future;
}

Answer get(HttpClient& client, const std::string& url) { return start(client, {.method = "GET", .url = url}).get(); }

void echo(RawPeer& peer) {
  while (const auto request = peer.read_request())
    if (!peer.respond(request->head.substr(0, request->head.find("\r\n")) + "|" + request->body)) return;
}

TEST(HttpClient, SendsTheRequestAndReusesTheConnection) {
  RawServer server(echo);
  const auto client = make_client();
  EXPECT_EQ(get(*client, server.url() + "/a?b=c").body, "GET /a?b=c HTTP/1.1|");
  const Answer answer = start(*client, {.url = server.url() + "/x", .body = "{}"}).get();
  EXPECT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.code, 200);
  EXPECT_EQ(answer.body, "POST /x HTTP/1.1|{}");
  ASSERT_EQ(answer.headers.size(), 1u);
  EXPECT_EQ(answer.headers[0].first, "content-length");
  EXPECT_EQ(server.num_connections(), 1);
}

TEST(HttpClient, SpeaksOverAUnixSocket) {
  testing::TempDir dir;
  RawServer server(echo, dir.path() + "/s");
  EXPECT_EQ(get(*make_client(), server.url() + "/v1/models").body, "GET /v1/models HTTP/1.1|");
}

TEST(HttpClient, ResolvesNames) {
  RawServer server(echo);
  const auto client = make_client();
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 20; ++i)
    answers.push_back(
        start(*client, {.method = "GET", .url = fmt::format("http://localhost:{}/{}", server.port(), i)}));
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(answers[static_cast<size_t>(i)].get().body, fmt::format("GET /{} HTTP/1.1|", i));
  const Answer unknown = get(*client, "http://does-not-exist.invalid/");
  EXPECT_EQ(unknown.status.code(), StatusCode::kUnavailable);
  EXPECT_NE(unknown.status.message().find("does-not-exist.invalid"), std::string::npos);
}

TEST(HttpClient, DeliversStreamedBytesAsTheyArrive) {
  std::latch first_seen(1);
  RawServer server([&](RawPeer& peer) {
    peer.read_request();
    peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    first_seen.wait();  // the rest is only sent once the client has the first part
    peer.write("3\r\ntwo\r\n0\r\n\r\n");
    peer.wait_for_close();
  });
  const auto client = make_client();
  std::promise<std::string> done;
  std::string body;
  client->send({.url = server.url()},
               {.on_data =
                    [&](std::string_view bytes) {
                      if (body.empty()) first_seen.count_down();
                      body += bytes;
                    },
                .on_done = [&](Status status) { done.set_value(status.ok() ? body : status.message()); }});
  EXPECT_EQ(done.get_future().get(), "onetwo");
}

TEST(HttpClient, HoldsAThousandStreamsAtOnce) {
  constexpr int kStreams = 1000;
  std::latch all_open(kStreams);
  RawServer server([&](RawPeer& peer) {
    if (!peer.read_request()) return;
    peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    all_open.arrive_and_wait();  // no stream ends before every stream has begun
    for (int i = 0; i < 20; ++i) peer.write("a\r\n0123456789\r\n");
    peer.write("0\r\n\r\n");
    peer.wait_for_close();
  });
  auto client = make_client({.num_threads = 2});
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < kStreams; ++i) answers.push_back(start(*client, {.url = server.url(), .body = "x"}));
  for (auto& future : answers) {
    const Answer answer = future.get();
    ASSERT_TRUE(answer.status.ok()) << answer.status.message();
    EXPECT_EQ(answer.body.size(), 200u);
  }
  client.reset();
}

TEST(HttpClient, TimesOutAndClosesTheSocket) {
  std::promise<void> closed;
  RawServer server([&](RawPeer& peer) {
    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome");
    peer.wait_for_close();
    closed.set_value();
  });
  const auto client = make_client();
  const Answer answer = start(*client, {.url = server.url(), .timeout = 300ms}).get();
  EXPECT_EQ(answer.status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(closed.get_future().wait_for(60s), std::future_status::ready);
}

TEST(HttpClient, SendsNothingBeforeItsTime) {
  RawServer server(echo);
  const auto client = make_client();
  using Clock = std::chrono::steady_clock;
  const auto due = Clock::now() + 200ms;
  std::promise<Clock::time_point> started;
  std::promise<Status> done;
  bool answered = false;
  client->send({.url = server.url(), .body = "x", .timeout = 60s, .not_before = due},
               {.on_start =
                    [&] {
                      EXPECT_FALSE(answered);
                      started.set_value(Clock::now());
                    },
                .on_head = [&](int, const HttpHeaders&) { answered = true; },
                .on_done = [&](Status status) { done.set_value(std::move(status)); }});
  EXPECT_TRUE(done.get_future().get().ok());
  EXPECT_GE(started.get_future().get(), due);
  // The timeout starts when it is sent: a request may be handed over long before.
  std::promise<Status> late;
  const int64_t id =
      client->send({.url = server.url(), .timeout = 60s, .not_before = Clock::now() + 61s},
                   {.on_start = [] { FAIL(); }, .on_done = [&](Status status) { late.set_value(std::move(status)); }});
  std::promise<Status> malformed;
  client->send({.url = "nonsense", .not_before = Clock::now() + 60s},
               {.on_start = [] { FAIL(); }, .on_done = [&](Status status) { malformed.set_value(std::move(status)); }});
  EXPECT_EQ(malformed.get_future().get().code(), StatusCode::kInvalidArgument) << "known at once";
  auto cancelled_one = late.get_future();
  EXPECT_EQ(cancelled_one.wait_for(0s), std::future_status::timeout);
  client->cancel(id);
  EXPECT_EQ(cancelled_one.get().code(), StatusCode::kCancelled);
  EXPECT_EQ(server.num_connections(), 1);
}

TEST(HttpClient, CancelClosesTheSocketAndOthersGoOn) {
  std::promise<void> closed, opened;
  std::latch finish(1);
  RawServer server([&](RawPeer& peer) {
    const auto request = peer.read_request();
    peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    if (request->starts_with("GET /cancel")) {
      opened.set_value();
      peer.wait_for_close();
      closed.set_value();
    } else {
      finish.wait();
      peer.write("0\r\n\r\n");
    }
  });
  const auto client = make_client();
  int64_t id = 0;
  auto other = start(*client, {.method = "GET", .url = server.url() + "/other"});
  auto cancelled_one = start(*client, {.method = "GET", .url = server.url() + "/cancel"}, &id);
  opened.get_future().wait();
  client->cancel(id);
  EXPECT_EQ(cancelled_one.get().status.code(), StatusCode::kCancelled);
  EXPECT_EQ(closed.get_future().wait_for(60s), std::future_status::ready);
  finish.count_down();
  EXPECT_TRUE(other.get().status.ok());
  client->cancel(id);       // done before: nothing happens
  client->cancel(1 << 30);  // never existed
}

TEST(HttpClient, DestructionCancelsWhatIsInFlight) {
  RawServer server([](RawPeer& peer) { peer.wait_for_close(); });
  auto client = make_client();
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 50; ++i) answers.push_back(start(*client, {.url = server.url()}));
  client.reset();
  for (auto& answer : answers) {
    ASSERT_EQ(answer.wait_for(0s), std::future_status::ready);
    EXPECT_EQ(answer.get().status.code(), StatusCode::kCancelled);
  }
}

TEST(HttpClient, ReportsWhyThereIsNoAnswer) {
  const auto client = make_client({.max_header_bytes = 1000});
  EXPECT_EQ(get(*client, "nonsense").status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(get(*client, "unix:/does/not/exist").status.code(), StatusCode::kUnavailable);
  int port = 0;
  {
    RawServer server([](RawPeer& peer) {
      const auto request = peer.read_request();
      if (!request) return;
      if (request->starts_with("GET /broken")) peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
      if (request->starts_with("GET /ssh")) peer.write("SSH-2.0-OpenSSH\r\n");
      if (request->starts_with("GET /headers"))
        peer.write("HTTP/1.1 200 OK\r\nA: " + std::string(5000, 'x') + "\r\n\r\n");
    });
    port = server.port();
    for (const char* path : {"/broken", "/ssh", "/headers", "/nothing"}) {
      const Answer answer = get(*client, server.url() + path);
      EXPECT_EQ(answer.status.code(), StatusCode::kDataLoss) << path;
    }
  }
  const Answer refused = get(*client, fmt::format("http://127.0.0.1:{}/", port));
  EXPECT_EQ(refused.status.code(), StatusCode::kUnavailable);
  EXPECT_NE(refused.status.message().find(fmt::format("127.0.0.1:{}", port)), std::string::npos);
}

TEST(HttpClient, AnAnswerBeforeTheBodyWasReadIsTaken) {
  std::latch answered(1);
  RawServer server([&](RawPeer& peer) {
    peer.respond("too large", "413 Content Too Large", "Connection: close\r\n");
    answered.wait();  // the client has its answer while its body is still unread
  });
  const auto client = make_client();
  const Answer answer = start(*client, {.url = server.url(), .body = std::string(64 << 20, 'x')}).get();
  answered.count_down();
  EXPECT_TRUE(answer.status.ok()) << answer.status.message();
  EXPECT_EQ(answer.code, 413);
  EXPECT_EQ(answer.body, "too large");
}

TEST(HttpClient, DoesNotReuseAConnectionThatTheServerClosed) {
  std::promise<void> closing;
  RawServer server([&](RawPeer& peer) {
    if (!peer.read_request()) return;
    peer.respond("once");  // keep-alive in words, closed in deed
    if (peer.index() == 0) closing.set_value();
  });
  const auto client = make_client();
  EXPECT_EQ(start(*client, {.url = server.url()}).get().body, "once");
  closing.get_future().wait();
  for (int i = 0; i < 5; ++i) {
    // Between the promise and close() a POST may still be lost; GET is repeated on a new connection.
    EXPECT_EQ(get(*client, server.url()).body, "once");
  }
  EXPECT_EQ(server.num_connections(), 6);
}

TEST(HttpClient, APostIsNeverSentTwice) {
  std::atomic<int> posts{0};
  RawServer server([&](RawPeer& peer) {
    for (int i = 0; const auto request = peer.read_request(); ++i) {
      if (request->starts_with("POST")) ++posts;
      if (i == 1) return;  // the second request of a connection is read and never answered
      peer.respond("ok");
    }
  });
  const auto client = make_client();
  EXPECT_EQ(get(*client, server.url()).body, "ok");
  EXPECT_EQ(start(*client, {.url = server.url()}).get().status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(posts, 1);
  EXPECT_EQ(get(*client, server.url()).body, "ok");
  EXPECT_EQ(get(*client, server.url()).body, "ok");  // repeated
}

TEST(HttpClient, ClosesIdleConnections) {
  std::promise<void> closed;
  RawServer server([&](RawPeer& peer) {
    peer.read_request();
    peer.respond("ok");
    peer.wait_for_close();
    closed.set_value();
  });
  const auto client = make_client({.idle_timeout = 100ms});
  EXPECT_EQ(get(*client, server.url()).body, "ok");
  EXPECT_EQ(closed.get_future().wait_for(60s), std::future_status::ready);
}

// --- TLS

struct TlsFiles {
  testing::TempDir dir;
  std::string certificate = dir.path() + "/cert.pem";
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());

  // A self-signed certificate for `name`.
  explicit TlsFiles(const char* name) {
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* cert = X509_new();
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    X509_EXTENSION* names =
        X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, (std::string("DNS:") + name).c_str());
    X509_add_ext(cert, names, -1);
    X509_EXTENSION_free(names);
    X509_sign(cert, key, EVP_sha256());
    SSL_CTX_use_certificate(context, cert);
    SSL_CTX_use_PrivateKey(context, key);
    std::FILE* file = std::fopen(certificate.c_str(), "w");
    PEM_write_X509(file, cert);
    std::fclose(file);
    X509_free(cert);
    EVP_PKEY_free(key);
  }
  ~TlsFiles() { SSL_CTX_free(context); }
};

TEST(HttpClient, SpeaksTlsAndChecksChainAndName) {
  TlsFiles good("localhost"), wrong("example.org");
  RawServer server(echo, "", good.context), impostor(echo, "", wrong.context);
  const std::string url = fmt::format("https://localhost:{}/", server.port());
  const auto client = make_client({.tls_ca = good.certificate});
  for (int i = 0; i < 3; ++i) {
    const Answer answer = get(*client, url);
    EXPECT_TRUE(answer.status.ok()) << answer.status.message();
    EXPECT_EQ(answer.body, "GET / HTTP/1.1|");
  }
  EXPECT_EQ(start(*client, {.url = url, .body = std::string(1 << 20, 'x')}).get().body.size(), (1u << 20) + 16);
  EXPECT_LE(server.num_connections(), 2);  // a session ticket after an answer costs one connection
  EXPECT_EQ(get(*make_client(), url).status.code(), StatusCode::kUnavailable);  // not an authority of the system
  const std::string other = fmt::format("https://localhost:{}/", impostor.port());
  EXPECT_EQ(get(*make_client({.tls_ca = wrong.certificate}), other).status.code(),
            StatusCode::kUnavailable);  // not its name
  EXPECT_TRUE(get(*make_client({.verify_tls = false}), other).status.ok());
  EXPECT_FALSE(HttpClient::create({.tls_ca = "/does/not/exist"}).ok());
}

}  // namespace
}  // namespace lk
