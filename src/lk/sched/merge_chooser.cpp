// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/merge_chooser.h"

#include <algorithm>

namespace lk {
namespace {

const MergeCandidate* find(const MergeView& view, AdapterId adapter) {
  for (const MergeCandidate& candidate : view.candidates)
    if (candidate.adapter == adapter) return &candidate;
  return nullptr;
}

class NeverChooser : public MergeChooser {
 public:
  MergePlan plan(const MergeView&) override { return {}; }
  bool merged(const StepShape&, AdapterId) override { return false; }
  const char* name() const override { return "never"; }
};

class AlwaysChooser : public MergeChooser {
 public:
  explicit AlwaysChooser(const AlwaysChooserOptions& options) : options_(options) {}
  MergePlan plan(const MergeView& view) override {
    MergePlan plan;
    const AdapterId wanted = options_.exclusive ? oldest(view) : hottest(view);
    if (wanted != kBaseModel && wanted != view.built && wanted != view.building) plan.build = wanted;
    if (options_.exclusive && view.built != kBaseModel && wanted == view.built) plan.exclusive = view.built;
    return plan;
  }
  bool merged(const StepShape&, AdapterId) override { return true; }
  const char* name() const override { return options_.exclusive ? "exclusive" : "always"; }

 private:
  static AdapterId oldest(const MergeView& view) {
    if (view.queue.empty()) return kBaseModel;
    const MergeCandidate* candidate = find(view, view.queue.front());
    return candidate && candidate->allowed ? candidate->adapter : kBaseModel;
  }
  // Keeps what is built at equal counts.
  static AdapterId hottest(const MergeView& view) {
    const MergeCandidate* best = find(view, view.built);
    if (best && !best->allowed) best = nullptr;
    for (const MergeCandidate& candidate : view.candidates)
      if (candidate.allowed && (!best || candidate.requests > best->requests)) best = &candidate;
    return best ? best->adapter : kBaseModel;
  }
  const AlwaysChooserOptions options_;
};

}  // namespace

std::unique_ptr<MergeChooser> make_never_chooser() { return std::make_unique<NeverChooser>(); }
std::unique_ptr<MergeChooser> make_always_chooser(const AlwaysChooserOptions& options) {
  return std::make_unique<AlwaysChooser>(options);
}

Result<MergeMode> parse_merge_mode(std::string_view text) {
  for (const MergeMode mode :
       {MergeMode::kNever, MergeMode::kAlways, MergeMode::kExclusive, MergeMode::kDlora, MergeMode::kCost})
    if (text == to_string(mode)) return mode;
  return invalid_argument("\"{}\" is not a way of merging; give never, always, exclusive, dlora or cost", text);
}

const char* to_string(MergeMode mode) {
  switch (mode) {
    case MergeMode::kNever:
      return "never";
    case MergeMode::kAlways:
      return "always";
    case MergeMode::kExclusive:
      return "exclusive";
    case MergeMode::kDlora:
      return "dlora";
    case MergeMode::kCost:
      return "cost";
  }
  return "";
}

std::unique_ptr<MergeChooser> make_merge_chooser(std::string_view name) {
  if (name == "never") return make_never_chooser();
  if (name == "always") return make_always_chooser();
  if (name == "exclusive") return make_always_chooser({.exclusive = true});
  if (name == "dlora") return make_dlora_chooser();
  if (name == "cost") return make_cost_chooser();
  return nullptr;
}

}  // namespace lk
