// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/metric_families.h"

#include <prometheus/text_serializer.h>

#include <sstream>

#include "lk/base/plain_text.h"

namespace lk {

std::string clean_label_value(std::string_view value) { return clean_text(value, 256); }

MetricFamilies& MetricFamilies::start(std::string name, std::string help, prometheus::MetricType type) {
  families_.push_back({.name = std::move(name), .help = std::move(help), .type = type, .metric = {}});
  return *this;
}

prometheus::ClientMetric& MetricFamilies::sample(const Labels& labels) {
  prometheus::ClientMetric& metric = families_.back().metric.emplace_back();
  metric.label.reserve(common_.size() + labels.size());
  for (const auto& [name, value] : common_) metric.label.push_back({std::string(name), std::string(value)});
  for (const auto& [name, value] : labels) metric.label.push_back({std::string(name), std::string(value)});
  return metric;
}

MetricFamilies& MetricFamilies::add(double value, const Labels& labels) {
  prometheus::ClientMetric& metric = sample(labels);
  metric.counter.value = metric.gauge.value = value;  // the family's type says which one is written
  return *this;
}

MetricFamilies& MetricFamilies::add(const Histogram& histogram, const Labels& labels) {
  prometheus::ClientMetric::Histogram& out = sample(labels).histogram;
  out.sample_count = histogram.count();
  out.sample_sum = histogram.sum;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < histogram.bounds.size(); ++i)
    out.bucket.push_back({.cumulative_count = cumulative += histogram.counts[i], .upper_bound = histogram.bounds[i]});
  return *this;
}

std::string MetricFamilies::text() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families_);
  return std::move(out).str();
}

}  // namespace lk
