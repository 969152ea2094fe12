// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/save.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <set>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/io/safetensors_writer.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora/module_names.h"
#include "lk/lora_tools/foreign.h"

namespace lk {
namespace {
namespace json = boost::json;

// One targeted module with the numbers the config must give it.
struct Module {
  ModuleId id;
  int64_t rank;
  double alpha;
};

// alpha from the scaling: the shortest decimal that scales alike in f32, as which scalings are kept while training.
double alpha_of(double scaling, int64_t rank, bool use_rslora) {
  const double divisor = use_rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank);
  for (const double unit : {1.0, 10.0, 100.0, 1e3, 1e4}) {
    const double rounded = std::round(scaling * divisor * unit) / unit;
    if (static_cast<float>(rounded / divisor) == static_cast<float>(scaling)) return rounded;
  }
  return scaling * divisor;
}

json::value number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

template <class T>
T most_common(const std::vector<Module>& modules, T Module::*field, T fallback) {
  std::map<T, size_t> counts;
  for (const Module& module : modules) ++counts[module.*field];
  const auto best = std::ranges::max_element(counts, {}, [](const auto& item) { return item.second; });
  return best == counts.end() ? fallback : best->first;
}

// Suffixes ("q_proj") when they select exactly these modules, full paths otherwise.
json::array target_list(const std::vector<Module>& modules, const ModelConfig& config) {
  std::set<std::string> paths, suffixes;
  for (const Module& module : modules) {
    paths.insert(module_path(module.id));
    suffixes.insert(short_name(module.id));
  }
  const bool exact = std::ranges::all_of(lora_modules(config), [&](ModuleId module) {
    return paths.contains(module_path(module)) == suffixes.contains(short_name(module));
  });
  json::array list;
  for (const std::string& name : exact ? suffixes : paths) list.emplace_back(name);
  return list;
}

std::string escape_regex(const std::string& path) {
  std::string escaped;
  for (char c : path) escaped += c == '.' ? std::string("\\.") : std::string(1, c);
  return escaped;
}

class AdapterWriter {
 public:
  AdapterWriter(const Adapter& adapter, const ModelConfig& config, const SaveOptions& options)
      : adapter_(adapter), config_(config), options_(options) {}

  Status write(const std::string& directory) {
    collect();
    LK_RETURN_IF_ERROR(make_directories(directory));
    LK_RETURN_IF_ERROR(write_tensors(join_path(directory, kAdapterWeightsFile)));
    return write_file_atomic(join_path(directory, kAdapterConfigFile), json_text(config_object()) + "\n");
  }

