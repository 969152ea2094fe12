// SPDX-License-Identifier: Apache-2.0
// The compiled grammar: one deterministic automaton per rule, whose nodes move on classes of bytes and may call other
// rules. Every node can reach the end of its rule, so a text that is alive can always be finished.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lk/base/status.h"
#include "lk/base/thread_time.h"
#include "lk/grammar/grammar.h"
#include "lk/grammar/ir.h"

namespace lk::grammar {

inline constexpr uint32_t kNoNode = ~0u;
// Calls that may be open at once: texts that would need more are not in the language.
inline constexpr int kMaxOpenCalls = 256;

struct Automaton {
  struct Call {
    RuleId rule;
    uint32_t target;  // where the caller goes on
    bool tail;        // nothing follows: the callee takes the caller's place
  };
  uint32_t num_classes = 0;
  std::array<uint8_t, 256> class_of{};
  std::vector<uint32_t> next;        // [node, class], kNoNode if none
  std::vector<uint8_t> accepts;      // [node] the rule may end here
  std::vector<uint8_t> moves;        // [node] has a byte to go on with
  std::vector<uint16_t> height;      // [node] open calls needed to reach the rule's end
  std::vector<uint32_t> call_begin;  // [node + 1] into calls
  std::vector<Call> calls;
  std::vector<uint32_t> start;    // [rule], kNoNode if the rule is not called
  std::vector<uint8_t> nullable;  // [rule] has the empty text
  RuleId root = 0;
  int max_height = 0;

  size_t num_nodes() const { return accepts.size(); }
  std::span<const Call> calls_of(uint32_t node) const {
    return {calls.data() + call_begin[node], call_begin[node + 1] - call_begin[node]};
  }
  int64_t memory() const;
};

// What a compilation may still use. Every loop that can grow asks it.
class Budget {
 public:
  explicit Budget(const GrammarLimits& limits)
      : go_on_(limits.go_on),
        deadline_(thread_time() + limits.compile_timeout),
        next_look_(thread_time() + kLookInterval),
        timeout_(limits.compile_timeout),
        max_bytes_(limits.max_compiled_bytes) {}
  // Accounts for memory in use by a growing structure; false once a limit is passed, and ever after.
  bool spend(int64_t bytes) {
    bytes_ += bytes;
    if (bytes_ > max_bytes_ && !failed_) failed_ = too_large_ = true;
    if ((++calls_ & 127) == 0) look_at_clock();
    return !failed_;
  }
  void release(int64_t bytes) { bytes_ -= bytes; }
  bool ok() const { return !failed_; }
  Status status() const {
    if (!failed_) return {};
    if (given_up_) return unavailable("the grammar was not compiled: nobody waits for it any more");
    if (too_large_)
      return invalid_argument("the grammar is too large: it needs more than {} bytes when compiled", max_bytes_);
    return invalid_argument("the grammar is too complex: compiling takes more than {} ms", timeout_.count());
  }

 private:
  static constexpr std::chrono::nanoseconds kLookInterval = std::chrono::milliseconds(1);
  void look_at_clock() {
    const std::chrono::nanoseconds now = thread_time();
    if (now < next_look_) return;
    if (now > deadline_) failed_ = true;
    if (go_on_ && !go_on_()) failed_ = given_up_ = true;
    const std::chrono::nanoseconds then = thread_time();
    deadline_ += then - now;
    next_look_ = then + kLookInterval;
  }

  const std::function<bool()> go_on_;
  std::chrono::nanoseconds deadline_, next_look_;  // of thread_time()
  std::chrono::milliseconds timeout_;
  int64_t max_bytes_, bytes_ = 0;
  uint32_t calls_ = 0;
  bool failed_ = false, given_up_ = false, too_large_ = false;
};

// kInvalidArgument: a limit, a rule that is not defined, left recursion, or no text at all.
Result<Automaton> build_automaton(const Ir& ir, RuleId root, Budget& budget);

}  // namespace lk::grammar
