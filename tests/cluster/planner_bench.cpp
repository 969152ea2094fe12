// SPDX-License-Identifier: Apache-2.0
// How long a plan takes: planner_bench [REPLICAS REQUESTS ADAPTERS]. Prints milliseconds: the picture of the fleet (for
// which its router waits), moves, what is learned of demand, homes, hints. Every fifth replica has too much.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "lk/base/rng.h"
#include "lk/cluster/fleet_view.h"
#include "lk/cluster/planner.h"

using namespace lk;

// Of this thread: others may be busy, too.
static double cpu_ms() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

int main(int argc, char** argv) {
  using namespace std::chrono_literals;
  const int replicas = argc > 1 ? std::atoi(argv[1]) : 100, requests = argc > 2 ? std::atoi(argv[2]) : 5000,
            adapters = argc > 3 ? std::atoi(argv[3]) : 2000;
  FleetOptions options;
  for (int j = 0; j < replicas; ++j) options.urls.push_back("http://replica-" + std::to_string(j) + ":8000");
  const auto view = FleetView::create(options).value();
  const FleetView::Time start = FleetView::Time() + 1h;
  Rng rng(1);
  const auto adapter_name = [&] { return "adapter-" + std::to_string(rng.below(static_cast<uint64_t>(adapters))); };
  const int mean = requests / replicas;
  for (int j = 0; j < replicas; ++j) {
    const int here = j % 5 == 0 ? 3 * mean : mean / 2;
    ReplicaReport report{
        .id = std::to_string(j), .numerics = "n", .ready = true, .page_bytes = 1 << 20, .pages = 10'000};
    report.pages_free = 6'000;
    report.max_running = mean;
    report.running = std::min(here, mean);
    report.waiting = here - report.running;
    for (int a = 0; a < adapters / 4; ++a)
      report.adapters[adapter_name()] = {
          .bytes = 100 << 20, .on_device = a % 4 == 0, .on_host = true, .in_flight = a % 16 == 0};
    (void)view->report(j, report, start);
    for (int k = 0; k < here; ++k) {
      const StreamId stream = view->sent(j,
                                         {.adapter = adapter_name(),
                                          .prompt_tokens = 50.0 + static_cast<double>(rng.below(500)),
                                          .predicted_output = 50.0 + static_cast<double>(rng.below(500)),
                                          .can_move = true},
                                         start);
      if (k < report.running) view->token(j, stream, static_cast<int64_t>(rng.below(100)) + 1);
    }
  }
  const auto planner = Planner::create({.kind = "greedy"}).value();
  constexpr int kRounds = 15;
  std::vector<double> times[5];
  size_t moves = 0;
  for (int round = 0; round < kRounds; ++round) {
    int part = 0;
    const auto timed = [&](auto&& work) {
      const double before = cpu_ms();
      work();
      times[part++].push_back(cpu_ms() - before);
    };
    FleetPicture picture;
    timed([&] { picture = view->picture(start + 500ms); });
    // A fresh one each time: after a plan a replica is left alone for some rounds.
    const auto mover = Planner::create({.kind = "greedy"}).value();
    timed([&] { moves = std::max(moves, mover->moves(picture).size()); });
    timed([&] { planner->observe(picture, 1); });
    timed([&] { (void)planner->place(picture); });
    timed([&] { (void)planner->hints(picture, planner->placement()); });
  }
  std::printf("%d replicas, %d requests, %d adapters, %zu moves; median and most of %d, ms of processor time\n",
              replicas, requests, adapters, moves, kRounds);
  const char* names[] = {"picture", "moves", "observe", "place", "hints"};
  for (int part = 0; part < 5; ++part) {
    std::ranges::sort(times[part]);
    std::printf("%-8s %8.2f %8.2f\n", names[part], times[part][kRounds / 2], times[part].back());
  }
}
