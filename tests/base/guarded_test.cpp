// SPDX-License-Identifier: Apache-2.0
#include "lk/base/guarded.h"

#include <gtest/gtest.h>

#include <new>
#include <string>

namespace lk {
namespace {

TEST(Guarded, PassesOnWhatIsReturned) {
  int calls = 0;
  EXPECT_TRUE(guarded("a test", [&] { ++calls; }).ok());
  EXPECT_EQ(guarded("a test", [] { return not_found("it"); }).code(), StatusCode::kNotFound);
  EXPECT_EQ(guarded("a test", []() -> Result<std::string> { return std::string("value"); }).value(), "value");
  EXPECT_EQ(guarded("a test", []() -> Result<int> { return unavailable("now"); }).status().code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(calls, 1);
}

TEST(Guarded, ExceptionsBecomeInternalErrors) {
  const Status memory = guarded("a test", [] { throw std::bad_alloc(); });
  EXPECT_EQ(memory.code(), StatusCode::kInternal);
  EXPECT_NE(memory.message().find("a test"), std::string::npos);
  EXPECT_NE(memory.message().find("bad_alloc"), std::string::npos);
  EXPECT_EQ(guarded("a test", []() -> Result<int> { throw 1; }).status().code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace lk
