// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_state.h"

#include <array>
#include <fstream>
#include <map>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/io/safetensors.h"
#include "lk/io/safetensors_writer.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr int64_t kFormat = 1;
constexpr const char* kJson = "trainer_state.json";
constexpr const char* kTensors = "trainer_state.safetensors";

// The arrays of an adapter that a state holds, by the prefix of their tensors' names.
struct Array {
  const char* prefix;
  float* (TrainableAdapter::*data)();
  bool moments;  // which only rows with a state have; in the file those of the others are 0

  int64_t size(const Param& param) const { return moments ? param.state_size() : param.size(); }
  float* of(TrainableAdapter& adapter, const Param& param) const {
    return (adapter.*data)() + (moments ? param.state_offset : param.offset);
  }
};
constexpr std::array kArrays = {Array{"param.", &TrainableAdapter::values, false},
                                Array{"exp_avg.", &TrainableAdapter::first_moments, true},
                                Array{"exp_avg_sq.", &TrainableAdapter::second_moments, true}};

Status check_identity(const std::string& what, const std::string& saved, const std::string& present,
                      const std::string& where) {
  if (saved == present) return Status();
  return failed_precondition(
      "{}: the checkpoint belongs to another {}; train into another directory, remove this one, or go "
      "back to what the checkpoint was made with",
      where, what);
}

// The first setting in which two jobs differ, "adapter.rank"; empty: none. A setting that only one of them knows, of
// another version of this program, is no difference. Values that are objects (patterns) are compared as text: their
// order counts, and every entry.
std::string first_difference(const json::object& saved, const json::object& present, bool in_section = false) {
  for (const auto& [key, value] : saved) {
    const json::value* other = present.if_contains(key);
    if (!other || json_text(*other) == json_text(value)) continue;
    if (in_section || !value.is_object() || !other->is_object()) return key;
    if (const std::string inner = first_difference(value.get_object(), other->get_object(), true); !inner.empty())
      return std::string(key) + "." + inner;
  }
  return "";
}

Status write_tensors(TrainJob& job, Backend& backend, const std::string& path) {
  TrainableAdapter& adapter = job.adapter();
  std::vector<TensorSpec> specs;
  for (const Array& array : kArrays)
    for (const Param& param : adapter.params())
      specs.push_back({array.prefix + param.name(), DType::kF32, {param.rows, param.cols}});
  LK_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs));
  std::vector<float> host;
  for (const Array& array : kArrays) {
    for (const Param& param : adapter.params()) {
      host.assign(static_cast<size_t>(param.size()), 0);
      backend.read(host.data(), array.of(adapter, param), array.size(param) * 4);
      LK_RETURN_IF_ERROR(writer.append(host.data(), param.size() * 4));
    }
  }
  return writer.finish();
}

// A parameter at a time: a state is as large as three adapters.
Status read_tensors(TrainableAdapter& adapter, Backend& backend, const std::string& path) {
  LK_ASSIGN_OR_RETURN(const MmapFile file, MmapFile::open(path));
  LK_ASSIGN_OR_RETURN(const SafetensorsIndex index, parse_safetensors(file.bytes()));
  std::map<std::string, TensorView> tensors;
  for (const TensorEntry& tensor : index.tensors) tensors.emplace(tensor.name, tensor.view);
  for (const Array& array : kArrays) {
    for (const Param& param : adapter.params()) {
      const auto found = tensors.find(array.prefix + param.name());
      if (found == tensors.end() || found->second.dtype() != DType::kF32 ||
          !found->second.has_shape({param.rows, param.cols}))
        return data_loss("{}: tensor '{}{}' is missing or misshapen", path, array.prefix, param.name());
    }
  }
  std::ifstream in(path, std::ios::binary);
  std::vector<float> host;
  for (const Array& array : kArrays) {
    for (const Param& param : adapter.params()) {
      const auto* data = static_cast<const std::byte*>(tensors.at(array.prefix + param.name()).raw());
      host.resize(static_cast<size_t>(array.size(param)));
      const auto bytes = static_cast<std::streamsize>(host.size() * 4);
      in.seekg(data - file.bytes().data());
      if (!in.read(reinterpret_cast<char*>(host.data()), bytes)) return io_error("{} cannot be read", path);
      backend.upload(array.of(adapter, param), std::span<const float>(host));
    }
  }
  return Status();
}

