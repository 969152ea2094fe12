// SPDX-License-Identifier: Apache-2.0
// AdapterSupply: what the registry of adapters asks for directories that may have to come from elsewhere first.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "lk/base/status.h"

namespace lk {

class AdapterSupply {
 public:
  virtual ~AdapterSupply() = default;
  // The directory stays as it is until the last reference is gone. Null: it is not here.
  virtual std::shared_ptr<const void> hold(const std::string& path) = 0;
  // Brings it. `done` on some thread, or at once.
  virtual void fetch(const std::string& path, std::function<void(const Status& status)> done) = 0;
};

}  // namespace lk