 private:
  static std::string file_name(ModuleId module, const char* suffix) {
    return fmt::format("base_model.model.{}.{}", module_path(module), suffix);
  }
  void add(ModuleId module, const char* suffix, const TensorView& view) {
    tensors_.push_back({file_name(module, suffix), view, options_.dtype.value_or(view.dtype())});
  }
  void add_as_it_is(ModuleId module, const std::string& suffix, const TensorView& view) {
    tensors_.push_back({file_name(module, suffix.c_str()), view, view.dtype()});
  }
  void add_lora(ModuleId module, const LoraDelta& delta) {
    modules_.push_back({module, delta.rank, alpha_of(delta.scaling, delta.rank, adapter_.config.use_rslora)});
    add(module, "lora_A.weight", delta.a);
    add(module, "lora_B.weight", delta.b);
    if (delta.bias.defined()) add(module, "lora_B.bias", delta.bias);
    // Not rounded: small, and every output of the module is proportional to it.
    if (delta.magnitude.defined()) add_as_it_is(module, "lora_magnitude_vector", delta.magnitude);
    lora_bias_ |= delta.bias.defined();
    dora_ |= delta.magnitude.defined();
  }
  // One tensor at a time in the type of the file.
  Status write_tensors(const std::string& path) const {
    std::vector<TensorSpec> specs;
    for (const Tensor& tensor : tensors_)
      specs.push_back({tensor.name, tensor.dtype, {tensor.view.shape().begin(), tensor.view.shape().end()}});
    LK_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs));
    std::vector<std::byte> converted;
    for (const auto& [name, view, dtype] : tensors_) {
      const int64_t bytes = view.num_elements() * dtype_bytes(dtype);
      const void* data = view.raw();
      if (dtype != view.dtype()) {
        converted.resize(static_cast<size_t>(bytes));
        convert(data, view.dtype(), converted.data(), dtype, view.num_elements());
        data = converted.data();
      }
      LK_RETURN_IF_ERROR(writer.append(data, bytes));
    }
    return writer.finish();
  }

  void collect() {
    for (size_t layer = 0; layer < adapter_.layers.size(); ++layer) {
      for (int proj = 0; proj < kNumProjs; ++proj) {
        const auto& delta = adapter_.layers[layer][static_cast<size_t>(proj)];
        if (delta) add_lora(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)), *delta);
      }
    }
    if (adapter_.lm_head) add_lora(kLmHead, *adapter_.lm_head);
    if (adapter_.embedding) {
      const Adapter::EmbeddingDelta& delta = *adapter_.embedding;
      modules_.push_back({kEmbedding, delta.rank, alpha_of(delta.scaling, delta.rank, adapter_.config.use_rslora)});
      add(kEmbedding, "lora_embedding_A", delta.a);
      add(kEmbedding, "lora_embedding_B", delta.b);
    }
    for (const WeightId weight : adapter_.replaced.ids()) {
      const ModuleId module = weight.module;
      const bool targeted = std::ranges::any_of(modules_, [&](const Module& item) { return item.id == module; });
      const std::string leaf = weight.bias ? "bias" : "weight";
      // Below a LoRA layer PEFT keeps the weight as base_layer; a plain name would make it a modules_to_save.
      add_as_it_is(module, targeted ? "base_layer." + leaf : leaf, adapter_.replaced.of(weight));
      if (weight.bias && !adapter_.replaced.of({module}).defined())
        trained_biases_ = true;
      else if (!targeted)
        saved_.insert(module == kEmbedding ? short_name(module) : module_path(module));
    }
    if (!adapter_.trained_token_ids.empty()) {
      add_as_it_is(kEmbedding, "token_adapter.trainable_tokens_delta", adapter_.trained_token_rows);
    }
  }

  json::object config_object() const {
    const int64_t rank = most_common(modules_, &Module::rank, int64_t{8});
    const double alpha = most_common(modules_, &Module::alpha, 8.0);
    json::object rank_pattern, alpha_pattern;
    for (const Module& module : modules_) {
      // A full path, with the dots taken literally.
      if (module.rank != rank) rank_pattern[escape_regex(module_path(module.id))] = module.rank;
      if (module.alpha != alpha) alpha_pattern[escape_regex(module_path(module.id))] = number(module.alpha);
    }
    const std::string& base =
        options_.base_model_name.empty() ? adapter_.config.base_model_name : options_.base_model_name;
    json::object object;
    const std::vector<int64_t>& invocation = adapter_.config.alora_invocation_tokens;
    if (!invocation.empty()) object["alora_invocation_tokens"] = json::array(invocation.begin(), invocation.end());
    object["alpha_pattern"] = std::move(alpha_pattern);
    object["auto_mapping"] = nullptr;
    object["base_model_name_or_path"] = base.empty() ? json::value(nullptr) : json::value(base);
    object["bias"] = trained_biases_ ? "all" : "none";
    object["exclude_modules"] = nullptr;
    object["fan_in_fan_out"] = false;
    object["inference_mode"] = true;
    object["init_lora_weights"] = true;
    object["layers_pattern"] = nullptr;
    object["layers_to_transform"] = nullptr;
    object["lora_alpha"] = number(alpha);
    object["lora_bias"] = lora_bias_;
    object["lora_dropout"] = adapter_.config.dropout;
    object["modules_to_save"] =
        saved_.empty() ? json::value(nullptr) : json::value(json::array(saved_.begin(), saved_.end()));
    object["peft_type"] = "LORA";
    object["peft_version"] = "0.18.0";
    object["r"] = rank;
    object["rank_pattern"] = std::move(rank_pattern);
    object["revision"] = nullptr;
    object["target_modules"] = target_list(modules_, config_);
    object["task_type"] = "CAUSAL_LM";
    object["trainable_token_indices"] =
        adapter_.trained_token_ids.empty()
            ? json::value(nullptr)
            : json::value(json::array(adapter_.trained_token_ids.begin(), adapter_.trained_token_ids.end()));
    object["use_dora"] = dora_;
    object["use_rslora"] = adapter_.config.use_rslora;
    return object;
  }

  const Adapter& adapter_;
  const ModelConfig& config_;
  const SaveOptions& options_;
  struct Tensor {
    std::string name;
    TensorView view;
    DType dtype;  // in the file
  };
  std::vector<Tensor> tensors_;
  std::vector<Module> modules_;
  std::set<std::string> saved_;
  bool lora_bias_ = false, dora_ = false, trained_biases_ = false;
};

