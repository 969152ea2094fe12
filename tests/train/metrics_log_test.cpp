// SPDX-License-Identifier: Apache-2.0
#include "lk/train/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

std::unique_ptr<MetricsLog> open(const MetricsLog::Options& options) {
  auto log = MetricsLog::open(options);
  LK_CHECK(log.ok(), "{}", log.status().message());
  return std::move(*log);
}
StepMetrics step(const std::string& job, int64_t step, double loss) {
  return {.job = job,
          .step = step,
          .epoch = 0.5,
          .loss = loss,
          .learning_rate = 1e-3,
          .grad_norm = 2,
          .tokens = 100,
          .loss_tokens = 60,
          .tokens_per_second = 50,
          .seconds = 3};
}
EvalMetrics eval(const std::string& job, int64_t step, double loss) {
  return {.job = job,
          .step = step,
          .loss = loss,
          .perplexity = std::exp(loss),
          .accuracy = 0.5,
          .loss_tokens = 60,
          .seconds = 3};
}
std::vector<std::pair<int64_t, double>> pairs(const std::vector<LossCurve::Point>& points) {
  std::vector<std::pair<int64_t, double>> out;
  for (const auto& point : points) out.emplace_back(point.step, point.loss);
  return out;
}

TEST(MetricsLog, ALinePerStepAndEvaluation) {
  const TempDir dir;
  const auto log = open({.jsonl = dir.file("a/m.jsonl"), .steps = {{"x", 0}}});
  ASSERT_TRUE(log->add(step("x", 1, 2.5)).ok());
  EvalMetrics last = eval("x", 1, 0);
  last.exact_match = 0.25;
  ASSERT_TRUE(log->add(last).ok());
  ASSERT_TRUE(log->add(step("x", 2, std::nan(""))).ok());  // JSON has none
  EXPECT_EQ(
      dir.read("a/m.jsonl"),
      R"({"job":"x","step":1,"epoch":5E-1,"loss":2.5E0,"learning_rate":1E-3,"grad_norm":2E0,"tokens":100,)"
      R"("loss_tokens":60,"tokens_per_second":5E1,"seconds":3E0})"
      "\n"
      R"({"job":"x","step":1,"loss":0E0,"perplexity":1E0,"accuracy":5E-1,"loss_tokens":60,"exact_match":2.5E-1,"seconds":3E0})"
      "\n"
      R"({"job":"x","step":2,"epoch":5E-1,"loss":null,"learning_rate":1E-3,"grad_norm":2E0,"tokens":100,)"
      R"("loss_tokens":60,"tokens_per_second":5E1,"seconds":3E0})"
      "\n");
}

// The curve is that of all files together.
TEST(MetricsLog, ALinePerEvaluationFile) {
  const TempDir dir;
  const std::string path = dir.file("m.jsonl");
  for (const int64_t steps : {0, 1}) {
    const auto log = open({.jsonl = path, .steps = {{"x", steps}}});
    if (steps == 0) {
      ASSERT_TRUE(log->add(eval("x", 1, 0.5)).ok());
      EvalMetrics part = eval("x", 1, 0.25);
      part.file = "held/easy.jsonl";
      ASSERT_TRUE(log->add(part).ok());
    }
    EXPECT_THAT(pairs(log->curves().at(0).eval), ElementsAre(std::pair(1, 0.5))) << steps;
  }
  EXPECT_THAT(dir.read("m.jsonl"), HasSubstr(R"("loss_tokens":60,"file":"held/easy.jsonl","seconds":3E0})"));
}

TEST(MetricsLog, GoesOnWhereTheCheckpointDoes) {
  const TempDir dir;
  const std::string path = dir.file("m.jsonl");
  {
    const auto log = open({.jsonl = path, .steps = {{"x", 0}, {"y", 0}, {"z", 0}}});
    for (int64_t k = 1; k <= 5; ++k)
      for (const char* job : {"x", "y", "z"}) ASSERT_TRUE(log->add(step(job, k, static_cast<double>(k))).ok());
    ASSERT_TRUE(log->add(eval("x", 3, 0.5)).ok());
    ASSERT_TRUE(log->add(eval("x", 4, 0.4)).ok());
    std::ofstream(path, std::ios::app) << "{\"job\":\"x\",\"st";  // killed here
  }
  // x goes on from step 3, y starts anew, z is not of this run.
  const auto log = open({.jsonl = path, .steps = {{"x", 3}, {"y", 0}}});
  ASSERT_TRUE(log->add(step("x", 4, 9)).ok());
  const auto curves = log->curves();
  ASSERT_EQ(curves.size(), 2u);
  EXPECT_THAT(pairs(curves[0].train),
              ElementsAre(std::pair(1, 1.0), std::pair(2, 2.0), std::pair(3, 3.0), std::pair(4, 9.0)));
  EXPECT_THAT(pairs(curves[0].eval), ElementsAre(std::pair(3, 0.5)));
  EXPECT_TRUE(curves[1].train.empty());
  const std::string text = dir.read("m.jsonl");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3 + 1 + 5 + 1);
  EXPECT_EQ(text.back(), '\n');

  EXPECT_THAT(MetricsLog::open({.jsonl = path}).status().message(), HasSubstr("is written to by another run"));

  dir.write("other", "no metrics\n");
  EXPECT_THAT(MetricsLog::open({.jsonl = dir.file("other")}).status().message(), HasSubstr("not a metrics file"));
  EXPECT_EQ(dir.read("other"), "no metrics\n");
}

