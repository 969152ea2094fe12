// SPDX-License-Identifier: Apache-2.0
// From records to figures. Pure functions. Definitions (docs/results/benchmarks.md): TTFT = send to first content; ITL
// = every gap between events with content; TPOT = (E2E - TTFT) / (output tokens - 1); E2E = send to the last event with
// a choice; goodput = requests per second that met every objective. Latencies are of successful requests; failures
// stand beside them, and count against attainment.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <boost/json/object.hpp>

#include "lk/load/record.h"

namespace lk::load {

struct Summary {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
// Linear interpolation between the two nearest ranks, as numpy's default. Requires: sorted, not empty, 0 <= p <= 100.
double percentile(std::span<const double> sorted, double p);
Summary summarize(std::vector<double> values);

struct Slo {  // seconds
  std::optional<double> ttft, tpot, e2e;
  bool empty() const { return !ttft && !tpot && !e2e; }
  bool met_by(const RequestRecord& record) const;
};
// "ttft=500,tpot=30ms,e2e=2s": milliseconds unless a unit is given.
Result<Slo> parse_slo(const std::string& text);

struct AdapterFigures {
  int64_t requests = 0, ok = 0, output_tokens = 0;
  Summary ttft_ms, tpot_ms;
};

struct LoadReport {
  int64_t requests = 0, ok = 0, prompt_tokens = 0, output_tokens = 0, peak_concurrency = 0;
  double duration_s = 0;
  double requests_per_s = 0, output_tokens_per_s = 0, total_tokens_per_s = 0;
  std::optional<double> goodput, slo_attainment;  // attainment: fraction of all requests
  Summary ttft_ms, itl_ms, tpot_ms, e2e_ms;
  Summary refused_ms;                     // send to the answer, of those that were refused with 429 or 503
  Summary delay_ms;                       // scheduled to sent, all requests; empty for a closed loop
  std::map<std::string, int64_t> errors;  // "429", "503", "timeout", ... -> count
  std::map<std::string, std::string> error_examples;
  int64_t without_usage = 0;               // successful, but tokens had to be counted by events
  int64_t short_answers = 0;               // successful, but fewer tokens than asked for
  std::map<int, AdapterFigures> adapters;  // by index; -1 = the base model
};

struct RunFacts {
  double duration_s = 0;  // first send to last answer
  int64_t peak_concurrency = 0;
  bool open_loop = false;
};
LoadReport make_report(std::span<const RequestRecord> records, const RunFacts& facts, const Slo& slo);

std::string format_report(const LoadReport& report, const std::vector<std::string>& adapter_names, bool per_adapter);
boost::json::object report_json(const LoadReport& report, const std::vector<std::string>& adapter_names);

}  // namespace lk::load
