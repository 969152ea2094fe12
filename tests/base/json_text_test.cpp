// SPDX-License-Identifier: Apache-2.0
#include "lk/base/json_text.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <limits>

namespace lk {
namespace {

namespace json = boost::json;

TEST(JsonText, NumbersThatJsonLacksBecomeNullHoweverDeep) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(json_text(nan), "null");
  EXPECT_EQ(json_text(-infinity), "null");
  const json::value value{{"a", json::array{1.5, nan, json::object{{"b", infinity}, {"c", -infinity}}}}, {"d", 2}};
  EXPECT_EQ(json_text(value), R"({"a":[1.5E0,null,{"b":null,"c":null}],"d":2})");
  EXPECT_TRUE(value.at("a").at(1).is_double()) << "what is written is left as it is";
}

TEST(JsonText, FiniteNumbersComeBack) {
  for (const double x :
       {0.0, -0.0, 1e-300, std::numeric_limits<double>::max(), std::numeric_limits<double>::denorm_min()})
    EXPECT_EQ(json::parse(json_text(x)).to_number<double>(), x);
}

}  // namespace
}  // namespace lk
