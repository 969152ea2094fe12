// SPDX-License-Identifier: Apache-2.0
// The parameter "stream": one tenant's requests, or one more phase of them, in one line.
#include <algorithm>

#include "lk/sim/streams.h"

namespace lk::sim {
namespace {

Status set_phase(Phase& phase, const std::string& key, const std::string& value, bool& known) {
  known = true;
  const auto store = [&](double& field, double min) -> Status {
    LK_ASSIGN_OR_RETURN(field, parse_number(value, key.c_str(), min, 1e9));
    return Status();
  };
  if (key == "rate") return store(phase.rate, 0);
  if (key == "end-rate") return store(phase.end_rate, 0);
  if (key == "cv") return store(phase.cv, 1e-3);
  if (key == "on") return store(phase.on_s, 1e-3);
  if (key == "off") return store(phase.off_s, 0);
  if (key == "from") return store(phase.begin_s, 0);
  if (key == "to") return store(phase.end_s, 0);
  if (key != "kind") {
    known = false;
    return Status();
  }
  if (value == "constant")
    phase.kind = Phase::Kind::kConstant;
  else if (value == "poisson" || value == "gamma")
    phase.kind = Phase::Kind::kGamma;
  else if (value == "on-off")
    phase.kind = Phase::Kind::kOnOff;
  else if (value == "ramp")
    phase.kind = Phase::Kind::kRamp;
  else
    return invalid_argument("kind is constant, poisson, gamma, on-off or ramp, got \"{}\"", value);
  return Status();
}

}  // namespace

Status add_stream(SimSpec& spec, const std::string& text) {
  Stream stream{.phases = {{.end_s = spec.duration_s}}};
  Tenant tenant{.name = fmt::format("c{}", spec.stream_tenants.size())};
  Phase& phase = stream.phases.front();
  for (const std::string& part : split(text, ',')) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos) return invalid_argument("\"{}\" is not KEY=VALUE", part);
    const std::string key = part.substr(0, equals), value = part.substr(equals + 1);
    bool known = false;
    LK_RETURN_IF_ERROR(set_phase(phase, key, value, known));
    if (known) continue;
    if (key == "tenant") {
      tenant.name = value;
    } else if (key == "weight") {
      LK_ASSIGN_OR_RETURN(tenant.weight, parse_number(value, "weight", 1e-6, 1e6));
    } else if (key == "input") {
      LK_ASSIGN_OR_RETURN(stream.input, parse_length_dist(value));
    } else if (key == "output") {
      LK_ASSIGN_OR_RETURN(stream.output, parse_length_dist(value));
    } else {
      return invalid_argument(
          "unknown key \"{}\"; known are tenant, weight, input, output, kind, rate, end-rate, cv, on, off, from, to",
          key);
    }
  }
  auto& tenants = spec.stream_tenants;
  const auto found =
      std::find_if(tenants.begin(), tenants.end(), [&](const Tenant& t) { return t.name == tenant.name; });
  stream.tenant = static_cast<int32_t>(found - tenants.begin());
  if (found == tenants.end()) tenants.push_back(tenant);
  spec.streams.push_back(std::move(stream));
  return Status();
}

}  // namespace lk::sim
