// SPDX-License-Identifier: Apache-2.0
// Values on a mask and overlays below adapters, held against what low-rank factors do: both are changes of the same
// weights.
#include <gmock/gmock.h>

#include <cmath>

#include "lk/base/rng.h"
#include "lk/lora/compose.h"
#include "lk/ops/cpu_backend.h"
#include "lk/train/train_pass.h"
#include "testing/golden.h"
#include "train/roomy_needs.h"

namespace lk {
namespace {
using testing::kGoldenDir;

const std::string kModel = "llama_mha";

class SparseTraining : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_cpu_backend({.num_threads = 2}).value();
  std::shared_ptr<const ModelWeights> weights_ =
      load_weights(kGoldenDir + "models/" + kModel, DType::kF32, *backend_).value();
  std::unique_ptr<TrainPass> pass_ =
      TrainPass::create(weights_, *backend_, {.max_rows = 96, .needs = roomy_needs(7 * 64)}).value();
  std::shared_ptr<const Adapter> low_ = load("r64_linear"), other_ = load("r8_attention");

  std::shared_ptr<const Adapter> load(const std::string& name) {
    return load_adapter(name, kGoldenDir + "adapters/" + kModel + "__" + name, weights_->config,
                        weights_->checkpoint.get())
        .value();
  }
  static std::vector<float> floats(const TensorView& view) {
    std::vector<float> values(static_cast<size_t>(view.num_elements()));
    view.copy_to(values.data());
    return values;
  }
  static const LoraDelta& delta_of(const Adapter& adapter, ModuleId module) {
    return *adapter.layers[static_cast<size_t>(module.layer)][static_cast<size_t>(*module.proj())];
  }
  static std::vector<ModuleId> modules_of(const Adapter& adapter) {
    std::vector<ModuleId> modules;
    for (size_t layer = 0; layer < adapter.layers.size(); ++layer)
      for (int proj = 0; proj < kNumProjs; ++proj)
        if (adapter.layers[layer][static_cast<size_t>(proj)])
          modules.push_back(ModuleId::of(static_cast<int64_t>(layer), static_cast<Proj>(proj)));
    return modules;
  }
  // scaling B A.
  static std::vector<float> dense(const LoraDelta& delta) {
    const std::vector<float> a = floats(delta.a), b = floats(delta.b);
    const int64_t in = delta.a.dim(1), out = delta.b.dim(0);
    std::vector<float> product(static_cast<size_t>(out * in));
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t k = 0; k < delta.rank; ++k)
          sum += static_cast<double>(b[static_cast<size_t>(o * delta.rank + k)]) *
                 static_cast<double>(a[static_cast<size_t>(k * in + i)]);
        product[static_cast<size_t>(o * in + i)] = static_cast<float>(delta.scaling * sum);
      }
    return product;
  }
  TrainableOptions sparse(const SparseMask& mask, SparseValues values) {
    return {.mask = DeviceMask::create(mask, *backend_).value(),
            .sparse = std::make_shared<SparseValues>(std::move(values))};
  }
  Adapter empty() const {
    Adapter adapter;
    adapter.layers.resize(static_cast<size_t>(weights_->config.num_layers));
    return adapter;
  }
  std::shared_ptr<const BaseOverlay> overlay_of(const Adapter& adapter) {
    const std::vector<ModuleId> modules = modules_of(adapter);
    return BaseOverlay::create(*weights_, *backend_, modules,
                               [&](ModuleId module, std::span<float> w) {
                                 const std::vector<float> change = dense(delta_of(adapter, module));
                                 for (size_t i = 0; i < w.size(); ++i) w[i] += change[i];
                               })
        .value();
  }

  std::unique_ptr<TrainableAdapter> trainable(const Adapter& adapter, const TrainableOptions& options) {
    return TrainableAdapter::create(adapter, *weights_, *backend_, options).value();
  }
  std::vector<float> run(TrainableAdapter& adapter) {
    Rng rng(5);
    TokenBlock block;
    for (int sample = 0; sample < 4; ++sample) {
      std::vector<int32_t> ids;
      for (uint64_t n = 3 + rng.below(18); n > 0; --n)
        ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(weights_->shape.vocab_size))));
      block.add(ids, std::vector<float>(ids.size(), 1.0f), 0, &adapter);
    }
    std::vector<float> losses = pass_->forward_backward(block).losses;
    adapter.finish_gradient();
    return losses;
  }
  std::vector<float> gradient(TrainableAdapter& adapter, ModuleId module, ParamKind kind) {
    for (size_t index = 0; index < adapter.params().size(); ++index) {
      const Param& param = adapter.params()[index];
      if (param.module != module || param.kind != kind) continue;
      std::vector<float> host(static_cast<size_t>(param.size()));
      backend_->read(host.data(), adapter.gradient(static_cast<int>(index)), param.size() * 4);
      return host;
    }
    ADD_FAILURE() << module_path(module);
    return {};
  }
  static void expect_near(const std::vector<float>& got, const std::vector<float>& want, double limit,
                          const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      difference += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    EXPECT_LE(std::sqrt(difference), limit * std::sqrt(norm)) << what;
  }
};

