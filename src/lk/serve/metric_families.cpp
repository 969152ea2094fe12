// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/metric_families.h"

#include <prometheus/text_serializer.h>

#include <sstream>

namespace lk {
namespace {

constexpr size_t kMaxLabelBytes = 256;

// Bytes of the well-formed UTF-8 character at the start of `text`, 0 when there is none.
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xF0 && first <= 0xF4 ? 4 : first >= 0xE0 && first < 0xF0 ? 3 : first >= 0xC2 && first < 0xE0 ? 2 : 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  const unsigned second = byte(1);
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool outside = (first == 0xED && second >= 0xA0) || (first == 0xF4 && second >= 0x90);  // surrogates, above U+10FFFF
  return overlong || outside ? 0 : length;
}

}  // namespace

std::string clean_label_value(std::string_view value) {
  std::string clean;
  for (size_t i = 0; i < value.size();) {
    const size_t length = character_length(value.substr(i));
    const auto byte = static_cast<unsigned char>(value[i]);
    const bool allowed = length > 1 || (length == 1 && byte >= 0x20 && byte != 0x7F);
    const std::string_view piece = allowed ? value.substr(i, length) : std::string_view("?");
    if (clean.size() + piece.size() > kMaxLabelBytes) break;
    clean += piece;
    i += length == 0 ? 1 : length;
  }
  return clean;
}

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
