// SPDX-License-Identifier: Apache-2.0
// What a server does as a member of a fleet: publications, and files for other replicas.
#include "lk/serve/http/file_part.h"
#include "lk/serve/http/server_impl.h"

namespace lk {

void ServerImpl::load_adapter(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done) {
  if (fleet_)
    fleet_->changes().publish(std::move(request), std::move(done));
  else
    registry_->load(std::move(request), std::move(done));
}

void ServerImpl::take_out_of_fleet(const std::shared_ptr<Exchange>& exchange, const std::string& target,
                                   std::function<void(const Status& fleet, bool was_fleets)> then) {
  if (!fleet_ || !(registry_->is_fleet(target) || fleet_->catalog().has_alias(target))) return then(Status(), false);
  fleet_->changes().remove(target, [exchange, then = std::move(then)](const Status& status) {
    exchange->post([then, status] { then(status, true); });
  });
}

// A part at a time: who wants more asks again, here or elsewhere.
void ServerImpl::fleet_blob(const std::shared_ptr<Exchange>& exchange) {
  if (!fleet_ || !is_sha256(exchange->parameter)) return exchange->fail(not_found("no such file here"));
  format(exchange, [fleet = fleet_.get(), exchange, range = std::string(exchange->request.header("range"))] {
    const std::optional<AdapterCache::Blob> blob = fleet->find_blob(exchange->parameter);
    if (!blob) return exchange->post([exchange] { exchange->fail(not_found("no such file here")); });
    auto part = std::make_shared<ApiResult<HttpResponse>>(file_part(blob->path, blob->bytes, range));
    exchange->post([exchange, part] {
      if (part->ok())
        exchange->respond(std::move(*part->value));
      else
        exchange->fail(part->error);
    });
  });
}

// A router expects requests for it here: it is read into memory, from disk or another replica, before they come.
void ServerImpl::fleet_prefetch(const std::shared_ptr<Exchange>& exchange) {
  work(exchange, [this, exchange] {
    with_model(exchange, exchange->parameter, [exchange](const AdapterRegistry::Resolved&) {
      exchange->post([exchange] { exchange->respond(200, "{}"); });
    });
  });
}

}  // namespace lk
