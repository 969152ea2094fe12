// SPDX-License-Identifier: Apache-2.0
#include "lk/train/progress.h"

#include <fmt/format.h>

#include <algorithm>

namespace lk {
namespace {

constexpr double kTerminalInterval = 0.2, kPlainInterval = 10, kWindow = 60;
constexpr size_t kNameWidth = 24;

std::string duration(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  const auto s = static_cast<int64_t>(std::min(seconds, 1e9));
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}
std::string number(double value) { return std::isfinite(value) ? fmt::format("{:.4f}", value) : "-"; }
std::string cut(const std::string& text, size_t width) {
  return text.size() <= width ? text : text.substr(0, width - 1) + "~";
}

}  // namespace

void ProgressDisplay::note(const std::vector<JobProgress>& jobs, double now_s) {
  for (const JobProgress& job : jobs) {
    std::deque<Mark>& marks = marks_[job.job];
    if (marks.empty() || marks.back().step != job.step) marks.push_back({now_s, job.step, job.tokens});
    while (marks.size() > 2 && marks.front().time_s < now_s - kWindow) marks.pop_front();
  }
}

void ProgressDisplay::update(const std::vector<JobProgress>& jobs, double now_s) {
  note(jobs, now_s);
  if (now_s - shown_s_ >= (options_.terminal ? kTerminalInterval : kPlainInterval)) show(jobs, now_s);
}

void ProgressDisplay::say(std::string_view line) {
  const std::string clear = lines_ > 0 ? fmt::format("\033[{}A\033[J", lines_) : "";
  write_(fmt::format("{}{}\n", clear, line));
  lines_ = 0;
  shown_s_ = options_.terminal ? -1e9 : shown_s_;  // the table comes back at once
}

void ProgressDisplay::finish(const std::vector<JobProgress>& jobs, double now_s) {
  note(jobs, now_s);
  show(jobs, now_s);
  lines_ = 0;
}

// "   120/1000   812.3   1.2345   1.3001     3:21  running"
std::string ProgressDisplay::cells(const JobProgress& job) const {
  double tokens_per_s = std::nan(""), left_s = std::nan("");
  const std::deque<Mark>& marks = marks_.at(job.job);
  if (const double elapsed = marks.back().time_s - marks.front().time_s; elapsed > 0) {
    tokens_per_s = static_cast<double>(marks.back().tokens - marks.front().tokens) / elapsed;
    const auto steps = static_cast<double>(marks.back().step - marks.front().step);
    left_s = static_cast<double>(job.total_steps - job.step) * elapsed / steps;
  }
  const std::string rate = std::isfinite(tokens_per_s) ? fmt::format("{:.0f}", tokens_per_s) : "-";
  return fmt::format("{:>13} {:>8} {:>8} {:>8} {:>9}  {}", fmt::format("{}/{}", job.step, job.total_steps), rate,
                     number(job.loss), number(job.eval_loss), job.step >= job.total_steps ? "0:00" : duration(left_s),
                     job.state);
}

void ProgressDisplay::show(const std::vector<JobProgress>& jobs, double now_s) {
  shown_s_ = now_s;
  const auto header = fmt::format("{:<{}} {:>13} {:>8} {:>8} {:>8} {:>9}  {}", "job", kNameWidth, "step", "tokens/s",
                                  "loss", "eval", "left", "state");
  if (!options_.terminal) {
    std::string out = last_.empty() ? header + "\n" : "";
    for (const JobProgress& job : jobs) {
      const std::string told = fmt::format("{} {} {}", job.step, job.state, job.eval_loss);
      if (last_[job.job] == told) continue;
      last_[job.job] = told;
      out += fmt::format("{:<{}} {}\n", job.job, kNameWidth, cells(job));
    }
    if (!out.empty()) write_(out);
    return;
  }
  const auto width = static_cast<size_t>(std::max(options_.columns - 1, 20));
  std::vector<std::string> lines{cut(header, width)};
  const auto room = static_cast<size_t>(std::max(options_.rows - 3, 1));
  for (const JobProgress& job : jobs) {
    if (lines.size() > room) break;
    lines.push_back(cut(fmt::format("{:<{}} {}", cut(job.job, kNameWidth), kNameWidth, cells(job)), width));
  }
  if (jobs.size() + 1 > lines.size()) lines.push_back(fmt::format("... and {} more", jobs.size() + 1 - lines.size()));
  std::string out = lines_ > 0 ? fmt::format("\033[{}A", lines_) : "";  // up to the first line
  for (const std::string& line : lines) out += line + "\033[K\n";       // and what was longer is cleared
  if (lines.size() < lines_) out += "\033[J";
  lines_ = lines.size();
  write_(out);
}

}  // namespace lk
