// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "lk/base/bytes.h"

namespace lk {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kMinReserve = 256 * kMiB;
constexpr int64_t kReservePart = 10;  // of what is available, one part in this many
constexpr int64_t kMinPages = 64;     // a pool for a thousand tokens; below it nothing useful runs
constexpr int64_t kMinAdapters = 16 * kMiB;
constexpr int64_t kSumsPart = 8;  // of the copies of adapters, one part in this many may be sums

// A size a flag takes, rounded down: "12345MiB".
std::string flag_size(int64_t bytes) {
  return bytes < kMiB ? std::to_string(bytes) : fmt::format("{}MiB", bytes / kMiB);
}

std::string allowed(const MemoryLimits& limits) {
  return fmt::format("the {} that this process may use ({})", format_bytes(limits.total), limits.source);
}

// The parts no flag changes are too large by themselves, or leave too little for the smallest pool.
Status too_large(const MemoryPlan& plan, int64_t min_pages, int64_t min_adapters) {
  const int64_t parts = plan.total() - plan.reserve + min_pages + min_adapters;
  const int64_t needed = std::max(parts + kMinReserve, parts / (kReservePart - 1) * kReservePart);
  return resource_exhausted(
      "weights take {}, buffers of a step {}, grammars {}: with the smallest page pool and a reserve "
      "that is {}, more than {}: give it {} or more, or a smaller model",
      format_bytes(plan.weights), format_bytes(plan.activations), format_bytes(plan.grammars), format_bytes(needed),
      allowed(plan.limits), flag_size(needed + kMiB));
}

// What a wish may be at most is said with it.
Status wish_too_large(const MemoryPlan& plan, const char* flag, int64_t wish, int64_t largest) {
  return resource_exhausted(
      "{} {} is too much: with weights of {}, {} for other parts and {} in reserve it exceeds {}: {} {} fits", flag,
      format_bytes(wish), format_bytes(plan.weights),
      format_bytes(plan.activations + plan.grammars + plan.pages + plan.adapters - wish), format_bytes(plan.reserve),
      allowed(plan.limits), flag, flag_size(largest));
}

// Divides between pages and adapters: `room` bytes are there now, `most` once others let go of theirs.
Status divide(MemoryPlan& plan, const MemoryWishes& wishes, int64_t room, int64_t most, int64_t min_pages) {
  plan.adapters =
      wishes.adapters ? *wishes.adapters : std::max(wishes.pages ? room - *wishes.pages : room / 4, kMinAdapters);
  plan.pages = wishes.pages ? *wishes.pages : std::max(room - plan.adapters, min_pages);
  if (plan.pages + plan.adapters <= most) return Status();
  // Whose wish is to blame: the one that the other, as it is, leaves no room for.
  const bool adapters_could_stay = plan.adapters <= most - min_pages;
  if (wishes.pages && (adapters_could_stay || plan.pages > most - kMinAdapters))
    return wish_too_large(plan, "--memory", plan.pages, most - (adapters_could_stay ? plan.adapters : kMinAdapters));
  return wish_too_large(plan, "--host-memory", plan.adapters, most - plan.pages);
}

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryLimits& limits, const ModelFootprint& model, const MemoryWishes& wishes) {
  MemoryPlan plan{.limits = limits,
                  .weights = model.packed + model.embedding,
                  .activations = model.activations,
                  .grammars = wishes.grammars,
                  .reserve = std::max(kMinReserve, limits.available / kReservePart)};
  const int64_t fixed = plan.total();
  const int64_t least_pages = std::max(kMinPages * model.page, int64_t{1});
  const int64_t min_pages = wishes.pages ? std::min(*wishes.pages, least_pages) : least_pages;
  const int64_t min_adapters = wishes.adapters ? std::min(*wishes.adapters, kMinAdapters) : kMinAdapters;
  if (fixed + min_pages + min_adapters > limits.total) return too_large(plan, min_pages, min_adapters);
  LK_RETURN_IF_ERROR(divide(plan, wishes, limits.available - fixed, limits.total - fixed, min_pages));
  plan.sums = std::min(wishes.sums.value_or(plan.adapters / kSumsPart), plan.adapters);
  return plan;
}

std::string format_memory_plan(const MemoryPlan& plan) {
  std::string text =
      fmt::format("memory: {} of {} ({}), {} free\n", format_bytes(plan.total()), format_bytes(plan.limits.total),
                  plan.limits.source, format_bytes(plan.limits.available));
  const auto line = [&](const char* part, int64_t bytes, const char* what) {
    text += fmt::format("  {:<12} {:>10}  {}\n", part, format_bytes(bytes), what);
  };
  line("weights", plan.weights, "and the rows of the embedding");
  line("activations", plan.activations, "buffers of one step");
  line("pages", plan.pages, "KV cache and adapters in use (--memory)");
  line("adapters", plan.adapters, "their copies in host memory (--host-memory)");
  if (plan.grammars > 0) line("grammars", plan.grammars, "of structured output (--grammar-memory)");
  line("reserve", plan.reserve, "program, requests, answers");
  return text;
}

}  // namespace lk
