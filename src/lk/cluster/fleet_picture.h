// SPDX-License-Identifier: Apache-2.0
// FleetPicture: a router's replicas and requests at one moment, for who plans. A copy: nobody waits for the planner.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lk/cluster/replica_load.h"

namespace lk {

struct FleetPicture {
  struct Replica {
    int number = 0;
    std::string url;
    bool takes = false;                           // new requests
    std::shared_ptr<const ReplicaReport> report;  // never null
    double requests = 0;                          // of all routers
    double free_pages = 0;                        // once all that is there has come to its predicted end
    double step_seconds = 0, tokens_per_second = 0;
  };
  struct Request {
    StreamId stream = 0;
    int at = 0;  // position in `replicas`
    RoutedRequest request;
    double made = 0, left = 0;  // tokens of its output; left: predicted
    double age_seconds = 0;     // since it was sent there
  };
  std::vector<Replica> replicas;
  std::vector<Request> requests;
};

// Somebody should go on with it.
struct PlannedMove {
  StreamId stream = 0;
  int to = 0;  // number of the replica
};

}  // namespace lk
