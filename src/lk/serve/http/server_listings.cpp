// SPDX-License-Identifier: Apache-2.0
// Lists of models and adapters, a page at a time: with ten thousand adapters a page costs what is on it, and no io
// thread makes it.
#include <algorithm>
#include <charconv>
#include <ctime>

#include "lk/serve/http/model_json.h"
#include "lk/serve/http/query_value.h"
#include "lk/serve/http/server_impl.h"
#include "lk/serve/observe/status_json.h"

namespace lk {
namespace {

// A page that nobody asked the length of: clients made for short lists get all of most servers' adapters.
constexpr int64_t kDefaultPage = 1000;
constexpr int64_t kLargestPage = 10'000;
constexpr size_t kMaxAfterBytes = 300;  // a name and its version

void hide_owner(const Exchange& exchange, AdapterSnapshot& adapter) {
  const std::shared_ptr<const Tenant> limits = exchange.limits();
  if (limits && adapter.tenant != limits->name) adapter.tenant.clear();
}

struct PageRequest {
  int64_t limit = kDefaultPage;
  std::string after;
};

ApiResult<PageRequest> page_request(const HttpRequest& request) {
  PageRequest page;
  if (const auto limit = query_value(request.query, "limit")) {
    const auto [end, error] = std::from_chars(limit->data(), limit->data() + limit->size(), page.limit);
    if (error != std::errc() || end != limit->data() + limit->size() || page.limit < 1 || page.limit > kLargestPage)
      return ApiError{.message = fmt::format("\"limit\" must be a number from 1 to {}", kLargestPage),
                      .param = "limit"};
  }
  if (auto after = query_value(request.query, "after")) page.after = std::move(*after);
  if (page.after.size() > kMaxAfterBytes)
    return ApiError{.message = "\"after\" must be the id of an entry of the list", .param = "after"};
  return page;
}

}  // namespace

void ServerImpl::models(const std::shared_ptr<Exchange>& exchange) {
  ApiResult<PageRequest> asked = page_request(exchange->request);
  if (!asked.ok()) return exchange->fail(asked.error);
  format(exchange, [this, exchange, asked = std::move(*asked.value)] {
    const Tenant& tenant = *exchange->principal.tenant;
    const bool paths = exchange->principal.has(Scope::kAdapters);
    const std::string& base = registry_->base_name();
    ModelList list(base, started_at());
    // The base comes first, by all its names, then everything else by name.
    int64_t left = asked.limit;
    std::vector<std::string> bases{base};
    bases.insert(bases.end(), registry_->base_aliases().begin(), registry_->base_aliases().end());
    const auto last = std::ranges::find(bases, asked.after);
    const bool from_base = last != bases.end();
    if (from_base) bases.erase(bases.begin(), last + 1);
    if (!(from_base || asked.after.empty()) || !tenant.may_use("base")) bases.clear();
    for (const std::string& id : bases) {
      if (left == 0) return exchange->send(200, list.text(true));
      list.add_base(id, options_.model_root, text().context());
      --left;
    }
    const AdapterRegistry::NamePage page =
        registry_->list_names(from_base ? "" : asked.after, static_cast<size_t>(left),
                              [&](const std::string& name) { return tenant.may_use(name); });
    for (const AdapterRegistry::Listed& entry : page.entries)
      list.add(entry.name, !entry.target.empty() ? entry.target : paths ? entry.path : entry.name, entry.created);
    exchange->send(200, list.text(page.has_more));
  });
}

void ServerImpl::model(const std::shared_ptr<Exchange>& exchange) {
  const std::string& id = exchange->parameter;
  const auto missing =
      ApiError{.status = 404,
               .message = fmt::format("The model `{}` does not exist or you do not have access to it.", id),
               .param = "model",
               .code = "model_not_found"};
  // A sum is built on a worker; the listing only knows what has a name.
  if (AdapterSums::is_sum(id) && !registry_->find(id, {})) return exchange->fail(missing);
  const bool paths = exchange->principal.has(Scope::kAdapters);
  ModelList list(registry_->base_name(), started_at());
  std::string cold;
  const Result<AdapterRegistry::Resolved> found = registry_->resolve(id, *exchange->principal.tenant, &cold);
  if (!cold.empty()) {
    const std::optional<AdapterSnapshot> known = registry_->find(cold, {});
    if (!known) return exchange->fail(missing);
    list.add(id, paths ? known->path : known->name, 0);
  } else if (!found.ok()) {
    return exchange->fail(missing);
  } else if (found->adapter) {
    list.add(id, paths ? found->adapter->path : found->adapter->name, found->adapter->created);
  } else {
    const std::vector<std::string>& aliases = registry_->base_aliases();
    const bool is_alias = std::ranges::find(aliases, id) != aliases.end();
    list.add_base(is_alias ? id : registry_->base_name(), options_.model_root, text().context());
  }
  exchange->respond(200, list.single());
}

// What a key may see of an adapter: whose it is, if it is its own tenant's; an admin sees everybody's.
std::string ServerImpl::adapter_json(const Exchange& exchange, AdapterSnapshot adapter) {
  hide_owner(exchange, adapter);
  return format_adapter(adapter);
}

void ServerImpl::list_adapters(const std::shared_ptr<Exchange>& exchange) {
  ApiResult<PageRequest> asked = page_request(exchange->request);
  if (!asked.ok()) return exchange->fail(asked.error);
  format(exchange, [this, exchange, asked = std::move(*asked.value)] {
    const Tenant& tenant = *exchange->principal.tenant;
    AdapterRegistry::AdapterPage page =
        registry_->list(service_->snapshot(), asked.after, static_cast<size_t>(asked.limit),
                        [&](const std::string& name) { return tenant.may_use(name); });
    for (AdapterSnapshot& adapter : page.entries) hide_owner(*exchange, adapter);
    const bool is_admin = exchange->principal.has(Scope::kAdmin);
    exchange->send(200, format_adapters(page.entries, page.has_more,
                                        is_admin ? registry_->directories() : std::vector<WatchedDirectory>()));
  });
}

void ServerImpl::get_adapter(const std::shared_ptr<Exchange>& exchange) {
  format(exchange, [this, exchange] {
    const std::optional<AdapterSnapshot> adapter = registry_->find(exchange->parameter, service_->snapshot());
    if (!adapter || !exchange->principal.tenant->may_use(adapter->name))
      return exchange->refuse(api_error(not_found("there is no adapter \"{}\"", exchange->parameter), exchange->id));
    exchange->send(200, adapter_json(*exchange, *adapter));
  });
}

}  // namespace lk
