// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/state.h"

#include <boost/json.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/io/safetensors.h"
#include "lk/io/safetensors_writer.h"
#include "lk/tensor/f32_values.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kMetadata = "lorikeet.json";
constexpr int64_t kSchema = 1;

// "global", "overlay" or "personal/CLIENT"; then the module, then a or b.
std::string tensor_name(const std::string& group, ModuleId module, const char* what) {
  return fmt::format("{}|{}|{}", group, module_path(module), what);
}

struct Out {
  std::vector<TensorSpec> specs;
  std::vector<const std::vector<float>*> values;
  json::object scalings;

  void add(const std::string& name, const std::vector<float>& data, std::vector<int64_t> shape) {
    if (data.empty()) return;
    specs.push_back({name, DType::kF32, std::move(shape)});
    values.push_back(&data);
  }
  void add(const std::string& group, const ModuleFactors& factors) {
    for (const auto& [module, each] : factors) {
      const DeltaFactors& f = each.factors;
      add(tensor_name(group, module, "a"), f.a, {f.rank, f.in});
      add(tensor_name(group, module, "b"), f.b, {f.out, f.rank});
      scalings[group + "|" + module_path(module)] = each.scaling;
    }
  }
};

class Reader {
 public:
  Reader(std::string path, const ModelConfig& config, const TensorStore& store)
      : path_(std::move(path)), config_(config), store_(store) {}

  Result<FederatedState> read() {
    const auto text = store_.metadata().find(kMetadata);
    if (text == store_.metadata().end()) return damaged("it has no state");
    LK_ASSIGN_OR_RETURN(const json::object object, parse_json_object(text->second, path_));
    JsonFields fields(object, path_);
    int64_t schema = 0;
    fields.read_int("schema", schema, 1, INT64_MAX);
    fields.read_int("round", state_.round, 0, INT64_MAX);
    fields.read_strings("history", state_.history);
    const json::object* scalings = fields.object("scalings");
    LK_RETURN_IF_ERROR(fields.status());
    if (schema != kSchema)
      return failed_precondition("{} is of version {} of the state, known is {}", path_, schema, kSchema);
    for (const auto& [name, view] : store_.tensors()) LK_RETURN_IF_ERROR(take(name, view));
    if (scalings == nullptr) return damaged("scalings are missing");
    for (const auto& [name, value] : *scalings) LK_RETURN_IF_ERROR(take_scaling(name, value));
    return std::move(state_);
  }

 private:
  Status damaged(const std::string& what) const { return data_loss("{}: {}; the file is damaged", path_, what); }

  ModuleFactors* group_of(const std::string& name) {
    if (name == "global") return &state_.global;
    if (name == "overlay") return &state_.overlay;
    constexpr std::string_view kPersonal = "personal/";
    return name.starts_with(kPersonal) ? &state_.personal[name.substr(kPersonal.size())] : nullptr;
  }

  Status take(const std::string& name, const TensorView& view) {
    const size_t first = name.find('|'), last = name.rfind('|');
    const std::optional<ModuleId> module =
        first < last ? find_module(name.substr(first + 1, last - first - 1), config_) : std::nullopt;
    if (!module || !module->proj()) return damaged("it has a tensor " + name);
    const std::string group = name.substr(0, first), what = name.substr(last + 1);
    if (group == "sparse") {
      state_.sparse[*module] = f32_values(view);
      return Status();
    }
    ModuleFactors* factors = group_of(group);
    const int64_t in = in_dim(*module->proj(), config_), out = out_dim(*module->proj(), config_);
    if (factors == nullptr || view.num_dims() != 2 || (what != "a" && what != "b"))
      return damaged("it has a tensor " + name);
    DeltaFactors& to = (*factors)[*module].factors;
    const int64_t rank = view.dim(what == "a" ? 0 : 1);
    if (view.dim(what == "a" ? 1 : 0) != (what == "a" ? in : out) || (to.rank != 0 && to.rank != rank))
      return damaged("the shape of " + name);
    to.rank = rank, to.in = in, to.out = out;
    (what == "a" ? to.a : to.b) = f32_values(view);
    return Status();
  }

  Status take_scaling(std::string_view name, const json::value& value) {
    const size_t bar = name.find('|');
    const std::optional<ModuleId> module =
        bar == std::string_view::npos ? std::nullopt : find_module(name.substr(bar + 1), config_);
    ModuleFactors* factors = module ? group_of(std::string(name.substr(0, bar))) : nullptr;
    if (factors == nullptr || !factors->contains(*module) || !value.is_number()) return damaged("a scaling");
    (*factors)[*module].scaling = value.to_number<double>();
    return Status();
  }

  const std::string path_;
  const ModelConfig& config_;
  const TensorStore& store_;
  FederatedState state_;
};

}  // namespace

Status write_state(const FederatedState& state, const std::string& path,
                   const std::map<std::string, std::string>& more) {
  Out out;
  out.add("global", state.global);
  out.add("overlay", state.overlay);
  for (const auto& [client, factors] : state.personal) out.add("personal/" + client, factors);
  for (const auto& [module, values] : state.sparse)
    out.add(tensor_name("sparse", module, "values"), values, {std::ssize(values)});
  const json::object object{{"schema", kSchema},
                            {"round", state.round},
                            {"history", json::value_from(state.history)},
                            {"scalings", std::move(out.scalings)}};
  std::map<std::string, std::string> metadata = more;
  metadata[kMetadata] = json_text(object);
  LK_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, out.specs, metadata));
  for (const std::vector<float>* values : out.values)
    LK_RETURN_IF_ERROR(writer.append(values->data(), std::ssize(*values) * 4));
  return writer.finish();
}

Result<FederatedState> read_state(const std::string& path, const ModelConfig& config) {
  LK_ASSIGN_OR_RETURN(const auto store, TensorStore::open_file(path));
  return Reader(path, config, *store).read();
}

}  // namespace lk
