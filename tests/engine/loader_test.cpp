// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/loader.h"

#include <gmock/gmock.h>

#include <atomic>
#include <future>
#include <set>
#include <thread>

#include "lk/engine/engine.h"
#include "testing/backends.h"
#include "testing/golden.h"

namespace lk {
namespace {

using testing::kGoldenDir;

// A golden adapter whose reads after the first wait until they are let through.
class GatedSource : public AdapterSource {
 public:
  GatedSource(const std::string& name, const ModelConfig& config)
      : directory_(name, kGoldenDir + "adapters/llama_mha__" + name, config, nullptr, {.copy_file = true}) {}
  ~GatedSource() override { gone.set_value(); }
  Result<std::shared_ptr<const Adapter>> read() override {
    const int number = ++reads;
    reads.notify_all();
    if (number > 1) gate.wait(false);
    if (broken) return data_loss("broken");
    return directory_.read();
  }
  bool available() const override { return true; }
  void open_gate() {
    gate = true;
    gate.notify_all();
  }
  void wait_for_read(int number) {  // to begin
    for (int begun = reads; begun < number; begun = reads) reads.wait(begun);
  }
  std::atomic<bool> gate{false};
  std::atomic<int> reads{0};
  std::promise<void> gone;
  std::atomic<bool> broken{false};

 private:
  AdapterDirectory directory_;
};

class LoaderTest : public ::testing::Test {
 protected:
  void open(int64_t host_bytes) {
    auto backend = testing::make_backend({.num_threads = 1});
    auto weights = load_weights(kGoldenDir + "models/llama_mha", DType::kF32, *backend).value();
    const int64_t page = Decoder(weights, *backend, 1, 1).page_bytes();
    engine_ = Engine::create({.max_step_tokens = 64, .memory_bytes = 512 * page}, weights, std::move(backend)).value();
    engine_->set_load_listener([this] {
      ++news_;
      news_.notify_all();
    });
    pool_ = std::make_unique<UnifiedPool>(engine_->num_pages());
    host_ = HostTier::create(host_bytes);
  }
  AdapterId add(const std::string& name) {
    auto source = std::make_shared<GatedSource>(name, engine_->weights().config);
    auto adapter = host_->add(source, 0).value();
    sources_.push_back(source);
    adapters_.push_back(adapter);
    return engine_->register_adapter(engine_->prepare_adapter(adapter).value());
  }
  void start(AdapterId id) {
    ASSERT_TRUE(pool_->begin_load(id, engine_->footprint(id)));
    engine_->start_load(id, pool_->adapter_pages(id));
  }
  LoadResult finish() {
    LoadResult result = engine_->take_finished_loads(true).at(0);
    pool_->finish_load(result.adapter, result.status.ok());
    return result;
  }
  std::vector<MergeResult> finish_merges() {
    for (;;) {
      const int heard = news_;
      if (auto merges = engine_->take_finished_merges(); !merges.empty()) return merges;
      news_.wait(heard);
    }
  }
  // Its source's read of this number, which begins by itself, has brought it into host memory.
  void wait_until_read(size_t adapter, int number = 2) {
    sources_[adapter]->wait_for_read(number);
    ASSERT_TRUE(adapters_[adapter]->get().ok());  // waits for the read
    EXPECT_EQ(sources_[adapter]->reads, number);
  }

