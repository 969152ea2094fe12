// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/adapter_loader.h"

#include <algorithm>
#include <cmath>

#include "lk/io/weights.h"
#include "lk/lora/delta_math.h"
#include "lk/lora/values.h"

namespace lk {
namespace {

bool is_lora_part(Part part) {
  return part == Part::kA || part == Part::kB || part == Part::kBias || part == Part::kMagnitude;
}

std::string list_some(const std::vector<std::string>& names) {
  std::string text =
      fmt::format("{}", fmt::join(names.begin(), names.begin() + std::min<ptrdiff_t>(5, std::ssize(names)), ", "));
  if (names.size() > 5) text += fmt::format(" and {} more", names.size() - 5);
  return text;
}

}  // namespace

Status AdapterLoader::run() {
  LK_ASSIGN_OR_RETURN(ModuleMatcher matcher, ModuleMatcher::create(config_));
  matcher_ = std::move(matcher);
  adapter_.layers.resize(static_cast<size_t>(model_.num_layers));
  adapter_.replaced.layers.resize(static_cast<size_t>(model_.num_layers));
  LK_RETURN_IF_ERROR(read_values());
  LK_RETURN_IF_ERROR(place_lora());
  LK_RETURN_IF_ERROR(place_replacements());
  LK_RETURN_IF_ERROR(check_own_vocabulary());
  LK_RETURN_IF_ERROR(place_trained_tokens());
  LK_RETURN_IF_ERROR(tie_head());
  LK_RETURN_IF_ERROR(finish_deltas());
  return cross_check();
}

Status AdapterLoader::accept(SafetensorsIndex& index) {
  LK_ASSIGN_OR_RETURN(adapter_.own_vocab_size, own_vocab_size_of(index.tensors, base_model_));
  model_.vocab_size = adapter_.vocab_size(base_model_);
  std::vector<std::string> unknown, other_parts;
  std::vector<TensorEntry> known;
  for (TensorEntry& tensor : index.tensors) {
    const std::optional<TensorRole> role = parse_tensor_name(tensor.name, model_);
    if (!role) {
      (other_modality(tensor.name).empty() ? unknown : other_parts).push_back(std::move(tensor.name));
      continue;
    }
    const auto [at, added] = modules_[role->module].emplace(role->part, Source{.name = tensor.name, .view = {}});
    if (!added) duplicates_.emplace_back(&at->second, Source{.name = tensor.name, .view = {}});
    paths_.emplace(role->module, role->path);
    if (const size_t layers = role->path.find("layers."); role->module.first.layer >= 0 && layers != std::string::npos)
      root_ = role->path.substr(0, layers);
    known.push_back(std::move(tensor));
  }
  index.tensors = std::move(known);
  if (!other_parts.empty())
    warn(fmt::format("{} tensors adapt other parts of a multimodal model, which text does not use, and are ignored: {}",
                     other_parts.size(), list_some(other_parts)));
  if (unknown.empty()) return Status();
  if (!options_.ignore_unknown_tensors) {
    return invalid_argument(
        "tensors that match nothing in this {} model ({} layers): {}; adapter for another base or of another kind?",
        model_.architecture, model_.num_layers, list_some(unknown));
  }
  warn(fmt::format("ignored tensors that match nothing in this model: {}", list_some(unknown)));
  return Status();
}

// The only pass over the bytes besides reading them and their digest, which goes on meanwhile.
Status AdapterLoader::read_values() {
  for (auto& [module, parts] : modules_) {
    for (auto& [part, source] : parts) {
      source.view = *adapter_.file->find(source.name);
      source.largest = largest_magnitude(source.view);
      LK_RETURN_IF_ERROR(check_magnitude(source.name, source.largest));
    }
  }
  for (const auto& [first, second] : duplicates_) {
    if (!same_values(first->view, *adapter_.file->find(second.name)))
      return data_loss("tensors '{}' and '{}' stand for the same weight and differ", first->name, second.name);
  }
  return Status();
}

std::string AdapterLoader::path_of(FileModule module) const {
  if (const auto found = paths_.find(module); found != paths_.end()) return found->second;
  const std::string path = module_path(module);
  constexpr std::string_view kRoot = "model.";
  return path.starts_with(kRoot) ? root_ + path.substr(kRoot.size()) : path;
}

Status AdapterLoader::place_lora() {
  for (const auto& [module, parts] : modules_) {
    const bool any = std::ranges::any_of(parts, [](const auto& item) { return is_lora_part(item.first); });
    if (parts.contains(Part::kEmbeddingA) || parts.contains(Part::kEmbeddingB) || (module.first == kEmbedding && any)) {
      LK_RETURN_IF_ERROR(place_embedding(parts));
      continue;
    }
    if (!any) continue;
    LK_RETURN_IF_ERROR(module.first == kLmHead ? place_lm_head(parts) : place_projection(module, parts));
  }
  return Status();
}

Status AdapterLoader::wrong_shape(const Source& source, std::string_view expected) const {
  return invalid_argument("tensor '{}' has shape {}, this base needs {}; adapter for another base?", source.name,
                          source.view.shape_string(), expected);
}

// r and alpha of a module from the config, checked against the rank its tensors have.
Result<AdapterLoader::Scale> AdapterLoader::scale_of(FileModule module, const Source& a, int64_t tensor_rank) {
  const std::string path = path_of(module);
  LK_ASSIGN_OR_RETURN(const std::optional<size_t> rank_key, matcher_->rank_pattern_of(path));
  LK_ASSIGN_OR_RETURN(const std::optional<size_t> alpha_key, matcher_->alpha_pattern_of(path));
  Scale scale;
  scale.rank = config_.rank.value_or(tensor_rank);
  if (rank_key) {
    scale.rank = config_.rank_pattern[*rank_key].second;
    used_rank_keys_.insert(*rank_key);
  }
  if (scale.rank != tensor_rank) {
    return invalid_argument(
        "tensor '{}' {} has rank {}, adapter_config.json says {} ({}); the scaling alpha / r would "
        "be wrong",
        a.name, a.view.shape_string(), tensor_rank, scale.rank,
        rank_key ? fmt::format("rank_pattern \"{}\"", config_.rank_pattern[*rank_key].first) : "r");
  }
  if (scale.rank > options_.max_rank) {
    return invalid_argument("tensor '{}': rank {} exceeds the limit of {}", a.name, scale.rank, options_.max_rank);
  }
  double alpha = config_.alpha;
  if (alpha_key) {
    alpha = config_.alpha_pattern[*alpha_key].second;
    used_alpha_keys_.insert(*alpha_key);
  }
  const double rank = static_cast<double>(scale.rank);
  scale.scaling = config_.use_rslora ? alpha / std::sqrt(rank) : alpha / rank;
  return scale;
}

Result<LoraDelta> AdapterLoader::make_delta(FileModule module, const Parts& parts, int64_t in, int64_t out) {
  const Source* const a = use(parts, Part::kA);
  const Source* const b = use(parts, Part::kB);
  if (a == nullptr || b == nullptr) {
    return data_loss("module '{}' has {} only; lora_A and lora_B belong together. Incomplete save?",
                     module_path(module), parts.begin()->second.name);
  }
  const Source& source_a = *a;
  const Source& source_b = *b;
  if (source_a.view.num_dims() != 2 || source_a.view.dim(1) != in || source_a.view.dim(0) < 1) {
    return wrong_shape(source_a, fmt::format("[r, {}]", in));
  }
  if (source_b.view.num_dims() != 2 || source_b.view.dim(0) != out)
    return wrong_shape(source_b, fmt::format("[{}, r]", out));
  if (source_a.view.dim(0) != source_b.view.dim(1)) {
    return data_loss("module '{}': lora_A {} and lora_B {} differ in rank", module_path(module),
                     source_a.view.shape_string(), source_b.view.shape_string());
  }
  LK_ASSIGN_OR_RETURN(const Scale scale, scale_of(module, source_a, source_a.view.dim(0)));
  LoraDelta delta;
  delta.rank = scale.rank;
  delta.scaling = scale.scaling;
  delta.a = source_a.view;
  delta.b = source_b.view;
  if (const Source* bias = use(parts, Part::kBias)) {
    if (!bias->view.has_shape({out})) return wrong_shape(*bias, fmt::format("[{}]", out));
    delta.bias = bias->view;
  }
  if (const Source* magnitude = use(parts, Part::kMagnitude)) {
    if (!config_.use_dora) {
      return data_loss("tensor '{}' belongs to DoRA, adapter_config.json has use_dora false", magnitude->name);
    }
    // Old PEFT wrote [1, out] for some layer kinds.
    if (!magnitude->view.has_shape({out}) && !magnitude->view.has_shape({1, out})) {
      return wrong_shape(*magnitude, fmt::format("[{}]", out));
    }
    delta.magnitude = TensorView(magnitude->view.raw(), magnitude->view.dtype(), {out});
  } else if (config_.use_dora) {
    return data_loss("module '{}' has no lora_magnitude_vector, adapter_config.json has use_dora true",
                     module_path(module));
  }
  const auto largest = [&](Part part) {
    const auto at = parts.find(part);
    return at == parts.end() ? 0 : at->second.largest;
  };
  LK_RETURN_IF_ERROR(check_delta(module_path(module), in, delta.rank, delta.scaling,
                                 {.a = largest(Part::kA), .b = largest(Part::kB), .bias = largest(Part::kBias)}));
  return delta;
}

// A fused module's A serves all its parts; B, bias and magnitude are cut by output rows. All views
// alias the file.
Status AdapterLoader::place_projection(FileModule module, const Parts& parts) {
  const int64_t layer = module.first.layer;
  const auto first = static_cast<int>(*module.first.proj());
  int64_t out = 0;
  for (int p = first; p < first + module.num_fused; ++p) out += out_dim(static_cast<Proj>(p), model_);
  LK_ASSIGN_OR_RETURN(const LoraDelta fused, make_delta(module, parts, in_dim(*module.first.proj(), model_), out));
  int64_t begin = 0;
  for (int p = first; p < first + module.num_fused; ++p) {
    const auto proj = static_cast<Proj>(p);
    const ModuleId part = ModuleId::of(layer, proj);
    const int64_t end = begin + out_dim(proj, model_);
    LoraDelta delta = fused;
    delta.b = fused.b.slice(begin, end);
    if (fused.bias.defined()) delta.bias = fused.bias.slice(begin, end);
    if (fused.magnitude.defined()) delta.magnitude = fused.magnitude.slice(begin, end);
    std::optional<LoraDelta>& slot = adapter_.layers[static_cast<size_t>(layer)][static_cast<size_t>(proj)];
    if (slot) return data_loss("{} is adapted twice, on its own and fused with its neighbours", module_path(part));
    slot = delta;
    lora_modules_.insert(part);
    begin = end;
  }
  return Status();
}

Status AdapterLoader::place_lm_head(const Parts& parts) {
  LK_ASSIGN_OR_RETURN(adapter_.lm_head, make_delta({kLmHead}, parts, model_.hidden_dim, model_.vocab_size));
  lora_modules_.insert(kLmHead);
  return Status();
}

Status AdapterLoader::place_embedding(const Parts& parts) {
  const Source* const a = use(parts, Part::kEmbeddingA);
  const Source* const b = use(parts, Part::kEmbeddingB);
  if (a == nullptr || b == nullptr) {
    return data_loss("'{}' stands alone; lora_embedding_A and lora_embedding_B belong together",
                     parts.begin()->second.name);
  }
  if (adapter_.is_activated())
    return unsupported("'{}': an activated LoRA (alora_invocation_tokens) has linear layers only; PEFT refuses it, too",
                       a->name);
  // (PEFT starts an embedding as usual also under init_lora_weights pissa and olora: no base_change here.)
  embedding_magnitude_ = use(parts, Part::kMagnitude);
  if (config_.use_dora != (embedding_magnitude_ != nullptr))
    return data_loss("module '{}': lora_magnitude_vector is {}, adapter_config.json has use_dora {}",
                     module_path(kEmbedding), config_.use_dora ? "missing" : "there", config_.use_dora);
  const TensorView& view_a = a->view;
  const TensorView& view_b = b->view;
  if (view_a.num_dims() != 2 || view_a.dim(1) != model_.vocab_size || view_a.dim(0) < 1) {
    return wrong_shape(*a, fmt::format("[r, {}]", model_.vocab_size));
  }
  if (view_b.num_dims() != 2 || view_b.dim(0) != model_.hidden_dim || view_b.dim(1) != view_a.dim(0)) {
    return wrong_shape(*b, fmt::format("[{}, {}]", model_.hidden_dim, view_a.dim(0)));
  }
  // A scale for every column, not for every row: the norms are taken along the vocabulary.
  if (embedding_magnitude_ != nullptr && embedding_magnitude_->view.num_elements() != model_.hidden_dim)
    return wrong_shape(*embedding_magnitude_, fmt::format("[{}]", model_.hidden_dim));
  LK_ASSIGN_OR_RETURN(const Scale scale, scale_of({kEmbedding}, *a, view_a.dim(0)));
  LK_RETURN_IF_ERROR(
      check_delta(module_path(kEmbedding), 1, scale.rank, scale.scaling, {.a = a->largest, .b = b->largest}));
  adapter_.embedding = Adapter::EmbeddingDelta{scale.rank, scale.scaling, view_a, view_b};
  lora_modules_.insert(kEmbedding);
  return Status();
}

// ensure_weight_tying on a tied base: the head uses the transpose of the embedding's delta.
Status AdapterLoader::tie_head() {
  if (!ties_ends()) return Status();
  if (embedding_magnitude_ != nullptr)
    return unsupported("ensure_weight_tying with DoRA on the embedding is not supported");
  if (!adapter_.embedding || adapter_.lm_head) return Status();
  const Adapter::EmbeddingDelta& source = *adapter_.embedding;
  LoraDelta head;
  head.rank = source.rank;
  head.scaling = source.scaling;
  head.a = transposed(source.b, adapter_.owned);
  head.b = transposed(source.a, adapter_.owned);
  adapter_.lm_head = head;
  return Status();
}

Result<Buffer*> AdapterLoader::own(int64_t num_bytes) {
  LK_ASSIGN_OR_RETURN(Buffer buffer, Buffer::try_allocate(std::max<int64_t>(num_bytes, 64)));
  adapter_.owned.push_back(std::move(buffer));
  return &adapter_.owned.back();
}

// The loaded modules against what the config targets: PEFT would build and load a different set.
Status AdapterLoader::cross_check() {
  for (const auto& [module, parts] : modules_)
    for (const auto& [part, source] : parts)
      if (!source.used)
        return unsupported("tensor '{}' plays no part in this kind of adapter; wrong adapter_config.json?",
                           source.name);
  if (std::ranges::any_of(config_.alora_invocation_tokens, [&](int64_t token) { return token >= model_.vocab_size; }))
    warn("alora_invocation_tokens names tokens beyond the vocabulary: no prompt activates the adapter");
  std::vector<std::string> missing, extra;
  for (const ModuleId module : lora_modules(model_)) {
    const std::string path = path_of({module});
    LK_ASSIGN_OR_RETURN(const bool targeted, matcher_->is_targeted(path));
    const bool loaded = lora_modules_.contains(module);
    if (targeted && !loaded) missing.push_back(path);
    const bool tied = module == kLmHead && ties_ends();
    if (!targeted && loaded && !tied) extra.push_back(path);
    // Patterns are reported as unused only when they match no module of the model at all.
    LK_ASSIGN_OR_RETURN(const std::optional<size_t> rank_key, matcher_->rank_pattern_of(path));
    LK_ASSIGN_OR_RETURN(const std::optional<size_t> alpha_key, matcher_->alpha_pattern_of(path));
    if (rank_key) used_rank_keys_.insert(*rank_key);
    if (alpha_key) used_alpha_keys_.insert(*alpha_key);
  }
  if (!missing.empty())
    warn(fmt::format("target_modules names {} modules without tensors: {}", missing.size(), list_some(missing)));
  if (!extra.empty()) {
    warn(
        fmt::format("{} modules have tensors but are not in target_modules (PEFT would ignore "
                    "them, here they apply): {}",
                    extra.size(), list_some(extra)));
  }
  for (size_t key = 0; key < config_.rank_pattern.size(); ++key) {
    if (!used_rank_keys_.contains(key))
      warn(fmt::format("rank_pattern \"{}\" matches no module", config_.rank_pattern[key].first));
  }
  for (size_t key = 0; key < config_.alpha_pattern.size(); ++key) {
    if (!used_alpha_keys_.contains(key))
      warn(fmt::format("alpha_pattern \"{}\" matches no module", config_.alpha_pattern[key].first));
  }
  if (lora_modules_.empty() && adapter_.replaced.empty() && adapter_.trained_token_ids.empty()) {
    return invalid_argument("adapter_model.safetensors holds no adapter tensors");
  }
  return Status();
}

}  // namespace lk