TEST(MetricsLog, FailuresAreTold) {
  EXPECT_FALSE(MetricsLog::open({.jsonl = "/proc/none/m.jsonl"}).ok());
  const auto full = open({.jsonl = "/dev/full"});
  EXPECT_EQ(full->add(step("x", 1, 1)).code(), StatusCode::kIoError);
  const auto log = open({.tensorboard = "/proc/none"});
  EXPECT_FALSE(log->add(step("x", 1, 1)).ok());
}

// Bit by bit.
uint32_t masked_crc(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
  }
  return (~crc >> 15 | ~crc << 17) + 0xa282ead8u;
}
// The payloads of a file of frames: length, its sum, payload, its sum.
std::vector<std::string> payloads(const std::string& bytes) {
  std::vector<std::string> out;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    uint32_t sum = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&sum, bytes.data() + at + 8, 4);
    EXPECT_EQ(sum, masked_crc(std::string_view(bytes).substr(at, 8)));
    out.push_back(bytes.substr(at + 12, length));
    std::memcpy(&sum, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(sum, masked_crc(out.back()));
    at += 16 + length;
  }
  return out;
}

TEST(TensorboardEvents, FramesAndMessages) {
  const TempDir dir;
  auto events = TensorboardEvents::create(dir.file("x"), 4, 1.5);
  ASSERT_TRUE(events.ok()) << events.status().message();
  ASSERT_TRUE(events->add(300, 2, {{"a", 0.5}}).ok());
  const std::string name = std::filesystem::path(events->path()).filename();
  EXPECT_THAT(name, ::testing::StartsWith("events.out.tfevents.0000000001."));
  using namespace std::string_literals;
  EXPECT_THAT(payloads(dir.read("x/" + name)), ElementsAre("\x09\0\0\0\0\0\0\xF8\x3F\x10\0\x1A\x0D"
                                                           "brain.Event:2"s,
                                                           "\x09\0\0\0\0\0\0\xF8\x3F\x10\x04\x3A\x02\x08\x01"s,
                                                           "\x09\0\0\0\0\0\0\0\x40\x10\xAC\x02\x2A\x0A\x0A\x08\x0A\x01"
                                                           "a\x15\0\0\0\x3F"s));
}

TEST(MetricsLog, ADirectoryOfEventsPerJob) {
  const TempDir dir;
  const MetricsLog::Options options{.tensorboard = dir.file("tb"), .steps = {{"x", 3}, {"y", 0}}};
  for (int run = 0; run < 2; ++run) {
    const auto log = open(options);
    ASSERT_TRUE(log->add(step("x", 4, 1)).ok());
    ASSERT_TRUE(log->add(step("y", 1, 1)).ok());
    ASSERT_TRUE(log->add(eval("y", 1, 1)).ok());
  }
  for (const auto& [job, count] : {std::pair("x", 3u), std::pair("y", 3u)}) {
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(dir.file("tb/") + job)) {
      EXPECT_EQ(payloads(dir.read(fmt::format("tb/{}/{}", job, entry.path().filename().string()))).size(), count);
      ++files;
    }
    EXPECT_EQ(files, 2);
  }
}

TEST(LossCurve, DrawsWhatIsThere) {
  LossCurve curve{.job = "a<b&c", .train = {}, .eval = {{0, 3}, {50, 1}}};
  for (int64_t k = 1; k <= 5000; ++k) curve.train.push_back({k, 1 + 2 / static_cast<double>(k)});
  curve.train[7].loss = std::nan("");
  const std::string svg = loss_curve_svg({curve, {.job = "empty", .train = {}, .eval = {}}});
  EXPECT_THAT(svg, HasSubstr("a&lt;b&amp;c"));
  EXPECT_THAT(svg, HasSubstr(">5000<"));
  EXPECT_THAT(svg, HasSubstr(">0<"));
  EXPECT_THAT(svg, HasSubstr("optimiser steps"));
  EXPECT_THAT(svg, HasSubstr("<circle"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_LT(svg.size(), 60'000u);  // long runs are thinned
}

TEST(LossCurve, DegenerateRuns) {
  const std::vector<std::vector<LossCurve>> cases{
      {}, {{"a", {}, {}}}, {{"a", {{1, 2}}, {}}}, {{"a", {{1, 0}, {2, 0}}, {}}}, {{"a", {{1, INFINITY}}, {{0, -1}}}}};
  for (const auto& curves : cases) {
    const std::string svg = loss_curve_svg(curves);
    EXPECT_THAT(svg, ::testing::EndsWith("</svg>\n"));
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
  }
}

}  // namespace
}  // namespace lk
