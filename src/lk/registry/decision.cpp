// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/decision.h"

namespace lk {
namespace {

constexpr int kTries = 8;

bool has_happened(Registry& registry, const Registry::Transaction& change) {
  for (const auto& [key, value] : change.puts) {
    const Result<Registry::Entries> now = registry.list(key);
    if (!now.ok() || !now->contains(key) || now->at(key).value != value) return false;
  }
  return !change.puts.empty();
}

}  // namespace

Result<Registry::Entries> list_for_change(Registry& registry, std::string_view prefix) {
  Result<Registry::Entries> entries = registry.list(std::string(prefix));
  if (!entries.ok()) return unavailable("the fleet's registry does not answer: {}", entries.status().message());
  return entries;
}

Result<bool> try_commit(Registry& registry, const Registry::Transaction& change, std::string_view what) {
  const Result<bool> done = registry.commit(change);
  if ((done.ok() && *done) || has_happened(registry, change)) return true;
  if (!done.ok())
    return unavailable("the fleet's registry does not answer; {} may not have happened: {}", what,
                       done.status().message());
  return false;
}

Status decide(Registry& registry, std::string_view what,
              const std::function<Status(Registry::Transaction&, bool&)>& make) {
  for (int tries = 0; tries < kTries; ++tries) {
    Registry::Transaction change;
    bool is_all = true;
    LK_RETURN_IF_ERROR(make(change, is_all));
    LK_ASSIGN_OR_RETURN(const bool done, try_commit(registry, change, what));
    if (done && is_all) return Status();
    if (done) tries = 0;
  }
  return unavailable("{}: others change the same at the same time; try again", what);
}

}  // namespace lk
