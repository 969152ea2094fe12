// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/merge_layout.h"

#include <algorithm>
#include <cmath>
#include <deque>

namespace lk {
namespace {

constexpr ProjGroup kGroups[] = {ProjGroup::kQkv, ProjGroup::kO, ProjGroup::kGateUp, ProjGroup::kDown};

bool can_merge(const Adapter& adapter, size_t layer, ProjGroup group) {
  if (adapter.is_activated()) return false;  // its rows before the activation run on W
  bool has_delta = false;
  for (Proj proj : projs_of(group)) {
    const ModuleId module = ModuleId::of(static_cast<int64_t>(layer), proj);
    if (adapter.replaced.of({module}).defined() || adapter.replaced.of({module, true}).defined()) return false;
    has_delta |= adapter.layers[layer][static_cast<size_t>(proj)].has_value();
  }
  return has_delta;
}

// The columns of a as rows of the act type: [width, rank].
void transpose_as(const TensorView& a, DType act, std::vector<std::byte>& out) {
  const auto rank = static_cast<size_t>(a.dim(0)), width = static_cast<size_t>(a.dim(1)),
             elem = static_cast<size_t>(dtype_bytes(act));
  out.resize(rank * width * elem);
  std::vector<std::byte> row(width * elem);
  for (size_t r = 0; r < rank; ++r) {
    convert(a.row(static_cast<int64_t>(r)), a.dtype(), row.data(), act, static_cast<int64_t>(width));
    const auto scatter = [&](auto zero) {
      using T = decltype(zero);
      const T* from = reinterpret_cast<const T*>(row.data());
      T* to = reinterpret_cast<T*>(out.data()) + r;
      for (size_t i = 0; i < width; ++i) to[i * rank] = from[i];
    };
    if (elem == 2)
      scatter(uint16_t{});
    else
      scatter(uint32_t{});
  }
}

double relative(const MergeSums& sums) { return sums.change > 0 ? std::sqrt(sums.rounding / sums.change) : 0; }

}  // namespace

MergeLayout::MergeLayout(const Adapter& adapter, const ModelShape& shape, WeightFormat format, int64_t page_bytes)
    : shape_(shape), page_bytes_(page_bytes) {
  double base_cost = 0, delta_cost = 0;
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    auto& merges = merges_.emplace_back();
    for (ProjGroup group : kGroups) {
      const auto g = static_cast<size_t>(group);
      merges[g] = can_merge(adapter, layer, group);
      for (Proj proj : projs_of(group)) {
        const auto in = static_cast<double>(in_dim(proj, shape)), out = static_cast<double>(out_dim(proj, shape));
        base_cost += in * out;
        const auto& delta = adapter.layers[layer][static_cast<size_t>(proj)];
        if (!merges[g] || !delta) continue;
        delta_cost += static_cast<double>(delta->rank) * (in + out);
        build_cost_rows_ += static_cast<double>(delta->rank) * in * out;
      }
      if (merges[g])
        merged_bytes_ += packed_weight_bytes(format, group_columns(group, shape), in_dim(projs_of(group)[0], shape));
    }
  }
  relative_cost_ = delta_cost / base_cost;
  build_cost_rows_ /= base_cost;
}

// What merging the matrices of a layer changed, of all ranks together.
using LayerSums = std::array<std::optional<MergeSums>, kNumProjs>;

// Says whether what was merged may be used.
class MergeLayout::Judge {
 public:
  Judge(const std::string& adapter, DType act) : adapter_(adapter), act_(act) {}