// dA = s B^T dW and dB = s dW A^T tie the two kinds of gradient together.
TEST_F(SparseTraining, AFullMaskHasTheLossAndTheGradientOfTheSameChangeInFactors) {
  const std::vector<ModuleId> modules = modules_of(*low_);
  const SparseMask mask = SparseMask::draw(modules, weights_->shape, 1, 7);
  SparseValues values;
  for (const ModuleId module : modules) values[module] = dense(delta_of(*low_, module));
  const auto full = trainable(empty(), sparse(mask, values)), factors = trainable(*low_, {});
  expect_near(run(*full), run(*factors), 1e-5, "losses");
  for (const ModuleId module : modules) {
    const LoraDelta& delta = delta_of(*low_, module);
    const std::vector<float> dw = gradient(*full, module, ParamKind::kSparse), a = floats(delta.a), b = floats(delta.b);
    const int64_t rank = delta.rank, in = delta.a.dim(1), out = delta.b.dim(0);
    std::vector<float> da(static_cast<size_t>(rank * in)), db(static_cast<size_t>(rank * out));
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t o = 0; o < out; ++o)
          sum += static_cast<double>(b[static_cast<size_t>(o * rank + k)]) *
                 static_cast<double>(dw[static_cast<size_t>(o * in + i)]);
        da[static_cast<size_t>(k * in + i)] = static_cast<float>(delta.scaling * sum);
      }
      for (int64_t o = 0; o < out; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < in; ++i)
          sum += static_cast<double>(dw[static_cast<size_t>(o * in + i)]) *
                 static_cast<double>(a[static_cast<size_t>(k * in + i)]);
        db[static_cast<size_t>(k * out + o)] = static_cast<float>(delta.scaling * sum);
      }
    }
    expect_near(gradient(*factors, module, ParamKind::kA), da, 1e-4, module_path(module) + " A");
    expect_near(gradient(*factors, module, ParamKind::kB), db, 1e-4, module_path(module) + " B");
  }
}

// At the start, where S is zero everywhere, a mask only leaves elements out.
TEST_F(SparseTraining, AMasksGradientIsThatOfTheFullOneAtItsElements) {
  const std::vector<ModuleId> modules = modules_of(*low_);
  const auto zero = [](const SparseMask& mask) {
    SparseValues values;
    for (const auto& [id, module] : mask.modules()) values[id].resize(static_cast<size_t>(module.nnz()));
    return values;
  };
  const SparseMask some = SparseMask::draw(modules, weights_->shape, 0.2, 7),
                   all = SparseMask::draw(modules, weights_->shape, 1, 7);
  const auto masked = trainable(empty(), sparse(some, zero(some))), full = trainable(empty(), sparse(all, zero(all)));
  EXPECT_EQ(run(*masked), run(*full));
  for (const auto& [id, module] : some.modules()) {
    const std::vector<float> got = gradient(*masked, id, ParamKind::kSparse),
                             want = gradient(*full, id, ParamKind::kSparse);
    for (int64_t o = 0; o < module.out; ++o)
      for (int64_t k = module.row_begins[static_cast<size_t>(o)]; k < module.row_begins[static_cast<size_t>(o + 1)];
           ++k)
        EXPECT_EQ(got[static_cast<size_t>(k)],
                  want[static_cast<size_t>(o * module.in + module.columns[static_cast<size_t>(k)])]);
  }
}

