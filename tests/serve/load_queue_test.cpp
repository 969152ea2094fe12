// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/load_queue.h"

#include <gtest/gtest.h>

#include <future>
#include <stdexcept>

namespace lk {
namespace {

TEST(LoadQueue, SaysHowEachLoadEnded) {
  LoadQueue queue(1);
  std::promise<Status> good, thrown;
  queue.push("", {.name = "a", .load = [] {}, .done = [&](const Status& ended) { good.set_value(ended); }});
  queue.push("", {.name = "b",
                  .load = [] { throw std::runtime_error("no more"); },
                  .done = [&](const Status& ended) { thrown.set_value(ended); }});
  EXPECT_TRUE(good.get_future().get().ok());
  const Status status = thrown.get_future().get();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("no more"), std::string::npos) << status.message();
  queue.stop();
  std::promise<Status> late;
  queue.push("", {.name = "c", .load = [] { FAIL(); }, .done = [&](const Status& ended) { late.set_value(ended); }});
  EXPECT_EQ(late.get_future().get().code(), StatusCode::kUnavailable);
}

TEST(LoadQueue, TenantsTakeTurnsAndNamesAreLoadedOneAtATime) {
  LoadQueue queue(1);
  std::promise<void> begin;
  std::promise<std::string> whole;
  std::string order;
  const auto push = [&](const std::string& tenant, const std::string& name) {
    queue.push(tenant, {.name = name,
                        .load = [&order, name] { order += name + " "; },
                        .done =
                            [&](const Status&) {
                              if (queue.size() == 0) whole.set_value(order);
                            }});
  };
  queue.push("", {.name = "first", .load = [&] { begin.get_future().wait(); }, .done = [](const Status&) {}});
  for (const char* name : {"a1", "a2", "a3", "a4"}) push("a", name);
  for (const char* name : {"b1", "b2"}) push("b", name);
  EXPECT_EQ(queue.size(), 7);
  begin.set_value();
  EXPECT_EQ(whole.get_future().get(), "a1 b1 a2 b2 a3 a4 ");
}

}  // namespace
}  // namespace lk
