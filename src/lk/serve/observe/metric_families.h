// SPDX-License-Identifier: Apache-2.0
// MetricFamilies: collects samples under their metric names and writes the text that Prometheus scrapes.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <prometheus/metric_family.h>

#include "lk/serve/observe/histogram.h"

namespace lk {

using Labels = std::vector<std::pair<std::string_view, std::string_view>>;

// What may stand in a label: at most 256 bytes of valid UTF-8 without control characters; others are replaced by '?'.
std::string clean_label_value(std::string_view value);

class MetricFamilies {
 public:
  // Labels that every later family starts with.
  void set_common(Labels labels) { common_ = std::move(labels); }

  // Starts a family; the following samples belong to it. Each name once.
  MetricFamilies& counter(std::string name, std::string help) {
    return start(std::move(name), std::move(help), prometheus::MetricType::Counter);
  }
  MetricFamilies& gauge(std::string name, std::string help) {
    return start(std::move(name), std::move(help), prometheus::MetricType::Gauge);
  }
  MetricFamilies& histogram(std::string name, std::string help) {
    return start(std::move(name), std::move(help), prometheus::MetricType::Histogram);
  }
  MetricFamilies& add(double value, const Labels& labels = {});
  MetricFamilies& add(const Histogram& histogram, const Labels& labels = {});

  std::string text() const;

 private:
  MetricFamilies& start(std::string name, std::string help, prometheus::MetricType type);
  prometheus::ClientMetric& sample(const Labels& labels);

  Labels common_;
  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace lk
