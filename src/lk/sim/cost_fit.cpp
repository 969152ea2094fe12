// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/cost_fit.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lk/base/check.h"

namespace lk::sim {
namespace {

constexpr double kLeastTime = 1e-3;  // microseconds; a time at this floor is as good as zero

constexpr std::array kRates{&CostModel::memory_bytes_s, &CostModel::flops_s, &CostModel::attention_bytes_s,
                            &CostModel::adapter_flops_s};
constexpr std::array kTimes{&CostModel::step_us, &CostModel::token_us, &CostModel::sequence_us,
                            &CostModel::adapter_step_us, &CostModel::segment_us};

double loss(const CostModel& model, std::span<const StepSample> samples) {
  double sum = 0;
  for (const StepSample& sample : samples) sum += std::abs(std::log(model.step_us_of(sample.shape) / sample.us));
  return sum / static_cast<double>(samples.size());
}

}  // namespace

FitError fit_error(const CostModel& model, std::span<const StepSample> samples) {
  LK_CHECK(!samples.empty());
  std::vector<double> errors;
  double predicted = 0, measured = 0;
  for (const StepSample& sample : samples) {
    const double us = model.step_us_of(sample.shape);
    errors.push_back(std::abs(us / sample.us - 1));
    predicted += us;
    measured += sample.us;
  }
  std::sort(errors.begin(), errors.end());
  const auto at = [&](double q) { return errors[static_cast<size_t>(q * static_cast<double>(errors.size() - 1))]; };
  return {.median = at(0.5), .p90 = at(0.9), .total = predicted / measured - 1};
}

CostModel fit_cost_model(CostModel model, std::span<const StepSample> samples) {
  LK_CHECK(!samples.empty() &&
           std::all_of(samples.begin(), samples.end(), [](const StepSample& s) { return s.us > 0; }));
  for (auto member : kTimes) model.*member = kLeastTime;
  double best = loss(model, samples);
  const auto search = [&](auto members, double factor) {
    for (; factor > 1.0005; factor = std::sqrt(factor))
      for (int round = 0; round < 20; ++round) {
        const double before = best;
        for (auto member : members)
          for (const double by : {factor, 1 / factor}) {
            const double old = model.*member;
            model.*member = std::max(kLeastTime, old * by);
            const double now = loss(model, samples);
            if (now < best)
              best = now;
            else
              model.*member = old;
          }
        if (!(best < before)) break;
      }
  };
  // Rates first: a fixed time can stand for reading the weights, and must only explain what reading and computing leave
  // over. Times may go from nothing to milliseconds; rates then only give back what the times took over.
  search(kRates, 4);
  for (int pass = 0; pass < 3; ++pass) {
    search(kTimes, 1024);
    search(kRates, 1.3);
  }
  return model;
}

}  // namespace lk::sim