std::string progress_text(const TrainJob& job, const JobIdentity& identity) {
  const TrainProgress& p = job.progress();
  return json_text(json::object{{"format", kFormat},
                                {"name", job.plan().name},
                                {"base", identity.base},
                                {"data", identity.data},
                                {"options", identity.options},
                                {"step", p.step},
                                {"epoch", p.cursor.epoch},
                                {"index", p.cursor.index},
                                {"tokens", p.tokens},
                                {"loss_tokens", p.loss_tokens},
                                {"skipped_steps", p.skipped_steps},
                                {"failures_in_a_row", p.failures_in_a_row},
                                {"gain_loss", p.gain_loss},
                                {"best_loss", p.best_loss},
                                {"best_step", p.best_step},
                                {"evals_without_gain", p.evals_without_gain},
                                {"eval_due", p.eval_due}}) +
         "\n";
}

}  // namespace

std::vector<CheckpointPart> job_state_parts(TrainJob& job, Backend& backend, const JobIdentity& identity) {
  const auto tensors = [&](const std::string& directory) {
    return write_tensors(job, backend, join_path(directory, kTensors));
  };
  return {{{kTensors}, tensors}, bytes_part(kJson, progress_text(job, identity))};
}

Status read_job_state(TrainJob& job, Backend& backend, const JobIdentity& identity, const std::string& directory) {
  const std::string path = join_path(directory, kJson);
  LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(path));
  JsonFields fields(object, path);
  int64_t format = 0;
  JobIdentity saved;
  TrainProgress p;
  constexpr int64_t kMost = int64_t{1} << 60;
  fields.read_int("format", format, 0, kMost);
  fields.read_string("base", saved.base);
  fields.read_string("data", saved.data);
  fields.read_string("options", saved.options);
  fields.read_int("step", p.step, 0, kMost);
  fields.read_int("epoch", p.cursor.epoch, 0, kMost);
  fields.read_int("index", p.cursor.index, 0, kMost);
  fields.read_int("tokens", p.tokens, 0, kMost);
  fields.read_int("loss_tokens", p.loss_tokens, 0, kMost);
  fields.read_int("skipped_steps", p.skipped_steps, 0, kMost);
  fields.read_int("failures_in_a_row", p.failures_in_a_row, 0, kMost);
  fields.read_double("gain_loss", p.gain_loss);
  fields.read_double("best_loss", p.best_loss);
  fields.read_int("best_step", p.best_step, -1, kMost);
  fields.read_int("evals_without_gain", p.evals_without_gain, 0, kMost);
  fields.read_bool("eval_due", p.eval_due);
  LK_RETURN_IF_ERROR(fields.status());
  if (format != kFormat)
    return failed_precondition("{}: state of format {}; this program reads format {}", path, format, kFormat);
  LK_RETURN_IF_ERROR(check_identity("base model", saved.base, identity.base, directory));
  LK_RETURN_IF_ERROR(check_identity("data set", saved.data, identity.data, directory));
  LK_ASSIGN_OR_RETURN(const json::object saved_options, parse_json_object(saved.options, path));
  LK_ASSIGN_OR_RETURN(const json::object options, parse_json_object(identity.options, path));
  if (const std::string key = first_difference(saved_options, options); !key.empty())
    LK_RETURN_IF_ERROR(check_identity(fmt::format("job ({} differs)", key), "saved", "present", directory));

  LK_RETURN_IF_ERROR(read_tensors(job.adapter(), backend, join_path(directory, kTensors)));
  job.resume(p);
  job.adapter().refresh();
  return Status();
}

}  // namespace lk
