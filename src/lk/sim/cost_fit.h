// SPDX-License-Identifier: Apache-2.0
// Fits a cost model to measured steps.
#pragma once

#include <span>

#include "lk/sim/cost_model.h"

namespace lk::sim {

struct StepSample {
  StepShape shape;
  double us = 0;  // measured
};

struct FitError {
  double median = 0, p90 = 0;  // of |predicted / measured - 1|
  double total = 0;            // predicted / measured - 1 of the sum
};
FitError fit_error(const CostModel& model, std::span<const StepSample> samples);

// Changes the rates and times of `model` (not sizes and counts, and not the load's) so that the mean of |ln(predicted /
// measured)| gets least: outliers of a shared machine weigh little. A pattern search from several scales;
// deterministic. Requires: samples, all above 0.
CostModel fit_cost_model(CostModel model, std::span<const StepSample> samples);

}  // namespace lk::sim
