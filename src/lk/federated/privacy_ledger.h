// SPDX-License-Identifier: Apache-2.0
// PrivacyLedger: what a run has released of its clients, and the secrets behind it.
//
// A release is in ledger.jsonl, on disk, before anybody sees it, so a crash can only count one too many. Its noise
// follows from a key that is written before it, and erased when its round is over: a round that is done again adds up
// to the same bytes. A round that is done again with other updates is another release, with another key: two sums with
// the same noise would tell their difference.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/secret_random.h"
#include "lk/federated/run_config.h"

namespace lk {

// Where noise and samples come from. That of a simulation follows from the run's seed: equal runs are equal, and it
// protects nobody.
enum class NoiseSource { kSecret, kSimulated };

struct PrivacySpent {
  int64_t releases = 0;
  std::map<std::string, int64_t> of_client;  // releases that a client was in
  std::set<int64_t> rounds;
  std::set<std::string> keys;  // digests of their keys
  bool simulated = false;

  int64_t most() const;  // of one client
};
// Of a run's directory.
Result<PrivacySpent> read_privacy_spent(const std::string& directory);
// What it comes to, and what it would with one more release that everybody is in.
double epsilon_of(const FederatedConfig& config, const PrivacySpent& spent, int64_t more = 0);
// "epsilon 3.2 at delta 1e-05: ..." for people.
std::string privacy_text(const FederatedConfig& config, const PrivacySpent& spent);

class PrivacyLedger {
 public:
  using Fault = std::function<Status(std::string_view operation)>;  // as that of CheckpointStore

  // `rounds_over`: of the state. kDataLoss when the ledger does not have them all: what was spent is not known then.
  static Result<std::shared_ptr<PrivacyLedger>> open(const FederatedConfig& config, const std::string& directory,
                                                     NoiseSource source, int64_t rounds_over, Fault fault = {});

  // Poisson sampling: whether the client is asked in a round. The same answer whenever it is asked for.
  bool sampled(int64_t round, const std::string& client) const;

  // Before anything of a sum is shown: the key of its noise. `clients` are in it, `digest` is the sum's.
  Result<SecretKey> record(int64_t round, std::span<const std::string> clients, const std::string& digest);
  // The round is over and kept: its noise is never needed again.
  Status forget(int64_t round);

  const PrivacySpent& spent() const { return spent_; }
  double epsilon() const { return epsilon_of(config_, spent_); }
  // Whether the release of this round could cost more than max_epsilon. One that was already recorded is paid.
  bool exhausted(int64_t round) const;

 private:
  struct Pending {
    int64_t round = 0;
    std::string digest;  // of the sum
    SecretKey key{};
  };
  PrivacyLedger(const FederatedConfig& config, std::string directory, NoiseSource source, Fault fault)
      : config_(config), directory_(std::move(directory)), source_(source), fault_(std::move(fault)) {}

  Status load_secrets();
  Result<Pending> draw(int64_t round, const std::string& digest) const;
  Status write_secret(const char* name, const Pending& secret) const;
  Result<Pending> read_secret(const char* name) const;

  const FederatedConfig config_;
  const std::string directory_;
  const NoiseSource source_;
  const Fault fault_;
  PrivacySpent spent_;
  SecretKey sampling_{};
  Pending pending_;  // of the release whose round is not over; round 0: none
};

}  // namespace lk
