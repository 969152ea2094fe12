// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/replica_report.h"

#include <boost/json.hpp>

#include <limits>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"

namespace lk {
namespace {

constexpr size_t kMaxName = 1024;
constexpr size_t kMaxRouters = 1024;
constexpr int64_t kMany = std::numeric_limits<int64_t>::max();

// What has one name in JSON and in the struct, for reader and writer alike.
template <class Report, class Visit>
void visit(Report& report, Visit&& visit) {
  visit("id", report.id);
  visit("model", report.model);
  visit("version", report.version);
  visit("numerics", report.numerics);
  visit("ready", report.ready);
  visit("draining", report.draining);
  visit("weight_bytes", report.weight_bytes);
  visit("context", report.context);
  visit("page_tokens", report.page_tokens);
  visit("page_bytes", report.page_bytes);
  visit("pages", report.pages);
  visit("pages_free", report.pages_free);
  visit("running", report.running);
  visit("waiting", report.waiting);
  visit("max_running", report.max_running);
  visit("host_bytes", report.host_bytes);
  visit("steps", report.steps);
  visit("computed_tokens", report.computed_tokens);
  visit("execute_seconds", report.execute_seconds);
  visit("stalled_seconds", report.stalled_seconds);
}

struct Reader {
  JsonFields& fields;
  void operator()(std::string_view key, std::string& out) const { fields.read_string(key, out, 0, kMaxName); }
  void operator()(std::string_view key, bool& out) const { fields.read_bool(key, out); }
  void operator()(std::string_view key, int64_t& out) const { fields.read_int(key, out, 0, kMany); }
  void operator()(std::string_view key, double& out) const { fields.read_double(key, out, 0); }
};

}  // namespace

std::string format_report(const ReplicaReport& report, const ReplicaReport* before) {
  boost::json::object out;
  visit(report, [&](std::string_view key, const auto& value) { out[key] = value; });
  out["routers"] = boost::json::array(report.routers.begin(), report.routers.end());
  boost::json::object adapters;
  for (const auto& [name, adapter] : report.adapters) {
    if (before) {
      const auto known = before->adapters.find(name);
      if (known != before->adapters.end() && known->second == adapter) continue;
    }
    adapters[name] = {{"digest", adapter.digest},
                      {"bytes", adapter.bytes},
                      {"on_device", adapter.on_device},
                      {"on_host", adapter.on_host},
                      {"in_flight", adapter.in_flight}};
  }
  out["adapters"] = std::move(adapters);
  boost::json::array gone;
  if (before)
    for (const auto& [name, adapter] : before->adapters)
      if (!report.adapters.contains(name)) gone.emplace_back(name);
  out["gone"] = std::move(gone);
  if (!before) out["all"] = true;
  return json_text(out);
}

Status apply_report(std::string_view json, ReplicaReport& report) {
  const Result<boost::json::object> object = parse_json_object(json, "a replica's report");
  if (!object.ok()) return data_loss("{}", object.status().message());
  JsonFields fields(*object, "a replica's report");
  ReplicaReport next = report;
  visit(next, Reader{fields});
  if (const boost::json::array* routers = fields.array("routers", kMaxRouters)) {
    next.routers.clear();
    for (const boost::json::value& router : *routers)
      if (router.is_string() && router.get_string().size() <= kMaxName) next.routers.emplace_back(router.get_string());
  }
  bool all = false;
  fields.read_bool("all", all);
  if (all) next.adapters.clear();
  if (const boost::json::object* adapters = fields.object("adapters"))
    for (const auto& [name, value] : *adapters) {
      if (!value.is_object()) {
        fields.fail("adapters", "has an entry that is no object");
        break;
      }
      JsonFields entry(value.get_object(), fields.path("adapters"), fields.errors());
      ReplicaReport::Adapter adapter;
      entry.read_string("digest", adapter.digest, 0, kMaxName);
      entry.read_int("bytes", adapter.bytes, 0, kMany);
      entry.read_bool("on_device", adapter.on_device);
      entry.read_bool("on_host", adapter.on_host);
      entry.read_int("in_flight", adapter.in_flight, 0, kMany);
      next.adapters[name] = std::move(adapter);
    }
  std::vector<std::string> gone;
  fields.read_strings("gone", gone);
  if (fields.failed()) return data_loss("{}", fields.status().message());
  for (const std::string& name : gone) next.adapters.erase(name);
  report = std::move(next);
  return Status();
}

}  // namespace lk
