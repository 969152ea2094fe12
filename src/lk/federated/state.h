// SPDX-License-Identifier: Apache-2.0
// What a federated run knows between two rounds, and its file. Nothing else of a round that is over is needed to go on.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lk/federated/factors.h"
#include "lk/train/sparse_mask.h"

namespace lk {

struct FederatedState {
  int64_t round = 0;      // rounds that are over
  ModuleFactors global;   // the adapter that the next round trains on; none with flora and in slora's first stage
  ModuleFactors overlay;  // a change below all adapters, scaling 1: what flora merged, what fedex added
  SparseValues sparse;    // slora: values on the mask; after the first stage only with keep_sparse, then below adapters
  std::map<std::string, ModuleFactors> personal;  // fedsa: of clients that have trained, their own B (A is not kept)
  std::vector<std::string> history;               // of each round a JSON object: metrics.jsonl
};

inline constexpr const char* kStateFile = "state.safetensors";

// One safetensors file, f32; written atomically. `more` is further metadata of the file.
Status write_state(const FederatedState& state, const std::string& path,
                   const std::map<std::string, std::string>& more = {});
// kDataLoss for a file that is damaged or of another model.
Result<FederatedState> read_state(const std::string& path, const ModelConfig& config);

}  // namespace lk
