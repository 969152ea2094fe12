// SPDX-License-Identifier: Apache-2.0
// AdapterRegistryTest: a registry over the demo model, whose pool and queue must be empty in the end.
#pragma once

#include "lk/serve/adapters/adapter_registry.h"

#include <gmock/gmock.h>

#include <memory>
#include <set>
#include <string>

#include "lk/base/rng.h"
#include "lk/lora/adapter.h"
#include "serve/service_testing.h"

namespace lk::testing {

inline constexpr const char* kPrompt = "Once upon a time";

class AdapterRegistryTest : public ::testing::Test {
 protected:
  AdapterRegistryTest() { open(); }
  ~AdapterRegistryTest() override {
    registry_.reset();
    if (!service_) return;
    service_->expect_idle_pool();
    EXPECT_TRUE(service_->wait_on_engine([](TextEngine& engine) { return engine.pool().resident_adapters().empty(); }))
        << "all were unregistered";
    service_->expect_empty_queue();
  }
  // A fresh registry, as after a restart.
  void open(AdapterRegistryOptions options = {}, StateStore* store = nullptr, int64_t memory_bytes = 32 << 20) {
    registry_.reset();
    service_ = std::make_unique<Service>(EngineServiceOptions{}, SchedulerOptions{}, memory_bytes);
    options.base_name = "demo";
    options.roots = {dir_.path()};
    registry_ = std::make_unique<AdapterRegistry>(*service_->engine, options, nullptr, store);
  }
  Result<AdapterLease> load(const std::string& name, const std::string& from, AdapterRegistry::LoadRequest extra = {}) {
    extra.name = name;
    extra.path = from.starts_with('/') ? from : kDemoAdapters + from;
    extra.trusted_path = true;
    return registry_->load_and_wait(std::move(extra));
  }
  AdapterLease must_load(const std::string& name, const std::string& from, AdapterRegistry::LoadRequest extra = {}) {
    auto loaded = load(name, from, std::move(extra));
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    return loaded.ok() ? std::move(*loaded) : nullptr;
  }
  Result<AdapterRegistry::Resolved> resolve(const std::string& model) { return registry_->resolve(model, Tenant{}); }
  // The version a name means; 0 when it means nothing.
  int64_t version_of(const std::string& model) {
    const auto resolved = resolve(model);
    return resolved.ok() && resolved->adapter ? resolved->adapter->version : 0;
  }
  StatusCode code_of(const std::string& model) { return resolve(model).status().code(); }
  RequestId start(const std::shared_ptr<Heard>& heard, const AdapterLease& adapter, int64_t max_tokens) {
    return service_->submit({.request = service_->prepare(kPrompt, max_tokens, adapter ? adapter->id() : kBaseModel),
                             .lease = adapter,
                             .sink = heard});
  }
  std::vector<int32_t> tokens_of(const AdapterLease& adapter, int64_t max_tokens = 24) {
    auto heard = std::make_shared<Heard>();
    start(heard, adapter, max_tokens);
    EXPECT_TRUE(heard->wait_for_ends());
    EXPECT_EQ(heard->choice().completion.finish, FinishReason::kLength) << heard->choice().completion.error.message();
    return heard->choice().tokens;
  }
  bool wait_until_absent(AdapterId id) {
    return service_->wait_on_engine(
        [id](TextEngine& engine) { return engine.pool().adapter_state(id) == AdapterState::kAbsent; });
  }
  void push_out_of_pages(const AdapterLease& adapter) {
    EXPECT_TRUE(service_->engine->call(
        [id = adapter->id()](TextEngine& engine) { (void)engine.scheduler().drop_adapter(id); }));
    EXPECT_TRUE(wait_until_absent(adapter->id()));
  }
  bool wait_for_host_bytes(int64_t bytes) {
    return service_->wait_on_engine([&](TextEngine&) { return registry_->host_stats().bytes == bytes; });
  }

  TempDir dir_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<AdapterRegistry> registry_;
};

}  // namespace lk::testing
