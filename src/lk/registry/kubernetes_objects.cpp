// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/kubernetes_objects.h"

#include <fmt/format.h>

#include <charconv>
#include <ctime>

#include <boost/json/array.hpp>

#include "lk/registry/etcd_client.h"
#include "lk/registry/member.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr std::string_view kRevision = "revision";  // no name of an entry: those have a '/', or are "base"

const json::object* object_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}
std::string text_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}
const json::array* array_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_array();
}
int64_t number_at(const json::object& object, std::string_view key, int64_t otherwise) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? value->get_int64() : otherwise;
}
bool flag_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_bool() && value->get_bool();
}

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-';
}

// "http", port: of the first one that a slice names.
std::pair<std::string, int64_t> port_of(const json::object& slice) {
  const json::array* ports = array_at(slice, "ports");
  if (ports == nullptr || ports->empty() || !ports->front().is_object()) return {"", 0};
  const json::object& port = ports->front().get_object();
  const bool tls = text_at(port, "appProtocol") == "https" || text_at(port, "name").starts_with("https");
  return {tls ? "https" : "http", number_at(port, "port", 0)};
}

}  // namespace

std::string to_data_key(std::string_view name) {
  std::string key;
  for (const char c : name) key += is_plain(c) ? std::string(1, c) : fmt::format("_{:02X}", static_cast<uint8_t>(c));
  return key;
}

std::string from_data_key(std::string_view key) {
  std::string name;
  for (size_t i = 0; i < key.size(); ++i) {
    unsigned value = 0;
    const bool coded = key[i] == '_' && i + 2 < key.size() &&
                       std::from_chars(key.data() + i + 1, key.data() + i + 3, value, 16).ptr == key.data() + i + 3;
    name += coded ? static_cast<char>(value) : key[i];
    if (coded) i += 2;
  }
  return name;
}

std::string resource_version_of(const json::object& object) {
  const json::object* metadata = object_at(object, "metadata");
  return metadata == nullptr ? "" : text_at(*metadata, "resourceVersion");
}

std::string name_of(const json::object& object) {
  const json::object* metadata = object_at(object, "metadata");
  return metadata == nullptr ? "" : text_at(*metadata, "name");
}

KubernetesEntries read_entries(const json::object& object, bool is_secret) {
  KubernetesEntries found{.entries = {}, .resource_version = resource_version_of(object)};
  const json::object* data = object_at(object, "data");
  if (data == nullptr) return found;
  for (const auto& [key, value] : *data) {
    if (!value.is_string()) continue;
    std::string text(value.get_string());
    if (is_secret) {
      Result<std::string> bytes = from_base64(text);
      if (!bytes.ok()) continue;
      text = std::move(*bytes);
    }
    int64_t revision = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), revision);
    if (error != std::errc()) continue;
    if (std::string_view(key) == kRevision) {
      found.revision = std::max(found.revision, revision);
      continue;
    }
    const auto digits = static_cast<size_t>(end - text.data());
    if (digits >= text.size() || text[digits] != ' ') continue;
    found.entries[from_data_key(key)] = {.value = text.substr(digits + 1), .revision = revision};
    found.revision = std::max(found.revision, revision);
  }
  return found;
}

Result<json::object> format_entries(const KubernetesEntries& entries, std::string_view kind, std::string_view name,
                                    bool is_secret) {
  json::object data;
  size_t bytes = 0;
  const auto put = [&](const std::string& key, const std::string& text) {
    std::string value = is_secret ? to_base64(text) : text;
    bytes += key.size() + value.size();
    data[key] = std::move(value);
  };
  put(std::string(kRevision), std::to_string(entries.revision));
  for (const auto& [entry, content] : entries.entries)
    put(to_data_key(entry), fmt::format("{} {}", content.revision, content.value));
  if (bytes > kMostKubernetesBytes)
    return resource_exhausted("{} {} would have {} bytes, and holds {}: a registry in etcd holds more", kind, name,
                              bytes, kMostKubernetesBytes);
  json::object metadata{{"name", name}};
  if (!entries.resource_version.empty()) metadata["resourceVersion"] = entries.resource_version;
  return json::object{
      {"apiVersion", "v1"}, {"kind", kind}, {"metadata", std::move(metadata)}, {"data", std::move(data)}};
}

