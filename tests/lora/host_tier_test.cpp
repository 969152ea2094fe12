// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/host_tier.h"

#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <map>
#include <thread>

#include "lk/base/rng.h"
#include "lora/adapter_maker.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

// An adapter of `bytes` bytes whose name is its content.
class FakeSource : public AdapterSource {
 public:
  FakeSource(std::string name, int64_t bytes) : name_(std::move(name)), bytes_(bytes) {}
  Result<std::shared_ptr<const Adapter>> read() override {
    ++reads;
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
    if (broken) return data_loss("{} is broken", name_);
    auto adapter = std::make_shared<Adapter>();
    adapter->name = name_;
    adapter->owned.emplace_back(bytes_);
    return std::shared_ptr<const Adapter>(std::move(adapter));
  }
  bool available() const override { return !gone; }

  std::atomic<int> reads{0};
  std::atomic<bool> broken{false}, gone{false};
  std::chrono::milliseconds delay{0};

 private:
  const std::string name_;
  const int64_t bytes_;
};

struct World {
  explicit World(int64_t max_bytes) : tier(HostTier::create(max_bytes)) {}
  HostAdapter& add(const std::string& name, int64_t bytes = 1024, std::chrono::milliseconds delay = {}) {
    auto source = sources[name] = std::make_shared<FakeSource>(name, bytes);
    source->delay = delay;
    auto added = tier->add(source, bytes);
    EXPECT_TRUE(added.ok()) << added.status().message();
    return *(adapters[name] = std::move(*added));
  }
  std::string on_host() const {
    std::string names;
    for (const auto& [name, adapter] : adapters)
      if (adapter->on_host()) names += name;
    return names;
  }
  std::shared_ptr<HostTier> tier;
  std::map<std::string, std::shared_ptr<FakeSource>> sources;
  std::map<std::string, std::shared_ptr<HostAdapter>> adapters;
};

TEST(HostTier, TheLeastRecentlyUsedGoesAndComesBack) {
  World world(3 * 1024);
  for (const char* name : {"a", "b", "c"}) world.add(name);
  EXPECT_EQ(world.tier->stats().bytes, 3 * 1024);
  (void)world.adapters["a"]->get();
  world.add("d");
  EXPECT_EQ(world.on_host(), "acd");
  EXPECT_EQ(world.adapters["b"]->try_get(), nullptr);
  const auto content = world.adapters["b"]->get();
  ASSERT_TRUE(content.ok());
  EXPECT_EQ((*content)->name, "b");
  EXPECT_EQ(world.on_host(), "abd");
  EXPECT_EQ(world.sources["b"]->reads, 2);
  const HostTier::Stats stats = world.tier->stats();
  EXPECT_EQ(stats.num_drops, 2);
  EXPECT_EQ(stats.num_reads, 1);
  EXPECT_EQ(stats.bytes, 3 * 1024);
}

TEST(HostTier, WhatTakesLongToReadStaysLonger) {
  World world(3 * 1024);
  world.add("x", 1024, std::chrono::milliseconds(300));
  for (int i = 0; i < 20; ++i) world.add(fmt::format("{}", i % 10));
  EXPECT_TRUE(world.adapters["x"]->on_host());
  EXPECT_EQ(world.sources["x"]->reads, 1);
}

TEST(HostTier, WhatIsInUseOrCouldNotComeBackIsKept) {
  World world(2 * 1024);
  auto used = world.add("a").get();
  world.add("b");
  world.sources["b"]->gone = true;
  auto third = std::make_shared<FakeSource>("c", 1024);
  EXPECT_THAT(world.tier->add(third, 1024).status().message(), HasSubstr("does not fit into host memory"));
  EXPECT_EQ(third->reads, 0) << "refused before it was read";
  EXPECT_EQ(world.tier->stats().bytes, 2 * 1024);
  used = unavailable("let go");
  EXPECT_TRUE(world.tier->add(third, 1024).ok());
  EXPECT_EQ(world.on_host(), "b");
  world.tier->drop_all();
  EXPECT_EQ(world.on_host(), "b");
}

// A source whose file system does not answer until it is let.
class HungSource : public FakeSource {
 public:
  using FakeSource::FakeSource;
  bool available() const override {
    asked.set_value();
    answer.get_future().wait();
    return true;
  }
  mutable std::promise<void> asked, answer;
};

// A look at a file used to be taken under the mutex that whoever starts a load needs.
TEST(HostTier, NobodyWaitsForALookAtAFile) {
  World world(2 * 1024);
  const auto hung = std::make_shared<HungSource>("hung", 1024);
  const std::shared_ptr<HostAdapter> slow = world.tier->add(hung, 1024).value();
  world.add("b");
  std::thread reader([&] { world.add("c"); });
  hung->asked.get_future().wait();  // it holds up the one who needs room, and nobody else:
  EXPECT_NE(world.adapters["b"]->try_get(), nullptr);
  EXPECT_NE(slow->try_get(), nullptr) << "used meanwhile, so it stays";
  EXPECT_EQ(world.tier->stats().bytes, 2 * 1024);
  world.add("d");  // finds room in b
  world.adapters.erase("d");
  hung->answer.set_value();
  reader.join();
  EXPECT_TRUE(slow->on_host());
  EXPECT_EQ(world.on_host(), "c");
}

