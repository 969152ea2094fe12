// SPDX-License-Identifier: Apache-2.0
#include <boost/json.hpp>

#include "lk/base/plain_text.h"
#include "lk/load/report.h"

namespace lk::load {
namespace {

namespace json = boost::json;

std::string row(std::string_view name, const Summary& s) {
  if (s.count == 0)
    return fmt::format("{:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9}\n", name, "-", "-", "-", "-", "-", 0);
  return fmt::format("{:<10} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>9}\n", name, s.mean, s.p50, s.p90,
                     s.p99, s.max, s.count);
}

json::value summary_json(const Summary& s) {
  if (s.count == 0) return nullptr;
  return json::object{{"count", s.count}, {"mean", s.mean}, {"p50", s.p50},
                      {"p90", s.p90},     {"p99", s.p99},   {"max", s.max}};
}

std::string adapter_name(int index, const std::vector<std::string>& names) {
  return index < 0                                   ? "(base)"
         : static_cast<size_t>(index) < names.size() ? names[static_cast<size_t>(index)]
                                                     : fmt::format("#{}", index);
}

std::string adapter_rows(const LoadReport& report, const std::vector<std::string>& names) {
  std::string out = fmt::format("\n{:<24} {:>8} {:>8} {:>10} {:>10} {:>10} {:>10}\n", "adapter", "requests", "ok",
                                "out tok/s", "TTFT p50", "TTFT p99", "TPOT p50");
  for (const auto& [adapter, figures] : report.adapters)
    out += fmt::format("{:<24} {:>8} {:>8} {:>10.1f} {:>10.2f} {:>10.2f} {:>10.2f}\n", adapter_name(adapter, names),
                       figures.requests, figures.ok,
                       report.duration_s > 0 ? static_cast<double>(figures.output_tokens) / report.duration_s : 0.0,
                       figures.ttft_ms.p50, figures.ttft_ms.p99, figures.tpot_ms.p50);
  return out;
}

}  // namespace

std::string format_report(const LoadReport& r, const std::vector<std::string>& adapter_names, bool per_adapter) {
  std::string out = fmt::format("requests   {} ok of {} in {:.2f} s, at most {} at once\n", r.ok, r.requests,
                                r.duration_s, r.peak_concurrency);
  out += fmt::format("tokens     {} prompt, {} output\n", r.prompt_tokens, r.output_tokens);
  out += fmt::format("throughput {:.2f} req/s, {:.1f} output tok/s, {:.1f} total tok/s\n", r.requests_per_s,
                     r.output_tokens_per_s, r.total_tokens_per_s);
  if (r.goodput)
    out += fmt::format("goodput    {:.2f} req/s met the objectives: {:.1f} % of requests\n", *r.goodput,
                       100 * r.slo_attainment.value_or(0));
  for (const auto& [name, count] : r.errors)
    out += fmt::format("failed     {} x {}: {}\n", count, name, clean_text(r.error_examples.at(name), 4096));
  out += fmt::format("\n{:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9}\n", "ms", "mean", "p50", "p90", "p99", "max",
                     "samples");
  out += row("TTFT", r.ttft_ms) + row("TPOT", r.tpot_ms) + row("ITL", r.itl_ms) + row("E2E", r.e2e_ms);
  if (r.refused_ms.count > 0) out += row("refused", r.refused_ms);
  if (r.delay_ms.count > 0) out += row("send delay", r.delay_ms);
  if (per_adapter) out += adapter_rows(r, adapter_names);
  if (r.without_usage > 0)
    out += fmt::format("\nnote: {} answers came without usage; their tokens are counted by events\n", r.without_usage);
  if (r.short_answers > 0) out += fmt::format("\nnote: {} answers had fewer tokens than asked for\n", r.short_answers);
  if (r.delay_ms.count > 0 && r.delay_ms.p99 > 10)
    out += fmt::format(
        "\nnote: requests left up to {:.0f} ms after their time (p99 {:.1f} ms): the offered load was below the rate "
        "asked for, and latencies do not\n"
        "include that wait\n",
        r.delay_ms.max, r.delay_ms.p99);
  return out;
}

json::object report_json(const LoadReport& r, const std::vector<std::string>& adapter_names) {
  json::object errors, adapters;
  for (const auto& [name, count] : r.errors)
    errors[name] = json::object{{"count", count}, {"example", r.error_examples.at(name)}};
  for (const auto& [adapter, figures] : r.adapters)
    adapters[adapter_name(adapter, adapter_names)] = json::object{{"requests", figures.requests},
                                                                  {"ok", figures.ok},
                                                                  {"output_tokens", figures.output_tokens},
                                                                  {"ttft_ms", summary_json(figures.ttft_ms)},
                                                                  {"tpot_ms", summary_json(figures.tpot_ms)}};
  json::object out{{"requests", r.requests},
                   {"ok", r.ok},
                   {"duration_s", r.duration_s},
                   {"peak_concurrency", r.peak_concurrency},
                   {"prompt_tokens", r.prompt_tokens},
                   {"output_tokens", r.output_tokens},
                   {"requests_per_s", r.requests_per_s},
                   {"output_tokens_per_s", r.output_tokens_per_s},
                   {"total_tokens_per_s", r.total_tokens_per_s},
                   {"ttft_ms", summary_json(r.ttft_ms)},
                   {"tpot_ms", summary_json(r.tpot_ms)},
                   {"itl_ms", summary_json(r.itl_ms)},
                   {"e2e_ms", summary_json(r.e2e_ms)},
                   {"refused_ms", summary_json(r.refused_ms)},
                   {"send_delay_ms", summary_json(r.delay_ms)},
                   {"errors", std::move(errors)},
                   {"without_usage", r.without_usage},
                   {"short_answers", r.short_answers},
                   {"adapters", std::move(adapters)}};
  if (r.goodput) out["goodput"] = *r.goodput;
  if (r.slo_attainment) out["slo_attainment"] = *r.slo_attainment;
  return out;
}

}  // namespace lk::load
