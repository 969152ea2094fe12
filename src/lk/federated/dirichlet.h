// SPDX-License-Identifier: Apache-2.0
// Uneven data for experiments: records of several classes dealt to clients, each class in shares drawn from a symmetric
// Dirichlet distribution (arXiv:1909.06335). Small alpha: a client has few classes. Infinite alpha: all clients alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct DirichletOptions {
  int64_t num_clients = 1;
  double alpha = 1;  // > 0, or infinite
  int64_t min_examples = 1;
  uint64_t seed = 0;
};

struct DirichletSplit {
  std::vector<std::vector<std::string>> clients;  // lines, shuffled
  std::vector<std::vector<int64_t>> counts;       // of each client by class
};

// Classes are JSONL files. Draws are repeated until every client has min_examples; kInvalidArgument when that is not to
// be had, or an option is out of range. Equal options give equal splits.
Result<DirichletSplit> split_by_dirichlet(const std::vector<std::string>& files, const DirichletOptions& options);

// "client-07.jsonl"
std::string client_file(size_t client, size_t num_clients);
// kAlreadyExists when the directory holds clients already.
Status write_split(const DirichletSplit& split, const std::string& directory);

}  // namespace lk
