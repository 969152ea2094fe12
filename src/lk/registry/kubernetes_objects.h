// SPDX-License-Identifier: Apache-2.0
// What a fleet keeps in Kubernetes, as JSON objects of its API. Pure.
//
//   ConfigMap lorikeet-FLEET       adapters, aliases, drains, the plan, and what members say of themselves
//   Secret    lorikeet-FLEET       tenants and keys
//   Lease     lorikeet-FLEET-NAME  who has a place of one ("leader/planner")
//   EndpointSlices of Service FLEET: where the members are; the cluster writes them
//
// Each of the first two is one object, so that a transaction is one write of it, which fails when somebody else wrote
// first (resourceVersion). It has at most 1 MiB: about two thousand versions of adapters.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/object.hpp>

#include "lk/registry/registry.h"

namespace lk {

inline constexpr size_t kMostKubernetesBytes = 1'000'000;  // of one object's data

// Names as keys of a `data` map: what is more than a letter, a digit, '-' or '.' as _XX.
std::string to_data_key(std::string_view name);
std::string from_data_key(std::string_view key);

// The entries of one object, and the number of its last transaction.
struct KubernetesEntries {
  Registry::Entries entries;
  int64_t revision = 0;
  std::string resource_version;  // "" = there is no such object
};
// `is_secret`: values are base64. Values that are none are passed over.
KubernetesEntries read_entries(const boost::json::object& object, bool is_secret);
// kResourceExhausted: more than one object holds.
Result<boost::json::object> format_entries(const KubernetesEntries& entries, std::string_view kind,
                                           std::string_view name, bool is_secret);
// Whether all that the transaction rests on is there; then it is made.
bool apply(const Registry::Transaction& transaction, KubernetesEntries& entries);

// Members at the addresses of these EndpointSlices that are not ending, with what each says of itself in `said`.
Registry::Entries members_in(const std::vector<boost::json::object>& slices, const Registry::Entries& said);

std::string resource_version_of(const boost::json::object& object);  // "" = it has none
std::string name_of(const boost::json::object& object);

// A Lease. Its times are the holder's clock: others go by how long it does not change.
struct KubernetesLease {
  std::string name, holder;  // holder "": nobody
  int64_t seconds = 15, transitions = 0;
  std::string renewed;  // as it stands there
  std::string resource_version;
};
KubernetesLease read_lease(const boost::json::object& object);
boost::json::object format_lease(const KubernetesLease& lease, std::chrono::system_clock::time_point now);

}  // namespace lk