  Status judge(size_t layer, const LayerSums& sums) {
    for (size_t p = 0; p < sums.size(); ++p)
      if (sums[p])
        LK_RETURN_IF_ERROR(
            judge(module_path(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(p))), *sums[p]));
    return Status();
  }
  const RoundingLoss& loss() const { return loss_; }

 private:
  Status judge(const std::string& name, const MergeSums& sums) {
    total_.change += sums.change;
    total_.rounding += sums.rounding;
    loss_.total = relative(total_);
    if (!std::isfinite(sums.change) || !std::isfinite(sums.rounding))
      return failed_precondition("merging adapter {}: {} would not be finite; it stays unmerged", adapter_, name);
    const double loss = relative(sums);
    if (loss > loss_.worst || loss_.worst_module.empty()) {
      loss_.worst = loss;
      loss_.worst_module = name;
    }
    if (loss <= kMaxRoundingLoss) return Status();
    return failed_precondition(
        "merging adapter {}: rounding {} to {} would lose {:.1f} % of its change, more than the {:.1f} % allowed; it "
        "stays unmerged (compute in f32 to merge it)",
        adapter_, name, to_string(act_), 100 * loss, 100 * kMaxRoundingLoss);
  }

  const std::string adapter_;
  const DType act_;
  MergeSums total_;
  RoundingLoss loss_;
};

// Builds one rank's merged layers on the calling thread.
class MergeLayout::Builder {
 public:
  Builder(const Target& target, const std::function<bool()>& stop, const std::vector<PageId>& pages)
      : layout_(target.layout),
        adapter_(target.shard),
        base_(target.base),
        backend_(target.backend),
        stop_(stop),
        pool_base_(target.pool_base),
        pages_(pages) {}

  // Adds to `sums`.
  Status build_layer(size_t layer, MergedWeights::Layer& out, LayerSums& sums) {
    for (ProjGroup group : kGroups) {
      const auto g = static_cast<size_t>(group);
      if (!layout_.merges_[layer][g]) continue;
      const PackedWeight& w = base_.layers[layer].linear[g];
      out.linear[g] = {.format = w.format,
                       .n = w.n,
                       .k = w.k,
                       .data = pool_base_,
                       .pages = pages_.data(),
                       .page_bytes = layout_.page_bytes_,
                       .begin = next_byte_};
      next_byte_ += w.total_bytes();
      bias_.clear();
      for (Proj proj : projs_of(group)) LK_RETURN_IF_ERROR(build_proj(layer, proj, out, sums));
      if (bias_.empty()) continue;
      DeviceBuffer& buffer = buffers_.emplace_back(backend_.allocate(static_cast<int64_t>(bias_.size()) * 4));
      backend_.upload(buffer.as<float>(), std::span<const float>(bias_));
      out.bias[g] = buffer.as<float>();
    }
    return Status();
  }
  std::vector<DeviceBuffer>& buffers() { return buffers_; }

