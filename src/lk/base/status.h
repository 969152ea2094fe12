// SPDX-License-Identifier: Apache-2.0
// Status and Result<T>: the return types of everything that can fail for a reason outside the
// program (files, requests, budgets). A message says what, where, and what to do about it.
// Expected outcomes (pool full, cache miss) are bool/optional; bugs are LK_CHECK (check.h).
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>

#include "lk/base/check.h"

namespace lk {

enum class StatusCode {
  kOk,
  kInvalidArgument,  // the caller's input is wrong: a field, a prompt, a flag
  kNotFound,         // a named thing does not exist: file, adapter, tensor
  kAlreadyExists,
  kDataLoss,           // a file is truncated, corrupt or contradicts itself
  kUnsupported,        // well-formed, but a kind that is not implemented; says which
  kResourceExhausted,  // a budget or queue is full
  kFailedPrecondition,
  kCancelled,
  kDeadlineExceeded,
  kUnauthenticated,   // no key, or a wrong one
  kPermissionDenied,  // known, but not allowed
  kUnavailable,       // overloaded or shutting down: try again later
  kIoError,           // the operating system refused: permissions, disk full
  kInternal,
};

const char* to_string(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same failure seen from one level up: "context: message".
  Status with_context(std::string_view context) const {
    if (ok()) return *this;
    return Status(code_, fmt::format("{}: {}", context, message_));
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// Factories: return invalid_argument("top_p must be in (0, 1], got {}", p);
#define LK_STATUS_FACTORY(name, code)                                                  \
  template <class... Args>                                                             \
  Status name(fmt::format_string<Args...> format, Args&&... args) {                    \
    return Status(StatusCode::code, fmt::format(format, std::forward<Args>(args)...)); \
  }
LK_STATUS_FACTORY(invalid_argument, kInvalidArgument)
LK_STATUS_FACTORY(not_found, kNotFound)
LK_STATUS_FACTORY(already_exists, kAlreadyExists)
LK_STATUS_FACTORY(data_loss, kDataLoss)
LK_STATUS_FACTORY(unsupported, kUnsupported)
LK_STATUS_FACTORY(resource_exhausted, kResourceExhausted)
LK_STATUS_FACTORY(failed_precondition, kFailedPrecondition)
LK_STATUS_FACTORY(cancelled, kCancelled)
LK_STATUS_FACTORY(deadline_exceeded, kDeadlineExceeded)
LK_STATUS_FACTORY(unauthenticated, kUnauthenticated)
LK_STATUS_FACTORY(permission_denied, kPermissionDenied)
LK_STATUS_FACTORY(unavailable, kUnavailable)
LK_STATUS_FACTORY(io_error, kIoError)
LK_STATUS_FACTORY(internal_error, kInternal)
#undef LK_STATUS_FACTORY

// A T or the Status that explains its absence.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    LK_CHECK(!status_.ok(), "Result built from an OK status without a value");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // Requires: ok().
  T& value() & {
    check();
    return *value_;
  }
  const T& value() const& {
    check();
    return *value_;
  }
  T&& value() && {
    check();
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  void check() const { LK_CHECK(value_.has_value(), "value() of a failed Result: {}", status_.message()); }
  Status status_;
  std::optional<T> value_;
};

// Return early with the failure.  LK_RETURN_IF_ERROR(open(path));
#define LK_RETURN_IF_ERROR(expr)                                               \
  do {                                                                         \
    if (::lk::Status lk_status_ = (expr); !lk_status_.ok()) return lk_status_; \
  } while (0)

// LK_ASSIGN_OR_RETURN(auto file, SafetensorsFile::open(path));
#define LK_ASSIGN_OR_RETURN(lhs, expr) LK_ASSIGN_OR_RETURN_(LK_CONCAT(lk_result_, __LINE__), lhs, expr)
#define LK_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                         \
  if (!tmp.ok()) return tmp.status();        \
  lhs = std::move(tmp).value()
#define LK_CONCAT(a, b) LK_CONCAT_(a, b)
#define LK_CONCAT_(a, b) a##b

}  // namespace lk
