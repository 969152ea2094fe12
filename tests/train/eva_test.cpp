// SPDX-License-Identifier: Apache-2.0
#include "lk/train/eva.h"

#include <gmock/gmock.h>

#include <Eigen/Dense>
#include <map>

#include "lk/lora_tools/initial.h"
#include "lk/ops/cpu_backend.h"
#include "testing/temp_dir.h"
#include "train/roomy_needs.h"

namespace lk {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TEST(Eva, TakesTheDirectionsInWhichTheInputsVaryMost) {
  const std::string model = "examples/demo/model";
  const auto backend = make_cpu_backend({.num_threads = 2}).value();
  const auto weights = load_weights(model, DType::kF32, *backend).value();
  testing::TempDir dir;
  std::string lines;
  for (int n = 0; n < 40; ++n)
    lines += fmt::format("{{\"prompt\": \"What is {} + {}?\", \"completion\": \" {}\"}}\n", n, 3 * n, 4 * n);
  dir.write("data.jsonl", lines);
  const auto file = JsonlFile::open(dir.file("data.jsonl")).value();
  const auto renderer =
      std::make_shared<Renderer>(Tokenizer::load(model).value(), nullptr, 2, RenderOptions{.train_on_prompt = true});
  SampleReader data(all_records(file), renderer, {.seed = 3});
  AdapterConfig config;
  config.rank = 4;
  config.target_modules.kind = ModuleSelector::Kind::kAllLinear;
  InitialAdapter initial =
      make_initial_adapter(weights->config, config, AdapterInit::kEva, 0, 1, *weights->checkpoint).value();
  const auto pass = TrainPass::create(weights, *backend, {.max_rows = 256, .needs = roomy_needs(64)}).value();
  const DataCursor before = data.cursor();
  const Adapter adapter =
      apply_eva(std::move(initial.adapter), *pass, *backend, *weights, data, {.rho = 2, .tau = 0.999}).value();
  EXPECT_EQ(data.cursor(), before);

  // All inputs of the down projections, once through the data: their exact principal directions.
  std::map<int64_t, Matrix> inputs;
  for (int64_t index = 0; index < 40; ++index) {
    const Sample sample = data.next().value();
    TokenBlock block;
    block.add(sample.ids, sample.weights, 0, nullptr);
    pass->observe(block, [&](int64_t layer, ProjGroup group, const void* x, int64_t, int64_t rows, int64_t width) {
      if (group != ProjGroup::kDown) return;
      std::vector<float> values(static_cast<size_t>(rows * width));
      backend->read(values.data(), x, rows * width * 4);
      Matrix& all = inputs[layer];
      const int64_t have = all.rows();
      all.conservativeResize(have + rows - 1, width);  // the last row predicts nothing
      for (int64_t row = 0; row + 1 < rows; ++row)
        for (int64_t col = 0; col < width; ++col)
          all(have + row, col) = static_cast<double>(values[static_cast<size_t>(row * width + col)]);
    });
  }
  int64_t budget = 0, ranks = 0;
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (const auto& delta : adapter.layers[layer]) {
      budget += 4;
      if (!delta) continue;
      ranks += delta->rank;
      EXPECT_LE(delta->rank, 8);
      EXPECT_EQ(delta->scaling, 2);  // alpha / r is that of the rank asked for
      Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> a(delta->rank, delta->a.dim(1));
      delta->a.copy_to(a.data());
      EXPECT_LE((a * a.transpose() - Eigen::MatrixXf::Identity(delta->rank, delta->rank)).cwiseAbs().maxCoeff(), 1e-4);
      std::vector<float> b(static_cast<size_t>(delta->b.num_elements()));
      delta->b.copy_to(b.data());
      EXPECT_THAT(b, ::testing::Each(0.0f));
    }
    const auto& down = adapter.layers[layer][static_cast<size_t>(Proj::kDown)];
    ASSERT_TRUE(down);
    Matrix centred = inputs[static_cast<int64_t>(layer)];
    centred.rowwise() -= centred.colwise().mean().eval();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(centred.transpose() * centred);
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> a(down->rank, down->a.dim(1));
    down->a.copy_to(a.data());
    const Eigen::VectorXd top = solver.eigenvectors().rightCols(1);
    EXPECT_GE(std::abs(top.dot(a.row(0).transpose().cast<double>())), 0.99) << layer;
  }
  EXPECT_EQ(ranks, budget);
}

}  // namespace
}  // namespace lk
