// SPDX-License-Identifier: Apache-2.0
// The loss of every job over its optimiser steps, as an SVG picture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lk {

struct LossCurve {
  struct Point {
    int64_t step;
    double loss;  // not finite: left out
  };
  std::string job;
  std::vector<Point> train, eval;  // by step
};

// The training loss of each step is drawn thin, its running mean thick, evaluations as dots on a dashed line.
std::string loss_curve_svg(const std::vector<LossCurve>& curves);

}  // namespace lk
