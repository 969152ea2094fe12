// SPDX-License-Identifier: Apache-2.0
// HttpServer: HTTP/1.1 with server-sent events for thousands of clients, on a few io threads ("shards"). Every limit a
// hostile peer could stretch is bounded: header and body size and time, connections, bytes waiting for a slow reader.
//
// A connection lives on one shard. The handler runs there, and every HttpReply method must be called there: code on
// another thread uses post(). One post per shard and engine step is enough for all streams of the step.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"
#include "lk/net/io_loop.h"

namespace lk {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// A client's own x-request-id goes into headers and logs: only what is harmless there.
bool is_request_id(std::string_view text);

class HttpAdmission;

struct HttpRequest {
  std::string method;                                          // "GET"
  std::string target;                                          // as sent: path and query
  std::string path;                                            // without the query, percent-decoded
  std::string query;                                           // after '?', raw
  HttpHeaders headers;                                         // names in lower case
  std::string body;                                            // empty while only the head is known
  std::string peer;                                            // address of the peer, "unix" for a unix socket
  std::string peer_account;                                    // what limits of addresses count it by: an IPv4 address,
                                                               // an IPv6 /64; "" for a unix socket
  int listener = 0;                                            // index into HttpServerOptions::listen
  int64_t content_length = 0;                                  // of the body; -1: chunked, not known
  std::shared_ptr<HttpAdmission> admission;                    // of the head filter's making
  std::string_view header(std::string_view lower_name) const;  // first value, or ""
};

// A large answer in pieces, each of which is freed once it was sent.
using HttpParts = std::vector<std::string>;
inline constexpr size_t kHttpPartBytes = 64 << 10;
// Copies: not on a shard's thread.
HttpParts split_into_parts(std::string_view bytes);

struct HttpResponse {
  int status = 200;
  HttpHeaders headers;
  std::string content_type = "application/json";
  std::string body;
  HttpParts parts;  // follow the body: what is longer than a few kHttpPartBytes belongs here
};

// What a head filter keeps of a request that it let in, such as its place among others. Let go of with the request.
class HttpAdmission {
 public:
  virtual ~HttpAdmission() = default;
  // So many bytes of the body were received: an answer given here ends the request. On the shard's thread.
  virtual std::optional<HttpResponse> on_body(int64_t bytes) = 0;
};

// The answer to one request. Exactly one of respond() and begin_stream() .. end() is called; if all references are
// dropped before that, the server answers 500. Shard thread only.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual int shard() const = 0;
  virtual void respond(HttpResponse response) = 0;
  // Status line and headers at once, the body in chunks as write() is called (chunked transfer coding; HTTP/1.0 peers
  // get the bytes plain and the connection closed at the end).
  virtual void begin_stream(int status, HttpHeaders headers, std::string_view content_type) = 0;
  // Queues bytes; what is queued within one shard callback leaves in one send. False when the peer is gone or was cut
  // because more than max_buffered_bytes of earlier writes waited for it. Never blocks.
  virtual bool write(std::string_view bytes) = 0;
  virtual bool write_parts(HttpParts parts) = 0;  // what is large by itself; does not count towards max_buffered_bytes
  virtual void end() = 0;
  // The connection was lost, cut or stalled before the answer was complete. Called once, on the shard, never from
  // within another call of this interface, never after the end. A peer that closes only its sending half while it waits
  // counts as lost (as with uvicorn): it cannot be told from one that is gone.
  virtual void on_close(std::function<void()> callback) = 0;
  // Called on the shard each time the peer has been sent nothing for `interval`, until the end: what keeps proxies and
  // clients waiting. Within a second or so of its time.
  virtual void on_silence(std::chrono::milliseconds interval, std::function<void()> callback) = 0;
  // Whose bytes they are that wait to be sent on this connection, from now on; until the first call the peer's address.
  virtual void charge(const std::string& account) = 0;
};

