// SPDX-License-Identifier: Apache-2.0
// How far each job is, for whoever watches: a table that is drawn anew on a terminal, plain lines elsewhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lk {

struct JobProgress {
  std::string job;
  std::string state = "running";  // or "paused: disk full", "done", ...
  int64_t step = 0, total_steps = 0;
  int64_t tokens = 0;  // since the run began
  double loss = std::nan(""), eval_loss = std::nan("");
};

class ProgressDisplay {
 public:
  struct Options {
    bool terminal = false;
    int rows = 24, columns = 80;  // of the terminal
  };
  ProgressDisplay(std::function<void(std::string_view)> write, const Options& options)
      : write_(std::move(write)), options_(options) {}

  // Shows the jobs if it is time to: every 0.2 s on a terminal, else every 10 s. `now_s` is any clock that only rises.
  void update(const std::vector<JobProgress>& jobs, double now_s);
  // A line that stays, above the table.
  void say(std::string_view line);
  // Shows them for the last time.
  void finish(const std::vector<JobProgress>& jobs, double now_s);

 private:
  struct Mark {
    double time_s;
    int64_t step, tokens;
  };
  void note(const std::vector<JobProgress>& jobs, double now_s);
  void show(const std::vector<JobProgress>& jobs, double now_s);
  std::string cells(const JobProgress& job) const;

  std::function<void(std::string_view)> write_;
  Options options_;
  double shown_s_ = -1e9;
  size_t lines_ = 0;                               // of the table on the terminal
  std::map<std::string, std::deque<Mark>> marks_;  // of the last minute, for rates
  std::map<std::string, std::string> last_;        // what a job's last plain line said
};

}  // namespace lk
