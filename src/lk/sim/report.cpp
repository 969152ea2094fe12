// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/report.h"

#include <algorithm>

#include <boost/json.hpp>

namespace lk::sim {
namespace {

namespace json = boost::json;

json::object to_json(const Summary& s) {
  return {{"count", s.count}, {"mean", s.mean}, {"p50", s.p50}, {"p90", s.p90}, {"p99", s.p99}, {"max", s.max}};
}

json::object to_json(const TenantFigures& t) {
  return {{"name", t.name},
          {"weight", t.weight},
          {"requests", t.requests},
          {"done", t.done},
          {"rejected", t.rejected},
          {"input_tokens", t.input_tokens},
          {"output_tokens", t.output_tokens},
          {"service", t.service},
          {"service_per_s", t.service_rate},
          {"slo_attainment", t.slo_attainment},
          {"ttft_s", to_json(t.ttft_s)}};
}

json::object timeline_json(const std::vector<TimelinePoint>& points) {
  json::array time, running, waiting, adapter_pages, kv_pages, difference, service;
  for (const TimelinePoint& p : points) {
    time.emplace_back(p.time_s);
    running.emplace_back(p.running);
    waiting.emplace_back(p.waiting);
    adapter_pages.emplace_back(p.adapter_pages);
    kv_pages.emplace_back(p.kv_pages);
    difference.emplace_back(p.max_difference);
    service.emplace_back(json::value_from(p.service));
  }
  return {{"time_s", time},       {"running", running},
          {"waiting", waiting},   {"adapter_pages", adapter_pages},
          {"kv_pages", kv_pages}, {"max_service_difference", difference},
          {"service", service}};
}

std::string format(const char* name, const Summary& s) {
  return fmt::format("  {:<22} mean {:>9.3f}  p50 {:>9.3f}  p90 {:>9.3f}  p99 {:>9.3f}  max {:>9.3f} s\n", name, s.mean,
                     s.p50, s.p90, s.p99, s.max);
}

}  // namespace

json::object to_json(const SimResult& r, bool with_timeline) {
  json::array tenants;
  for (const TenantFigures& tenant : r.tenants) tenants.push_back(to_json(tenant));
  json::object out{
      {"requests", r.requests},
      {"done", r.done},
      {"rejected", r.rejected},
      {"cancelled", r.cancelled},
      {"failed", r.failed},
      {"duration_s", r.duration_s},
      {"makespan_s", r.makespan_s},
      {"requests_per_s", r.requests_per_s},
      {"output_tokens_per_s", r.output_tokens_per_s},
      {"total_tokens_per_s", r.total_tokens_per_s},
      {"drained", json::object{{"requests_per_s", r.drained_requests_per_s},
                               {"output_tokens_per_s", r.drained_output_tokens_per_s},
                               {"total_tokens_per_s", r.drained_total_tokens_per_s}}},
      {"slo_s", r.slo_s},
      {"slo_attainment", r.slo_attainment},
      {"satisfaction", r.satisfaction},
      {"ttft_s", to_json(r.ttft_s)},
      {"itl_s", to_json(r.itl_s)},
      {"e2e_s", to_json(r.e2e_s)},
      {"fairness", json::object{{"max_accumulated_difference", r.max_accumulated_difference},
                                {"max_backlogged_difference", r.max_backlogged_difference},
                                {"vtc_bound", r.vtc_bound},
                                {"jain_index", r.jain_index},
                                {"service_difference", json::object{{"windows", r.service_difference.num_windows},
                                                                    {"max", r.service_difference.max},
                                                                    {"mean", r.service_difference.mean},
                                                                    {"variance", r.service_difference.variance}}}}},
      {"adapters", json::object{{"loads", r.adapter_loads},
                                {"failed_loads", r.failed_loads},
                                {"cold_loads", r.cold_loads},
                                {"evictions", r.adapter_evictions},
                                {"judged_loads", r.judged_loads},
                                {"hidden_share", r.hidden_loads},
                                {"one_step_share", r.one_step_loads},
                                {"mean_delay_ms", r.load_delay_ms}}},
      {"scheduler", json::object{{"steps", r.steps},
                                 {"computed_tokens", r.computed_tokens},
                                 {"recomputed_tokens", r.recomputed_tokens},
                                 {"cached_prompt_tokens", r.cached_prompt_tokens},
                                 {"preemptions", r.preemptions},
                                 {"fair_preemptions", r.fair_preemptions},
                                 {"mean_step_ms", r.mean_step_ms},
                                 {"mean_running", r.mean_step_sequences},
                                 {"busy_fraction", r.busy_fraction}}},
      {"merging", json::object{{"builds", r.merges.num_builds},
                               {"refused", r.merges.num_refused},
                               {"given_back", r.merges.num_given_back},
                               {"merged_steps", r.merges.num_merged_steps},
                               {"exclusive_steps", r.merges.num_exclusive_steps},
                               {"mode_changes", r.merges.num_mode_changes}}},
      {"tenants", tenants}};
  if (with_timeline) out["timeline"] = timeline_json(r.timeline);
  return out;
}

std::string format_result(const SimResult& r, bool per_tenant) {
  std::string out = fmt::format(
      "{} requests in {:.1f} s of arrivals, {:.1f} s until the last ended: {} done, {} rejected, {} cancelled, {} "
      "failed\n",
      r.requests, r.duration_s, r.makespan_s, r.done, r.rejected, r.cancelled, r.failed);
  out += fmt::format("  {:<22} {:>9.2f} requests/s {:>10.1f} output {:>10.1f} total tokens/s\n",
                     "while requests arrive", r.requests_per_s, r.output_tokens_per_s, r.total_tokens_per_s);
  out += fmt::format("  {:<22} {:>9.2f} requests/s {:>10.1f} output {:>10.1f} total tokens/s\n", "until all are done",
                     r.drained_requests_per_s, r.drained_output_tokens_per_s, r.drained_total_tokens_per_s);
  out += format("first token", r.ttft_s) + format("between tokens", r.itl_s) + format("whole request", r.e2e_s);
  out += fmt::format("  {:<22} {:.3f} attained, {:.3f} satisfaction\n", fmt::format("objective {:g} s", r.slo_s),
                     r.slo_attainment, r.satisfaction);
  out += fmt::format(
      "  {:<22} {} loads ({} from disk, {} failed), {} evictions; {:.3f} of loads hidden, {:.3f} cost one step; delay "
      "{:.1f} ms\n",
      "adapters", r.adapter_loads, r.cold_loads, r.failed_loads, r.adapter_evictions, r.hidden_loads, r.one_step_loads,
      r.load_delay_ms);
  out += fmt::format(
      "  {:<22} {} of {:.2f} ms, {:.1f} sequences running, busy {:.3f}; {} preemptions ({} for fairness), {} tokens "
      "computed again, {} from the prefix cache\n",
      "steps", r.steps, r.mean_step_ms, r.mean_step_sequences, r.busy_fraction, r.preemptions, r.fair_preemptions,
      r.recomputed_tokens, r.cached_prompt_tokens);
  if (r.merges.num_builds > 0)
    out += fmt::format("  {:<22} {} builds ({} given back), {} steps merged, {} of them with nobody beside\n",
                       "merging", r.merges.num_builds, r.merges.num_given_back, r.merges.num_merged_steps,
                       r.merges.num_exclusive_steps);
  if (r.tenants.size() < 2) return out;
  out += fmt::format("  {:<22} largest accumulated {:.0f}, while both wait {:.0f} (VTC's bound {:.0f}), Jain {:.4f}\n",
                     "service difference", r.max_accumulated_difference, r.max_backlogged_difference, r.vtc_bound,
                     r.jain_index);
  if (r.service_difference.num_windows > 0)
    out += fmt::format("  {:<22} max {:.2f}, mean {:.2f}, variance {:.2f}\n", "  in windows of 60 s",
                       r.service_difference.max, r.service_difference.mean, r.service_difference.variance);
  if (!per_tenant) return out;
  out += fmt::format("  {:<12} {:>6} {:>9} {:>9} {:>9} {:>11} {:>11} {:>9} {:>9}\n", "tenant", "weight", "requests",
                     "done", "rejected", "service/s", "ttft mean s", "p99 s", "attained");
  for (const TenantFigures& t : r.tenants)
    out += fmt::format("  {:<12} {:>6g} {:>9} {:>9} {:>9} {:>11.1f} {:>11.3f} {:>9.3f} {:>9.3f}\n", t.name, t.weight,
                       t.requests, t.done, t.rejected, t.service_rate, t.ttft_s.mean, t.ttft_s.p99, t.slo_attainment);
  return out;
}

std::string sweep_header() {
  return fmt::format("{:>9} {:>11} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>7}", "req/s",
                     "drained", "tokens/s", "ttft s", "p99 s", "e2e s", "attained", "hidden", "loads", "preempted",
                     "diff", "merged", "builds");
}

std::string sweep_line(const SimResult& r) {
  return fmt::format(
      "{:>9.3f} {:>11.3f} {:>9.1f} {:>9.3f} {:>9.3f} {:>9.2f} {:>8.3f} {:>8.3f} {:>8} {:>9} {:>9.1f} {:>8.3f} {:>7}",
      r.requests_per_s, r.drained_requests_per_s, r.total_tokens_per_s, r.ttft_s.mean, r.ttft_s.p99, r.e2e_s.mean,
      r.slo_attainment, r.hidden_loads, r.adapter_loads, r.preemptions, r.service_difference.mean,
      r.steps > 0 ? static_cast<double>(r.merges.num_merged_steps) / static_cast<double>(r.steps) : 0,
      r.merges.num_builds);
}

}  // namespace lk::sim
