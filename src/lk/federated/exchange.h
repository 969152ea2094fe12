// SPDX-License-Identifier: Apache-2.0
// The files by which server and clients talk when nothing runs between them: a round file for each client that is
// asked, an update file back. Both are safetensors with what they are in the metadata ("lorikeet.kind",
// "lorikeet.json"). Whatever carries them (a job scheduler, Flower, a stick) needs to know nothing of them.
#pragma once

#include <string>

#include "lk/federated/local_training.h"
#include "lk/federated/server.h"

namespace lk {

// What a client is given. All it needs beside its records and the base.
struct RoundFile {
  FederatedConfig config;   // of the run; `base` is empty
  std::string run_digest;   // SHA-256 of the configuration's identity: updates repeat it
  std::string base_digest;  // base_files_digest()
  std::string client;
  LocalTask task;
  ModuleFactors overlay;  // below the adapter
  SparseValues sparse;    // likewise, or where training starts
};

std::string run_digest_of(const FederatedConfig& config);
// A run as another machine names it, without a base. kDataLoss for anything but what federated_identity() writes: a
// configuration from elsewhere must not open files here, nor have this machine train for ever.
Result<FederatedConfig> parse_given_run(const std::string& text, const std::string& where);

// Of the round that comes next.
Status write_round(const FederatedServer& server, const std::string& client, const std::string& base_digest,
                   const std::string& path);
// kDataLoss: no round file, or damaged. kFailedPrecondition: of another version.
Result<RoundFile> read_round(const std::string& path, const ModelConfig& model);

struct UpdateFile {
  ClientUpdate update;
  std::string run_digest, base_digest;
  double loss = 0;  // mean of the client's steps
  int64_t tokens = 0;
};
// Tensors in the type of the wire.
Status write_update(const UpdateFile& file, TrainDtype wire, const std::string& path);
// kResourceExhausted for a file of more than max_bytes, before it is read; kDataLoss: no update file, or damaged.
Result<UpdateFile> read_update(const std::string& path, int64_t max_bytes);
// An adapter that somebody else made of a round's updates, by PEFT's names: all tensors of `like`, and no other.
// kInvalidArgument names what is missing, too much or of another shape; kDataLoss: values that are not finite.
Result<ModuleFactors> read_model(const std::string& path, const ModuleFactors& like);
// More than any client's tensors and a header take.
int64_t max_update_bytes(FederatedServer& server);
// Of a round whose losses nobody reports: a line of metrics.
std::string round_line(const RoundReport& report);
// Of this run, on this base, and FederatedServer::check(). kFailedPrecondition says both digests.
Status check_update(FederatedServer& server, const std::string& base_digest, const UpdateFile& file);

// A client's work in one round: refuses a round for another base than the one with this digest (base_files_digest(); by
// default it is taken here, of all bytes) with kFailedPrecondition, trains on the records in `data`, returns the
// update. With fedsa the client's own B is read from and kept in `state` (a directory, else unused): one file a round,
// so that a round that is done again starts where it started, and apart from those of other runs.
Result<UpdateFile> train_round(const RoundFile& round, const TrainBase& base, const std::string& data,
                               const std::string& state, const AskStop& stop, std::string base_digest = "");
// Of records, as the run reads them. Errors are those of LocalTraining::create().
Result<int64_t> count_examples(const FederatedConfig& run, const TrainBase& base, const std::string& client,
                               const std::string& data, const AskStop& stop);

}  // namespace lk
