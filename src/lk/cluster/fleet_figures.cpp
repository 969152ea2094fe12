// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/fleet_figures.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>

#include "lk/base/json_text.h"

namespace lk {
namespace {

namespace json = boost::json;

int64_t num_on_device(const ReplicaReport& report) {
  return std::ranges::count_if(report.adapters, [](const auto& entry) { return entry.second.on_device; });
}

json::object replica_json(const FleetView::Shown& shown) {
  const ReplicaReport& report = *shown.report;
  return {{"url", shown.url},
          {"member", shown.listed},
          {"state", FleetView::to_string(shown.life)},
          {"reason", shown.failure},
          {"id", report.id},
          {"model", report.model},
          {"version", report.version},
          {"numerics", report.numerics},
          {"running", report.running},
          {"waiting", report.waiting},
          {"routed", shown.own_requests},
          {"pages", report.pages},
          {"pages_free", report.pages_free},
          {"adapters", report.adapters.size()},
          {"adapters_on_device", num_on_device(report)},
          {"computed_tokens", report.computed_tokens},
          {"step_seconds", shown.step_seconds},
          {"tokens_per_second", shown.tokens_per_second}};
}

json::object plan_json(const RoutePlanner::Figures& plan) {
  json::array hot;
  for (const Planner::Hot& one : plan.hot)
    hot.push_back({{"replica", one.url},
                   {"work_seconds", one.seconds},
                   {"mean_seconds", one.mean_seconds},
                   {"waiting", one.waiting},
                   {"moved", one.moved}});
  json::object out{{"planner", plan.kind},
                   {"leads", plan.leads},
                   {"adapters_with_homes", plan.homes},
                   {"prefetches", plan.hints},
                   {"busy", std::move(hot)}};
  if (plan.hot_seconds_ago >= 0) out["busy_seconds_ago"] = plan.hot_seconds_ago;
  return out;
}

}  // namespace

std::string fleet_status(const FleetFigures& figures) {
  json::array replicas, moves;
  for (const FleetView::Shown& shown : figures.replicas) replicas.push_back(replica_json(shown));
  for (const Move& move : figures.moves)
    moves.push_back({{"time", move.time},
                     {"why", move.why},
                     {"request", move.request},
                     {"adapter", move.adapter},
                     {"from", move.from},
                     {"to", move.to},
                     {"tokens", move.tokens}});
  const RouterStats& s = figures.stats;
  const bool ready = std::ranges::any_of(
      figures.replicas, [](const FleetView::Shown& shown) { return shown.life == FleetView::Life::kReady; });
  return json_text(json::object{{"object", "fleet"},
                                {"version", figures.version},
                                {"uptime_seconds", figures.uptime_seconds},
                                {"ready", ready},
                                {"policy", figures.policy},
                                {"routers", figures.routers},
                                {"replicas", std::move(replicas)},
                                {"requests", s.requests},
                                {"streams", s.streams},
                                {"in_flight", s.in_flight},
                                {"connections", s.connections},
                                {"continued", s.others.continued},
                                {"hedged", s.others.hedged},
                                {"moved", s.others.moved},
                                {"planned", s.others.planned},
                                {"retried", s.others.retried},
                                {"inexact", s.others.inexact},
                                {"mismatches", s.mismatches},
                                {"broken", s.broken},
                                {"refused", s.refused},
                                {"plan", plan_json(figures.plan)},
                                {"moves", std::move(moves)}});
}

std::string fleet_metrics(const FleetFigures& figures) {
  std::string out;
  const auto show = [&](std::string_view name, std::string_view type, std::string_view help) {
    out += fmt::format("# HELP lorikeet_route_{0} {1}\n# TYPE lorikeet_route_{0} {2}\n", name, help, type);
  };
  const auto one = [&](std::string_view name, std::string_view type, std::string_view help, int64_t value) {
    show(name, type, help);
    out += fmt::format("lorikeet_route_{} {}\n", name, value);
  };
  const RouterStats& s = figures.stats;
  one("requests_total", "counter", "Requests that were passed on.", s.requests);
  one("streams_total", "counter", "Of these, streamed answers.", s.streams);
  one("continued_total", "counter", "Answers that another replica went on with after theirs was lost.",
      s.others.continued);
  one("hedged_total", "counter", "Answers that another replica was asked to go on with because theirs was silent.",
      s.others.hedged);
  one("moved_total", "counter", "Answers that were moved away from a replica that drains.", s.others.moved);
  one("planned_total", "counter", "Answers that were moved from a busy replica to another one by plan.",
      s.others.planned);
  one("retried_total", "counter", "Requests sent to another replica before anything was shown.", s.others.retried);
  one("inexact_total", "counter", "Continuations by a replica of other numerics.", s.others.inexact);
  one("mismatches_total", "counter", "Two replicas gave different tokens for one place.", s.mismatches);
  one("broken_total", "counter", "Answers that nobody could finish.", s.broken);
  one("refused_total", "counter", "Requests that nobody was there to answer.", s.refused);
  one("in_flight", "gauge", "Requests that wait for replicas now.", s.in_flight);
  one("connections", "gauge", "Open connections of clients.", s.connections);
  one("prefetches_total", "counter", "Adapters that replicas were told to have in memory.", figures.plan.hints);
  one("adapters_with_homes", "gauge", "Adapters that have a home by plan.", figures.plan.homes);
  one("leads", "gauge", "Whether this router says where adapters are at home.", figures.plan.leads ? 1 : 0);
  one("routers", "gauge", "Routers that share the tenants' limits, this one among them.", figures.routers);
  const auto each = [&](std::string_view name, std::string_view type, std::string_view help, auto&& value) {
    show(name, type, help);
    for (const FleetView::Shown& shown : figures.replicas)
      out += fmt::format("lorikeet_route_{}{{replica=\"{}\"}} {}\n", name, shown.url, value(shown));
  };
  using Shown = FleetView::Shown;
  each("replica_up", "gauge", "Whether a replica takes requests.",
       [](const Shown& shown) { return shown.life == FleetView::Life::kReady ? 1 : 0; });
  each("replica_requests", "gauge", "Requests of this router there.", [](const Shown& s) { return s.own_requests; });
  each("replica_running", "gauge", "Requests that run there, of all routers.",
       [](const Shown& shown) { return shown.report->running; });
  each("replica_waiting", "gauge", "Requests that wait there, of all routers.",
       [](const Shown& shown) { return shown.report->waiting; });
  each("replica_pages", "gauge", "Pages of its pool.", [](const Shown& shown) { return shown.report->pages; });
  each("replica_pages_free", "gauge", "Of these, free or kept for cached prompts only.",
       [](const Shown& shown) { return shown.report->pages_free; });
  each("replica_adapters", "gauge", "Adapters in its memory.",
       [](const Shown& shown) { return shown.report->adapters.size(); });
  each("replica_adapters_on_device", "gauge", "Of these, in pages.",
       [](const Shown& shown) { return num_on_device(*shown.report); });
  each("replica_computed_tokens_total", "counter", "Tokens it has computed since its start.",
       [](const Shown& shown) { return shown.report->computed_tokens; });
  return out;
}

}  // namespace lk
