// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/exchange.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/sha256.h"
#include "lk/io/safetensors.h"
#include "lk/io/safetensors_writer.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kKind = "lorikeet.kind";
constexpr const char* kRound = "lorikeet.round";
constexpr const char* kUpdate = "lorikeet.update";
constexpr int64_t kSchema = 1;
constexpr int64_t kMostExamples = int64_t{1} << 40;
// What a client does for a server in a round at most. A run asks for less by far; who asks for more wants the machine.
constexpr int64_t kMostSteps = 1'000'000, kMostBatchSamples = 65'536, kMostBatchTokens = int64_t{1} << 24;
constexpr int64_t kMostLength = int64_t{1} << 20;

Result<json::object> read_header(const TensorStore& store, const std::string& path, const char* kind, const char* key) {
  const auto found = store.metadata().find(kKind);
  if (found == store.metadata().end() || found->second != kind)
    return data_loss("{} is no {} file of a federated run", path, kind);
  const auto text = store.metadata().find(key);
  if (text == store.metadata().end()) return data_loss("{} does not say what it is; the file is damaged", path);
  LK_ASSIGN_OR_RETURN(json::object object, parse_json_object(text->second, path));
  JsonFields fields(object, path);
  int64_t schema = 0;
  fields.read_int("schema", schema, 1, INT64_MAX);
  LK_RETURN_IF_ERROR(fields.status());
  if (schema != kSchema)
    return failed_precondition("{} is of version {} of the format, known is {}: use one version on both sides", path,
                               schema, kSchema);
  return object;
}

bool all_finite(const std::vector<float>& values) {
  return std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
}

// FedSA: where a client keeps its own factors of a run.
std::string own_directory(const std::string& state, const std::string& run_digest) {
  return join_path(state, "run-" + run_digest.substr(0, 16));
}

// After a round.
std::string own_file(const std::string& state, int64_t round) {
  return join_path(state, fmt::format("own-{:06}.safetensors", round));
}

// The newest of an earlier round.
Result<ModuleFactors> read_own(const std::string& state, int64_t before, const ModelConfig& model) {
  int64_t newest = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(state, error)) {
    const std::string name = entry.path().filename();
    int64_t round = 0;
    if (!name.starts_with("own-") || !name.ends_with(".safetensors")) continue;
    std::from_chars(name.data() + 4, name.data() + name.size(), round);
    if (round < before) newest = std::max(newest, round);
  }
  if (newest == 0) return ModuleFactors();
  LK_ASSIGN_OR_RETURN(FederatedState own, read_state(own_file(state, newest), model));
  return std::move(own.global);
}

}  // namespace

std::string run_digest_of(const FederatedConfig& config) {
  const std::string text = federated_identity(config);
  Sha256 sha;
  sha.update(text.data(), text.size());
  return to_hex(sha.finish());
}

Result<FederatedConfig> parse_given_run(const std::string& text, const std::string& where) {
  LK_ASSIGN_OR_RETURN(json::object object, parse_json_object(text, where));
  const json::value* clients = object.if_contains("clients");
  const bool has_paths = object.contains("base") || object.contains("eval") || clients == nullptr ||
                         !clients->is_object() || clients->get_object().contains("data");
  if (has_paths) return data_loss("{}: a run from elsewhere must not name files", where);
  object["base"] = "base";
  LK_ASSIGN_OR_RETURN(FederatedConfig config, parse_federated_config(json_text(object), where));
  config.base.clear();
  if (federated_identity(config) != text)
    return data_loss("{}: the run is not written as this version writes it: use one version on both sides", where);
  const TrainSpec& train = config.train;
  if (train.steps > kMostSteps || train.batch_samples > kMostBatchSamples || train.batch_tokens > kMostBatchTokens ||
      config.data.render.max_length > kMostLength)
    return data_loss(
        "{}: the run asks for more than a client does in a round: at most {} steps of {} samples or {} tokens, of {} "
        "tokens each",
        where, kMostSteps, kMostBatchSamples, kMostBatchTokens, kMostLength);
  return config;
}

// --- Rounds

Status write_round(const FederatedServer& server, const std::string& client, const std::string& base_digest,
                   const std::string& path) {
  const LocalTask task = server.task_of(client);
  FederatedState content{.round = task.round - 1, .global = task.start, .overlay = server.state().overlay};
  content.sparse = server.state().sparse;
  const json::object header{{"schema", kSchema},          {"run", federated_identity(server.config())},
                            {"base_digest", base_digest}, {"client", client},
                            {"freeze_a", task.freeze_a},  {"freeze_b", task.freeze_b},
                            {"sparse", task.sparse}};
  return write_state(content, path, {{kKind, "round"}, {kRound, json_text(header)}});
}