  std::atomic<int> news_{0};  // of the engine's workshop
  std::shared_ptr<HostTier> host_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<UnifiedPool> pool_;
  std::vector<std::shared_ptr<GatedSource>> sources_;
  std::vector<std::shared_ptr<HostAdapter>> adapters_;
};

TEST_F(LoaderTest, ReadsFromDiskHoldUpNoCopyAndNoOtherRead) {
  open(1 << 20);
  const AdapterId slow = add("r8_attention"), other = add("r1");
  host_->drop_all();
  const AdapterId warm = add("rslora_r3");
  start(slow);
  start(other);
  start(warm);
  EXPECT_EQ(finish().adapter, warm) << "its copy was in host memory";
  sources_[1]->open_gate();
  EXPECT_EQ(finish().adapter, other) << "read by the second reader";
  sources_[0]->open_gate();
  const LoadResult last = finish();
  EXPECT_EQ(last.adapter, slow);
  EXPECT_TRUE(last.status.ok());
  EXPECT_EQ(pool_->adapter_state(slow), AdapterState::kResident);
}

TEST_F(LoaderTest, FailedReadIsReportedAndTheNextOneSucceeds) {
  open(1 << 20);
  const AdapterId id = add("r8_attention");
  host_->drop_all();
  sources_[0]->broken = true;
  sources_[0]->open_gate();
  start(id);
  EXPECT_EQ(finish().status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(pool_->adapter_state(id), AdapterState::kAbsent);
  sources_[0]->broken = false;
  start(id);
  EXPECT_TRUE(finish().status.ok());
}

TEST_F(LoaderTest, StagedAdapterNeedsNoReadingWhenItsLoadBegins) {
  open(1 << 20);
  const AdapterId id = add("r8_attention");
  engine_->stage(id);
  EXPECT_EQ(sources_[0]->reads, 1) << "it was there";
  host_->drop_all();
  sources_[0]->open_gate();
  for (int i = 0; i < 3; ++i) engine_->stage(id);
  wait_until_read(0);
  start(id);
  EXPECT_TRUE(finish().status.ok());
  EXPECT_EQ(sources_[0]->reads, 2);
}

// An adapter whose embedding rows are looked up in its host copy holds that copy while it is resident, and no longer.
TEST_F(LoaderTest, EvictedAdapterLetsGoOfItsHostCopy) {
  if (testing::is_late_backend()) GTEST_SKIP() << "it shares no host memory, so nobody holds the copy";
  open(1 << 20);
  pool_->set_evicted([&](AdapterId adapter) { engine_->evicted(adapter); });
  const AdapterId id = add("embed_rslora");
  start(id);
  ASSERT_TRUE(finish().status.ok());
  host_->drop_all();
  ASSERT_TRUE(adapters_[0]->on_host()) << "it is in use";
  pool_->evict_all();
  host_->drop_all();
  EXPECT_FALSE(adapters_[0]->on_host());
  sources_[0]->open_gate();
  start(id);
  EXPECT_TRUE(finish().status.ok()) << "and it can come back";
}

using EngineDeathTest = LoaderTest;
TEST_F(EngineDeathTest, AnAdapterThatIsNotResidentNeverRunsAsTheBaseModel) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  open(1 << 20);
  const AdapterId id = add("r8_attention");
  start(id);
  ASSERT_TRUE(finish().status.ok());
  const PageId page = *pool_->alloc_kv();
  const Request request{.id = 7, .adapter = id, .prompt = {1, 2, 3}, .max_tokens = 1};
  const StepPlan plan{.items = {{.request = &request,
                                 .tokens = request.prompt,
                                 .begin = 0,
                                 .end = 3,
                                 .block_table = {&page, 1},
                                 .sample = true}},
                      .num_tokens = 3};
  EXPECT_EQ(engine_->execute(plan).size(), 1u);
  engine_->evicted(id);
  EXPECT_DEATH((void)engine_->execute(plan), "request 7 runs with adapter 0, which is not resident");
}

TEST_F(LoaderTest, WhatHasToBeReadFirstCostsMore) {
  open(1 << 20);
  const AdapterId id = add("r8_attention");
  start(id);
  ASSERT_TRUE(finish().status.ok());
  EXPECT_EQ(engine_->reload_cost(id), 1);
  host_->drop_all();
  EXPECT_GT(engine_->reload_cost(id), 1);
}

TEST_F(LoaderTest, StagingTakesAtMostHalfOfHostMemory) {
  open(1 << 20);
  add("r8_attention");
  const int64_t bytes = adapters_[0]->bytes();
  adapters_.clear(), sources_.clear();
  open(bytes * 5 / 2);
  const AdapterId first = add("r8_attention"), second = add("r8_attention");
  host_->drop_all();
  for (auto& source : sources_) source->open_gate();
  engine_->stage(first);
  engine_->stage(second);
  wait_until_read(0);
  engine_->stage(second);
  EXPECT_EQ(sources_[1]->reads, 1) << "no room beside the first one";
  start(first);
  EXPECT_TRUE(finish().status.ok());
  engine_->stage(second);
  wait_until_read(1);
}

TEST_F(LoaderTest, WhoeverIsNotWaitedForAnyMoreGivesItsShareBack) {
  open(1 << 20);
  add("r8_attention");
  const int64_t bytes = adapters_[0]->bytes();
  adapters_.clear(), sources_.clear();
  open(bytes * 5 / 2);
  const AdapterId first = add("r8_attention"), second = add("r8_attention");
  host_->drop_all();
  for (auto& source : sources_) source->open_gate();
  engine_->stage(first);
  wait_until_read(0);
  engine_->unstage(first);  // it stays in host memory, as long as there is room
  engine_->unstage(first);
  engine_->stage(second);
  wait_until_read(1);
}

TEST_F(LoaderTest, StagedAdapterThatTheTierDroppedIsStagedAgain) {
  open(1 << 20);
  const AdapterId id = add("r8_attention");
  host_->drop_all();
  sources_[0]->open_gate();
  engine_->stage(id);
  wait_until_read(0);
  // Until the reader, too, has let go of what it read, it cannot be dropped.
  for (host_->drop_all(); adapters_[0]->on_host(); host_->drop_all()) std::this_thread::yield();
  engine_->stage(id);
  wait_until_read(0, 3);
}

TEST_F(LoaderTest, FailedStageTakesNobodysPlaceAndIsNotRepeatedAtOnce) {
  open(1 << 20);
  add("r8_attention");
  const int64_t bytes = adapters_[0]->bytes();
  adapters_.clear(), sources_.clear();
  open(bytes * 5 / 2);
  const AdapterId broken = add("r8_attention"), other = add("r8_attention");
  host_->drop_all();
  for (auto& source : sources_) source->open_gate();
  sources_[0]->broken = true;
  const int heard = news_;
  engine_->stage(broken);
  news_.wait(heard);
  EXPECT_TRUE(engine_->take_finished_loads(false).empty()) << "nobody loads it";
  engine_->stage(broken);
  engine_->stage(other);
  wait_until_read(1);
  EXPECT_EQ(sources_[0]->reads, 2);
  start(broken);  // whoever needs it is not kept waiting for the pause
  EXPECT_EQ(finish().status.code(), StatusCode::kDataLoss);
}

// A load of what is being staged used to take the second reader for the same file.
TEST_F(LoaderTest, OneSlowFileTakesOneReader) {
  open(1 << 20);
  const AdapterId slow = add("r8_attention"), other = add("r1");
  host_->drop_all();
  engine_->stage(slow);
  sources_[0]->wait_for_read(2);
  start(slow);
  sources_[1]->open_gate();
  start(other);
  EXPECT_EQ(finish().adapter, other);
  sources_[0]->open_gate();
  EXPECT_EQ(finish().adapter, slow);
  EXPECT_EQ(sources_[0]->reads, 2);
}

TEST_F(LoaderTest, StagingLeavesAReaderToLoads) {
  open(1 << 20);
  const AdapterId slow = add("r8_attention"), also_slow = add("r1"), wanted = add("rslora_r3");
  host_->drop_all();
  engine_->stage(slow);
  engine_->stage(also_slow);
  sources_[0]->wait_for_read(2);
  sources_[2]->open_gate();
  start(wanted);
  EXPECT_EQ(finish().adapter, wanted);
  EXPECT_EQ(sources_[1]->reads, 1);
  start(also_slow);  // its read is urgent from now on
  sources_[1]->open_gate();
  EXPECT_EQ(finish().adapter, also_slow);
  sources_[0]->open_gate();
}

// Shutting down used to wait for every load that was queued.
TEST_F(LoaderTest, AbandonedLoadsWaitForNoFile) {
  open(1 << 20);
  std::set<AdapterId> left{add("r8_attention"), add("r1"), add("rslora_r3")};
  host_->drop_all();
  for (const AdapterId id : left) start(id);
  for (size_t reading : {0, 1}) sources_[reading]->wait_for_read(2);
  engine_->abandon_loads();
  while (!left.empty()) {
    for (const LoadResult& load : engine_->take_finished_loads(true)) {
      EXPECT_EQ(load.status.code(), StatusCode::kUnavailable);
      EXPECT_EQ(left.erase(load.adapter), 1u);
      pool_->finish_load(load.adapter, false);
    }
  }
  EXPECT_EQ(sources_[2]->reads, 1);
  pool_->check_integrity();
  for (auto& source : sources_) source->open_gate();
}

// It used to keep its host copy for as long as the server ran.
TEST_F(LoaderTest, StagedAdapterThatIsUnregisteredIsLetGo) {
  open(1 << 20);
  const AdapterId id = add("r8_attention");
  host_->drop_all();
  sources_[0]->open_gate();
  engine_->stage(id);
  wait_until_read(0);
  std::future<void> gone = sources_[0]->gone.get_future();
  adapters_.clear(), sources_.clear();
  engine_->unregister_adapter(id);
  gone.wait();
  EXPECT_EQ(host_->stats().bytes, 0);
}

// The read of a merge used to hold up whoever dropped it.
TEST_F(LoaderTest, DroppingAMergeDoesNotWaitForItsRead) {
  open(1 << 20);
  const AdapterId slow = add("r8_attention"), other = add("r1");
  host_->drop_all();
  const auto begin_merge = [&](AdapterId id) {
    ASSERT_TRUE(pool_->begin_merge(id, engine_->merge_footprint(id).value().num_pages, 0));
    engine_->start_merge(id, pool_->merge_pages(id));
  };
  begin_merge(slow);
  sources_[0]->wait_for_read(2);
  engine_->drop_merge(slow);
  pool_->release_merge(slow);
  pool_->check_integrity();
  EXPECT_TRUE(engine_->take_finished_merges().empty());
  // Loads and merges of others go on.
  sources_[1]->open_gate();
  start(other);
  EXPECT_TRUE(finish().status.ok());
  begin_merge(other);
  EXPECT_EQ(finish_merges().at(0).adapter, other);
  // The file answers at last: nobody is told of a merge that was dropped, and the adapter can be unregistered.
  engine_->unregister_adapter(slow);
  sources_[0]->open_gate();
  wait_until_read(0);
  EXPECT_TRUE(engine_->take_finished_merges().empty());
  engine_->drop_merge(other);
}

}  // namespace
}  // namespace lk
