// SPDX-License-Identifier: Apache-2.0
// merge_adapter: the merged model as a directory of files.
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <filesystem>
#include <map>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/io/checkpoint.h"
#include "lk/io/safetensors_writer.h"
#include "lk/lora_tools/merge.h"

namespace lk {
namespace {
namespace fs = std::filesystem;
namespace json = boost::json;

const std::string kEmbedWeight = weight_name({kEmbedding}), kHeadWeight = weight_name({kLmHead});

// A tied base stays tied when the adapter changes both ends alike: trained rows only, or one shared
// replacement.
bool must_untie(const Adapter& adapter, const ModelConfig& config) {
  if (!config.tie_word_embeddings) return false;
  if (adapter.embedding || adapter.lm_head) return true;
  return adapter.replaced.embedding.raw() != adapter.replaced.lm_head.raw();
}

// Model weights, in any format, are what the merge replaces; everything else goes along.
bool is_weight_file(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const char* end : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5", ".index.json"}) {
    if (name.ends_with(end)) return true;
  }
  return name.starts_with('.');
}

Status copy_side_files(const std::string& from, const std::string& to) {
  std::error_code error;
  for (fs::directory_iterator it(from, error), end; !error && it != end; it.increment(error)) {
    if (!it->is_regular_file(error) || is_weight_file(it->path())) continue;
    fs::copy_file(it->path(), fs::path(to) / it->path().filename(), error);
    if (error) return io_error("cannot copy {} to {}: {}", it->path().string(), to, error.message());
  }
  if (error) return io_error("cannot read directory {}: {}", from, error.message());
  return Status();
}

const char* config_dtype(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kBF16 ? "bfloat16" : "float16";
}

Status update_config(const std::string& path, bool untied, std::optional<DType> dtype) {
  if (!untied && !dtype) return Status();
  LK_ASSIGN_OR_RETURN(json::object config, load_json_object(path));
  if (untied) {
    config["tie_word_embeddings"] = false;
    if (json::value* text = config.if_contains("text_config"); text != nullptr && text->is_object())
      text->get_object()["tie_word_embeddings"] = false;
  }
  if (dtype)
    config[config.contains("torch_dtype") && !config.contains("dtype") ? "torch_dtype" : "dtype"] =
        config_dtype(*dtype);
  return write_file_atomic(path, json_text(config) + "\n");
}

// Removes the half-written directory unless it was renamed.
struct TemporaryDirectory {
  std::string path;
  bool keep = false;
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!keep) fs::remove_all(path, ignored);
  }
};

// Writes one merged tensor and adds up what rounding lost.
class LossMeter {
 public:
  explicit LossMeter(MergeLoss& loss) : loss_(loss) {}
  void add(const float* merged, const float* original, const float* rounded, int64_t n) {
    for (int64_t index = 0; index < n; ++index) {
      const double change = static_cast<double>(merged[index]) - original[index];
      const double rounding = static_cast<double>(rounded[index]) - merged[index];
      change_ += change * change;
      rounding_ += rounding * rounding;
      loss_.rounding_max = std::max(loss_.rounding_max, std::abs(rounding));
    }
    loss_.change_norm = std::sqrt(change_);
    loss_.rounding_norm = std::sqrt(rounding_);
  }

 private:
  MergeLoss& loss_;
  double change_ = 0, rounding_ = 0;
};

Status check_out_dir(const std::string& out_dir) {
  std::error_code error;
  if (!fs::exists(out_dir, error)) return Status();
  if (!fs::is_directory(out_dir, error)) return already_exists("{} exists and is not a directory", out_dir);
  if (!fs::is_empty(out_dir, error)) return already_exists("{} is not empty; name a new directory", out_dir);
  return Status();
}

class ModelMerger {
 public:
  ModelMerger(const Checkpoint& base, const Adapter& adapter, const MergeOptions& options)
      : config_(base.config), base_(base), adapter_(adapter), options_(options) {
    report_.untied = must_untie(adapter, config_);
    embedding_name_ = base.file_name(kEmbedWeight);
    if (report_.untied && embedding_name_ == head_name()) {  // the files have the one matrix as the head
      Checkpoint without = base;
      without.file_names.erase(kEmbedWeight);
      embedding_name_ = without.file_name(kEmbedWeight);
    }
    for (const WeightId weight : changed_weights(adapter, config_)) changed_.emplace(name_of(weight), weight);
    if (report_.untied) changed_.emplace(head_name(), WeightId{kLmHead});  // even when it is the base's embedding
  }

