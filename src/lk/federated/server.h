// SPDX-License-Identifier: Apache-2.0
// FederatedServer: the side of a federated run that samples clients, says what they train, checks what they send and
// makes the next adapter of it. It neither trains nor waits: who brings updates (a simulation, files) is not its
// business.
//
// All it decides depends on the configuration, the state and the updates alone, so that a round that is done again
// gives the same bits.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lk/federated/privacy_ledger.h"
#include "lk/federated/private_sum.h"
#include "lk/federated/run_config.h"
#include "lk/federated/state.h"

namespace lk {

// What a client does in a round: trains these factors, or these values on the mask, from where they are.
struct LocalTask {
  int64_t round = 0;  // from 1
  ModuleFactors start;
  bool freeze_a = false, freeze_b = false;
  bool sparse = false;  // the state's values, on the mask; `start` is empty then
};

// Tensors of updates: PEFT's names, and what PEFT has no name for.
inline constexpr const char* kUpdateA = "lora_A.weight";
inline constexpr const char* kUpdateB = "lora_B.weight";
inline constexpr const char* kUpdateSparse = "sparse_values";
std::string update_tensor_name(ModuleId module, const char* what);

struct ClientUpdate {
  std::string client;
  int64_t round = 0;
  int64_t num_examples = 0;  // what its weight is made of
  // What training added, by name as in PEFT's files: only what the task trains. Rounded to the wire's type.
  NamedValues tensors;
  // FedSA, in a simulation only: the client's own B as it is now. Elsewhere it stays with the client.
  ModuleFactors personal;
};

struct RoundReport {
  int64_t round = 0;
  std::vector<std::string> clients;  // whose updates are in it
  AggregateReport aggregate;         // zero in slora's first stage, and with privacy: it tells of updates
  // Of the step from values to factors (slora), or of what went below the adapter at a bounded rank: shares of energy.
  double handover_dropped = 0, overlay_dropped = 0;
  bool handover = false;
  std::optional<double> epsilon;  // with privacy: of all rounds so far
};

// Of a value of an update, without privacy (which shortens updates instead). Far above what an optimiser moves a factor
// by in a round, and so small that products of factors, their squares and sums over any number of rounds are finite in
// f64, and factors in f32. It keeps the arithmetic whole, not the model good: that is max_norm's, or the rule's.
inline constexpr float kLargestChange = 1e4f;

class FederatedServer {
 public:
  // The initial adapter is drawn from the seed. `modules` are those that the configuration targets.
  static Result<std::unique_ptr<FederatedServer>> create(const FederatedConfig& config, const ModelConfig& model,
                                                         const TensorStore& base);
  Status restore(FederatedState state);  // kFailedPrecondition when it does not fit

  const FederatedState& state() const { return state_; }
  const FederatedConfig& config() const { return config_; }
  const std::vector<ModuleId>& modules() const { return modules_; }
  int64_t round() const { return state_.round + 1; }  // that comes next
  bool done() const { return state_.round >= config_.rounds || exhausted(); }
  // Another round could pass privacy.max_epsilon.
  bool exhausted() const { return privacy_ && privacy_->exhausted(round()); }
  // Of a run with privacy, before its first sample.
  void set_privacy(std::shared_ptr<PrivacyLedger> privacy) { privacy_ = std::move(privacy); }
  bool sparse_stage() const;  // of the round that comes next
  // Of slora; the density is that of the configuration, or what costs as many bytes as the factors.
  double density() const;
  const SparseMask& mask();  // drawn when first asked for

  // Clients of the round that comes next, of those that may be: `attempt` counts repetitions of it. Ascending.
  std::vector<std::string> sample(const std::vector<std::string>& eligible, int64_t attempt) const {
    return sample_of(round(), eligible, attempt);
  }
  std::vector<std::string> sample_of(int64_t round, const std::vector<std::string>& eligible, int64_t attempt) const;
  LocalTask task_of(const std::string& client) const;
  // Names and sizes of an update's tensors, of this client in this round.
  std::map<std::string, int64_t> expected(const LocalTask& task);
  int64_t upload_bytes(const LocalTask& task);    // of the tensors, in the wire's type
  int64_t download_bytes(const LocalTask& task);  // likewise, of what a client must be given: f32

  // kFailedPrecondition: of another round. kInvalidArgument: a client that does not exist, other tensors than the
  // task's, no examples, an update longer than max_norm, a value above kLargestChange. kDataLoss: not finite. The
  // message names the client.
  Status check(const ClientUpdate& update);
  // The round's end: updates that passed check(), one per client, at least one (with Poisson sampling, any number). The
  // state is the next round's. With privacy the release is in the ledger before this returns.
  // On failure the state is what it was. kDataLoss: what comes out would not be finite.
  Result<RoundReport> close(std::vector<ClientUpdate> updates);
  // The same, but as long as what comes out is not finite the update with the largest value is left out, which
  // `on_dropped` is told. Nothing, and the old state, when fewer than the quorum are left.
  using OnDropped = std::function<Status(const std::string& client, const std::string& reason)>;
  Result<std::optional<RoundReport>> close_what_can_be(std::vector<ClientUpdate> updates, const OnDropped& on_dropped);
  // The same where somebody else made the next adapter of the clients' updates. kUnsupported: by rules under which more
  // than the adapter goes from round to round.
  Result<RoundReport> adopt(ModuleFactors global, std::vector<std::string> clients);

  // The model as it is now, as one adapter on the untouched base: the global adapter, with what lies below it as
  // further ranks, at most as many as can be served. `dropped`: share of the energy that did not fit.
  struct Published {
    std::shared_ptr<Adapter> adapter;
    double dropped = 0;
  };
  Result<Published> publish();
  // FedSA: of one client.
  std::shared_ptr<Adapter> personal_adapter(const std::string& client) const;
  void add_history(std::string line) { state_.history.push_back(std::move(line)); }

 private:
  FederatedServer(const FederatedConfig& config, const ModelConfig& model) : config_(config), model_(model) {}

  Result<ModuleFactors> draw(int64_t rank, uint64_t seed) const;
  Result<RoundReport> close_all(std::vector<ClientUpdate> updates);
  Result<RoundReport> close_sparse(const std::vector<ClientUpdate>& updates);
  Result<RoundReport> close_private(const std::vector<ClientUpdate>& updates);
  Status add_to_sparse(const NamedValues& change, RoundReport& report);
  Status hand_over(RoundReport& report);
  Result<ModuleFactors> trained(const ClientUpdate& update) const;
  Result<ModuleFactors> sparse_as_factors(int64_t rank, double scaling, double* energy, double* dropped);
  ModuleFactors own_factors(const std::string& client) const;

  const FederatedConfig config_;
  const ModelConfig model_;
  const TensorStore* base_ = nullptr;
  std::vector<ModuleId> modules_;
  FederatedState state_;
  ModuleFactors fresh_;  // flora: of the next round, at the largest rank
  std::optional<SparseMask> mask_;
  std::shared_ptr<PrivacyLedger> privacy_;
};

}  // namespace lk