bool apply(const Registry::Transaction& transaction, KubernetesEntries& entries) {
  for (const auto& [name, revision] : transaction.unchanged) {
    const auto found = entries.entries.find(name);
    if ((found == entries.entries.end() ? 0 : found->second.revision) != revision) return false;
  }
  for (const auto& [prefix, revision] : transaction.none_newer)
    for (auto at = entries.entries.lower_bound(prefix); at != entries.entries.end() && at->first.starts_with(prefix);
         ++at)
      if (at->second.revision > revision) return false;
  ++entries.revision;
  for (const auto& [name, value] : transaction.puts)
    entries.entries[name] = {.value = value, .revision = entries.revision};
  for (const std::string& name : transaction.removals) entries.entries.erase(name);
  return true;
}

Registry::Entries members_in(const std::vector<json::object>& slices, const Registry::Entries& said) {
  Registry::Entries members;
  for (const json::object& slice : slices) {
    const auto& [scheme, port] = port_of(slice);
    const json::array* endpoints = array_at(slice, "endpoints");
    if (port == 0 || endpoints == nullptr) continue;
    const bool is_v6 = text_at(slice, "addressType") == "IPv6";
    for (const json::value& value : *endpoints) {
      const json::object* endpoint = value.if_object();
      const json::array* addresses = endpoint == nullptr ? nullptr : array_at(*endpoint, "addresses");
      if (addresses == nullptr || addresses->empty() || !addresses->front().is_string()) continue;
      const json::object* conditions = object_at(*endpoint, "conditions");
      if (conditions != nullptr && flag_at(*conditions, "terminating")) continue;
      const std::string address(addresses->front().get_string());
      Member member{.url = fmt::format("{}://{}:{}", scheme, is_v6 ? "[" + address + "]" : address, port)};
      const json::object* target = object_at(*endpoint, "targetRef");
      member.id = target == nullptr ? "" : text_at(*target, "name");
      if (member.id.empty()) member.id = fmt::format("{}-{}", address, port);
      for (char& c : member.id)
        if (c == ':') c = '-';
      if (target != nullptr) member.incarnation = text_at(*target, "uid");
      const std::string name = std::string(kMembers) + member.id;
      // What it says of itself, while it is about this address.
      const auto own = said.find(name);
      const Result<Member> record =
          own == said.end() ? not_found("nothing was said") : parse_member(name, own->second.value);
      if (record.ok() && record->url == member.url)
        members[name] = own->second;
      else
        members[name] = {.value = format_member(member), .revision = 1};
    }
  }
  return members;
}

KubernetesLease read_lease(const json::object& object) {
  KubernetesLease lease{.name = name_of(object), .holder = {}, .renewed = {}};
  lease.resource_version = resource_version_of(object);
  if (const json::object* spec = object_at(object, "spec")) {
    lease.holder = text_at(*spec, "holderIdentity");
    lease.renewed = text_at(*spec, "renewTime");
    lease.seconds = number_at(*spec, "leaseDurationSeconds", lease.seconds);
    lease.transitions = number_at(*spec, "leaseTransitions", 0);
  }
  return lease;
}

json::object format_lease(const KubernetesLease& lease, std::chrono::system_clock::time_point now) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(now - std::chrono::system_clock::from_time_t(seconds));
  std::tm parts{};
  char text[32] = {};
  ::gmtime_r(&seconds, &parts);
  (void)std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  json::object metadata{{"name", lease.name}};
  if (!lease.resource_version.empty()) metadata["resourceVersion"] = lease.resource_version;
  return json::object{{"apiVersion", "coordination.k8s.io/v1"},
                      {"kind", "Lease"},
                      {"metadata", std::move(metadata)},
                      {"spec", json::object{{"holderIdentity", lease.holder},
                                            {"leaseDurationSeconds", lease.seconds},
                                            {"leaseTransitions", lease.transitions},
                                            {"renewTime", fmt::format("{}.{:06}Z", text, micros.count())}}}};
}

}  // namespace lk
