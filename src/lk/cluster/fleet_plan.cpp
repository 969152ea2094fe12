// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/fleet_plan.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <limits>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr int64_t kForm = 1;
constexpr size_t kMostBytes = 60 << 10;  // of the adapters' part
constexpr size_t kMostName = 1024, kMostHomes = 10'000;

}  // namespace

std::string format_plan(const FleetPlan& plan) {
  std::vector<std::pair<double, std::string_view>> order;
  for (const auto& [adapter, homes] : plan.placement.homes) {
    const auto work = plan.work.find(adapter);
    order.emplace_back(work == plan.work.end() ? 0 : -work->second, adapter);
  }
  std::ranges::sort(order);
  json::object adapters;
  size_t bytes = 0;
  for (const auto& [negative_work, adapter] : order) {
    const std::vector<std::string>& homes = plan.placement.homes.find(adapter)->second;
    json::object entry{{"work", std::round(-negative_work * 1e3) / 1e3},
                       {"homes", json::array(homes.begin(), homes.end())}};
    bytes += adapter.size() + json_text(entry).size() + 8;
    if (bytes > kMostBytes) break;
    adapters[adapter] = std::move(entry);
  }
  return json_text(json::object{
      {"form", kForm}, {"leader", plan.leader}, {"made_at", plan.made_at}, {"adapters", std::move(adapters)}});
}

Result<FleetPlan> parse_plan(std::string_view value) {
  const Result<json::object> object = parse_json_object(value, "a plan");
  if (!object.ok()) return data_loss("{}", object.status().message());
  JsonFields fields(*object, "a plan");
  int64_t form = 0;
  fields.read_int("form", form, 0, std::numeric_limits<int64_t>::max());
  if (form != kForm) return unsupported("a plan of form {}", form);
  FleetPlan plan;
  fields.read_string("leader", plan.leader, 0, kMostName);
  fields.read_int("made_at", plan.made_at, 0, std::numeric_limits<int64_t>::max());
  if (const json::object* adapters = fields.object("adapters"))
    for (const auto& [name, entry] : *adapters) {
      const json::object* of = entry.if_object();
      const json::value* homes = of == nullptr ? nullptr : of->if_contains("homes");
      if (homes == nullptr || !homes->is_array() || homes->get_array().size() > kMostHomes)
        return data_loss("the plan has no homes for \"{}\"", std::string_view(name));
      std::vector<std::string>& urls = plan.placement.homes[name];
      for (const json::value& url : homes->get_array())
        if (url.is_string()) urls.emplace_back(url.get_string());
      if (const json::value* work = of->if_contains("work"); work != nullptr && work->is_number())
        plan.work[name] = work->to_number<double>();
    }
  if (fields.failed()) return data_loss("{}", fields.status().message());
  return plan;
}

}  // namespace lk
