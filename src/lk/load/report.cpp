// SPDX-License-Identifier: Apache-2.0
#include "lk/load/report.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

namespace lk::load {

double percentile(std::span<const double> sorted, double p) {
  LK_CHECK(!sorted.empty() && p >= 0 && p <= 100, "percentile {} of {} values", p, sorted.size());
  const double rank = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (rank - static_cast<double>(below));
}

Summary summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {.count = static_cast<int64_t>(values.size()),
          .mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
          .p50 = percentile(values, 50),
          .p90 = percentile(values, 90),
          .p99 = percentile(values, 99),
          .max = values.back()};
}

bool Slo::met_by(const RequestRecord& record) const {
  if (record.outcome != Outcome::kOk) return false;
  if (ttft && record.ttft_s() > *ttft) return false;
  if (tpot && record.has_tpot() && record.tpot_s() > *tpot) return false;
  return !e2e || record.e2e_s() <= *e2e;
}

Result<Slo> parse_slo(const std::string& text) {
  Slo slo;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    const size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    std::string_view value = equals == std::string_view::npos ? std::string_view() : item.substr(equals + 1);
    double unit = 1e-3;
    if (value.ends_with("ms"))
      value.remove_suffix(2);
    else if (value.ends_with("s"))
      value.remove_suffix(1), unit = 1;
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    std::optional<double>* field = name == "ttft"   ? &slo.ttft
                                   : name == "tpot" ? &slo.tpot
                                   : name == "e2e"  ? &slo.e2e
                                                    : nullptr;
    if (!field || error != std::errc() || end != value.data() + value.size() || !(number > 0) || !std::isfinite(number))
      return invalid_argument(
          "--slo wants ttft=, tpot= and e2e= with milliseconds, such as ttft=500,tpot=30; got \"{}\"", item);
    *field = number * unit;
  }
  return slo;
}

namespace {

std::string error_name(const RequestRecord& record) {
  return record.outcome == Outcome::kHttpError ? std::to_string(record.http_status) : to_string(record.outcome);
}

struct Samples {  // milliseconds
  std::vector<double> ttft, itl, tpot, e2e;
  void add(const RequestRecord& record) {
    e2e.push_back(record.e2e_s() * 1e3);
    if (record.first_s < 0) return;  // not streamed
    ttft.push_back(record.ttft_s() * 1e3);
    for (const float gap : record.gaps_s) itl.push_back(static_cast<double>(gap) * 1e3);
    if (record.has_tpot()) tpot.push_back(record.tpot_s() * 1e3);
  }
};

}  // namespace

LoadReport make_report(std::span<const RequestRecord> records, const RunFacts& facts, const Slo& slo) {
  LoadReport report{.requests = static_cast<int64_t>(records.size()),
                    .peak_concurrency = facts.peak_concurrency,
                    .duration_s = facts.duration_s};
  Samples all;
  std::map<int, Samples> by_adapter;
  std::vector<double> delays, refused;
  int64_t good = 0;
  for (const RequestRecord& record : records) {
    AdapterFigures& figures = report.adapters[record.adapter];
    ++figures.requests;
    if (facts.open_loop) delays.push_back((record.sent_s - record.scheduled_s) * 1e3);
    good += slo.met_by(record) ? 1 : 0;
    if (record.outcome != Outcome::kOk) {
      const std::string name = error_name(record);
      ++report.errors[name];
      if (record.http_status == 429 || record.http_status == 503) refused.push_back(record.e2e_s() * 1e3);
      report.error_examples.emplace(name, record.error);
      continue;
    }
    ++report.ok;
    ++figures.ok;
    report.prompt_tokens += record.prompt_tokens;
    report.output_tokens += record.output_tokens;
    figures.output_tokens += record.output_tokens;
    report.without_usage += record.has_usage ? 0 : 1;
    report.short_answers += record.output_tokens < record.wanted_tokens ? 1 : 0;
    all.add(record);
    by_adapter[record.adapter].add(record);
  }
  report.ttft_ms = summarize(std::move(all.ttft));
  report.itl_ms = summarize(std::move(all.itl));
  report.tpot_ms = summarize(std::move(all.tpot));
  report.e2e_ms = summarize(std::move(all.e2e));
  report.refused_ms = summarize(std::move(refused));
  report.delay_ms = summarize(std::move(delays));
  for (auto& [adapter, samples] : by_adapter) {
    report.adapters[adapter].ttft_ms = summarize(std::move(samples.ttft));
    report.adapters[adapter].tpot_ms = summarize(std::move(samples.tpot));
  }
  if (facts.duration_s > 0) {
    report.requests_per_s = static_cast<double>(report.ok) / facts.duration_s;
    report.output_tokens_per_s = static_cast<double>(report.output_tokens) / facts.duration_s;
    report.total_tokens_per_s = static_cast<double>(report.prompt_tokens + report.output_tokens) / facts.duration_s;
    if (!slo.empty()) report.goodput = static_cast<double>(good) / facts.duration_s;
  }
  if (!slo.empty() && !records.empty())
    report.slo_attainment = static_cast<double>(good) / static_cast<double>(records.size());
  return report;
}

}  // namespace lk::load
