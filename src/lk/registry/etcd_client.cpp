// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/etcd_client.h"

#include <openssl/evp.h>

#include <charconv>
#include <optional>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/net/pending_answer.h"
#include "lk/registry/line_stream.h"

namespace lk {
namespace {

constexpr size_t kMostAnswerBytes = size_t{64} << 20;
constexpr auto kForever = std::chrono::hours(24 * 365);

// gRPC's codes, as the gateway names them in errors.
constexpr int64_t kGrpcNotFound = 5;

Status refusal(int status, std::string_view body) {
  std::string message(body.substr(0, 200));
  int64_t code = 0;
  if (const Result<boost::json::object> error = parse_json_object(body, "etcd"); error.ok()) {
    if (const auto* text = error->if_contains("error"); text && text->is_string()) message = text->get_string();
    if (const auto* number = error->if_contains("code"); number && number->is_int64()) code = number->get_int64();
  }
  if (code == kGrpcNotFound) return not_found("etcd: {}", message);
  // No leader, too many requests, time-out in the cluster: another try or another member may do.
  if (status == 503 || status == 504 || status == 429 || status == 500)
    return unavailable("etcd answered {}: {}", status, message);
  return failed_precondition("etcd answered {}: {}", status, message);
}

}  // namespace

Result<std::unique_ptr<EtcdClient>> EtcdClient::create(const Options& options) {
  std::unique_ptr<EtcdClient> self(new EtcdClient(options));
  LK_ASSIGN_OR_RETURN(self->http_, HttpClient::create({.tls_ca = options.tls_ca, .connect_timeout = options.timeout}));
  return Result<std::unique_ptr<EtcdClient>>(std::move(self));
}

ClientRequest EtcdClient::request(size_t endpoint, std::string_view path, const boost::json::object& body) const {
  ClientRequest request{.url = url(endpoint) + std::string(path)};
  request.headers.emplace_back("content-type", "application/json");
  request.body = json_text(body);
  request.timeout = options_.timeout;
  return request;
}

Result<boost::json::object> EtcdClient::call(std::string_view path, const boost::json::object& body) {
  const size_t first = endpoint_;
  Status last = unavailable("etcd has no endpoint");
  // The first once more: a connection that was kept may have been closed meanwhile.
  for (size_t i = 0; i <= num_endpoints(); ++i) {
    const size_t endpoint = (first + i) % num_endpoints();
    Result<boost::json::object> answer = call_at(endpoint, path, body);
    if (answer.ok() || answer.status().code() != StatusCode::kUnavailable) {
      if (answer.status().code() != StatusCode::kCancelled) endpoint_ = endpoint;
      return answer;
    }
    last = answer.status();
  }
  return last;
}

Result<boost::json::object> EtcdClient::call_at(size_t endpoint, std::string_view path,
                                                const boost::json::object& body) {
  std::optional<PendingAnswer> pending;
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return cancelled("the registry is closed");
    pending.emplace(*http_, request(endpoint, path, body), kMostAnswerBytes);
    waiting_.insert(pending->id());
  }
  const Result<ClientAnswer> got = pending->wait();
  {
    std::lock_guard lock(mutex_);
    waiting_.erase(pending->id());
    if (stopped_) return cancelled("the registry is closed");
  }
  if (got.status().code() == StatusCode::kResourceExhausted)
    return data_loss("{}: an answer of more than {} bytes", url(endpoint), kMostAnswerBytes);
  if (!got.ok()) return unavailable("{}: {}", url(endpoint), got.status().message());
  if (got->status != 200) return refusal(got->status, got->body);
  Result<boost::json::object> answer = parse_json_object(got->body, url(endpoint));
  if (!answer.ok()) return unavailable("{}", answer.status().message());
  return answer;
}

void EtcdClient::skip(size_t endpoint) {
  size_t expected = endpoint;
  endpoint_.compare_exchange_strong(expected, (endpoint + 1) % num_endpoints());
}

int64_t EtcdClient::open(size_t endpoint, std::string_view path, const boost::json::object& body,
                         std::function<void(std::string_view)> on_message, std::function<void(const Status&)> on_end) {
  ClientRequest whole = request(endpoint, path, body);
  whole.timeout = kForever;
  return open_lines(*http_, std::move(whole),
                    {.on_line = std::move(on_message),
                     .on_end = [on_end = std::move(on_end)](const Status& ended, int status, std::string_view text) {
                       if (ended.ok() && status != 200) return on_end(refusal(status, text));
                       on_end(ended.ok() ? unavailable("etcd ended the stream") : ended);
                     }});
}

void EtcdClient::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  for (const int64_t id : waiting_) http_->cancel(id);
}

std::string to_base64(std::string_view bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int length =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(length));
  return text;
}

Result<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0 || text.size() > kMostAnswerBytes) return data_loss("etcd: a value that is no base64");
  std::string bytes(text.size() / 4 * 3 + 1, '\0');
  const int length =
      EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                      reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (length < 0) return data_loss("etcd: a value that is no base64");
  // Padding is counted by the decoder as bytes.
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  bytes.resize(static_cast<size_t>(length) - padding);
  return bytes;
}

Result<int64_t> etcd_number(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  if (value == nullptr) return int64_t{0};
  if (value->is_int64()) return value->get_int64();
  int64_t number = 0;
  if (value->is_string()) {
    const std::string_view text = value->get_string();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size() && !text.empty()) return number;
    // Identifiers are unsigned; theirs is the same 64 bits.
    uint64_t wide = 0;
    const auto [wide_end, wide_error] = std::from_chars(text.data(), text.data() + text.size(), wide);
    if (wide_error == std::errc() && wide_end == text.data() + text.size() && !text.empty())
      return static_cast<int64_t>(wide);
  }
  return data_loss("etcd: \"{}\" is no number", key);
}

}  // namespace lk
