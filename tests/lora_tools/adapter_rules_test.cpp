// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/adapter_rules.h"

#include <gmock/gmock.h>

namespace lk {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(AdapterRules, KindsThatDoNotGoTogether) {
  const struct {
    AdapterTraits traits;
    const char* begins;
  } cases[] = {
      {{.num_modules = -1}, "num_modules: "},
      {{.num_modules = 65}, "num_modules: "},
      {{.num_modules = 2, .dora = true}, "kind: "},
      {{.num_modules = 2, .bias = true}, "lora_bias: "},
      {{.dora = true, .bias = true}, "lora_bias: "},
      {{.num_modules = 2, .init = AdapterInit::kGaussian}, "init: "},
      {{.dora = true, .init = AdapterInit::kPissa}, "init: "},
      {{.dora = true, .init = AdapterInit::kOlora}, "init: "},
      {{.dropout = true, .init = AdapterInit::kOlora}, "dropout: "},
      {{.dora = true, .dropout = true}, "dropout: "},
  };
  for (const auto& [traits, begins] : cases) EXPECT_THAT(check_kind(traits).message(), StartsWith(begins));
  for (const AdapterTraits& fits : {AdapterTraits{}, AdapterTraits{.num_modules = 64, .dropout = true},
                                    AdapterTraits{.bias = true, .dropout = true, .init = AdapterInit::kEva},
                                    AdapterTraits{.dora = true, .init = AdapterInit::kOrthogonal}})
    EXPECT_TRUE(check_kind(fits).ok()) << check_kind(fits).message();
}

TEST(AdapterRules, WhatIsSavedCanBeServed) {
  const int64_t most = max_servable_rank();
  const auto message = [](const AdapterTraits& traits, int64_t rank) {
    return std::string(check_rank(traits, rank, "q_proj").message());
  };
  EXPECT_EQ(message({}, most), "");
  EXPECT_THAT(message({}, most + 1), HasSubstr("of q_proj, out of range: 1 to 512"));
  EXPECT_THAT(message({}, 0), HasSubstr("out of range"));
  EXPECT_EQ(message({.num_modules = 4}, most / 4), "");
  EXPECT_THAT(message({.num_modules = 4}, most / 4 + 1), HasSubstr("rank times num_modules is 516 of q_proj"));
  for (const AdapterInit init : {AdapterInit::kPissa, AdapterInit::kOlora, AdapterInit::kEva}) {
    EXPECT_EQ(message({.init = init}, most / 2), "");
    EXPECT_THAT(message({.init = init}, most / 2 + 1), HasSubstr("twice the rank"));
  }
  EXPECT_EQ(message({.init = AdapterInit::kOrthogonal}, 4), "");
  EXPECT_THAT(message({.init = AdapterInit::kOrthogonal}, 5), HasSubstr("needs an even one"));
}

}  // namespace
}  // namespace lk
