// SPDX-License-Identifier: Apache-2.0
// HttpRelay: a Relay whose client and sources speak HTTP. Private to the router.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "lk/cluster/move_log.h"
#include "lk/cluster/relay.h"
#include "lk/cluster/request_facts.h"
#include "lk/cluster/router.h"
#include "lk/net/http_client.h"
#include "lk/net/http_server.h"

namespace lk {

class GatherBounds;

struct RouterCounters {
  std::atomic<int64_t> requests{0}, streams{0}, mismatches{0}, broken{0}, refused{0}, in_flight{0};
};

// What relays need of the router.
struct RelayContext {
  FleetView& fleet;
  HttpClient& client;
  const RouterOptions& options;
  RouterCounters& counters;
  MoveLog& moves;
  std::function<void(int shard, std::function<void()> task)> post;  // thread safe
  // RouterGate::work().
  std::function<bool(const RouterEntry& entry, std::function<void()> run, std::function<void()> refuse)> work;
  GatherBounds& bounds;
  const std::atomic<bool>& closed;  // nobody is asked for anything, and nobody answered, any more
  void log(std::string_view event, std::string_view detail) const {
    if (options.log) options.log(event, detail);
  }
};

// What a request is sent to a replica with: what the client sent, without what is the router's to say; who it is, and
// the router's own key, as the gate decided.
HttpHeaders headers_to_replica(const HttpRequest& request, const std::string& id);
// Of a request that the gate let in.
RouterEntry& entry_of(const HttpRequest& request);

// All methods: on the shard of its reply.
class HttpRelay final : public Relay::Host, public std::enable_shared_from_this<HttpRelay> {
 public:
  HttpRelay(const RelayContext& context, HttpRequest request, std::shared_ptr<HttpReply> reply, std::string id);
  ~HttpRelay() override { --context_.counters.in_flight; }
  void start();
  void close() { relay_.close(); }
  void tick(Relay::Time now) { relay_.tick(now); }
  std::optional<StreamId> stream() const { return relay_.stream(); }
  void move(StreamId stream, int replica, Relay::Time now) { (void)relay_.move(stream, replica, now); }
  bool over() const { return relay_.over(); }

  void send(const Relay::Source& source, Relay::Why why) override;
  void cancel(Relay::SourceId source) override;
  void show(std::string_view events, const Relay::Source& source) override;
  void finish() override;
  void give_up() override;

 private:
  // The exchange with one source.
  struct Exchange {
    int64_t id = 0;  // of the HttpClient
    int replica = 0;
    bool resumes = false;
    int status = 0;  // once its head has come
    HttpHeaders headers;
    std::string body;  // of what is no stream of events
    std::unique_ptr<CommitReader> reader;
  };
  void settle(bool client_left = false);
  int64_t most_tokens() const;
  void ping(const Exchange& exchange);
  ClientRequest to_replica(const Relay::Source& source) const;
  void on_head(Relay::SourceId source, int status, const HttpHeaders& headers);
  void on_data(Relay::SourceId source, std::string_view bytes);
  void on_done(Relay::SourceId source, const Status& status);
  void on_whole(Relay::SourceId source, Exchange& exchange);
  void lost(Relay::SourceId source, std::string_view reason, bool is_final = false);

  const RelayContext& context_;
  const HttpRequest request_;
  const std::shared_ptr<HttpReply> reply_;
  const std::string id_;
  const int64_t created_;
  const uint64_t seed_;
  const std::optional<RequestFacts> facts_;
  const bool streams_;
  Relay relay_;
  std::map<Relay::SourceId, std::shared_ptr<Exchange>> exchanges_;
  std::optional<HttpResponse> answer_;  // in one piece; of a stream, the last refusal
  std::string last_events_;             // an error that a replica ended with instead of going on
  std::string last_failure_;
  int last_replica_ = -1;    // that was asked
  int64_t used_tokens_ = 0;  // that the answer took, of one in one piece
  bool streaming_ = false;
};

}  // namespace lk
