// SPDX-License-Identifier: Apache-2.0
// The memory plan: how what this process may use is divided between weights, pages, copies of adapters, caches and a
// reserve. Made once, before anything large is allocated; the budgets of all parts come from it and nowhere else, so
// that together they never exceed the machine or the limit of the service.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lk/base/memory_limits.h"
#include "lk/base/status.h"
#include "lk/engine/footprint.h"

namespace lk {

// What an operator asked for, in bytes; absent = whatever the plan finds best.
struct MemoryWishes {
  std::optional<int64_t> pages;     // --memory
  std::optional<int64_t> adapters;  // --host-memory
  std::optional<int64_t> sums;      // --sum-memory, a part of `adapters`
  int64_t grammars = 0;             // --grammar-memory
};

// Bytes.
struct MemoryPlan {
  MemoryLimits limits;
  int64_t weights = 0;      // packed matrices and the rows of the embedding
  int64_t activations = 0;  // buffers of one step
  int64_t pages = 0;        // the page pool: KV cache, resident adapters, merged layers
  int64_t adapters = 0;     // copies of adapters in host memory
  int64_t sums = 0;         // of `adapters`: cached weighted sums
  int64_t grammars = 0;     // cached grammars of structured output
  int64_t reserve = 0;      // the program, stacks, requests and answers on their way, files the kernel caches

  int64_t total() const { return weights + activations + pages + adapters + grammars + reserve; }
  // False: it holds only once others let go of memory that they have now.
  bool fits_now() const { return total() <= limits.available; }
};

// The reserve is a tenth of what is available, at least 256 MiB. Of what the fixed parts leave, pages get three
// quarters and adapters one; a wish for one of the two leaves the other the rest. kResourceExhausted, with the flag
// and the number that would fit, when the parts together exceed limits.total.
Result<MemoryPlan> plan_memory(const MemoryLimits& limits, const ModelFootprint& model, const MemoryWishes& wishes);

// A line with the limit and one for each part, aligned, each ended by \n.
std::string format_memory_plan(const MemoryPlan& plan);

}  // namespace lk
