// SPDX-License-Identifier: Apache-2.0
// The exact form of a MoveProblem, for CBC (COIN-OR branch and cut, Debian: coinor-libcbc-dev):
//
//   min  T + (sum e_j + sum price_i x_ij + sum load_a y_aj) / n
//   with sum_j x_ij = 1;  x_ij <= y_aj (a is i's adapter, not at j yet);  sum pages_i x_ij + sum pages_a y_aj <=
//   free_j;
//        load_j <= T;  load_j - e_j <= mean load of before;  x, y in {0, 1};  e, T >= 0
#include "lk/cluster/move_problem.h"

#ifdef LK_HAVE_CBC
#include <coin/Cbc_C_Interface.h>
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#endif

namespace lk {

#ifdef LK_HAVE_CBC

namespace {

constexpr double kInfinity = std::numeric_limits<double>::max();

// CBC takes SIGINT for itself while it solves, and does not give it back.
class KeepsInterrupt {
 public:
  KeepsInterrupt() { ::sigaction(SIGINT, nullptr, &before_); }
  ~KeepsInterrupt() { ::sigaction(SIGINT, &before_, nullptr); }

 private:
  struct sigaction before_ = {};
};

class Program {
 public:
  Program(const MoveProblem& problem, const Assignment& start) : problem_(problem) {
    const auto count = problem.replicas.size();
    std::vector<double> fixed, before;
    for (const MoveProblem::Replica& replica : problem.replicas) fixed.push_back(replica.fixed);
    before = fixed;
    for (const MoveProblem::Request& request : problem.requests) {
      const auto at = static_cast<size_t>(request.at);
      const double work = problem.replicas[at].slowness * request.work;
      before[at] += work;
      if (!request.moves) fixed[at] += work;
    }
    const double mean = std::accumulate(before.begin(), before.end(), 0.0) / static_cast<double>(count);
    const int highest = add_column(kInfinity, 1, false, 0);  // T
    for (size_t j = 0; j < count; ++j) {
      const int excess = add_column(kInfinity, share(), false, 0);
      below_highest_.push_back(add_row(-kInfinity, -fixed[j]));
      columns_[static_cast<size_t>(highest)].entries.emplace_back(below_highest_.back(), -1);
      below_mean_.push_back(add_row(-kInfinity, mean - fixed[j]));
      columns_[static_cast<size_t>(excess)].entries.emplace_back(below_mean_.back(), -1);
      pages_.push_back(add_row(-kInfinity, std::max(0.0, problem.replicas[j].free_pages)));
    }
    for (size_t i = 0; i < problem.requests.size(); ++i)
      if (problem.requests[i].moves) add_request(i, start[i]);
  }

  Result<Assignment> solve(std::chrono::milliseconds limit) const {
    static std::mutex mutex;  // its C interface has state of its own
    const std::lock_guard lock(mutex);
    const KeepsInterrupt keeps;
    const std::unique_ptr<Cbc_Model, decltype(&Cbc_deleteModel)> model(Cbc_newModel(), &Cbc_deleteModel);
    load(model.get());
    Cbc_setParameter(model.get(), "log", "0");
    Cbc_setParameter(model.get(), "timeMode", "elapsed");
    Cbc_setParameter(model.get(), "sec", fmt::format("{:.3f}", static_cast<double>(limit.count()) * 1e-3).c_str());
    Cbc_solve(model.get());
    if (Cbc_isProvenInfeasible(model.get()) || Cbc_numberSavedSolutions(model.get()) == 0)
      return deadline_exceeded("CBC found no plan within {} ms", limit.count());
    const double* values = Cbc_getColSolution(model.get());
    Assignment assignment = assignment_of(problem_);
    for (const Place& place : places_)
      if (values[place.column] > 0.5) assignment[place.request] = place.replica;
    return assignment;
  }

 private:
  struct Column {
    double upper = 1, price = 0, start = 0;
    bool is_whole = true;
    std::vector<std::pair<int, double>> entries;  // row, coefficient
  };
  struct Place {
    size_t request = 0;
    int replica = 0, column = 0;
  };
  double share() const { return 1.0 / static_cast<double>(problem_.replicas.size()); }
  int add_row(double low, double high) {
    rows_.emplace_back(low, high);
    return static_cast<int>(rows_.size()) - 1;
  }
  int add_column(double upper, double price, bool is_whole, double start) {
    columns_.push_back({.upper = upper, .price = price, .start = start, .is_whole = is_whole, .entries = {}});
    return static_cast<int>(columns_.size()) - 1;
  }