TEST_F(SparseTraining, AnAdapterOnAnOverlayIsBothChangesTogether) {
  const std::vector<WeightedAdapter> parts{{other_, 1}, {low_, 1}};
  const auto sum = compose_adapters("sum", parts).value();
  const auto on_overlay = trainable(*other_, {.overlay = overlay_of(*low_)}), together = trainable(*sum, {}),
             alone = trainable(*other_, {});
  const std::vector<float> losses = run(*on_overlay);
  expect_near(losses, run(*together), 1e-5, "losses");
  EXPECT_NE(losses, run(*alone));
  for (const ModuleId module : modules_of(*other_)) {
    // The sum stacks this adapter's rank rows first, with its scaling in B.
    std::vector<float> want = gradient(*together, module, ParamKind::kA);
    std::vector<float> got = gradient(*on_overlay, module, ParamKind::kA);
    want.resize(got.size());
    expect_near(got, want, 1e-4, module_path(module));
  }
}

TEST_F(SparseTraining, MasksAreSeededAndOfTheDensityAskedFor) {
  const std::vector<ModuleId> modules = modules_of(*low_);
  const auto draw = [&](double density, uint64_t seed) {
    return SparseMask::draw(modules, weights_->shape, density, seed);
  };
  EXPECT_EQ(draw(0.1, 3).digest(), draw(0.1, 3).digest());
  EXPECT_NE(draw(0.1, 3).digest(), draw(0.1, 4).digest());
  EXPECT_NE(draw(0.1, 3).digest(), draw(0.11, 3).digest());
  const double all = static_cast<double>(draw(1, 3).nnz());
  EXPECT_NEAR(static_cast<double>(draw(0.1, 3).nnz()) / all, 0.1, 0.01);
  // Modules of one shape have masks of their own.
  const SparseMask mask = draw(0.1, 3);
  EXPECT_NE(mask.modules().at(ModuleId::of(0, Proj::kQ)).columns, mask.modules().at(ModuleId::of(1, Proj::kQ)).columns);
}

// What is learnt comes back as values, and weight decay reaches nothing outside the mask: there is nothing there.
TEST_F(SparseTraining, StepsChangeTheValuesAndTheProximalTermHoldsThem) {
  const std::vector<ModuleId> modules = modules_of(*low_);
  const SparseMask mask = SparseMask::draw(modules, weights_->shape, 0.1, 7);
  SparseValues start;
  Rng rng(4);
  for (const auto& [id, module] : mask.modules())
    for (int64_t k = 0; k < module.nnz(); ++k) start[id].push_back(0.01f * static_cast<float>(rng.normal()));
  const auto distance = [&](const SparseValues& values) {
    double sum = 0;
    for (const auto& [id, own] : values)
      for (size_t k = 0; k < own.size(); ++k)
        sum += std::pow(static_cast<double>(own[k]) - static_cast<double>(start.at(id)[k]), 2);
    return std::sqrt(sum);
  };
  double last = 1e9;
  for (const double proximal : {0.0, 10.0, 1000.0}) {
    TrainableOptions options = sparse(mask, start);
    options.proximal = true;
    const auto adapter = trainable(empty(), options);
    EXPECT_EQ(adapter->sparse_values(), start);
    for (int step = 0; step < 20; ++step) {
      run(*adapter);
      ASSERT_TRUE(adapter->step({.rate = 1e-3, .clip = 1, .proximal = proximal}, 40).finite);
    }
    const double moved = distance(adapter->sparse_values());
    EXPECT_GT(moved, 0);
    EXPECT_LT(moved, 0.8 * last) << proximal;
    last = moved;
  }
}

}  // namespace
}  // namespace lk