double rounding_of(const TensorView& view, DType dtype) {
  const auto n = static_cast<size_t>(view.num_elements());
  std::vector<float> exact(n), rounded(n);
  std::vector<std::byte> stored(n * static_cast<size_t>(dtype_bytes(dtype)));
  view.copy_to(exact.data());
  convert(view.raw(), view.dtype(), stored.data(), dtype, view.num_elements());
  convert(stored.data(), dtype, rounded.data(), DType::kF32, view.num_elements());
  double largest = 0;
  for (size_t index = 0; index < n; ++index)
    largest = std::max(largest, std::abs(static_cast<double>(exact[index]) - rounded[index]));
  return largest;
}

// Over A, B and bias. kInvalidArgument when one does not fit into the type.
Result<double> largest_rounding(const Adapter& adapter, const std::optional<DType>& dtype) {
  double largest = 0;
  if (!dtype) return largest;
  const auto measure = [&](const TensorView& view) {
    if (view.defined()) largest = std::max(largest, rounding_of(view, *dtype));
  };
  const auto measure_delta = [&](const std::optional<LoraDelta>& delta) {
    if (!delta) return;
    for (const TensorView* view : {&delta->a, &delta->b, &delta->bias}) measure(*view);
  };
  for (const auto& layer : adapter.layers) std::ranges::for_each(layer, measure_delta);
  measure_delta(adapter.lm_head);
  if (adapter.embedding) {
    measure(adapter.embedding->a);
    measure(adapter.embedding->b);
  }
  if (!std::isfinite(largest))
    return invalid_argument("a value exceeds the range of {}; write bf16 or f32", to_string(*dtype));
  return largest;
}

Status check_no_adapter(const std::string& directory) {
  if (file_exists(join_path(directory, kAdapterWeightsFile)) || file_exists(join_path(directory, kAdapterConfigFile)))
    return already_exists("{} holds an adapter already; name another directory", directory);
  return Status();
}

}  // namespace

Status save_adapter(const Adapter& adapter, const ModelConfig& config, const std::string& directory,
                    const SaveOptions& options) {
  return AdapterWriter(adapter, config, options).write(directory);
}

Status save_new_adapter(const Adapter& adapter, const ModelConfig& config, const std::string& directory,
                        const SaveOptions& options) {
  LK_RETURN_IF_ERROR(check_no_adapter(directory));
  LK_RETURN_IF_ERROR(largest_rounding(adapter, options.dtype).status().with_context(directory));
  LK_RETURN_IF_ERROR(save_adapter(adapter, config, directory, options));
  return load_adapter("written", directory, config, nullptr).status();
}

Result<ConvertReport> convert_adapter(const std::string& in_dir, const ModelConfig& config, const TensorStore* base,
                                      const std::string& out_dir, const SaveOptions& options,
                                      const AdapterLoadOptions& load) {
  LK_RETURN_IF_ERROR(check_no_adapter(out_dir));
  LK_ASSIGN_OR_RETURN(const std::shared_ptr<const Adapter> adapter,
                      is_foreign_adapter(in_dir) ? read_foreign_adapter(in_dir, config, options.scaling)
                                                 : load_adapter("convert", in_dir, config, base, load));
  ConvertReport report;
  report.bytes_before = adapter->file_bytes;
  report.warnings = adapter->warnings;
  const Result<double> rounding = largest_rounding(*adapter, options.dtype);
  if (!rounding.ok()) return rounding.status().with_context(in_dir);
  report.largest_rounding = *rounding;
  LK_RETURN_IF_ERROR(save_adapter(*adapter, config, out_dir, options));
  LK_ASSIGN_OR_RETURN(const std::shared_ptr<const Adapter> written,
                      load_adapter("convert", out_dir, config, base, load));
  report.bytes_after = written->file_bytes;
  return report;
}

}  // namespace lk
