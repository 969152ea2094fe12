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

// Where the figures come from:
// - Pools: the token counts of S-LoRA's experiment scripts. max_step_tokens, max_running: chosen for this scheduler.
// - memory_bytes_s: 0.85 of the data sheet (600 GB/s, 1,555 GB/s, 2,039 GB/s). load: PCIe 4 x16 as measured by S-LoRA's
//   readers, 25 GB/s.
// - A10G flops_s, step_us, sequence_us: solved from the cost surface that VTC measured for base-only 7B (appendix B.2:
//   0.21 ms a prompt token; the decode terms at 64 + 64 and 256 + 256 tokens). A100 flops_s: 0.55 of the data sheet's
//   312 TFLOP/s.
// - A100 sequence_us: the A10G's for 7B (it gives the published base-only 9.6 requests/s and 22 s); for 13B fitted to
//   base-only 5.59.
// - adapter_step_us, adapter_flops_s: fitted to S-LoRA's throughput with one adapter and its decline with rank (7.74
//   requests/s for S2, 4.43 for S4; A10G 1.83 and 1.74). They describe S-LoRA's kernels (8 launches a layer, weights
//   read per row), not ours.
// docs/design/scheduling.md compares the outcome with the published tables.
constexpr std::array kMachines{
    Machine{"a10g-7b", "Llama-2-7B on an A10G 24 GB as S-LoRA ran it (q,k,v,o adapters)", k7B, 510e9, 63e12, 2300, 100,
            2e12, 5000, 14500, 2048, 256},
    Machine{"a100-40-13b", "Llama-2-13B on an A100 40 GB as S-LoRA ran it (q,k,v,o adapters)", k13B, 1.32e12, 170e12,
            2300, 125, 8e12, 19000, 14000, 2048, 256},
    Machine{"a100-80-7b", "Llama-2-7B on an A100 80 GB as S-LoRA ran it (q,k,v,o adapters)", k7B, 1.73e12, 170e12, 2300,
            100, 6.5e12, 12000, 125000, 4096, 1000},
    Machine{"a100-80-13b", "Llama-2-13B on an A100 80 GB as S-LoRA ran it (q,k,v,o adapters)", k13B, 1.73e12, 170e12,
            2300, 125, 8e12, 19000, 65000, 4096, 1000},
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
  model.merged_bytes = 2 * s.layers * 4 * s.hidden * s.hidden;  // q, k, v, o
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
    return not_found("no cost model \"{}\": it is neither a file nor one of {}", name_or_path,
                     fmt::join(builtin_cost_models(), ", "));
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(name_or_path, size_t{1} << 20));
  Result<CostModel> model = parse_cost_model(text);
  if (!model.ok()) return model.status().with_context(name_or_path);
  return model;
}

}  // namespace lk::sim
