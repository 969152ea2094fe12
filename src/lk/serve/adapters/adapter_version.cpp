// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_version.h"

#include <algorithm>
#include <ctime>

namespace lk {
namespace {

std::vector<std::string> target_names(const Adapter& adapter) {
  std::vector<std::string> names;
  for (size_t proj = 0; proj < kNumProjs; ++proj) {
    const bool used = std::any_of(adapter.layers.begin(), adapter.layers.end(),
                                  [&](const auto& layer) { return layer[proj].has_value(); });
    if (!used) continue;
    names.push_back(short_name(ModuleId::of(0, static_cast<Proj>(proj))));
  }
  if (adapter.embedding) names.push_back(short_name(kEmbedding));
  if (adapter.lm_head) names.push_back(short_name(kLmHead));
  for (const WeightId id : adapter.replaced.ids()) names.push_back(weight_name(id));
  return names;
}

}  // namespace

AdapterVersion::AdapterVersion(EngineService& service, const Adapter& content, Engine::PreparedAdapter prepared)
    : name(content.name),
      path(content.directory),
      digest(content.digest),
      rank(content.max_rank),
      file_bytes(content.file_bytes),
      host_bytes(prepared.host->bytes()),
      targets(target_names(content)),
      warnings(content.warnings),
      invocation_tokens(prepared.invocation_tokens),
      created(std::time(nullptr)),
      host_(prepared.host),
      service_(service),
      id_(service.add_adapter(std::move(prepared))) {}

AdapterVersion::~AdapterVersion() { service_.remove_adapter(id_, std::move(on_freed_)); }

void AdapterVersion::allow_merging() {
  service_.allow_merging(id_);
  exact = false;
}

}  // namespace lk