// Forgotten while its source is asked.
TEST(HostTier, WhatIsAskedForMayGo) {
  World world(2 * 1024);
  const auto hung = std::make_shared<HungSource>("hung", 1024);
  std::shared_ptr<HostAdapter> slow = world.tier->add(hung, 1024).value();
  world.add("b");
  std::thread reader([&] { world.add("c"); });
  hung->asked.get_future().wait();
  slow.reset();
  hung->answer.set_value();
  reader.join();
  EXPECT_EQ(world.on_host(), "bc");
  EXPECT_EQ(world.tier->stats().bytes, 2 * 1024);
}

TEST(HostTier, SomebodyWhoWaitsGetsItEvenBeyondTheBudget) {
  World world(2 * 1024);
  world.add("a"), world.add("b"), world.add("c");
  ASSERT_EQ(world.on_host(), "bc");
  const auto b = world.adapters["b"]->get(), c = world.adapters["c"]->get();
  const auto a = world.adapters["a"]->get();
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(world.tier->stats().bytes, 3 * 1024);
}

TEST(HostTier, NewOnesWaitForEachOther) {
  World world(1024);
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      auto source = std::make_shared<FakeSource>(fmt::format("{}", i), 1000);
      source->delay = std::chrono::milliseconds(10);
      const auto added = world.tier->add(source, 1000);
      if (!added.ok()) return;
      const auto registered = (*added)->get();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      good += registered.ok();
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 4);
}

TEST(HostTier, OneThatIsLargerThanTheBudgetIsRefused) {
  World world(1024);
  EXPECT_EQ(world.tier->add(std::make_shared<FakeSource>("a", 2048), 2048).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(world.tier->add(std::make_shared<FakeSource>("a", 2048), 10).status().code(),
            StatusCode::kResourceExhausted)
      << "expected to be small";
  EXPECT_EQ(world.tier->stats().bytes, 0);
}

TEST(HostTier, FailedReadsLeaveNothingAndCanBeTriedAgain) {
  World world(1024);
  world.add("a"), world.add("b");
  world.sources["a"]->broken = true;
  EXPECT_EQ(world.adapters["a"]->get().status().code(), StatusCode::kDataLoss);
  EXPECT_FALSE(world.adapters["a"]->on_host());
  EXPECT_EQ(world.tier->stats().num_failed_reads, 1);
  world.sources["a"]->broken = false;
  EXPECT_TRUE(world.adapters["a"]->get().ok());
  auto fresh = std::make_shared<FakeSource>("c", 100);
  fresh->broken = true;
  EXPECT_FALSE(world.tier->add(fresh, 100).ok());
  world.adapters.clear();
  EXPECT_EQ(world.tier->stats().bytes, 0);
}

TEST(HostTier, CallersThatComeTogetherShareOneRead) {
  World world(1024);
  world.add("a", 1024, std::chrono::milliseconds(50)), world.add("b");
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { good += world.adapters["a"]->get().ok(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 4);
  EXPECT_EQ(world.sources["a"]->reads, 2);
}

TEST(HostTier, ManyThreadsKeepTheBooks) {
  World world(10 * 1024);
  std::vector<std::shared_ptr<HostAdapter>> adapters;
  for (int i = 0; i < 40; ++i) {
    world.add(fmt::format("{}", i), 512 + 64 * (i % 16));
    adapters.push_back(world.adapters[fmt::format("{}", i)]);
  }
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint64_t seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] {
      Rng rng(seed);
      for (int i = 0; i < 500; ++i) {
        HostAdapter& adapter = *adapters[rng.below(adapters.size())];
        if (const auto content = rng.below(4) == 0 ? adapter.try_get() : adapter.get().value();
            content && content->name != adapter.name())
          ++wrong;
        if (rng.below(50) == 0) world.tier->drop_all();
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  int64_t bytes = 0;
  for (const auto& adapter : adapters)
    if (adapter->on_host()) bytes += adapter->bytes();
  EXPECT_EQ(world.tier->stats().bytes, bytes);
  adapters.clear(), world.adapters.clear();
  EXPECT_EQ(world.tier->stats().bytes, 0);
}

TEST(HostTier, InMemoryForGood) {
  FakeSource source("a", 100);
  HostAdapter adapter(source.read().value());
  EXPECT_TRUE(adapter.on_host());
  EXPECT_EQ(adapter.get().value()->name, "a");
  EXPECT_EQ(adapter.tier_bytes(), 0);
}

TEST(AdapterDirectory, RefusesWhatItWasNot) {
  const std::string demo = "examples/demo/adapters/";
  const ModelConfig config = load_model_config("examples/demo/model").value();
  TempDir dir;
  namespace fs = std::filesystem;
  fs::copy(demo + "sql", dir.file("x"), fs::copy_options::recursive);
  AdapterDirectory source("x", dir.file("x"), config, nullptr, {.copy_file = true});
  EXPECT_TRUE(source.available());
  const std::string digest = source.read().value()->digest;
  EXPECT_EQ(source.read().value()->digest, digest);
  fs::copy_file(demo + "math/adapter_model.safetensors", dir.file("x/adapter_model.safetensors"),
                fs::copy_options::overwrite_existing);
  EXPECT_FALSE(source.available());
  EXPECT_EQ(source.read().status().code(), StatusCode::kDataLoss);
  fs::remove_all(dir.file("x"));
  EXPECT_FALSE(source.available());
  EXPECT_EQ(source.read().status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(AdapterDirectory("x", dir.file("x"), config, nullptr, {}).read().status().code(), StatusCode::kNotFound);
  // Other files of the same content will do.
  fs::copy(demo + "sql", dir.file("x"), fs::copy_options::recursive);
  EXPECT_EQ(source.read().value()->digest, digest);
}

}  // namespace
}  // namespace lk
