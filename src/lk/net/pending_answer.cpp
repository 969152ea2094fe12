// SPDX-License-Identifier: Apache-2.0
#include "lk/net/pending_answer.h"

#include <atomic>
#include <future>
#include <utility>

namespace lk {

std::string_view ClientAnswer::header(std::string_view lower_name) const {
  for (const auto& [name, value] : headers)
    if (name == lower_name) return value;
  return {};
}

struct PendingAnswer::Shared {
  ClientAnswer answer;
  std::promise<Status> promise;
  std::future<Status> done = promise.get_future();
  std::atomic<bool> too_long = false;
  std::atomic<int64_t> id = -1;  // send() has not returned
};

PendingAnswer::PendingAnswer(HttpClient& client, ClientRequest request, size_t most_bytes)
    : client_(client), shared_(std::make_shared<Shared>()) {
  ClientCallbacks callbacks;
  callbacks.on_head = [shared = shared_](int status, const HttpHeaders& headers) {
    shared->answer.status = status;
    shared->answer.headers = headers;
  };
  callbacks.on_data = [shared = shared_, &client, most_bytes](std::string_view bytes) {
    if (shared->too_long) return;
    if (shared->answer.body.size() + bytes.size() <= most_bytes) {
      shared->answer.body += bytes;
      return;
    }
    shared->too_long = true;
    if (const int64_t id = shared->id; id >= 0) client.cancel(id);
  };
  callbacks.on_done = [shared = shared_](Status status) { shared->promise.set_value(std::move(status)); };
  id_ = client.send(std::move(request), std::move(callbacks));
  shared_->id = id_;
  if (shared_->too_long) client.cancel(id_);
}

Result<ClientAnswer> PendingAnswer::wait(const std::function<bool()>& stop) {
  constexpr std::chrono::milliseconds kLook{100};
  if (stop) {
    while (shared_->done.wait_for(kLook) != std::future_status::ready)
      if (stop()) client_.cancel(id_);
  }
  const Status ended = shared_->done.get();
  if (shared_->too_long) return resource_exhausted("the answer is longer than was asked for");
  if (!ended.ok()) return ended;
  return std::move(shared_->answer);
}

}  // namespace lk
