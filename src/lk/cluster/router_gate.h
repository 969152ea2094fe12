// SPDX-License-Identifier: Apache-2.0
// RouterGate: who may ask a router for what, and in whose name it is asked of replicas. A router knows replicas and
// answers; keys, tenants and the API's routes are the server's, whose gate is serve/route/fleet_gate.h.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "lk/cluster/dialect.h"
#include "lk/cluster/request_facts.h"
#include "lk/net/http_server.h"

namespace lk {

// What a router does with a request.
enum class RoutedAs : uint8_t {
  kOwn,          // answers itself
  kOne,          // one replica answers; another one goes on when that is lost
  kWhoKnows,     // a look-up: the first replica that has it
  kModelList,    // all replicas' lists, merged: each model once
  kAdapterList,  // likewise; each adapter with the replicas that have it
  kUsageList,    // likewise; sums
  kEverywhere,   // a change, made at every replica
};

// What a gate keeps of a request that it let in, until its answer has ended. On the shard's thread.
class RouterEntry : public HttpAdmission {
 public:
  RoutedAs how = RoutedAs::kOne;
  Dialect dialect = Dialect::kOpenAi;  // of what the router says itself
  bool generates = false;              // the answer is tokens, and a stream of them may go on elsewhere
  std::string payer;                   // who shares bounded things with others: the account, or the peer
  double weight = 1;                   // the payer's
  std::string account;                 // whose bytes wait for their reader; "" = the peer's
  bool is_known = false;               // its key was judged here: `identity` goes on instead
  HttpHeaders identity;                // by which replicas know the router, and the client if it is known

  // The body has come: places and tokens for all the answers it asks for. `facts` is null for what is no JSON object.
  // `context`: tokens that a prompt and its answer may have together.
  virtual std::optional<HttpResponse> admit(const RequestFacts* facts, int64_t body_bytes, int64_t context) = 0;
  // Its answer is made: so many tokens of prompt and output were used. Gives back what it held. Of a client that left
  // before anything was known its prompt counts all the same.
  virtual void finish(int64_t used_tokens, bool client_left = false) = 0;
};

class RouterGate {
 public:
  virtual ~RouterGate() = default;
  // The head of a request is known: a refusal, or its `admission` is a RouterEntry. On a shard's thread.
  virtual std::optional<HttpResponse> judge(HttpRequest& head) = 0;
  // What is the router's own and says nothing of replicas. On a shard's thread; `post` runs a task there later.
  virtual void answer(HttpRequest request, std::shared_ptr<HttpReply> reply,
                      std::function<void(std::function<void()> task)> post) = 0;
  // Runs what takes long for a request that was let in, off the shards: bounded, and in turn between payers by weight.
  // False: there is no room, and neither is called. `refuse` is called instead of `run` when that waited too long. On a
  // shard's thread.
  virtual bool work(const RouterEntry& entry, std::function<void()> run, std::function<void()> refuse) = 0;
  // Of all limits this router has part number `rank` of `count`: so many routers are there. Any thread.
  virtual void set_share(int rank, int count) = 0;
  // Ends its threads: nothing is posted after this. Once.
  virtual void stop() = 0;
  // Prometheus text about tenants. Any thread.
  virtual std::string metrics() const = 0;
};

}  // namespace lk
