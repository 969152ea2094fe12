// SPDX-License-Identifier: Apache-2.0
// Losses and gradients against PEFT and torch (tools/make_golden/training.py), in f32.
#include <gmock/gmock.h>

#include "testing/golden.h"

#include "lk/ops/cpu_backend.h"
#include "lk/train/train_pass.h"

namespace lk {
namespace {
namespace json = boost::json;
using testing::kGoldenDir;

struct Sample {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};
struct TrainingCase {
  std::string name, model, adapter;
  double rate = 0;
  std::vector<std::vector<Sample>> steps;
  std::vector<double> losses;
};

std::vector<TrainingCase> training_cases() {
  std::vector<TrainingCase> cases;
  const json::value root = json::parse(read_file(kGoldenDir + "training.json").value());
  for (const json::value& item : root.at("cases").as_array()) {
    TrainingCase c{.name = std::string(item.at("name").as_string()), .rate = item.at("rate").to_number<double>()};
    c.model = "models/" + c.name.substr(0, c.name.find("__"));
    c.adapter = "adapters/" + c.name;
    for (const json::value& loss : item.at("losses").as_array()) c.losses.push_back(loss.to_number<double>());
    for (const json::value& step : item.at("steps").as_array()) {
      std::vector<Sample>& samples = c.steps.emplace_back();
      for (const json::value& sample : step.as_array()) {
        Sample& s = samples.emplace_back();
        for (const json::value& id : sample.at("ids").as_array()) s.ids.push_back(id.to_number<int32_t>());
        for (const json::value& w : sample.at("weights").as_array()) s.weights.push_back(w.to_number<float>());
      }
    }
    cases.push_back(std::move(c));
  }
  return cases;
}

class TrainingGolden : public ::testing::TestWithParam<TrainingCase> {};

TEST_P(TrainingGolden, FirstGradientsAndTwentyLossesAreThoseOfPeft) {
  const TrainingCase& c = GetParam();
  const std::unique_ptr<Backend> backend = make_cpu_backend({.num_threads = 2}).value();
  const auto weights = load_weights(kGoldenDir + c.model, DType::kF32, *backend).value();
  const auto adapter = load_adapter(c.name, kGoldenDir + c.adapter, weights->config, weights->checkpoint.get()).value();
  const bool converted = adapter->config.base_change != BaseChange::kNone;
  const auto own = TrainableAdapter::create(*adapter, *weights, *backend, {.frozen_half = converted}).value();
  const auto pass = TrainPass::create(weights, *backend, {.max_rows = 64, .needs = own->needs()}).value();
  const auto arrays = TensorStore::open_file(kGoldenDir + "training.safetensors").value();

  for (size_t number = 0; number < c.losses.size(); ++number) {
    TokenBlock block;
    double weight = 0;
    for (const Sample& sample : c.steps[number % c.steps.size()]) {
      block.add(sample.ids, sample.weights, 0, own.get());
      for (size_t t = 1; t < sample.weights.size(); ++t) weight += static_cast<double>(sample.weights[t]);
    }
    const RowLosses rows = pass->forward_backward(block);
    double loss = 0;
    for (size_t row = 0; row < rows.losses.size(); ++row)
      loss += static_cast<double>(rows.losses[row]) * static_cast<double>(block.weights[row]);
    loss /= weight;
    ASSERT_NEAR(loss, c.losses[number], 1e-4 * c.losses[number]) << "step " << number;
    if (number == 0) {
      own->finish_gradient();
      size_t compared = 0;
      for (size_t index = 0; index < own->params().size(); ++index) {
        const Param& param = own->params()[index];
        const TensorView* wanted = arrays->find(c.name + "/" + param.name());
        ASSERT_TRUE(wanted) << param.name();
        std::vector<float> expected(static_cast<size_t>(wanted->num_elements()));
        wanted->copy_to(expected.data());
        ++compared;
        ASSERT_EQ(param.trained_size(), wanted->num_elements()) << param.name();
        const float* gradient = own->gradient(static_cast<int>(index));
        // B is kept as rank rows.
        const bool transposed = param.kind == ParamKind::kB && param.module != kEmbedding;
        double difference = 0, square = 0;
        for (int64_t row = 0; row < param.trained_rows; ++row)
          for (int64_t col = 0; col < param.cols; ++col) {
            const double e = static_cast<double>(
                expected[static_cast<size_t>(transposed ? col * param.trained_rows + row : row * param.cols + col)]);
            const double g = static_cast<double>(gradient[row * param.cols + col]) / weight;
            difference += (e - g) * (e - g);
            square += e * e;
          }
        EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(square) + 1e-9)
            << param.name() << ": norm " << std::sqrt(square);
      }
      size_t stored = 0;
      for (const auto& [name, view] : arrays->tensors()) stored += name.starts_with(c.name + "/");
      EXPECT_EQ(compared, stored);
    }
    const StepReport report = own->step({.rate = c.rate}, weight);
    ASSERT_TRUE(report.finite);
  }
}

INSTANTIATE_TEST_SUITE_P(Peft, TrainingGolden, ::testing::ValuesIn(training_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lk
