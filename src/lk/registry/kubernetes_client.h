// SPDX-License-Identifier: Apache-2.0
// KubernetesClient: calls of a Kubernetes API server, in the name of a service account.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include <boost/json/object.hpp>

#include "lk/base/status.h"
#include "lk/net/http_client.h"

namespace lk {

class KubernetesClient {
 public:
  struct Options {
    std::string url;         // https://HOST:PORT
    std::string token_file;  // read before each request: tokens are exchanged while they are used. "" = none
    std::string tls_ca;
    std::chrono::milliseconds timeout{5000};
  };
  static Result<std::unique_ptr<KubernetesClient>> create(const Options& options);
  ~KubernetesClient() { stop(); }

  // Blocks. kNotFound; kAlreadyExists: 409, it is there already or has changed; kPermissionDenied: 401, 403;
  // kFailedPrecondition: 410, history is gone; kInvalidArgument: what was sent is none; kUnavailable: nobody answered,
  // or not now.
  Result<boost::json::object> call(const char* method, const std::string& path,
                                   const boost::json::object* body = nullptr);

  // A watch: `on_event` gets each of its JSON texts, `on_end` why it ended (OK: its time was over); both on an io
  // thread. Returns a number for close().
  int64_t open(const std::string& path, std::chrono::milliseconds longest,
               std::function<void(std::string_view json)> on_event, std::function<void(const Status&)> on_end);
  void close(int64_t stream) { http_->cancel(stream); }
  // Whoever waits gets kCancelled, now and later.
  void stop();
  const std::string& url() const { return options_.url; }

 private:
  explicit KubernetesClient(const Options& options) : options_(options) {}
  ClientRequest request(const char* method, const std::string& path, std::chrono::milliseconds timeout);

  const Options options_;
  std::mutex mutex_;
  bool stopped_ = false;       // guarded by mutex_, like all below
  std::set<int64_t> waiting_;  // calls
  std::string token_;          // as it was read last
  std::unique_ptr<HttpClient> http_;
};

}  // namespace lk
