// SPDX-License-Identifier: Apache-2.0
// EtcdClient: calls of etcd's JSON gateway (etcd 3.4 and later, /v3/...), at whichever of its members answers.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/object.hpp>

#include "lk/base/status.h"
#include "lk/net/http_client.h"

namespace lk {

class EtcdClient {
 public:
  struct Options {
    std::vector<std::string> endpoints;  // http(s)://HOST:PORT
    std::string tls_ca;
    std::chrono::milliseconds timeout{2000};  // of one try at one endpoint
  };
  static Result<std::unique_ptr<EtcdClient>> create(const Options& options);
  ~EtcdClient() { stop(); }

  // Blocks. The endpoint that answered last is asked first, then the others, and at last that one again. kUnavailable:
  // nobody answered (somebody may have done it all the same); kNotFound: what it is about is not there;
  // kFailedPrecondition: refused.
  Result<boost::json::object> call(std::string_view path, const boost::json::object& body);
  Result<boost::json::object> call_at(size_t endpoint, std::string_view path, const boost::json::object& body);
  size_t endpoint() const { return endpoint_; }  // that answered last
  void skip(size_t endpoint);                    // it does not do: others first

  // An answer that does not end: `on_message` gets each of its JSON texts, `on_end` why it ended; both on an io thread.
  // Returns a number for close().
  int64_t open(size_t endpoint, std::string_view path, const boost::json::object& body,
               std::function<void(std::string_view json)> on_message, std::function<void(const Status&)> on_end);
  void close(int64_t stream) { http_->cancel(stream); }

  size_t num_endpoints() const { return options_.endpoints.size(); }
  const std::string& url(size_t endpoint) const { return options_.endpoints[endpoint]; }
  // Whoever waits gets kCancelled, now and later.
  void stop();

 private:
  explicit EtcdClient(const Options& options) : options_(options) {}
  ClientRequest request(size_t endpoint, std::string_view path, const boost::json::object& body) const;

  const Options options_;
  std::atomic<size_t> endpoint_{0};
  std::mutex mutex_;
  bool stopped_ = false;       // guarded by mutex_
  std::set<int64_t> waiting_;  // calls; guarded by mutex_
  std::unique_ptr<HttpClient> http_;
};

// Bytes as the gateway has them in JSON.
std::string to_base64(std::string_view bytes);
Result<std::string> from_base64(std::string_view text);
// 64-bit numbers are strings there, and 0 is left out. kDataLoss for anything else.
Result<int64_t> etcd_number(const boost::json::object& object, std::string_view key);

}  // namespace lk
