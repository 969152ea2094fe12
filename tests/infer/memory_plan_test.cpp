// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/memory_plan.h"

#include <gtest/gtest.h>

#include "lk/base/bytes.h"

namespace lk {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20, kGiB = int64_t{1} << 30;

// A model of 1.1 B parameters in bf16.
constexpr ModelFootprint kModel{
    .packed = 2100 * kMiB, .embedding = 125 * kMiB, .activations = 60 * kMiB, .page = 352 << 10};
constexpr int64_t kFixed = kModel.packed + kModel.embedding + kModel.activations + 64 * kMiB;

MemoryLimits container(int64_t bytes) { return {.total = bytes, .available = bytes, .source = "memory.max of /"}; }
const MemoryLimits kBox{.total = 24 * kGiB, .available = 22 * kGiB};

Result<MemoryPlan> plan(const MemoryLimits& limits, MemoryWishes wishes = {}) {
  wishes.grammars = 64 * kMiB;
  return plan_memory(limits, kModel, wishes);
}
std::string refusal(const MemoryLimits& limits, const MemoryWishes& wishes) {
  const Result<MemoryPlan> refused = plan(limits, wishes);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted);
  return refused.ok() ? "" : refused.status().message();
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(MemoryPlan, PartsFillWhatIsAvailable) {
  for (const int64_t gib : {3, 4, 8, 16, 64, 1024}) {
    const MemoryPlan p = plan(container(gib * kGiB)).value();
    EXPECT_EQ(p.total(), gib * kGiB);
    EXPECT_TRUE(p.fits_now());
    EXPECT_EQ(p.reserve, std::max(256 * kMiB, gib * kGiB / 10));
    const int64_t room = gib * kGiB - kFixed - p.reserve;
    EXPECT_EQ(p.adapters, room / 4);
    EXPECT_EQ(p.pages, room - room / 4);
    EXPECT_EQ(p.sums, p.adapters / 8);
  }
}

TEST(MemoryPlan, OneWishShiftsTheRestToTheOther) {
  MemoryPlan p = plan(kBox, {.pages = 4 * kGiB}).value();
  EXPECT_EQ(p.pages, 4 * kGiB);
  EXPECT_EQ(p.total(), kBox.available);
  p = plan(kBox, {.adapters = 12 * kGiB}).value();
  EXPECT_EQ(p.adapters, 12 * kGiB);
  EXPECT_EQ(p.total(), kBox.available);
  p = plan(kBox, {.pages = 2 * kGiB, .adapters = 3 * kGiB, .sums = kGiB}).value();
  EXPECT_EQ(p.pages, 2 * kGiB);
  EXPECT_EQ(p.adapters, 3 * kGiB);
  EXPECT_EQ(p.sums, kGiB);
  EXPECT_LT(p.total(), kBox.available);
  EXPECT_EQ(plan(kBox, {.adapters = kGiB, .sums = 2 * kGiB}).value().sums, kGiB) << "sums are copies of adapters";
}

// More than is free at this moment is a warning, more than can ever be free a refusal.
TEST(MemoryPlan, WhatOthersHoldNowMayBeWishedFor) {
  const MemoryLimits busy{.total = 24 * kGiB, .available = 4 * kGiB};
  MemoryPlan p = plan(busy, {.pages = 10 * kGiB}).value();
  EXPECT_EQ(p.pages, 10 * kGiB);
  EXPECT_EQ(p.adapters, 16 * kMiB) << "the least";
  EXPECT_FALSE(p.fits_now());
  p = plan({.total = 24 * kGiB, .available = kGiB}).value();
  EXPECT_EQ(p.pages, 64 * kModel.page);
  EXPECT_FALSE(p.fits_now());
}

TEST(MemoryPlan, LimitBelowTheWeightsIsRefusedWithWhatWouldDo) {
  const std::string message = refusal(container(2 * kGiB), {});
  EXPECT_TRUE(contains(message, "weights take 2.17 GiB")) << message;
  EXPECT_TRUE(contains(message, "more than the 2.00 GiB that this process may use (memory.max of /)")) << message;
  const size_t at = message.find("give it ") + 8;
  const int64_t enough = parse_bytes(message.substr(at, message.find(' ', at) - at)).value();
  EXPECT_TRUE(plan(container(enough)).ok()) << message;
  EXPECT_FALSE(plan(container(enough - 2 * kMiB)).ok()) << message;
}

// Each refusal names a flag and a number; with that number the plan holds, with more it does not.
TEST(MemoryPlan, TooLargeWishesAreRefusedWithANumberThatFits) {
  struct Case {
    MemoryWishes wishes;
    bool blames_pages;
  };
  const std::vector<Case> cases{{{.pages = 30 * kGiB}, true},
                                {{.adapters = 30 * kGiB}, false},
                                {{.pages = 18 * kGiB, .adapters = 6 * kGiB}, true},
                                {{.pages = 4 * kGiB, .adapters = 30 * kGiB}, false},
                                {{.pages = 30 * kGiB, .adapters = 4 * kGiB}, true}};
  for (const Case& c : cases) {
    const std::string message = refusal(kBox, c.wishes);
    const std::string flag = c.blames_pages ? "--memory" : "--host-memory";
    EXPECT_TRUE(message.starts_with(flag + " ")) << message;
    EXPECT_TRUE(contains(message, "the 24.00 GiB that this process may use (the machine)")) << message;
    const size_t at = message.rfind(flag) + flag.size() + 1;
    const int64_t fits = parse_bytes(message.substr(at, message.rfind(" fits") - at)).value();
    const auto with = [&](int64_t bytes) {
      MemoryWishes wishes = c.wishes;
      (c.blames_pages ? wishes.pages : wishes.adapters) = bytes;
      return plan(kBox, wishes);
    };
    EXPECT_TRUE(with(fits).ok()) << message;
    EXPECT_FALSE(with(fits + kMiB + 1).ok()) << message;
  }
  // Both absurd: one after the other.
  EXPECT_TRUE(refusal(kBox, {.pages = 100 * kGiB, .adapters = 100 * kGiB}).starts_with("--memory "));
}

TEST(MemoryPlan, SmallWishesAreAllowed) {
  const MemoryPlan p = plan(container(4 * kGiB), {.pages = 1, .adapters = 1}).value();
  EXPECT_EQ(p.pages, 1);
  EXPECT_EQ(p.adapters, 1);
}

TEST(MemoryPlan, IsPrintedPartByPart) {
  const std::string text = format_memory_plan(plan(kBox, {.pages = 4 * kGiB, .adapters = 2 * kGiB}).value());
  EXPECT_TRUE(contains(text, "memory: 10.49 GiB of 24.00 GiB (the machine), 22.00 GiB free\n")) << text;
  EXPECT_TRUE(contains(text, "  weights        2.17 GiB  and the rows of the embedding\n")) << text;
  EXPECT_TRUE(contains(text, "  pages          4.00 GiB  KV cache and adapters in use (--memory)\n")) << text;
  EXPECT_TRUE(contains(text, "  adapters       2.00 GiB  their copies in host memory (--host-memory)\n")) << text;
}

}  // namespace
}  // namespace lk
