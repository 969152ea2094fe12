// SPDX-License-Identifier: Apache-2.0
// The back-end of the tests keeps what ops/backend.h promises, and catches who takes more for granted.
#include "testing/late_backend.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lk::testing {
namespace {

std::unique_ptr<LateBackend> make_late() {
  return std::make_unique<LateBackend>(make_cpu_backend({.num_threads = 1}).value());
}

TEST(LateBackend, WhatIsNotWrittenIsNaN) {
  const auto backend = make_late();
  DeviceBuffer x = backend->allocate(64);
  std::vector<float> values(16);
  backend->read(values.data(), x.data(), 64);
  for (float value : values) EXPECT_TRUE(std::isnan(value));
}

TEST(LateBackend, ArgumentsAreThoseOfTheCallAndResultsThoseOfTheLastOne) {
  const auto backend = make_late();
  DeviceBuffer x = backend->allocate(16), y = backend->allocate(16);
  std::vector<float> values = {1, 2, 3, 4};
  backend->upload(x.as<float>(), std::span<const float>(values));
  backend->upload(y.as<float>(), std::span<const float>(values));
  values = {10, 20, 30, 40};
  backend->add(y.as<float>(), 4, x.as<float>(), 4, 1, 4);
  std::vector<int32_t> rows = {0, 0};
  DeviceBuffer z = backend->allocate(32);
  backend->gather_rows({.x = y.as<float>(), .x_stride = 4, .rows = rows, .y = z.as<float>(), .y_stride = 4, .dim = 4});
  rows = {7, 7};
  backend->upload(x.as<float>(), std::span<const float>(values));
  std::vector<float> got(8);
  backend->read(got.data(), z.data(), 32);
  EXPECT_EQ(got, (std::vector<float>{2, 4, 6, 8, 2, 4, 6, 8}));
  EXPECT_EQ(backend->num_late(), 5);
}

TEST(LateBackend, TrainingOpsAreAsLate) {
  const auto backend = make_late();
  TrainOps& ops = backend->train_ops();
  DeviceBuffer x = backend->allocate(16), y = backend->allocate(16), c = backend->allocate(8);
  ops.fill(x.as<float>(), 4, 3);
  ops.fill(y.as<float>(), 4, 1);
  ops.fill(c.as<float>(), 2, 2);
  {
    std::vector<OuterProduct> products = {{.c = c.as<float>(),
                                           .c_stride = 1,
                                           .x = x.data(),
                                           .x_dtype = DType::kF32,
                                           .x_stride = 2,
                                           .num_rows = 2,
                                           .rank = 1,
                                           .width = 2,
                                           .gradient = y.as<float>(),
                                           .gradient_stride = 2}};
    std::vector<int32_t> rows = {1, -1};
    ops.outer(products);
    ops.scatter_rows(
        {.x = x.as<float>(), .x_stride = 2, .rows = rows, .gradient = y.as<float>(), .gradient_stride = 2, .dim = 2});
    products[0].rank = 1000;
    rows = {1000, 1000};
  }
  EXPECT_EQ(backend->num_late(), 5);
  EXPECT_EQ(ops.sum_squares(y.as<float>(), 4), 13 * 13 * 2 + 4 * 4 * 2);
}

TEST(LateBackend, BuffersMayOutliveIt) {
  DeviceBuffer x;
  {
    const auto backend = make_late();
    x = backend->allocate(16);
    const float one = 1;
    backend->upload(x.as<float>(), std::span<const float>(&one, 1));
  }
  x = DeviceBuffer();
}

TEST(LateBackendDeathTest, CatchesWhoFollowsAnAddress) {
  const auto backend = make_late();
  const DeviceBuffer x = backend->allocate(16);
  EXPECT_DEATH((void)*const_cast<const volatile float*>(x.as<float>()), "");
}

TEST(LateBackendDeathTest, CatchesWhoLeavesItsBuffer) {
  const auto backend = make_late();
  DeviceBuffer x = backend->allocate(16), y = backend->allocate(12);
  EXPECT_DEATH(backend->add(y.as<float>(), 4, x.as<float>(), 4, 1, 4), "outside, or freed");
  float* freed = x.as<float>();
  x = DeviceBuffer();
  float value = 0;
  EXPECT_DEATH(backend->read(&value, freed, 4), "outside, or freed|no device address");
}

}  // namespace
}  // namespace lk::testing
