// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "lk/base/file.h"
#include "lk/sim/cost_model.h"

namespace lk::sim {
namespace {

// Llama-2 shapes (config.json of the checkpoints), fp16.
struct Shape {
  double layers, hidden, ffn, vocab;
};
constexpr Shape k7B{32, 4096, 11008, 32000}, k13B{40, 5120, 13824, 32000};

struct Machine {
  const char *name, *description;
  Shape shape;
  double memory_bytes_s, flops_s, step_us, sequence_us, adapter_flops_s, adapter_step_us;
  double pool_tokens, max_step_tokens, max_running;
};

constexpr double kPcie4 = 25e9;  // bytes/s, host to device, pinned

// Rates, pools and overheads. "Published": printed in S-LoRA (arXiv:2311.03285) or measured by the VTC artifact (arXiv:2401.00588, appendix B);
// "fitted": chosen here so that the published system's throughput is met under this scheduler. docs/scheduling.md has the comparison.
constexpr std::array kMachines{
    Machine{"a10g-7b", "Llama-2-7B on an A10G 24 GB as S-LoRA ran it (q,k,v,o adapters)", k7B,
            510e9, 63e12, 2300, 100, 2e12, 4000, 14500, 2048, 256},
    Machine{"a100-40-13b", "Llama-2-13B on an A100 40 GB as S-LoRA ran it (q,k,v,o adapters)", k13B,
            1.32e12, 170e12, 2300, 100, 4e12, 4000, 14000, 2048, 256},
    Machine{"a100-80-7b", "Llama-2-7B on an A100 80 GB as S-LoRA ran it (q,k,v,o adapters)", k7B,
            1.73e12, 170e12, 2300, 100, 4e12, 4000, 125000, 4096, 1000},
    Machine{"a100-80-13b", "Llama-2-13B on an A100 80 GB as S-LoRA ran it (q,k,v,o adapters)", k13B,
            1.73e12, 170e12, 2300, 100, 4e12, 4000, 65000, 4096, 1000},
};

CostModel make_model(const Machine& m) {
  const Shape& s = m.shape;
  const double weights = s.layers * (4 * s.hidden * s.hidden + 3 * s.hidden * s.ffn), head = s.hidden * s.vocab;
  CostModel model{.name = m.name, .description = m.description};
  model.weight_bytes = 2 * weights;
  model.head_bytes = 2 * head;
  model.flops_per_token = 2 * weights;
  model.head_flops_per_token = 2 * head;
  model.memory_bytes_s = m.memory_bytes_s;
  model.flops_s = m.flops_s;
  model.step_us = m.step_us;
  model.sequence_us = m.sequence_us;
  model.kv_bytes_per_token = 4 * s.layers * s.hidden;
  model.attention_bytes_s = m.memory_bytes_s;
  model.attention_flops_per_pair = 4 * s.layers * s.hidden;
  // q, k, v, o: four projections, an A row and a B column of `hidden` fp16 numbers each.
  model.adapter_bytes_per_rank = 4 * 2 * 2 * s.layers * s.hidden;
  model.adapter_flops_per_rank = 4 * 2 * 2 * s.layers * s.hidden;
  model.adapter_flops_s = m.adapter_flops_s;
  model.adapter_step_us = m.adapter_step_us;
  model.load_us = 200;
  model.load_bytes_s = kPcie4;
  model.disk_bytes_s = 2e9;  // one NVMe drive
  model.pool_bytes = m.pool_tokens * model.kv_bytes_per_token;
  model.max_step_tokens = m.max_step_tokens;
  model.max_running = m.max_running;
  return model;
}

}  // namespace

std::vector<std::string> builtin_cost_models() {
  std::vector<std::string> names;
  for (const Machine& machine : kMachines) names.emplace_back(machine.name);
  return names;
}

Result<CostModel> find_cost_model(const std::string& name_or_path) {
  for (const Machine& machine : kMachines)
    if (name_or_path == machine.name) return make_model(machine);
  if (!file_exists(name_or_path))
    return not_found("no cost model \"{}\": it is neither a file nor one of {}", name_or_path, fmt::join(builtin_cost_models(), ", "));
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(name_or_path, size_t{1} << 20));
  Result<CostModel> model = parse_cost_model(text);
  if (!model.ok()) return model.status().with_context(name_or_path);
  return model;
}

}  // namespace lk::sim
