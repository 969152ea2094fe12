// SPDX-License-Identifier: Apache-2.0
#include "lk/merging/chooser.h"

namespace lk {
namespace {

constexpr MergeMode kModes[] = {MergeMode::kNever, MergeMode::kDlora, MergeMode::kCost};

}  // namespace

Result<MergeMode> parse_merge_mode(std::string_view text) {
  for (const MergeMode mode : kModes)
    if (text == to_string(mode)) return mode;
  return invalid_argument("\"{}\" is not a way of merging; give never, dlora or cost", text);
}

const char* to_string(MergeMode mode) {
  switch (mode) {
    case MergeMode::kNever:
      return "never";
    case MergeMode::kDlora:
      return "dlora";
    case MergeMode::kCost:
      return "cost";
  }
  return "";
}

std::unique_ptr<MergeChooser> make_merge_chooser(MergeMode mode) {
  switch (mode) {
    case MergeMode::kNever:
      return nullptr;
    case MergeMode::kDlora:
      return make_dlora_chooser();
    case MergeMode::kCost:
      return make_cost_chooser();
  }
  return nullptr;
}

}  // namespace lk
