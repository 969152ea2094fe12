// SPDX-License-Identifier: Apache-2.0
// Coordinator: a federated run whose clients come by themselves. It knows who joined, keeps the round in work on disk
// (who was asked, what arrived), and ends it. It has no socket and no clock: when a deadline has passed is for the
// caller to say (serve/federate/).
//
// Beside what a RunDirectory keeps:
//
//   clients.json          who joined, with how many examples
//   open/round.json       the round in work: its number, attempt and sample, none before it begins
//   open/tasks/NAME       what the client is given (exchange.h)
//   open/updates/NAME     what it sent, once it was found right
//
// After a kill it goes on with the same sample and the updates that had arrived, so the run ends with the same bytes.
// Thread safety: none.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lk/federated/exchange.h"
#include "lk/federated/run_directory.h"

namespace lk {

class Coordinator {
 public:
  struct Hooks {
    std::function<void(const std::string& text)> on_note;
    std::function<void(const std::string& line)> on_round;  // as it goes to metrics.jsonl
    RunDirectory::Fault fault;                              // for tests
    // For tests: called before each step that leaves something on disk; a failure stands for a kill there.
    std::function<Status(std::string_view step)> before;
  };
  // `wait_for`: clients that must have joined before the first round; 0 = all that the configuration names. Other
  // errors as of RunDirectory::open(), whose server this is.
  static Result<std::unique_ptr<Coordinator>> create(const FederatedConfig& config, const ModelConfig& model,
                                                     const TensorStore& base, const std::string& directory,
                                                     int64_t wait_for, Hooks hooks, const AskStop& stop = {});

  const FederatedServer& server() const { return *server_; }
  const std::string& base_digest() const { return files_.base_digest(); }
  int64_t max_update_bytes() const { return max_update_bytes_; }  // of any client's, in the round that is next
  int64_t max_update_bytes_of_run() const;                        // from that round on
  bool has_client(std::string_view name) const;

  // --- Clients
  // kFailedPrecondition: another base, with both digests. `num_examples`: of its records, as the run reads them; a
  // client with fewer than clients.min_examples is never sampled.
  Status check_base(const std::string& client, const std::string& base_digest) const;
  Status join(const std::string& client, int64_t num_examples);
  const std::map<std::string, int64_t>& joined() const { return joined_; }
  bool can_begin() const { return std::ssize(joined_) >= wait_for_; }
  int64_t wait_for() const { return wait_for_; }

  // --- The round in work
  // Samples the next round's clients and writes their tasks. kInvalidArgument when fewer than the quorum may be asked.
  // Requires: can_begin(), not done(), not in_work().
  Status begin();
  bool done() const { return server_->done(); }
  bool in_work() const { return in_work_; }
  int64_t attempt() const { return attempt_; }
  struct Task {
    int64_t round = 0;
    int64_t number = 0;        // grows with rounds and their attempts
    std::string path, sha256;  // of the round file
    int64_t bytes = 0;         // likewise
  };
  // What the client has to do; null: nothing now.
  const Task* task_of(const std::string& client) const;
  // An update file's bytes. Idempotent: the same bytes again are no failure. Failures are in the ledger, all but those
  // of this machine (kIoError). kFailedPrecondition: of another round, run or base. kNotFound: the client was not
  // asked. kAlreadyExists: a second one that differs. kResourceExhausted: too large. kDataLoss, kInvalidArgument: not
  // what the round trains (FederatedServer::check()).
  Status receive(const std::string& client, int64_t round, std::string_view bytes);
  // The client will send nothing in this round; it sent what cannot be an update. kFailedPrecondition, kAlreadyExists.
  Status give_up(const std::string& client, int64_t round, const std::string& reason);
  Status refuse(const std::string& client, int64_t round, const std::string& reason);
  struct Progress {
    int64_t asked = 0, received = 0, refused = 0, failed = 0;
    bool complete() const { return received + refused + failed == asked; }
  };
  Progress progress() const;
  std::vector<std::string> missing() const;  // who has not answered
  // Ends the round with what there is: the next adapter, or, without a quorum, another attempt is due.
  // kFailedPrecondition: that was the last one. The state is that of the last round then.
  Status end();

 private:
  enum class Answer : uint8_t { kNone, kReceived, kRefused, kFailed };
  struct Asked {
    Task task;
    Answer answer = Answer::kNone;
    std::string sha256;  // of the update
  };
  Coordinator(const FederatedConfig& config, const std::string& directory, Hooks hooks)
      : config_(config), hooks_(std::move(hooks)), files_(config, directory, hooks_.fault) {}
  Status open(const ModelConfig& model, const TensorStore& base, int64_t wait_for, const AskStop& stop);
  Status read_joined();
  Status resume();
  Status write_round_file(const std::vector<std::string>* clients) const;
  Status write_tasks(const std::vector<std::string>& clients);
  void close_open();
  Result<ClientUpdate> accept(const std::string& client, int64_t round, const std::string& path);
  Status take_no(const std::string& client, int64_t round, Answer answer, const std::string& reason);
  Status store(const std::string& client, int64_t round, std::string_view bytes);
  Status ledger(const char* event, const std::string& client = "", const std::string& reason = "");
  // What clients can repeat as they please: one line of each kind for each client in a round.
  Status ledger_once(const char* event, const std::string& client, const Status& why);
  Status before(std::string_view step) const { return hooks_.before ? hooks_.before(step) : Status(); }
  std::string open_path(std::string_view name) const { return join_path(files_.path("open"), name); }
  std::string update_path(const std::string& client) const;
  void note(const std::string& text) const {
    if (hooks_.on_note) hooks_.on_note(text);
  }

  const FederatedConfig config_;
  const Hooks hooks_;
  RunDirectory files_;
  ModelConfig model_;
  std::unique_ptr<FederatedServer> server_;
  std::map<std::string, int64_t> joined_;
  int64_t wait_for_ = 0, max_update_bytes_ = 0;
  bool in_work_ = false;
  std::map<std::string, Asked> asked_;  // of the round in work; there may be none
  std::set<std::string> said_;          // by ledger_once() in the round `said_in_`
  int64_t said_in_ = 0;
  int64_t attempt_ = 0;  // of it, or of the one that begin() makes
};

}  // namespace lk