  Result<MergeReport> write(const std::string& path) {
    LK_RETURN_IF_ERROR(check_biases());
    if (const std::vector<UnreadTensor>& unread = base_.files->unread(); !unread.empty())
      return unsupported("tensor '{}' of the base {}, so it cannot be copied", unread.front().name, unread.front().why);
    std::vector<TensorSpec> specs;
    for (const auto& [name, view] : base_.files->tensors()) {
      const bool is_embedding = name == base_.file_name(kEmbedWeight);
      const std::optional<WeightId> weight = find_weight(name, config_);
      // A copy that some checkpoints carry.
      if (config_.tie_word_embeddings && !is_embedding && weight == WeightId{kLmHead}) continue;
      originals_[is_embedding ? embedding_name_ : name] = &view;
      specs.push_back(spec(is_embedding ? embedding_name_ : name, view));
    }
    if (report_.untied) {
      originals_[head_name()] = base_.weights->find(kEmbedWeight);
      specs.push_back(spec(head_name(), *originals_[head_name()]));
    }
    LK_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs));
    double change = 0, rounding = 0;
    for (const TensorSpec& tensor : specs) {
      if (!changed_.contains(tensor.name)) {
        LK_RETURN_IF_ERROR(copy(tensor, writer));
        continue;
      }
      MergeLoss loss;
      loss.tensor = tensor.name;
      LK_RETURN_IF_ERROR(merge(tensor, writer, loss));
      change += loss.change_norm * loss.change_norm;
      rounding += loss.rounding_norm * loss.rounding_norm;
      report_.total.rounding_max = std::max(report_.total.rounding_max, loss.rounding_max);
      report_.tensors.push_back(std::move(loss));
    }
    report_.total.tensor = "all";
    report_.total.change_norm = std::sqrt(change);
    report_.total.rounding_norm = std::sqrt(rounding);
    for (const TensorSpec& tensor : specs) report_.bytes_written += tensor.num_bytes();
    LK_RETURN_IF_ERROR(writer.finish());
    return std::move(report_);
  }

 private:
  TensorSpec spec(const std::string& name, const TensorView& view) const {
    return {name, options_.dtype.value_or(view.dtype()), {view.shape().begin(), view.shape().end()}};
  }

  std::string head_name() const { return base_.file_name(kHeadWeight); }
  std::string name_of(WeightId weight) const {
    return weight == WeightId{kEmbedding} ? embedding_name_ : base_.file_name(weight_name(weight));
  }

  Status check_biases() const {
    for (const auto& [name, weight] : changed_) {
      if (weight.bias && base_.weights->find(weight_name(weight)) == nullptr) {
        return unsupported(
            "the adapter has lora_bias and {} has no '{}' to hold it: a merged {} cannot express "
            "it; serve the "
            "adapter unmerged",
            config_.architecture, name, config_.architecture);
      }
    }
    return Status();
  }

  Status copy(const TensorSpec& tensor, SafetensorsWriter& writer) {
    const TensorView& view = *originals_.at(tensor.name);
    if (view.dtype() == tensor.dtype) return writer.append(view.raw(), view.num_bytes());
    constexpr int64_t kBlock = 1 << 18;
    std::vector<std::byte> block(static_cast<size_t>(kBlock * dtype_bytes(tensor.dtype)));
    const int64_t total = view.num_elements();
    for (int64_t begin = 0; begin < total; begin += kBlock) {
      const int64_t n = std::min(kBlock, total - begin);
      convert(static_cast<const std::byte*>(view.raw()) + begin * dtype_bytes(view.dtype()), view.dtype(), block.data(),
              tensor.dtype, n);
      LK_RETURN_IF_ERROR(writer.append(block.data(), n * dtype_bytes(tensor.dtype)));
    }
    return Status();
  }

  Status merge(const TensorSpec& tensor, SafetensorsWriter& writer, MergeLoss& loss) {
    const TensorView& original = *originals_.at(tensor.name);
    const int64_t width = tensor.shape.size() == 2 ? tensor.shape[1] : tensor.num_elements();
    LossMeter meter(loss);
    std::vector<float> before, after;
    std::vector<std::byte> rounded;
    return visit_merged_weight(
        changed_.at(tensor.name), adapter_, config_, *base_.weights,
        [&](int64_t first, int64_t count, const float* rows) {
          const int64_t n = count * width;
          before.resize(static_cast<size_t>(n));
          after.resize(static_cast<size_t>(n));
          rounded.resize(static_cast<size_t>(n * dtype_bytes(tensor.dtype)));
          convert(static_cast<const std::byte*>(original.raw()) + first * width * dtype_bytes(original.dtype()),
                  original.dtype(), before.data(), DType::kF32, n);
          convert(rows, DType::kF32, rounded.data(), tensor.dtype, n);
          convert(rounded.data(), tensor.dtype, after.data(), DType::kF32, n);
          meter.add(rows, before.data(), after.data(), n);
          if (!std::isfinite(loss.rounding_norm)) {
            return invalid_argument("tensor '{}' overflows {} when merged; write the model as bf16 or f32", tensor.name,
                                    to_string(tensor.dtype));
          }
          return writer.append(rounded.data(), std::ssize(rounded));
        });
  }

  const ModelConfig& config_;
  const Checkpoint& base_;
  const Adapter& adapter_;
  const MergeOptions& options_;
  std::string embedding_name_;                          // as it is written
  std::map<std::string, WeightId> changed_;             // by the name that is written
  std::map<std::string, const TensorView*> originals_;  // likewise
  MergeReport report_;
};

}  // namespace

