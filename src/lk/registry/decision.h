// SPDX-License-Identifier: Apache-2.0
// Changes of a registry that rest on what stands there.
#pragma once

#include <functional>
#include <string_view>

#include "lk/registry/registry.h"

namespace lk {

// As Registry::list(), with a message for who asked for a change.
Result<Registry::Entries> list_for_change(Registry& registry, std::string_view prefix);

// False: somebody else changed something at the same moment. Whether it happened although its answer was lost is told
// from what stands there; equal values that somebody else put are as good. kUnavailable: it may have happened.
Result<bool> try_commit(Registry& registry, const Registry::Transaction& change, std::string_view what);

// `make` looks at what is there and says what should change; it is asked again when somebody else changed that before
// it was done, a few times. `is_all`: false from a `make` whose change is a part, after which it is asked for the rest.
Status decide(Registry& registry, std::string_view what,
              const std::function<Status(Registry::Transaction& change, bool& is_all)>& make);

}  // namespace lk
