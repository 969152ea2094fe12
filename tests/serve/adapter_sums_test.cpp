// SPDX-License-Identifier: Apache-2.0
// Weighted sums of adapters: resolved, cached within a budget, following their components.
#include "serve/registry_testing.h"

namespace lk {
namespace {

using testing::AdapterRegistryTest;

class AdapterSumsTest : public AdapterRegistryTest {};

TEST_F(AdapterSumsTest, SumsAreResolvedCachedAndRefused) {
  open({.max_composed = 2});
  must_load("sql", "sql");
  must_load("math", "math");
  must_load("tag", "tag");
  const auto sum = resolve("sql*0.5+math*0.5");
  ASSERT_TRUE(sum.ok()) << sum.status().message();
  EXPECT_EQ(sum->name, "sql*0.5+math*0.5");
  EXPECT_EQ(sum->adapter->rank, resolve("sql")->adapter->rank + resolve("math")->adapter->rank);
  const AdapterLease half = sum->adapter;
  EXPECT_EQ(resolve("sql@1*0.5+demo:math*0.50")->adapter, half) << "the same sum by other words";
  EXPECT_EQ(resolve("demo:sql*0.5+math*0.5")->adapter, half);
  EXPECT_NE(resolve("sql*0.5+math*0.25")->adapter, half);
  EXPECT_EQ(tokens_of(resolve("sql*1")->adapter), tokens_of(resolve("sql")->adapter)) << "one times itself";
  EXPECT_NE(tokens_of(half), tokens_of(resolve("sql")->adapter));
  EXPECT_NE(resolve("sql*0.5+math*0.5")->adapter, half) << "the least recently used of three went";

  for (const char* wrong : {"sql*", "sql*x", "sql*0.5x", "sql*nan", "sql*inf", "sql*101", "sql*-101", "sql*0.5*2",
                            "sql+", "+sql", "sql++math", "base+sql", "sql*0.5+demo*0.5"})
    EXPECT_EQ(code_of(wrong), StatusCode::kInvalidArgument) << wrong;
  EXPECT_TRUE(resolve("sql*-100+math*1e-3").ok());
  EXPECT_EQ(code_of("sql+nada"), StatusCode::kNotFound);
  EXPECT_EQ(code_of("other:sql+math"), StatusCode::kNotFound);
  EXPECT_TRUE(resolve("sql+sql+sql+sql+sql+sql+sql+sql").ok());
  EXPECT_EQ(code_of("sql+sql+sql+sql+sql+sql+sql+sql+sql"), StatusCode::kInvalidArgument);
  EXPECT_EQ(registry_->list(service_->engine->snapshot(), "", 100).entries.size(), 3u) << "sums are not listed";
}

TEST_F(AdapterSumsTest, NobodyTakesTheNameOfASum) {
  must_load("a", "sql");
  must_load("b", "math");
  const AdapterLease sum = resolve("a+b")->adapter;
  for (const char* name : {"a+b", "b+a", "a+a"}) {
    EXPECT_EQ(load(name, "tag").status().code(), StatusCode::kAlreadyExists) << name;
    EXPECT_EQ(load(name, "tag", {.replace = true}).status().code(), StatusCode::kAlreadyExists) << name;
    EXPECT_EQ(registry_->set_alias(name, "b").code(), StatusCode::kAlreadyExists) << name;
  }
  EXPECT_EQ(resolve("a+b")->adapter, sum);
  must_load("a+c", "tag");  // a name like others, as hubs have them
  must_load("c", "sql");
  must_load("a+c", "math", {.replace = true});
  EXPECT_EQ(resolve("a+c")->adapter->name, "a+c") << "goes before the sum that it could be since";
}

TEST_F(AdapterSumsTest, SumFollowsItsComponents) {
  must_load("a", "sql");
  must_load("b", "math");
  const int64_t bytes = registry_->host_stats().bytes;
  AdapterLease before = resolve("a+b")->adapter;
  EXPECT_GT(registry_->host_stats().bytes, bytes) << "a sum counts";
  const AdapterId id = before->id();
  must_load("b", "tag", {.replace = true});
  const AdapterLease after = resolve("a+b")->adapter;
  EXPECT_NE(after, before);
  before.reset();
  EXPECT_TRUE(service_->wait_on_engine([id](TextEngine& engine) {
    for (const auto& [resident, info] : engine.pool().resident_adapters())
      if (resident == id) return false;
    return true;
  })) << "a sum of a retired version is not kept";
  ASSERT_TRUE(registry_->unload("b", nullptr).ok());
  EXPECT_EQ(code_of("a+b"), StatusCode::kNotFound);
  EXPECT_FALSE(tokens_of(after).empty()) << "who has it may finish";
}

TEST_F(AdapterSumsTest, SumsRespectTheHostMemoryBudget) {
  const int64_t bytes = must_load("probe", "sql")->host_bytes;
  open({.max_host_bytes = bytes * 9 / 2, .max_composed_bytes = bytes * 9 / 2});
  must_load("a", "sql");
  must_load("b", "sql");
  EXPECT_EQ(code_of("a+b+a"), StatusCode::kResourceExhausted) << "a sum holds its parts in f32, twice their bytes";
  for (const char* weight : {"0.1", "0.2", "0.3"}) {
    const auto sum = resolve(fmt::format("a*{}+b*0.1", weight));
    ASSERT_TRUE(sum.ok()) << sum.status().message();
    EXPECT_LE(registry_->host_stats().bytes, bytes * 9 / 2);
  }
}

TEST_F(AdapterSumsTest, CachedSumsAreBoundedInBytesAndCounted) {
  must_load("a", "sql");
  const int64_t files = registry_->host_stats().bytes;
  ASSERT_TRUE(resolve("a*0.5").ok());
  const int64_t one = registry_->sum_stats().bytes;
  EXPECT_EQ(registry_->sum_stats().count, 1);
  EXPECT_EQ(registry_->host_stats().bytes, files + one);
  open({.max_composed_bytes = 2 * one + 1});
  must_load("a", "sql");
  must_load("b", "math");
  for (const char* weight : {"0.1", "0.2", "0.3", "0.4"}) ASSERT_TRUE(resolve(fmt::format("a*{}", weight)).ok());
  EXPECT_EQ(registry_->sum_stats().count, 2);
  EXPECT_EQ(registry_->sum_stats().bytes, 2 * one);
  const auto large = resolve("a+b+a");
  ASSERT_TRUE(large.ok()) << "one that is larger than the cache is built all the same";
  EXPECT_FALSE(tokens_of(large->adapter).empty());
  EXPECT_EQ(registry_->sum_stats().count, 0);
  ASSERT_TRUE(resolve("b*0.5").ok());
  ASSERT_TRUE(registry_->unload("b", nullptr).ok());
  EXPECT_EQ(registry_->sum_stats().count, 0) << "it went with its component";
  EXPECT_EQ(registry_->sum_stats().bytes, 0);
}

TEST_F(AdapterSumsTest, SumsAndAdaptersMakeRoomForEachOther) {
  const int64_t bytes = must_load("probe", "sql")->host_bytes;
  open({.max_host_bytes = bytes * 4, .max_composed_bytes = bytes * 8});
  must_load("a", "sql");
  const AdapterLease half = resolve("a*0.5")->adapter;
  const std::vector<int32_t> expected = tokens_of(half);
  must_load("b", "sql");
  EXPECT_TRUE(half->host()->on_host()) << "there was room";
  must_load("c", "sql");
  must_load("d", "sql");
  must_load("e", "sql");
  EXPECT_FALSE(half->host()->on_host()) << "a sum does not keep an adapter out";
  EXPECT_EQ(registry_->sum_stats().count, 1);
  push_out_of_pages(half);
  EXPECT_EQ(tokens_of(half), expected) << "summed again, from what was read again";
  EXPECT_LE(registry_->host_stats().bytes, bytes * 4);
}

}  // namespace
}  // namespace lk
