// SPDX-License-Identifier: Apache-2.0
// TLS: handshake, streams, bodies larger than a record, old versions, clients that speak something else.
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cstdio>
#include <filesystem>

#include "net/raw_client.h"

namespace lk::testing {
namespace {

// A self-signed certificate for "localhost".
class Certificate {
 public:
  static const Certificate& get() {  // made once
    static const Certificate certificate;
    return certificate;
  }
  std::string cert, key;

  explicit Certificate(const std::string& name = "once") {
    const std::filesystem::path folder =
        std::filesystem::temp_directory_path() / ("lk_tls_" + name + "_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder);
    cert = folder / "cert.pem";
    key = folder / "key.pem";
    make();
  }
  // Writes a new pair into the files.
  void make() const {
    EVP_PKEY* pair = EVP_EC_gen("P-256");
    X509* x509 = X509_new();
    ASN1_INTEGER_set(X509_get_serialNumber(x509), 1);
    X509_gmtime_adj(X509_getm_notBefore(x509), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x509), 24 * 3600);
    X509_set_pubkey(x509, pair);
    X509_NAME* subject = X509_get_subject_name(x509);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("localhost"), -1, -1,
                               0);
    X509_set_issuer_name(x509, subject);
    X509_sign(x509, pair, EVP_sha256());
    std::FILE* f = std::fopen(cert.c_str(), "w");
    PEM_write_X509(f, x509);
    std::fclose(f);
    f = std::fopen(key.c_str(), "w");
    PEM_write_PrivateKey(f, pair, nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(f);
    X509_free(x509);
    EVP_PKEY_free(pair);
  }
  ~Certificate() {
    std::error_code ignored;
    std::filesystem::remove_all(std::filesystem::path(cert).parent_path(), ignored);
  }
};

HttpServerOptions tls_options() {
  HttpServerOptions options;
  options.listen = {{"127.0.0.1:0", true}, {"127.0.0.1:0", false}};
  options.tls_cert = Certificate::get().cert;
  options.tls_key = Certificate::get().key;
  return options;
}

class TlsClient {
 public:
  explicit TlsClient(const std::string& address, int max_version = 0, const Certificate& trusted = Certificate::get())
      : raw_(address), context_(SSL_CTX_new(TLS_client_method())) {
    SSL_CTX_set_security_level(context_, 0);
    if (max_version != 0) SSL_CTX_set_max_proto_version(context_, max_version);
    SSL_CTX_load_verify_locations(context_, trusted.cert.c_str(), nullptr);
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, raw_.fd());
    connected_ = SSL_connect(ssl_) == 1;
    ERR_clear_error();
  }
  ~TlsClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  TlsClient(const TlsClient&) = delete;
  TlsClient& operator=(const TlsClient&) = delete;
  bool connected() const { return connected_; }
  std::string version() const { return SSL_get_version(ssl_); }
  RawClient& raw() { return raw_; }
  bool send(const std::string& bytes) {
    return SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size());
  }
  // Until `end` was read, or the stream ends.
  std::string read_until(const std::string& end) {
    std::string all;
    char data[16384];
    while (all.size() < end.size() || all.compare(all.size() - end.size(), end.size(), end) != 0) {
      const int n = SSL_read(ssl_, data, sizeof data);
      if (n <= 0) break;
      all.append(data, static_cast<size_t>(n));
    }
    return all;
  }
  bool ended_cleanly() {
    char c;
    return SSL_get_error(ssl_, SSL_read(ssl_, &c, 1)) == SSL_ERROR_ZERO_RETURN;
  }

 private:
  RawClient raw_;
  SSL_CTX* context_;
  SSL* ssl_;
  bool connected_ = false;
};

TEST(HttpTls, RequestsAndLargeBodies) {
  const auto server = start_server(tls_options(), echo);
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(server->address(0), version);
    ASSERT_TRUE(client.connected());
    EXPECT_EQ(client.version(), version == TLS1_2_VERSION ? "TLSv1.2" : "TLSv1.3");
    EXPECT_TRUE(client.send(get("/a") + get("/b")));
    const std::string both = client.read_until("GET /b ");
    EXPECT_NE(both.find("GET /a "), std::string::npos);
    const std::string body(5 << 20, 'x');
    std::thread sender([&] { EXPECT_TRUE(client.send(post("/big", body + "END"))); });
    sender.join();
    const std::string answer = client.read_until("END");
    EXPECT_NE(answer.find("POST /big xxx"), std::string::npos);
    EXPECT_GT(answer.size(), body.size());
    EXPECT_TRUE(client.send(get("/last", "Connection: close\r\n")));
    EXPECT_NE(client.read_until("GET /last ").find("Connection: close"), std::string::npos);
    EXPECT_TRUE(client.ended_cleanly());
  }
}