Result<MergeReport> merge_adapter(const std::string& base_dir, const Adapter& adapter, const std::string& out_dir,
                                  const MergeOptions& options) {
  LK_RETURN_IF_ERROR(check_out_dir(out_dir));
  LK_ASSIGN_OR_RETURN(const Checkpoint base, open_checkpoint(base_dir));
  if (adapter.own_vocab_size)
    return unsupported(
        "adapter '{}' has a vocabulary of {} tokens, the base has {}: merge it with PEFT into the base "
        "resized",
        adapter.name, *adapter.own_vocab_size, base.config.vocab_size);
  if (adapter.is_activated())
    return unsupported(
        "adapter '{}' is an activated LoRA: it acts from its invocation tokens on, which no merged weight can",
        adapter.name);
  if (adapter.layers.size() != static_cast<size_t>(base.config.num_layers)) {
    return invalid_argument("adapter '{}' was loaded for a model of {} layers, {} has {}", adapter.name,
                            adapter.layers.size(), base_dir, base.config.num_layers);
  }
  std::string clean = out_dir;
  while (clean.size() > 1 && clean.back() == '/') clean.pop_back();
  TemporaryDirectory temporary{fmt::format("{}.tmp.{}", clean, ::getpid())};
  LK_RETURN_IF_ERROR(make_directories(temporary.path));
  LK_RETURN_IF_ERROR(copy_side_files(base_dir, temporary.path));
  ModelMerger merger(base, adapter, options);
  LK_ASSIGN_OR_RETURN(MergeReport report, merger.write(join_path(temporary.path, "model.safetensors")));
  LK_RETURN_IF_ERROR(update_config(join_path(temporary.path, "config.json"), report.untied, options.dtype));
  if (::rename(temporary.path.c_str(), clean.c_str()) != 0) {
    return io_error("cannot rename {} to {}: {}", temporary.path, clean, std::generic_category().message(errno));
  }
  temporary.keep = true;
  report.warnings = adapter.warnings;
  if (report.untied)
    report.warnings.push_back("embeddings are untied in the merged model: the adapter changes one end only");
  return report;
}

std::string render_merge_report(const MergeReport& report) {
  std::string text = fmt::format("{} tensors changed, {:.1f} MB written\n", report.tensors.size(),
                                 static_cast<double>(report.bytes_written) / 1e6);
  text += fmt::format("rounding loss overall: {:.2e} of the change (largest single error {:.2e})\n",
                      report.total.relative(), report.total.rounding_max);
  const auto worst = std::ranges::max_element(report.tensors, {}, &MergeLoss::relative);
  if (worst != report.tensors.end()) text += fmt::format("worst tensor: {} {:.2e}\n", worst->tensor, worst->relative());
  for (const std::string& warning : report.warnings) text += fmt::format("warning: {}\n", warning);
  return text;
}

}  // namespace lk
