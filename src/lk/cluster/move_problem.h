// SPDX-License-Identifier: Apache-2.0
// MoveProblem: which requests should go on elsewhere, as arithmetic: requests with the work that is left of them, on
// replicas with what they have to do. Three ways to solve it. Pure: no clock, no names.
//
//   load of a replica = fixed + slowness (sum of the work of its requests + prices of those that were not there)
//   cost of a plan    = the largest load + (sum of what loads are above the mean of before
//                       + sum of prices, in seconds, + loads of adapters) / replicas
//   A request fits where free pages hold it, and its adapter, if that has to be loaded.
//
// The form is the migration program of dLoRA (OSDI '24) with what is left of requests in place of what they take in
// all, whole requests in place of fractions, pages in place of slots, and a term for full replicas beside the fullest.
#pragma once

#include <chrono>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct MoveProblem {
  struct Replica {
    double fixed = 0;     // seconds of work that stays
    double slowness = 1;  // seconds for a unit of work
    double free_pages = 0;
    bool takes = true;  // what is not there
  };
  struct Request {
    int at = 0;         // replica
    int adapter = -1;   // of `adapters`; -1 = none
    double work = 0;    // units that are left
    double price = 0;   // more of them if it goes on elsewhere
    double pages = 0;   // it takes there
    bool moves = true;  // it may
  };
  struct Adapter {
    std::vector<bool> on;  // by replica
    double load_seconds = 0, pages = 0;
  };
  std::vector<Replica> replicas;
  std::vector<Request> requests;
  std::vector<Adapter> adapters;
};

// Replica of each request.
using Assignment = std::vector<int>;

// As it is.
Assignment assignment_of(const MoveProblem& problem);
// kResourceExhausted when pages do not hold it, or it sends something to who takes nothing.
Result<double> cost_of(const MoveProblem& problem, const Assignment& assignment);

// From the fullest replica to emptier ones, one request at a time, each time the one that lowers the cost most; when
// none does, an exchange (of few requests, any two moves); when none does, from the next one. Its cost is never above
// that of assignment_of(). At most `most_moves`. Of each move, with R requests on the
// fullest of G replicas: O(R (8 + G)) tries of one request, on the 8 emptiest and wherever its adapter is, and where
// none helps 8 x 64^2 of an exchange. Twice, where pages were short. Up to 24 requests on 8 replicas: three times, with
// O((24 G)^2) tries of two, each O(24 + adapters G).
Assignment plan_greedy(const MoveProblem& problem, int most_moves = 10'000);

// The optimum, or the best that is found in so long, beginning with `start`. kUnsupported when the program was built
// without CBC, kDeadlineExceeded when nothing was found.
Result<Assignment> plan_ilp(const MoveProblem& problem, const Assignment& start, std::chrono::milliseconds limit);
bool has_ilp();

// As dLoRA's program does: one pair of replicas, requests as fractions, each rounded to where more of it is. Knows no
// pages. Requires: two replicas.
Assignment plan_relaxed(const MoveProblem& problem);

}  // namespace lk