  // x_ij for all j.
  void add_request(size_t i, int start) {
    const MoveProblem::Request& request = problem_.requests[i];
    const int once = add_row(1, 1);
    for (int j = 0; j < std::ssize(problem_.replicas); ++j) {
      const auto index = static_cast<size_t>(j);
      const MoveProblem::Replica& replica = problem_.replicas[index];
      const bool is_new = j != request.at;
      if (is_new && !replica.takes) continue;
      const double price = is_new ? replica.slowness * request.price : 0;
      const double work = replica.slowness * request.work + price;
      const int column = add_column(1, share() * price, true, start == j ? 1 : 0);
      places_.push_back({i, j, column});
      std::vector<std::pair<int, double>> entries = {
          {below_highest_[index], work}, {below_mean_[index], work}, {once, 1.0}};
      if (is_new) entries.emplace_back(pages_[index], request.pages);
      if (is_new && request.adapter >= 0 && !adapter_of(request).on[index])
        entries.emplace_back(link(request.adapter, j, start == j), 1.0);
      columns_[static_cast<size_t>(column)].entries = std::move(entries);
    }
  }

  const MoveProblem::Adapter& adapter_of(const MoveProblem::Request& request) const {
    return problem_.adapters[static_cast<size_t>(request.adapter)];
  }

  // A row that says x <= y for one more x.
  int link(int adapter, int replica, bool is_used) {
    const MoveProblem::Adapter& facts = problem_.adapters[static_cast<size_t>(adapter)];
    const auto [known, is_first] = loads_.try_emplace({adapter, replica}, 0);
    if (is_first) {
      known->second = add_column(1, share() * facts.load_seconds, true, 0);
      columns_.back().entries.emplace_back(pages_[static_cast<size_t>(replica)], facts.pages);
    }
    Column& y = columns_[static_cast<size_t>(known->second)];
    if (is_used) y.start = 1;
    const int row = add_row(-kInfinity, 0);
    y.entries.emplace_back(row, -1);
    return row;
  }

  void load(Cbc_Model* model) const {
    std::vector<CoinBigIndex> starts = {0};
    std::vector<int> rows, whole;
    std::vector<double> values, lower, upper, objective, low, high, start;
    for (const Column& column : columns_) {
      for (const auto& [row, value] : column.entries) rows.push_back(row), values.push_back(value);
      starts.push_back(static_cast<CoinBigIndex>(rows.size()));
      lower.push_back(0);
      upper.push_back(column.upper);
      objective.push_back(column.price);
    }
    for (const auto& [least, most] : rows_) low.push_back(least), high.push_back(most);
    Cbc_loadProblem(model, static_cast<int>(columns_.size()), static_cast<int>(rows_.size()), starts.data(),
                    rows.data(), values.data(), lower.data(), upper.data(), objective.data(), low.data(), high.data());
    for (size_t i = 0; i < columns_.size(); ++i)
      if (columns_[i].is_whole) {
        Cbc_setInteger(model, static_cast<int>(i));
        whole.push_back(static_cast<int>(i));
        start.push_back(columns_[i].start);
      }
    Cbc_setMIPStartI(model, static_cast<int>(whole.size()), whole.data(), start.data());
  }

  const MoveProblem& problem_;
  std::vector<Column> columns_;
  std::vector<std::pair<double, double>> rows_;          // bounds
  std::vector<int> below_highest_, below_mean_, pages_;  // rows, by replica
  std::vector<Place> places_;
  std::map<std::pair<int, int>, int> loads_;  // column of y, by adapter and replica
};

}  // namespace

bool has_ilp() { return true; }

Result<Assignment> plan_ilp(const MoveProblem& problem, const Assignment& start, std::chrono::milliseconds limit) {
  return Program(problem, start).solve(limit);
}

#else

bool has_ilp() { return false; }

Result<Assignment> plan_ilp(const MoveProblem&, const Assignment&, std::chrono::milliseconds) {
  return unsupported("this program was built without CBC (Debian: coinor-libcbc-dev), which the planner \"ilp\" needs");
}

#endif

}  // namespace lk
