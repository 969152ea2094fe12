// SPDX-License-Identifier: Apache-2.0
// What a router costs, apart from replicas and clients: this program is both, and tools/reliability/r22_router.py puts
// `lorikeet route` between them. Its replica answers at once and then gives each stream a token every few milliseconds.
//
// Prints "replica URL", waits for a line "ADDRESS PID" of the router, and prints one JSON object.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <fstream>
#include <iostream>
#include <map>
#include <semaphore>
#include <thread>

#include "lk/base/json_text.h"
#include "lk/cluster/answer_commits.h"
#include "lk/cluster/replica_report.h"
#include "lk/cluster/request_facts.h"
#include "lk/net/http_client.h"
#include "lk/net/http_server.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
constexpr auto kTokenGap = 5ms;
constexpr auto kReportGap = 100ms;
constexpr int64_t kForever = 1 << 20;  // tokens of a stream that only is there,
constexpr int64_t kSlowTicks = 40;     // and gets one of them every so many gaps
constexpr int64_t kSlowTokens = 20;    // until it has been looked at

// The replica.
class Replica {
 public:
  Replica() {
    auto server = HttpServer::start(
        {.listen = {{.address = "127.0.0.1:0"}}}, [](HttpRequest&) { return std::nullopt; },
        [this](HttpRequest request, std::shared_ptr<HttpReply> reply) { handle(request, std::move(reply)); });
    LK_CHECK(server.ok(), "{}", server.status().message());
    server_ = std::move(*server);
    ticker_ = std::jthread([this](const std::stop_token& stop) {
      for (Clock::time_point next = Clock::now(); !stop.stop_requested(); next += kTokenGap) {
        std::this_thread::sleep_until(next);
        server_->post(0, [this] { tick(); });
      }
    });
  }
  ~Replica() {
    ticker_.request_stop();
    ticker_.join();
  }
  std::string address() const { return server_->address(0); }

 private:
  struct Stream {
    std::shared_ptr<HttpReply> reply;
    bool has_commits = false, is_slow = false;
    int64_t given = 0, wanted = 0;
  };
  void handle(const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
    if (request.path == "/v1/fleet/state") {
      reply->begin_stream(200, {}, "text/event-stream");
      listeners_.push_back(std::move(reply));
      return report();
    }
    const auto facts = read_request_facts(request.body);
    if (!facts || !facts->max_tokens) return reply->respond({.status = 400, .body = "{}"});
    reply->begin_stream(200, {{"x-request-id", std::string(request.header("x-request-id"))}}, "text/event-stream");
    const int64_t id = next_++;
    reply->on_close([this, id] { streams_.erase(id); });
    Stream& stream = streams_[id] = {.reply = std::move(reply),
                                     .has_commits = facts->resumes,
                                     .is_slow = *facts->max_tokens >= kForever,
                                     .wanted = *facts->max_tokens};
    if (!give(stream)) streams_.erase(id);
  }
  // One token; false behind the last one.
  static bool give(Stream& stream) {
    AnswerCommit commit{.first = stream.given, .tokens = {static_cast<int32_t>(stream.given % 30000)}};
    if (stream.given == 0) commit.prompt = AnswerCommit::Prompt{.tokens = 20, .cached = 0};
    commit.done = ++stream.given >= stream.wanted;
    std::string bytes = fmt::format(
        "data: "
        "{{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":"
        "1796060033,"
        "\"model\":\"sql\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" token{}\"}},\"logprobs\":null,"
        "\"finish_reason\":null}}]}}\n\n",
        stream.given % 10);
    if (stream.has_commits) bytes += format_commit(commit);
    if (commit.done) {
      bytes += "data: [DONE]\n\n";
      if (stream.has_commits) bytes += format_commit({.end = true});
    }
    stream.reply->write(bytes);
    if (commit.done) stream.reply->end();
    return !commit.done;
  }
  void tick() {
    ++ticks_;
    for (auto it = streams_.begin(); it != streams_.end();) {
      const bool has_turn = !it->second.is_slow || (ticks_ + it->first) % kSlowTicks == 0;
      it = has_turn && !give(it->second) ? streams_.erase(it) : std::next(it);
    }
    if (Clock::now() < next_report_) return;
    next_report_ = Clock::now() + kReportGap;
    report();
  }
  void report() {
    const ReplicaReport now{.id = "bench",
                            .model = "base",
                            .numerics = "n",
                            .ready = true,
                            .context = 1 << 20,
                            .page_bytes = 1,
                            .pages = 1 << 20,
                            .pages_free = 1 << 20};
    for (const auto& listener : listeners_) listener->write("data: " + format_report(now, nullptr) + "\n\n");
  }

  std::vector<std::shared_ptr<HttpReply>> listeners_;  // the shard's, like all below
  std::map<int64_t, Stream> streams_;
  int64_t next_ = 0, ticks_ = 0;
  Clock::time_point next_report_{};
  std::unique_ptr<HttpServer> server_;
  std::jthread ticker_;
};

struct Seen {
  std::atomic<int64_t> events{0}, ended{0}, failed{0};
};