Result<RoundFile> read_round(const std::string& path, const ModelConfig& model) {
  LK_ASSIGN_OR_RETURN(const auto store, TensorStore::open_file(path));
  LK_ASSIGN_OR_RETURN(const json::object object, read_header(*store, path, "round", kRound));
  RoundFile round;
  std::string run;
  JsonFields fields(object, path);
  fields.mark_known("schema");
  fields.read_string("run", run, 1);
  fields.read_string("base_digest", round.base_digest, 1);
  fields.read_string("client", round.client, 1);
  fields.read_bool("freeze_a", round.task.freeze_a);
  fields.read_bool("freeze_b", round.task.freeze_b);
  fields.read_bool("sparse", round.task.sparse);
  fields.refuse_unknown();
  LK_RETURN_IF_ERROR(fields.status());
  LK_ASSIGN_OR_RETURN(round.config, parse_given_run(run, path));
  round.run_digest = run_digest_of(round.config);
  LK_ASSIGN_OR_RETURN(FederatedState content, read_state(path, model));
  round.task.round = content.round + 1;
  round.task.start = std::move(content.global);
  round.overlay = std::move(content.overlay);
  round.sparse = std::move(content.sparse);
  if (std::ranges::find(round.config.clients, round.client, &ClientSpec::name) == round.config.clients.end())
    return data_loss("{}: the round is for nobody of its run", path);
  for (const ModuleFactors* factors : {&round.task.start, &round.overlay})
    for (const auto& [module, each] : *factors)
      if (!std::isfinite(each.scaling) || !all_finite(each.factors.a) || !all_finite(each.factors.b))
        return data_loss("{}: {} holds values that are not finite", path, module_path(module));
  for (const auto& [module, values] : round.sparse)
    if (!all_finite(values)) return data_loss("{}: {} holds values that are not finite", path, module_path(module));
  return round;
}

// --- Updates

Status write_update(const UpdateFile& file, TrainDtype wire, const std::string& path) {
  const DType dtype = wire == TrainDtype::kF32 ? DType::kF32 : DType::kBF16;
  std::vector<TensorSpec> specs;
  for (const auto& [name, values] : file.update.tensors) specs.push_back({name, dtype, {std::ssize(values)}});
  const json::object header{{"schema", kSchema},
                            {"run_digest", file.run_digest},
                            {"base_digest", file.base_digest},
                            {"client", file.update.client},
                            {"round", file.update.round},
                            {"num_examples", file.update.num_examples},
                            {"loss", file.loss},
                            {"tokens", file.tokens}};
  LK_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                      SafetensorsWriter::create(path, specs, {{kKind, "update"}, {kUpdate, json_text(header)}}));
  std::vector<std::byte> packed;
  for (const auto& [name, values] : file.update.tensors) {
    packed.resize(values.size() * static_cast<size_t>(dtype_bytes(dtype)));
    convert(values.data(), DType::kF32, packed.data(), dtype, std::ssize(values));
    LK_RETURN_IF_ERROR(writer.append(packed.data(), std::ssize(packed)));
  }
  return writer.finish();
}

Result<UpdateFile> read_update(const std::string& path, int64_t max_bytes) {
  LK_ASSIGN_OR_RETURN(const auto store, TensorStore::open_file(path, {.copy = true, .max_bytes = max_bytes}));
  LK_ASSIGN_OR_RETURN(const json::object object, read_header(*store, path, "update", kUpdate));
  UpdateFile file;
  JsonFields fields(object, path);
  fields.mark_known("schema");
  fields.read_string("run_digest", file.run_digest, 1);
  fields.read_string("base_digest", file.base_digest, 1);
  fields.read_string("client", file.update.client, 1);
  fields.read_int("round", file.update.round, 1, INT64_MAX);
  fields.read_int("num_examples", file.update.num_examples, 0, kMostExamples);
  fields.read_double("loss", file.loss);
  fields.read_int("tokens", file.tokens, 0, INT64_MAX);
  fields.refuse_unknown();
  LK_RETURN_IF_ERROR(fields.status());
  for (const auto& [name, view] : store->tensors()) {
    std::vector<float>& values = file.update.tensors[name];
    values.resize(static_cast<size_t>(view.num_elements()));
    view.copy_to(values.data());
  }
  return file;
}

Result<ModuleFactors> read_model(const std::string& path, const ModuleFactors& like) {
  LK_ASSIGN_OR_RETURN(const auto store, TensorStore::open_file(path));
  ModuleFactors factors = like;
  size_t taken = 0;
  for (auto& [module, each] : factors) {
    DeltaFactors& f = each.factors;
    for (const auto& [what, rows, columns, values] :
         {std::tuple(kUpdateA, f.rank, f.in, &f.a), std::tuple(kUpdateB, f.out, f.rank, &f.b)}) {
      const std::string name = update_tensor_name(module, what);
      const auto found = store->tensors().find(name);
      if (found == store->tensors().end()) return invalid_argument("{} has no tensor {}", path, name);
      const TensorView& view = found->second;
      if (view.num_dims() != 2 || view.dim(0) != rows || view.dim(1) != columns)
        return invalid_argument("{}: {} must have the shape [{}, {}]", path, name, rows, columns);
      view.copy_to(values->data());
      if (!all_finite(*values)) return data_loss("{}: {} holds values that are not finite", path, name);
      ++taken;
    }
  }
  if (taken != store->tensors().size())
    return invalid_argument("{} has {} tensors, {} are the adapter's", path, store->tensors().size(), taken);
  return factors;
}

