// SPDX-License-Identifier: Apache-2.0
// What a federated run is: RUN.yaml, in the terms of jobs files (train/job_config.h) where they mean the same.
//
//   base: models/llama
//   rounds: 20
//   seed: 7
//   adapter: {rank: 8, alpha: 16}
//   clients: {data: "clients/*.jsonl", per_round: 4}
//   train: {steps: 6, batch_samples: 16, lr: 3.0e-3}      # of one client in one round
//   rule: {name: slora, stage1_rounds: 3}
//   eval: {path: [held.jsonl]}
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "lk/federated/rules.h"
#include "lk/train/job_config.h"

namespace lk {

struct ClientSpec {
  std::string name;
  std::string path;  // of its records, whose file it is named after; empty: it has them elsewhere (clients.names)
};

struct RuleSpec {
  FederatedRule name = FederatedRule::kFedAvg;
  double proximal = 0;        // FedProx (arXiv:1812.06127) of the clients' steps; 0 = none
  double trim = 0.2;          // trimmed
  int64_t residual_rank = 0;  // of what flora and fedex leave below the adapter; 0 = all of it
  // slora: rounds of values on a mask, of which density (0: as many bytes as the factors), at a rate of its own.
  int64_t stage1_rounds = 1;
  double density = 0;
  double stage1_lr = 0;      // 0: train.lr
  bool keep_sparse = false;  // what the SVD leaves of the values stays below the adapter instead of being dropped
};

enum class PrivacySampling {
  kFixed,    // per_round clients a round, by a draw that is no secret; no part of the bound rests on it
  kPoisson,  // each with probability per_round / clients, by a secret draw: samples differ in size and may be empty
};
inline constexpr std::array<std::pair<PrivacySampling, const char*>, 2> kPrivacySamplings{
    {{PrivacySampling::kFixed, "fixed"}, {PrivacySampling::kPoisson, "poisson"}}};

// Differential privacy of clients: what is published would be nearly as likely without any one of them. Updates weigh
// alike, and their sum is divided by per_round, whoever answered.
struct PrivacySpec {
  double clip = 0;         // of the L2 norm of an update; 0: no privacy
  double noise = 0;        // standard deviation of the noise of a sum of updates, over clip
  double delta = 1e-5;     // of the statement
  double max_epsilon = 0;  // the run ends before it could be passed; 0 = any
  PrivacySampling sampling = PrivacySampling::kFixed;
  bool on() const { return clip > 0; }
  bool unseen() const { return on() && sampling == PrivacySampling::kPoisson; }  // who is asked is a secret
};

struct FederatedConfig {
  std::string base;
  TrainDtype dtype = TrainDtype::kBf16;
  uint64_t seed = 0;
  int64_t rounds = 1;
  int64_t block_tokens = 2048;
  int64_t memory_bytes = 0;  // as in jobs files
  int64_t threads = 0;
  int64_t keep = 2;  // rounds on disk
  AdapterSpec adapter;
  std::vector<ClientSpec> clients;     // by name
  int64_t per_round = 0;               // sampled; 0 = all
  int64_t quorum = 1;                  // updates without which a round is none; 0 with Poisson sampling
  int64_t retries = 2;                 // of such a round, with other clients
  int64_t together = 0;                // clients in one joint batch; 0 = all sampled ones
  int64_t min_examples = 1;            // clients with fewer are never sampled
  double max_norm = 0;                 // of an update; 0 = any
  TrainDtype wire = TrainDtype::kF32;  // of updates
  // Ranks of clients by patterns of their names, the first that matches counts; others have adapter.rank.
  std::vector<std::pair<std::string, int64_t>> ranks;
  DataSpec data;    // its path is a client's
  TrainSpec train;  // steps of one client in one round
  RuleSpec rule;
  PrivacySpec privacy;
  std::vector<std::string> eval_path;
  int64_t eval_every = 1;  // rounds

  const std::pair<std::string, int64_t>* rank_pattern_of(const std::string& client) const;  // in `ranks`, or null
  int64_t rank_of(const std::string& client) const;
  double scaling() const;  // alpha / r, or alpha / sqrt(r): the same at every rank, so that changes are alike
};

// Paths are relative to the working directory; patterns of clients.data are expanded. kInvalidArgument names file:line
// and key; an unknown key is an error.
Result<FederatedConfig> load_federated_config(const std::string& path);
Result<FederatedConfig> parse_federated_config(const std::string& yaml, const std::string& where);

// All that decides what comes out of it, defaults filled in, in a fixed order, as a run file in JSON: not paths,
// threads, memory, or how many clients share a batch. Parsed again, with a base, it is the same run.
std::string federated_identity(const FederatedConfig& config);

}  // namespace lk