ClientRequest ask(const std::string& address, int64_t tokens) {
  return {
      .url = "http://" + address + "/v1/chat/completions",
      .headers = {{"content-type", "application/json"}},
      .body = fmt::format("{{\"model\":\"base\",\"stream\":true,\"max_tokens\":{},\"messages\":[{{\"role\":\"user\","
                          "\"content\":\"Which customers live in Riga?\"}}]}}",
                          tokens),
      .timeout = std::chrono::hours(1)};
}

int64_t count_events(std::string_view bytes) {
  int64_t count = 0;
  for (size_t at = bytes.find("data: "); at != std::string_view::npos; at = bytes.find("data: ", at + 1)) ++count;
  return count;
}

// Seconds from sending to the first event's bytes, of one stream.
double first_token(HttpClient& client, const std::string& address) {
  std::binary_semaphore done(0);
  Clock::time_point sent, first{};
  ClientCallbacks callbacks;
  callbacks.on_data = [&](std::string_view) {
    if (first == Clock::time_point()) first = Clock::now();
  };
  callbacks.on_done = [&](const Status& status) {
    LK_CHECK(status.ok() && first != Clock::time_point(), "{}", status.message());
    done.release();
  };
  sent = Clock::now();
  client.send(ask(address, 2), std::move(callbacks));
  done.acquire();
  return std::chrono::duration<double>(first - sent).count();
}

void start_streams(HttpClient& client, const std::string& address, int count, int64_t tokens, Seen& seen) {
  for (int i = 0; i < count; ++i) {
    ClientCallbacks callbacks;
    callbacks.on_data = [&seen](std::string_view bytes) { seen.events += count_events(bytes); };
    callbacks.on_done = [&seen](const Status& status) {
      ++seen.ended;
      if (!status.ok()) ++seen.failed;
    };
    client.send(ask(address, tokens), std::move(callbacks));
  }
}

// Of all threads of the process, in seconds; and its resident bytes.
double cpu_seconds(int pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}
int64_t resident_bytes(int pid) {
  std::ifstream file(fmt::format("/proc/{}/statm", pid));
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

boost::json::array measure_latency(HttpClient& client, const std::string& direct, const std::string& routed,
                                   int rounds) {
  for (int i = 0; i < 50; ++i) first_token(client, i % 2 ? direct : routed);  // connections
  boost::json::array pairs;
  for (int i = 0; i < rounds; ++i) {
    const bool direct_first = i % 2 == 0;
    const double one = first_token(client, direct_first ? direct : routed);
    const double two = first_token(client, direct_first ? routed : direct);
    pairs.push_back(boost::json::array{direct_first ? one : two, direct_first ? two : one});
  }
  return pairs;
}

boost::json::object measure_throughput(HttpClient& client, const std::string& routed, int pid, int streams,
                                       double seconds) {
  Seen seen;
  start_streams(client, routed, streams, static_cast<int64_t>((seconds + 2) * 1000 / kTokenGap.count()), seen);
  std::this_thread::sleep_for(1s);
  const int64_t events = seen.events;
  const double cpu = cpu_seconds(pid);
  const Clock::time_point begin = Clock::now();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  const boost::json::object result{{"streams", streams},
                                   {"seconds", std::chrono::duration<double>(Clock::now() - begin).count()},
                                   {"events", seen.events - events},
                                   {"cpu_seconds", cpu_seconds(pid) - cpu}};
  while (seen.ended < streams) std::this_thread::sleep_for(10ms);
  LK_CHECK(seen.failed == 0, "{} streams failed", seen.failed.load());
  return result;
}

boost::json::object measure_memory(const std::string& routed, int pid, int streams) {
  const int64_t before = resident_bytes(pid);
  int64_t during = 0;
  {
    auto client = HttpClient::create({.num_threads = 1}).value();
    Seen seen;
    start_streams(*client, routed, streams, kForever, seen);
    const Clock::time_point end = Clock::now() + 30s;
    while (seen.events < kSlowTokens * streams && Clock::now() < end) std::this_thread::sleep_for(10ms);
    during = resident_bytes(pid);
    LK_CHECK(seen.ended == 0, "{} streams ended", seen.ended.load());
  }
  return {{"streams", streams}, {"before", before}, {"during", during}};
}

int main_of(int rounds, double seconds) {
  const Replica replica;
  std::cout << "replica http://" << replica.address() << std::endl;
  std::string routed;
  int pid = 0;
  std::cin >> routed >> pid;
  auto client = HttpClient::create({.num_threads = 1}).value();
  boost::json::object result;
  result["first_token"] = measure_latency(*client, replica.address(), routed, rounds);
  boost::json::array loads;
  for (const int streams : {16, 64, 128}) loads.push_back(measure_throughput(*client, routed, pid, streams, seconds));
  result["throughput"] = std::move(loads);
  result["memory"] = measure_memory(routed, pid, 500);
  std::cout << json_text(result) << std::endl;
  return 0;
}

}  // namespace
}  // namespace lk

int main(int argc, char** argv) {
  return lk::main_of(argc > 1 ? std::atoi(argv[1]) : 2000, argc > 2 ? std::atof(argv[2]) : 10);
}
