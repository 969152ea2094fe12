// SPDX-License-Identifier: Apache-2.0
// The registry that a URL names.
#include <cstdlib>

#include "lk/base/names.h"
#include "lk/net/http_client_url.h"
#include "lk/registry/etcd_registry.h"
#include "lk/registry/kubernetes_registry.h"

namespace lk {
namespace {

// Where a pod finds its service account.
constexpr std::string_view kAccount = "/var/run/secrets/kubernetes.io/serviceaccount/";

Status wrong(const RegistryOptions& options, std::string_view why) {
  return invalid_argument(
      "\"{}\": {}; write etcd://HOST:PORT[,HOST:PORT...]/FLEET, or etcds:// for TLS, or "
      "kubernetes:///NAMESPACE/SERVICE "
      "in a pod of that cluster",
      options.url, why);
}

Result<std::unique_ptr<Registry>> open_etcd(const RegistryOptions& options, std::string_view rest, bool tls) {
  const size_t slash = rest.find('/');
  if (slash == std::string_view::npos) return wrong(options, "it names no fleet");
  const std::string_view name = rest.substr(slash + 1);
  if (!is_valid_name(name)) return wrong(options, "the fleet's name has letters, digits, '.', '_' and '-'");
  EtcdClient::Options client{.tls_ca = options.tls_ca};
  for (std::string_view hosts = rest.substr(0, slash); !hosts.empty();) {
    const size_t comma = std::min(hosts.find(','), hosts.size());
    const std::string_view host = hosts.substr(0, comma);
    hosts.remove_prefix(std::min(comma + 1, hosts.size()));
    const size_t bracket = host.rfind(']');
    const bool has_port = host.find(':', bracket == std::string_view::npos ? 0 : bracket) != std::string_view::npos;
    const std::string url = fmt::format("{}://{}{}", tls ? "https" : "http", host, has_port ? "" : ":2379");
    const Result<ClientUrl> parsed = parse_client_url(url);
    if (!parsed.ok() || parsed->target != "/") return wrong(options, fmt::format("\"{}\" is no HOST:PORT", host));
    client.endpoints.push_back(url);
  }
  if (client.endpoints.empty()) return wrong(options, "it names no host");
  LK_ASSIGN_OR_RETURN(std::unique_ptr<EtcdClient> etcd, EtcdClient::create(client));
  return std::unique_ptr<Registry>(std::make_unique<EtcdRegistry>(
      std::move(etcd), EtcdRegistry::Options{.prefix = fmt::format("/lorikeet/{}/", name), .log = options.log}));
}

// Names of objects there: letters in lower case, digits and '-'.
bool is_label(std::string_view text) {
  return !text.empty() && text.size() <= 50 && text.front() != '-' && text.back() != '-' &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string_view::npos;
}

// "[HOST:PORT]/NAMESPACE/SERVICE"; without a host the pod's own cluster.
Result<std::unique_ptr<Registry>> open_kubernetes(const RegistryOptions& options, std::string_view rest, bool tls) {
  const size_t first = rest.find('/'), second = rest.find('/', first == std::string_view::npos ? first : first + 1);
  if (second == std::string_view::npos) return wrong(options, "it names no namespace and service");
  std::string host(rest.substr(0, first));
  const std::string name_space(rest.substr(first + 1, second - first - 1)), fleet(rest.substr(second + 1));
  if (!is_label(name_space) || !is_label(fleet))
    return wrong(options, "namespace and service have letters in lower case, digits and '-'");
  KubernetesClient::Options client{.tls_ca = options.tls_ca};
  if (host.empty()) {
    const char* address = std::getenv("KUBERNETES_SERVICE_HOST");
    const char* port = std::getenv("KUBERNETES_SERVICE_PORT");
    if (address == nullptr || port == nullptr) return wrong(options, "it names no host, and this is no pod");
    const bool is_v6 = std::string_view(address).find(':') != std::string_view::npos;
    host = fmt::format("{}{}{}:{}", is_v6 ? "[" : "", address, is_v6 ? "]" : "", port);
    if (client.tls_ca.empty()) client.tls_ca = fmt::format("{}ca.crt", kAccount);
    client.token_file = fmt::format("{}token", kAccount);
  }
  if (!options.token_file.empty()) client.token_file = options.token_file;
  client.url = fmt::format("{}://{}", tls ? "https" : "http", host);
  if (const Result<ClientUrl> parsed = parse_client_url(client.url); !parsed.ok() || parsed->target != "/")
    return wrong(options, fmt::format("\"{}\" is no HOST:PORT", host));
  LK_ASSIGN_OR_RETURN(std::unique_ptr<KubernetesClient> api, KubernetesClient::create(client));
  return std::unique_ptr<Registry>(std::make_unique<KubernetesRegistry>(
      std::move(api), KubernetesRegistry::Options{.name_space = name_space, .fleet = fleet, .log = options.log}));
}

}  // namespace

Result<std::unique_ptr<Registry>> open_registry(const RegistryOptions& options) {
  const std::string_view url = options.url;
  const size_t colon = url.find("://");
  const std::string_view scheme = url.substr(0, colon);
  const std::string_view rest = colon == std::string_view::npos ? "" : url.substr(colon + 3);
  if (scheme == "etcd" || scheme == "etcds") return open_etcd(options, rest, scheme == "etcds");
  // Without TLS: through `kubectl proxy`, which has an account of its own.
  if (scheme == "kubernetes" || scheme == "kubernetes+http")
    return open_kubernetes(options, rest, scheme == "kubernetes");
  return wrong(options, "no registry that is known");
}

}  // namespace lk
