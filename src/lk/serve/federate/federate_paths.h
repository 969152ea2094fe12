// SPDX-License-Identifier: Apache-2.0
// How clients and the server of a federated run talk over HTTP. A key of scope federate speaks for the client that its
// tenant is named after. Answers are JSON but for the blob; refusals are {"error": {"message", "code", ...}}.
//
//   POST kFederateJoin {"base_digest"[, "num_examples"]}
//        200 {"client", "run", "round", "rounds"}: `run` is the run file as text. Without num_examples it only asks.
//        409 another base (both digests are said)
//   GET  kFederateTask?after=N&wait=SECONDS
//        200 {"number", "round", "sha256", "bytes", "seconds_left"}: of the first task behind number N, or {"done":
//        true} 204 nothing within that time; 409 not_joined
//   GET  kFederateBlob + SHA256, with a Range
//        206 a part of the round file, at most kFilePartBytes
//   PUT  kFederateUpdates + ROUND, the update file
//        200 taken, also when it was taken before; 409 another round, run or base, or a second update that differs;
//        413 too large; 422 not what the round trains, or not finite; 507 no room here: try again
//   POST kFederateUpdates + ROUND {"error"}
//        200 the client says that it will send none
//   GET  kFederateStatus
//        200 figures; for keys of scope metrics or admin with names
#pragma once

#include <string_view>

namespace lk {

inline constexpr std::string_view kFederateJoin = "/v1/federated/join";
inline constexpr std::string_view kFederateTask = "/v1/federated/task";
inline constexpr std::string_view kFederateBlob = "/v1/federated/blob/";
inline constexpr std::string_view kFederateUpdates = "/v1/federated/updates/";
inline constexpr std::string_view kFederateStatus = "/v1/federated/status";

}  // namespace lk