TEST(HttpTls, ANewCertificateIsForNewConnections) {
  const Certificate served("served");
  HttpServerOptions options = tls_options();
  options.tls_cert = served.cert;
  options.tls_key = served.key;
  const auto server = start_server(options, echo);
  TlsClient old(server->address(0), 0, served);
  ASSERT_TRUE(old.connected());
  const auto answers = [](TlsClient& client) {
    EXPECT_TRUE(client.send(get("/x")));
    return client.read_until("GET /x ").find("200 OK") != std::string::npos;
  };
  EXPECT_TRUE(answers(old));

  const Certificate outdated("outdated");  // a copy of what was served first
  std::filesystem::copy_file(served.cert, outdated.cert, std::filesystem::copy_options::overwrite_existing);
  served.make();
  EXPECT_FALSE(TlsClient(server->address(0), 0, served).connected()) << "nobody reloaded yet";
  ASSERT_TRUE(server->reload_tls().ok());
  TlsClient renewed(server->address(0), 0, served);
  ASSERT_TRUE(renewed.connected());
  EXPECT_TRUE(answers(renewed));
  EXPECT_FALSE(TlsClient(server->address(0), 0, outdated).connected());
  EXPECT_TRUE(answers(old)) << "a connection keeps its certificate";

  std::filesystem::copy_file(served.cert, outdated.cert,
                             std::filesystem::copy_options::overwrite_existing);  // what is served now
  std::filesystem::copy_file(Certificate::get().key, served.key, std::filesystem::copy_options::overwrite_existing);
  const Status mismatch = server->reload_tls();
  EXPECT_EQ(mismatch.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(mismatch.message().find(served.key), std::string::npos) << mismatch.message();
  std::filesystem::remove(served.cert);
  EXPECT_FALSE(server->reload_tls().ok());
  TlsClient last(server->address(0), 0, outdated);
  ASSERT_TRUE(last.connected()) << "failures change nothing";
  EXPECT_TRUE(answers(last));
}

TEST(HttpTls, ReloadWithoutTlsIsNothing) {
  EXPECT_TRUE(start_server({.listen = {{.address = "127.0.0.1:0"}}}, echo)->reload_tls().ok());
}

TEST(HttpTls, StreamsAndDisconnects) {
  std::shared_ptr<HttpReply> stream;
  std::atomic<bool> begun{false}, closed{false};
  const auto server = start_server(tls_options(), [&](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/event-stream");
    reply->on_close([&] { closed = true; });
    stream = reply;
    begun = true;
  });
  {
    TlsClient client(server->address(0));
    ASSERT_TRUE(client.connected());
    client.send(get("/"));
    ASSERT_TRUE(eventually([&] { return begun.load(); }));
    for (int i = 0; i < 20; ++i) {
      const std::string event = "data: " + std::to_string(i) + "\n\n";
      server->post(stream->shard(), [&, event] { EXPECT_TRUE(stream->write(event)); });
      EXPECT_NE(client.read_until(event + "\r\n").find(event), std::string::npos);
    }
    EXPECT_FALSE(closed);
  }
  EXPECT_TRUE(eventually([&] { return closed.load(); }));
  std::atomic<bool> dropped{false};
  server->post(stream->shard(), [&] {
    stream = nullptr;
    dropped = true;
  });
  EXPECT_TRUE(eventually([&] { return dropped.load(); }));
}

TEST(HttpTls, CutsTheReaderThatTakesNothing) {
  std::atomic<int> closed{0};
  HttpServerOptions options = tls_options();
  options.limits.stall_timeout = std::chrono::milliseconds(300);
  options.limits.max_buffered_bytes = 64 << 20;
  std::shared_ptr<HttpReply> stream;
  const auto server = start_server(options, [&](HttpRequest, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/event-stream");
    reply->on_close([&] { ++closed; });
    stream = reply;
    EXPECT_TRUE(reply->write(std::string(32 << 20, 'x')));
  });
  TlsClient client(server->address(0));
  client.send(get("/"));
  EXPECT_TRUE(eventually([&] { return closed == 1; }));
  EXPECT_EQ(server->stats().cut_slow_readers, 1);
}

TEST(HttpTls, RefusesOldVersionsAndOtherProtocols) {
  HttpServerOptions options = tls_options();
  options.limits.header_timeout = std::chrono::milliseconds(500);
  const auto server = start_server(options, echo);
  EXPECT_FALSE(TlsClient(server->address(0), TLS1_1_VERSION).connected());
  RawClient plain(server->address(0));
  plain.send(get("/"));
  while (plain.fill()) {  // an alert, perhaps
  }
  EXPECT_FALSE(plain.timed_out());
  RawClient silent(server->address(0));
  EXPECT_TRUE(silent.closed());  // the handshake has the time of a header
  RawClient wrong(server->address(1));
  wrong.send("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
  EXPECT_EQ(wrong.read().status, 400);
  TlsClient good(server->address(0));
  ASSERT_TRUE(good.connected());  // failures of others left nothing behind
  good.send(get("/"));
  EXPECT_NE(good.read_until("GET / ").find("200 OK"), std::string::npos);
}

}  // namespace
}  // namespace lk::testing