struct HttpLimits {
  int64_t max_header_bytes = 16 << 10;
  int64_t max_body_bytes = 8 << 20;
  int64_t min_body_rate = 1 << 10;  // bytes per second, judged after the first seconds
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::chrono::milliseconds idle_timeout{75'000};  // keep-alive
  // A reader for which bytes wait is cut when it takes fewer than min_read_rate a second, judged over stall_timeout.
  std::chrono::milliseconds stall_timeout{30'000};
  int64_t min_read_rate = 8 << 10;
  int64_t max_buffered_bytes = 256 << 10;  // per connection, of small writes waiting for the reader
  // Bytes waiting for all readers of one account (HttpReply::charge), and in all. An account that holds less than its
  // equal share of the latter is not refused for what the others hold.
  int64_t max_output_bytes_per_account = 32 << 20;
  int64_t max_total_output_bytes = 128 << 20;
  int64_t max_total_body_bytes = 1 << 30;  // of all requests being received, together; beyond it 503
  int64_t max_connections = 16'384;
  int64_t max_connections_per_address = 8'192;  // an IPv6 /64 counts as one address; unix sockets are exempt
};

struct HttpListen {
  std::string address;  // "127.0.0.1:8000", "[::1]:0" (0 = any free port), "unix:/run/lorikeet/admin.sock" (mode 0600)
  bool tls = false;
};

struct HttpServerOptions {
  std::vector<HttpListen> listen;  // none: its shards serve what is posted to them
  int num_shards = 1;
  HttpLimits limits;
  std::string tls_cert, tls_key;                    // PEM files, for listeners with tls
  std::function<void(const IoTurn& turn)> on_turn;  // after every callback of a shard, on its thread; must be cheap
};

struct HttpStats {  // since the start
  int64_t connections = 0, open_connections = 0, requests = 0, bytes_in = 0, bytes_out = 0;
  int64_t cut_slow_readers = 0, cut_slow_writers = 0, refused_connections = 0, bad_requests = 0;
  int64_t refused_outputs = 0;  // answers refused, and readers cut, because too many bytes waited for their account
  int64_t output_bytes = 0;     // waiting for readers now
};

// So much of a body may come where no filter answers for more: many connections at once may hold it.
inline constexpr int64_t kUnadmittedBody = 4 << 10;

class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest request, std::shared_ptr<HttpReply> reply)>;
  // Called when the head is known, before the body is read: an answer given here ends the request (wrong key, overload,
  // too large). A short body is skipped then, for a long or unknown one the connection is closed behind the answer. It
  // may set the request's `admission`; without one nobody answers for a body, which is kUnadmittedBody at most. On the
  // shard's thread.
  using HeadFilter = std::function<std::optional<HttpResponse>(HttpRequest& head)>;

  // Listens, and lets nobody in before accept(): what filter and handler use may be made between the two. Sets SIGPIPE
  // to be ignored. With TLS listeners the certificate is read here and by reload_tls().
  static Result<std::unique_ptr<HttpServer>> open(const HttpServerOptions& options, HeadFilter filter, Handler handler);
  // open() and accept(): for a handler that uses nothing which is made later, such as the server itself.
  static Result<std::unique_ptr<HttpServer>> start(const HttpServerOptions& options, HeadFilter filter,
                                                   Handler handler);
  // What open() would refuse, without serving anybody: limits, certificate and key, addresses. kAlreadyExists when an
  // address is taken and nothing else is wrong.
  static Status check(const HttpServerOptions& options);
  virtual ~HttpServer() = default;  // closes everything at once

  virtual void accept() = 0;  // once
  virtual int num_shards() const = 0;
  virtual void post(int shard, std::function<void()> task) = 0;  // thread safe
  virtual std::string address(int listener) const = 0;           // with the port that was chosen
  virtual HttpStats stats() const = 0;                           // thread safe
  // Reads certificate and key again, for connections accepted from now on; the old ones stay when that fails. Nothing
  // to do without TLS listeners. Thread safe.
  virtual Status reload_tls() = 0;
  // Drain: no new connections, idle ones close, requests in flight go on ("Connection: close" on their answers).
  // Returns at once.
  virtual void stop_accepting() = 0;
  // Waits until no request is in flight, at most `timeout`; true when none is left. Not from a shard thread.
  virtual bool wait_idle(std::chrono::milliseconds timeout) = 0;
};

}  // namespace lk
