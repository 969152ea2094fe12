// SPDX-License-Identifier: Apache-2.0
// guarded(): a wall around work done for one request on a thread that serves many. We report errors as Status and throw
// nothing, but allocation and libraries do: what they throw must end that request and not the process.
#pragma once

#include <exception>
#include <string_view>
#include <type_traits>

#include "lk/base/status.h"

namespace lk {

// Calls f(); an exception becomes kInternal, whose text is for the log. F returns void, Status or Result<T>.
template <class F>
auto guarded(std::string_view what, F&& f) {
  using Returned = std::invoke_result_t<F>;
  using Guarded = std::conditional_t<std::is_void_v<Returned>, Status, Returned>;
  const auto call = [&]() -> Guarded {
    if constexpr (std::is_void_v<Returned>) {
      f();
      return Status();
    } else {
      return f();
    }
  };
  try {
    return call();
  } catch (const std::exception& e) {
    return Guarded(internal_error("exception in {}: {}", what, e.what()));
  } catch (...) {
    return Guarded(internal_error("exception in {}", what));
  }
}

}  // namespace lk