int64_t max_update_bytes(FederatedServer& server) {
  constexpr int64_t kHeader = int64_t{1} << 20;
  int64_t most = 0;
  for (const ClientSpec& client : server.config().clients) {
    int64_t bytes = 0;
    for (const auto& [name, size] : server.expected(server.task_of(client.name))) bytes += 4 * size + 512;
    most = std::max(most, bytes);
    if (server.config().ranks.empty()) break;  // all are alike
  }
  return most + kHeader;
}

std::string round_line(const RoundReport& report) {
  json::object line{{"round", report.round}, {"clients", json::value_from(report.clients)}};
  if (report.epsilon) {
    line["epsilon"] = *report.epsilon;
  } else {
    line["aggregation_error"] = report.aggregate.error;
    line["dropped"] = report.aggregate.energy > 0 ? report.aggregate.dropped / report.aggregate.energy : 0.0;
  }
  if (report.handover) line["handover_dropped"] = report.handover_dropped;
  if (report.overlay_dropped > 0) line["overlay_dropped"] = report.overlay_dropped;
  return json_text(line);
}

Status check_update(FederatedServer& server, const std::string& base_digest, const UpdateFile& file) {
  const std::string run = run_digest_of(server.config());
  for (const auto& [what, theirs, ours] :
       {std::tuple("run", file.run_digest, run), std::tuple("base", file.base_digest, base_digest)})
    if (theirs != ours)
      return failed_precondition("{}: the update is of another {}: {}, and this is {}", file.update.client, what,
                                 theirs, ours);
  return server.check(file.update);
}

// --- The client's side

Result<UpdateFile> train_round(const RoundFile& round, const TrainBase& base, const std::string& data,
                               const std::string& state, const AskStop& stop, std::string base_digest) {
  if (base_digest.empty()) {
    LK_ASSIGN_OR_RETURN(base_digest, base_files_digest(base.directory, stop));
  }
  if (base_digest != round.base_digest)
    return failed_precondition("the round is for a base with the digest {}, and {} has {}", round.base_digest,
                               base.directory, base_digest);
  const ModelConfig& model = base.weights->config;
  FederatedConfig config = round.config;
  config.base = base.directory;
  const bool keeps_b = config.rule.name == FederatedRule::kFedSa;
  if (keeps_b && state.empty())
    return invalid_argument(
        "with fedsa each client keeps factors of its own: give --state DIR, the same in every round");
  // For the mask, which is drawn, not sent.
  LK_ASSIGN_OR_RETURN(const auto server, FederatedServer::create(config, model, *base.weights->checkpoint));
  config.clients = {{round.client, data}};
  config.per_round = 1;
  LK_ASSIGN_OR_RETURN(const auto training, LocalTraining::create(config, base, stop));
  ClientTask task{round.client, round.task};
  const std::string own_of_run = own_directory(state, round.run_digest);
  if (keeps_b) {
    LK_ASSIGN_OR_RETURN(const ModuleFactors own, read_own(own_of_run, round.task.round, model));
    for (auto& [module, each] : task.task.start) {
      const auto found = own.find(module);
      if (found != own.end() && found->second.factors.b.size() == each.factors.b.size())
        each.factors.b = found->second.factors.b;
    }
  }
  RoundBase below{.overlay = &round.overlay, .sparse = &round.sparse};
  if (!round.sparse.empty()) below.mask = &server->mask();
  LK_ASSIGN_OR_RETURN(std::vector<ClientResult> results, training->train(std::span(&task, 1), below, stop));
  LK_RETURN_IF_ERROR(results[0].failure);
  for (const auto& [name, values] : results[0].update.tensors)
    if (!all_finite(values)) return data_loss("training made values of {} that are not finite", name);
  for (const auto& [module, each] : results[0].update.personal)
    if (!all_finite(each.factors.b))
      return data_loss("training made values of {} that are not finite", module_path(module));
  if (keeps_b) {
    FederatedState own{.round = round.task.round, .global = results[0].update.personal};
    LK_RETURN_IF_ERROR(make_directories(own_of_run));
    LK_RETURN_IF_ERROR(write_state(own, own_file(own_of_run, round.task.round)));
    results[0].update.personal.clear();
  }
  return UpdateFile{.update = std::move(results[0].update),
                    .run_digest = round.run_digest,
                    .base_digest = std::move(base_digest),
                    .loss = results[0].loss,
                    .tokens = results[0].tokens};
}

Result<int64_t> count_examples(const FederatedConfig& run, const TrainBase& base, const std::string& client,
                               const std::string& data, const AskStop& stop) {
  FederatedConfig config = run;
  config.base = base.directory;
  config.clients = {{client, data}};
  config.per_round = 1;
  LK_ASSIGN_OR_RETURN(const auto training, LocalTraining::create(config, base, stop));
  return training->num_examples(client);
}

}  // namespace lk
