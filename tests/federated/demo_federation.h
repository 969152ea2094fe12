// SPDX-License-Identifier: Apache-2.0
// What tests of federated runs share: the demo's base, opened once, and records of a few clients.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "lk/base/rng.h"
#include "lk/federated/server.h"
#include "lk/ops/cpu_backend.h"
#include "lk/train/train_base.h"
#include "testing/temp_dir.h"

namespace lk::testing {

inline constexpr const char* kDemoModel = "examples/demo/model";

inline const TrainBase& demo_base() {
  static const std::unique_ptr<Backend> backend = make_cpu_backend({.num_threads = 2}).value();
  static const TrainBase base = [] {
    TrainBase made;
    made.directory = kDemoModel;
    made.weights = load_weights(kDemoModel, DType::kF32, *backend).value();
    made.backend = backend.get();
    made.tokenizer = Tokenizer::load(kDemoModel).value();
    return made;
  }();
  return base;
}

// c0.jsonl, c1.jsonl and so on: sums, of each client one record more than of the one before it.
inline void write_clients(const TempDir& dir, int clients, int of_first) {
  for (int client = 0; client < clients; ++client) {
    std::string lines;
    for (int n = 0; n < of_first + client; ++n)
      lines += fmt::format("{{\"prompt\": \"{} + {} =\", \"completion\": \" {}\"}}\n", client, n, client + n);
    dir.write(fmt::format("c{}.jsonl", client), lines);
  }
}

inline std::vector<std::string> names_of(const FederatedConfig& config) {
  std::vector<std::string> names;
  for (const ClientSpec& client : config.clients) names.push_back(client.name);
  return names;
}

// What the clients of the next round might send, without their training: of seed, client and round alone.
inline std::vector<ClientUpdate> made_up_updates(FederatedServer& server, double size = 0.1) {
  std::vector<ClientUpdate> updates;
  for (const std::string& client : server.sample(names_of(server.config()), 0)) {
    ClientUpdate update{.client = client, .round = server.round(), .num_examples = 5 + client.back()};
    Rng rng(mix64(static_cast<uint64_t>(server.round()) + 100 * static_cast<uint64_t>(client.back())));
    for (const auto& [name, count] : server.expected(server.task_of(client)))
      for (int64_t i = 0; i < count; ++i) update.tensors[name].push_back(static_cast<float>(size * rng.normal()));
    const Status status = server.check(update);
    EXPECT_TRUE(status.ok()) << status.message();
    updates.push_back(std::move(update));
  }
  return updates;
}

}  // namespace lk::testing
