// SPDX-License-Identifier: Apache-2.0
// The streams that replicas send to routers: server-sent events as clients get them, and after what one token (or a
// few) of one choice made, a comment line that says which tokens these were:
//
//   data: {...}
//
//   : lk {"choice":0,"first":17,"tokens":[1203]}
//
// What stands before such a line is one group. A router forwards whole groups only, so it always knows with which token
// the client's answer goes on. Comments are no events: whoever does not know them sees an ordinary stream (WHATWG HTML,
// 9.2.6).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct AnswerCommit {
  int choice = 0;
  int64_t first = 0;            // index of the first of these tokens in the choice's output
  std::vector<int32_t> tokens;  // may be empty: an end without a token
  bool done = false;            // the choice ended with them
  int64_t events = 0;           // of those that have numbers, shown so far
  // With the first tokens of a choice: of its prompt, for the usage that the answer ends with.
  struct Prompt {
    int64_t tokens = 0, cached = 0;
    bool operator==(const Prompt&) const = default;
  };
  std::optional<Prompt> prompt;
  std::string digest;  // likewise: of the adapter's content, hex; "" for the base model
  bool end = false;    // nothing follows: the answer is whole. No choice, no tokens then

  bool operator==(const AnswerCommit&) const = default;
};

// With the blank line that ends it.
std::string format_commit(const AnswerCommit& commit);
// `json`: what stands behind ": lk ". kDataLoss when it is no such object.
Result<AnswerCommit> parse_commit(std::string_view json);

// Splits a replica's stream into groups.
class CommitReader {
 public:
  // `events`: the bytes of the group, comments taken out; "" when nothing was shown.
  using OnGroup = std::function<void(std::string_view events, AnswerCommit commit)>;
  // Another comment came: a sign of life, for proxies that take silence for death.
  using OnPing = std::function<void()>;
  explicit CommitReader(OnGroup on_group, OnPing on_ping = {}, size_t max_group_bytes = 64 << 20)
      : on_group_(std::move(on_group)), on_ping_(std::move(on_ping)), max_group_bytes_(max_group_bytes) {}

  // kDataLoss, now and ever after: a line or a group beyond the bound, or a commit that is none.
  Status push(std::string_view bytes);
  // Events that no commit has followed yet.
  std::string_view rest() const { return group_; }

 private:
  Status end_line();

  OnGroup on_group_;
  OnPing on_ping_;
  const size_t max_group_bytes_;
  std::string line_, group_;
  bool in_event_ = false;  // a line other than a comment has come since the last blank one
  Status failed_;
};

}  // namespace lk
