// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/merging.h"

namespace lk::sim {
namespace {

constexpr Merging kAll[] = {Merging::kNever, Merging::kAlways, Merging::kExclusive, Merging::kDlora, Merging::kCost};

const MergeCandidate* find(const MergeView& view, AdapterId adapter) {
  for (const MergeCandidate& candidate : view.candidates)
    if (candidate.adapter == adapter) return &candidate;
  return nullptr;
}

class AlwaysChooser : public MergeChooser {
 public:
  explicit AlwaysChooser(bool exclusive) : exclusive_(exclusive) {}
  MergePlan plan(const MergeView& view) override {
    MergePlan plan;
    const AdapterId wanted = exclusive_ ? oldest(view) : hottest(view);
    if (wanted != kBaseModel && wanted != view.built && wanted != view.building) plan.build = wanted;
    if (exclusive_ && view.built != kBaseModel && wanted == view.built) plan.exclusive = view.built;
    return plan;
  }
  bool merged(const StepMix&, AdapterId) override { return true; }
  const char* name() const override { return exclusive_ ? "exclusive" : "always"; }

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
  const bool exclusive_;
};

}  // namespace

Result<Merging> parse_merging(std::string_view text) {
  for (const Merging merging : kAll)
    if (text == to_string(merging)) return merging;
  return invalid_argument("\"{}\" is not a way of merging; give never, always, exclusive, dlora or cost", text);
}

const char* to_string(Merging merging) {
  switch (merging) {
    case Merging::kNever:
      return "never";
    case Merging::kAlways:
      return "always";
    case Merging::kExclusive:
      return "exclusive";
    case Merging::kDlora:
      return "dlora";
    case Merging::kCost:
      return "cost";
  }
  return "";
}

std::unique_ptr<MergeChooser> make_chooser(Merging merging) {
  switch (merging) {
    case Merging::kNever:
      return nullptr;
    case Merging::kAlways:
      return std::make_unique<AlwaysChooser>(false);
    case Merging::kExclusive:
      return std::make_unique<AlwaysChooser>(true);
    case Merging::kDlora:
      return make_dlora_chooser();
    case Merging::kCost:
      return make_cost_chooser();
  }
  return nullptr;
}

}  // namespace lk::sim