 private:
  Status build_proj(size_t layer, Proj proj, MergedWeights::Layer& out, LayerSums& layer_sums) {
    const ProjGroup group = group_of(proj);
    const auto g = static_cast<size_t>(group);
    const PackedWeight& w = base_.layers[layer].linear[g];
    const int64_t column = group_column(proj, layout_.shape_), columns = out_dim(proj, layout_.shape_);
    const int64_t num_panels = align_panel(columns) / kPanelCols;
    const auto& delta = adapter_.layers[layer][static_cast<size_t>(proj)];
    if (!delta) {
      for (int64_t panel = column / kPanelCols, end = panel + num_panels; panel < end; ++panel) {
        if (stop_()) return cancelled("merging was stopped");
        backend_.copy_panels(w, out.linear[g], panel * w.panel_bytes(), w.panel_bytes());
      }
      return Status();
    }
    if (stop_()) return cancelled("merging was stopped");
    transpose_as(delta->a, base_.act, a_transposed_);
    const auto a_bytes = static_cast<int64_t>(a_transposed_.size());
    std::byte* a = scratch(device_a_, a_bytes);
    backend_.upload(a, a_transposed_.data(), a_bytes);
    const PackedWeight b{.format = w.format,
                         .n = columns,
                         .k = delta->rank,
                         .data = scratch(device_b_, packed_weight_bytes(w.format, columns, delta->rank))};
    backend_.pack_weight(delta->b, 0, b, Workers::kCaller);
    std::vector<float> scale;
    float* device_scale = nullptr;
    if (delta->dora_scale.defined()) {
      scale.resize(static_cast<size_t>(columns));
      delta->dora_scale.copy_to(scale.data());
      device_scale = reinterpret_cast<float*>(scratch(device_scale_, columns * 4));
      backend_.upload(device_scale, std::span<const float>(scale));
    }
    const MergeArgs args{.w = w,
                         .out = out.linear[g],
                         .out_begin = column,
                         .a_transposed = a,
                         .b = b,
                         .scaling = static_cast<float>(delta->scaling),
                         .out_scale = device_scale};
    std::optional<MergeSums>& sums = layer_sums[static_cast<size_t>(proj)];
    if (!sums) sums.emplace();
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      if (stop_()) return cancelled("merging was stopped");
      backend_.merge_panel(args, panel, &*sums);
    }
    if (delta->bias.defined()) add_bias(*delta, scale, column, group);
    return Status();
  }

  // At least `bytes` of device memory in `buffer`; what was there may go.
  std::byte* scratch(DeviceBuffer& buffer, int64_t bytes) {
    if (buffer.size_bytes() < bytes) buffer = backend_.allocate(bytes);
    return buffer.data();
  }

  void add_bias(const LoraDelta& delta, const std::vector<float>& scale, int64_t column, ProjGroup group) {
    bias_.resize(static_cast<size_t>(group_columns(group, layout_.shape_)));
    float* bias = bias_.data() + column;
    delta.bias.copy_to(bias);
    for (int64_t j = 0; j < delta.bias.num_elements(); ++j)
      bias[j] = static_cast<float>(bias[j] * delta.scaling) * (scale.empty() ? 1.0f : scale[static_cast<size_t>(j)]);
  }

  const MergeLayout& layout_;
  const Adapter& adapter_;
  const ModelWeights& base_;
  Backend& backend_;
  const std::function<bool()>& stop_;
  std::byte* const pool_base_;
  const std::vector<PageId>& pages_;
  int64_t next_byte_ = 0;  // of the bytes of the pages strung together
  std::vector<std::byte> a_transposed_;
  DeviceBuffer device_a_, device_b_, device_scale_;  // of the delta being merged
  std::vector<float> bias_;                          // of the group being built; empty: none
  std::vector<DeviceBuffer> buffers_;                // of biases
};

Result<std::vector<std::shared_ptr<const MergedWeights>>> MergeLayout::build(std::span<const Target> ranks,
                                                                             std::span<const PageId> pages,
                                                                             const std::function<bool()>& stop,
                                                                             RoundingLoss* loss) {
  std::vector<std::shared_ptr<MergedWeights>> merged;
  std::deque<Builder> builders;
  const size_t num_layers = ranks[0].layout.merges_.size();
  for (const Target& target : ranks) {
    LK_CHECK(static_cast<int64_t>(pages.size()) == target.layout.num_pages());
    MergedWeights& own = *merged.emplace_back(std::make_shared<MergedWeights>());
    own.layers.resize(num_layers);
    own.pages.assign(pages.begin(), pages.end());
    builders.emplace_back(target, stop, own.pages);
  }
  Judge judge(ranks[0].shard.name, ranks[0].base.act);
  Status status;
  for (size_t layer = 0; layer < num_layers && status.ok(); ++layer) {
    LayerSums sums;
    for (size_t rank = 0; rank < ranks.size() && status.ok(); ++rank)
      status = builders[rank].build_layer(layer, merged[rank]->layers[layer], sums);
    if (status.ok()) status = judge.judge(layer, sums);
  }
  *loss = judge.loss();
  LK_RETURN_IF_ERROR(status);
  std::vector<std::shared_ptr<const MergedWeights>> result;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    merged[rank]->buffers = std::move(builders[rank].buffers());
    result.push_back(std::move(merged[rank]));
  }
  return result;
}

}  // namespace lk
