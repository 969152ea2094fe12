// SPDX-License-Identifier: Apache-2.0
// CostModel: what a step and an adapter load cost, by arithmetic. One machine with one base model, as a few rates and
// sizes.
//
//   step = step_us + tokens * token_us + sequences * sequence_us
//        + max(W / BW, tokens * F / PF) + the same for the head (rows that sample)
//        + sum over sequences of max(KV bytes read / BW_attention, pairs * flops / PF)
//        + [some adapter] adapter_step_us + sum over segments of (segment_us + max(bytes_a / BW, rows_a * flops_a /
//        PF_adapter))
//   A step with h rows of a merged adapter and o others (merged fraction f = merged_bytes / W):
//          f (max(W / BW, h F / PF) + max(W / BW, o F / PF)) + (1 - f) max(W / BW, (h + o) F / PF) for the linears, and
//          no segment for h
//   merge = (2 merged_bytes / BW + f rank F / PF) alone on the machine: read W, write W', and the products B A
//   load = load_us + bytes / BW_load (+ bytes / BW_disk when the host tier does not hold the adapter)
//
// Source: the roofline form of a LoRA step (W bytes of weights, F flops a token, one term per adapter segment).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "lk/base/status.h"

namespace lk::sim {

// What a step computes, as far as its time depends on it.
struct StepShape {
  struct Segment {
    int64_t rank = 0;  // of the adapter; 0 = base rows, free
    int64_t rows = 0;
  };
  struct Attention {
    int64_t rows = 0;     // computed in this step
    int64_t context = 0;  // positions [0, context) are read; rows are the last of them
  };
  int64_t num_tokens = 0;   // rows through all linears
  int64_t num_samples = 0;  // rows through the head
  std::vector<Attention> sequences;
  std::vector<Segment> segments;  // one per distinct adapter that is not merged
  int64_t merged_rows = 0;        // of num_tokens: on merged weights, without a segment

  void clear();
};

// All rates in units per second, all times in microseconds; fractions allowed everywhere.
struct CostModel {
  std::string name, description;
  double weight_bytes = 0;              // of the linears, read once a step
  double head_bytes = 0;                // of the lm_head, read when a row samples
  double flops_per_token = 0;           // of the linears
  double head_flops_per_token = 0;      // of the lm_head
  double memory_bytes_s = 0;            // device memory, as GEMM reads it
  double flops_s = 0;                   // as GEMM reaches it
  double step_us = 0;                   // fixed cost of a step: planning, launches, synchronisation
  double token_us = 0;                  // per row: norms, rope, copies
  double sequence_us = 0;               // per sequence: sampling, bookkeeping
  double kv_bytes_per_token = 0;        // K and V of one position in all layers
  double attention_bytes_s = 0;         // as attention reads KV
  double attention_flops_per_pair = 0;  // of one row with one position, all layers
  double adapter_bytes_per_rank = 0;    // A rows and B columns of one rank, all targets and layers
  double adapter_flops_per_rank = 0;    // per row
  double adapter_flops_s = 0;           // as the LoRA kernels reach it
  double adapter_step_us = 0;           // once a step with any adapter: the extra launches
  double segment_us = 0;                // per distinct adapter
  double merged_bytes = 0;  // of the linears that adapters change, as merging copies them; 0 = all (weight_bytes)
  double load_us = 0;       // fixed cost of a load
  double load_bytes_s = 0;  // host to device
  double disk_bytes_s = 0;  // disk to host
  // Defaults of a run on this machine.
  double pool_bytes = 0;  // page pool
  double max_step_tokens = 512;
  double max_running = 256;

  double step_us_of(const StepShape& shape) const;
  double adapter_us_of(const StepShape& shape) const;  // the part of it in segments
  // Building merged weights of an adapter of this rank, alone on the machine.
  double merge_us_of(int64_t rank) const;
  double merged_share() const { return merged_bytes > 0 ? merged_bytes / weight_bytes : 1; }  // of the linears
  double load_us_of(double bytes) const;  // from a host copy into pages
  double read_us_of(double bytes) const;  // from disk into host memory
  double adapter_bytes(int64_t rank) const { return adapter_bytes_per_rank * static_cast<double>(rank); }
  double page_bytes() const;
  int64_t pages_of_adapter(int64_t rank) const;  // rounded up
  int64_t num_pages() const;                     // of pool_bytes
};

// Rates must be positive and finite, times and sizes non-negative; kInvalidArgument names the field.
Status validate(const CostModel& model);

// The JSON form: one object with the fields above by name; an unknown or missing field is an error.
Result<CostModel> parse_cost_model(const std::string& text);
std::string to_json(const CostModel& model);

// Fields that calibration may fit, for cost_fit.h and to_json: name and place.
struct CostField {
  const char* name;
  double CostModel::*member;
  enum class Kind { kSize, kRate, kTime, kCount } kind;
  bool optional = false;  // may be missing in JSON: then 0
};
std::span<const CostField> cost_fields();

// Machines that ship with the simulator (cost_model_builtin.cpp says where each figure comes from).
std::vector<std::string> builtin_cost_models();
// A built-in name, or the path of a JSON file.
Result<CostModel> find_cost_model(const std::string& name_or_path);

}  // namespace lk::sim
