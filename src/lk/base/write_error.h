// SPDX-License-Identifier: Apache-2.0
// Whether a write that failed is worth trying again.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>

#include "lk/base/status.h"

namespace lk {

// The code of a write that failed with this errno: kFailedPrecondition when it would fail again until somebody changes
// something (no permission, another kind of file in its place), kIoError otherwise (no room, a device).
inline StatusCode write_error_code(int error) {
  constexpr std::array kLasting{EACCES, EPERM, EROFS, ENOENT, ENOTDIR, EISDIR, EEXIST, ENOTEMPTY, ENAMETOOLONG, ELOOP};
  return std::ranges::find(kLasting, error) == kLasting.end() ? StatusCode::kIoError : StatusCode::kFailedPrecondition;
}

}  // namespace lk
