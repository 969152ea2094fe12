// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/foreign.h"

#include <boost/json/object.hpp>
#include <charconv>
#include <cstring>
#include <map>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/io/safetensors.h"
#include "lk/io/weight_names.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora/delta_math.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kMlxFile = "adapters.safetensors";
constexpr const char* kMistralFile = "lora.safetensors";

struct Parts {
  TensorView a, b, magnitude;  // [rank, in], [out, rank], [out]
};

class ForeignReader {
 public:
  ForeignReader(const ModelConfig& config, std::optional<double> scaling) : config_(config), scaling_(scaling) {
    adapter_->layers.resize(static_cast<size_t>(config.num_layers));
    adapter_->replaced.layers.resize(static_cast<size_t>(config.num_layers));
  }

  Result<std::shared_ptr<const Adapter>> read_mlx(const std::string& directory) {
    const std::string where = join_path(directory, kAdapterConfigFile);
    LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(where));
    JsonFields fields(object, where);
    std::string type = "lora";
    fields.read_string("fine_tune_type", type);
    LK_RETURN_IF_ERROR(fields.status());
    if (type != "lora" && type != "dora")
      return unsupported("{}: fine_tune_type \"{}\" is not an adapter; supported: lora, dora", where, type);
    LK_RETURN_IF_ERROR(read_mlx_scaling(fields));
    LK_RETURN_IF_ERROR(open(join_path(directory, kMlxFile)));
    int64_t num_other = 0;
    for (const auto& [name, view] : adapter_->file->tensors()) {
      if (!other_modality(name).empty()) {
        ++num_other;
        continue;
      }
      const auto [path, leaf] = mlx_part(name);
      const std::optional<ModuleId> module = find_module(text_model_path(path), config_);
      const bool is_a = leaf == "lora_a", is_b = leaf == "lora_b";
      if (!module || !(is_a || is_b || leaf == "m")) return no_part(name);
      Parts& parts = modules_[*module];
      if (leaf == "m") {
        parts.magnitude = view;
        continue;
      }
      if (view.num_dims() != 2) return no_part(name);
      (is_a ? parts.a : parts.b) = transposed(view, adapter_->owned);  // there x A B, here B A x
    }
    if (num_other > 0)
      adapter_->warnings.push_back(fmt::format(
          "{} tensors adapt other parts of a multimodal model, which text does not use, and are left out", num_other));
    // There a tied head is the embedding's own product, delta included.
    tied_delta_ = config_.tie_word_embeddings;
    return finish();
  }

  Result<std::shared_ptr<const Adapter>> read_mistral(const std::string& directory) {
    const std::string params = join_path(directory, "params.json");
    if (!scaling_ && file_exists(params)) {
      LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(params));
      JsonFields fields(object, params);
      if (const json::value* lora = fields.find("lora"); lora != nullptr && lora->is_object()) {
        JsonFields inner(lora->get_object(), params + ": lora");
        double scaling = 0;
        inner.read_double("scaling", scaling);
        LK_RETURN_IF_ERROR(inner.status());
        if (scaling != 0) scaling_ = scaling;
      }
    }
    if (!scaling_)
      return invalid_argument(
          "{}: no params.json with lora.scaling; say with --scaling what it was trained with "
          "(mistral-finetune's default is 2)",
          directory);
    LK_RETURN_IF_ERROR(open(join_path(directory, kMistralFile)));
    for (const auto& [name, view] : adapter_->file->tensors()) {
      bool is_a = false;
      const std::optional<ModuleId> module = mistral_module(name, is_a);
      if (!module || view.num_dims() != 2) return no_part(name);
      (is_a ? modules_[*module].a : modules_[*module].b) = view;
    }
    for (auto& [module, parts] : modules_)
      if (parts.b.defined() && (module.proj() == Proj::kQ || module.proj() == Proj::kK))
        LK_RETURN_IF_ERROR(halve(parts));
    return finish();
  }

 private:
  // Module and part of a tensor. mlx-vlm calls the factors A and B, or "lora_A.NAME.weight" and "lora_B.NAME.weight".
  static std::pair<std::string, std::string> mlx_part(const std::string& name) {
    for (const auto& [named, part] : {std::pair(".lora_A.", "lora_a"), {".lora_B.", "lora_b"}})
      if (const size_t at = name.rfind(named); at != std::string::npos && name.ends_with(".weight"))
        return {name.substr(0, at), part};
    const size_t dot = name.rfind('.');
    if (dot == std::string::npos) return {name, ""};
    const std::string leaf = name.substr(dot + 1);
    return {name.substr(0, dot), leaf == "A" ? "lora_a" : leaf == "B" ? "lora_b" : leaf};
  }

  Status no_part(const std::string& name) const {
    return invalid_argument("tensor '{}' plays no part in this {} model ({} layers); adapter for another base?", name,
                            config_.architecture, config_.num_layers);
  }

  Status open(const std::string& path) {
    LK_ASSIGN_OR_RETURN(adapter_->file, TensorStore::open_file(path, {.copy = true}));
    adapter_->file_bytes = adapter_->file->size_bytes();
    return Status();
  }

  Status read_mlx_scaling(JsonFields& fields) {
    const json::object* lora = fields.object("lora_parameters");
    if (scaling_) return Status();
    if (double alpha = 0; lora == nullptr && fields.find("rank") != nullptr && fields.find("alpha") != nullptr) {
      fields.read_double("alpha", alpha);  // mlx-vlm: not divided by the rank
      scaling_ = alpha;
      return fields.status();
    }
    if (lora == nullptr)
      return invalid_argument("{}: no \"lora_parameters\" with a scale; say it with --scaling", fields.where());
    JsonFields inner(*lora, fields.where() + ": lora_parameters");
    double scale = 0, alpha = 0;
    int64_t rank = 0;
    inner.read_double("scale", scale);
    inner.read_double("alpha", alpha);  // older files scale by scale * alpha / rank
    inner.read_int("rank", rank, 1, 65536);
    LK_RETURN_IF_ERROR(inner.status());
    if (scale == 0) return invalid_argument("{}: \"scale\" is missing; say it with --scaling", inner.where());
    scaling_ = alpha != 0 && rank > 0 ? scale * alpha / static_cast<double>(rank) : scale;
    return Status();
  }

  // "layers.3.attention.wq.lora_A.weight"
  std::optional<ModuleId> mistral_module(std::string_view name, bool& is_a) const {
    constexpr std::pair<std::string_view, Proj> kModules[] = {
        {"attention.wq", Proj::kQ},     {"attention.wk", Proj::kK},       {"attention.wv", Proj::kV},
        {"attention.wo", Proj::kO},     {"feed_forward.w1", Proj::kGate}, {"feed_forward.w2", Proj::kDown},
        {"feed_forward.w3", Proj::kUp},
    };
    constexpr std::string_view kLayers = "layers.", kA = ".lora_A.weight", kB = ".lora_B.weight";
    is_a = name.ends_with(kA);
    if (!name.starts_with(kLayers) || !(is_a || name.ends_with(kB))) return std::nullopt;
    name = name.substr(kLayers.size(), name.size() - kLayers.size() - kA.size());
    int64_t layer = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    if (error != std::errc() || layer < 0 || layer >= config_.num_layers) return std::nullopt;
    name.remove_prefix(static_cast<size_t>(end - name.data()));
    for (const auto& [module, proj] : kModules)
      if (name.size() > 1 && name[0] == '.' && name.substr(1) == module) return ModuleId::of(layer, proj);
    return std::nullopt;
  }

  // Rotary pairs: there (2i, 2i + 1) of a head, in Hugging Face checkpoints (i, i + half).
  Status halve(Parts& parts) {
    const TensorView& b = parts.b;
    const int64_t head = config_.head_dim, half = head / 2;
    if (b.dim(0) % head != 0)
      return invalid_argument("lora_B {} is no whole number of heads of {}", b.shape_string(), head);
    const auto row_bytes = static_cast<size_t>(b.dim(1) * dtype_bytes(b.dtype()));
    LK_ASSIGN_OR_RETURN(Buffer buffer, Buffer::try_allocate(std::max<int64_t>(b.num_bytes(), 64)));
    for (int64_t row = 0; row < b.dim(0); ++row) {
      const int64_t in_head = row % head, from = row - in_head + 2 * (in_head % half) + in_head / half;
      std::memcpy(buffer.data() + static_cast<size_t>(row) * row_bytes, b.row(from), row_bytes);
    }
    parts.b = TensorView(buffer.data(), b.dtype(), b.shape());
    adapter_->owned.push_back(std::move(buffer));
    return Status();
  }

  Status check(ModuleId module, const Parts& parts, int64_t in, int64_t out) const {
    if (!parts.a.defined() || !parts.b.defined())
      return data_loss("module '{}' has one factor only; incomplete save?", module_path(module));
    if (parts.a.dim(1) != in || parts.b.dim(0) != out || parts.a.dim(0) != parts.b.dim(1))
      return invalid_argument("module '{}': factors of {} and {}, this base needs [r, {}] and [{}, r]",
                              module_path(module), parts.a.shape_string(), parts.b.shape_string(), in, out);
    if (parts.magnitude.defined() && !parts.magnitude.has_shape({out}))
      return invalid_argument("module '{}': magnitude of {}", module_path(module), parts.magnitude.shape_string());
    return Status();
  }

  Result<std::shared_ptr<const Adapter>> finish() {
    if (modules_.empty()) return invalid_argument("the file holds no adapter tensors");
    for (const auto& [module, parts] : modules_) {
      const std::optional<Proj> proj = module.proj();
      if (!proj && !module.is_vocabulary()) return no_part(module_path(module));
      const bool embedding = module == kEmbedding;  // there [vocab, r] and [r, hidden]: a linear layer of token rows
      const int64_t in = proj ? in_dim(*proj, config_) : embedding ? config_.vocab_size : config_.hidden_dim;
      const int64_t out = proj ? out_dim(*proj, config_) : embedding ? config_.hidden_dim : config_.vocab_size;
      LK_RETURN_IF_ERROR(check(module, parts, in, out));
      LoraDelta delta{.rank = parts.a.dim(0), .scaling = *scaling_, .a = parts.a, .b = parts.b};
      delta.magnitude = parts.magnitude;
      if (embedding) {
        if (parts.magnitude.defined())
          return unsupported("DoRA on the embedding: mlx-lm scales rows where PEFT scales columns");
        adapter_->embedding = Adapter::EmbeddingDelta{delta.rank, delta.scaling, delta.a, delta.b};
        if (!tied_delta_) continue;
        LoraDelta head{.rank = delta.rank, .scaling = delta.scaling};
        head.a = transposed(delta.b, adapter_->owned);
        head.b = transposed(delta.a, adapter_->owned);
        adapter_->lm_head = head;
      } else if (proj) {
        adapter_->layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*proj)] = delta;
      } else {
        adapter_->lm_head = delta;
      }
    }
    return std::shared_ptr<const Adapter>(adapter_);
  }

  const ModelConfig& config_;
  std::optional<double> scaling_;
  bool tied_delta_ = false;
  std::map<ModuleId, Parts> modules_;
  std::shared_ptr<Adapter> adapter_ = std::make_shared<Adapter>();
};

bool is_mlx(const std::string& directory) { return file_exists(join_path(directory, kMlxFile)); }

}  // namespace

bool is_foreign_adapter(const std::string& directory) {
  return !file_exists(join_path(directory, kAdapterWeightsFile)) &&
         (is_mlx(directory) || file_exists(join_path(directory, kMistralFile)));
}

Result<std::shared_ptr<const Adapter>> read_foreign_adapter(const std::string& directory, const ModelConfig& config,
                                                            std::optional<double> scaling) {
  ForeignReader reader(config, scaling);
  Result<std::shared_ptr<const Adapter>> read =
      is_mlx(directory) ? reader.read_mlx(directory) : reader.read_mistral(directory);
  if (!read.ok()) return read.status().with_context(directory);
  return read;
}

}  // namespace lk
