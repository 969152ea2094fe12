// SPDX-License-Identifier: Apache-2.0
#include "lk/train/metrics_log.h"

#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/base/json_text.h"

namespace lk {
namespace {

namespace json = boost::json;

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

double number_at(const json::object& entry, const char* key) {
  const json::value* value = entry.if_contains(key);
  return value != nullptr && value->is_number() ? value->to_number<double>() : std::nan("");
}

// Until the file is closed. What cannot be locked, a device, is not.
Status lock(std::FILE* file, const std::string& path) {
  if (::flock(::fileno(file), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return failed_precondition("{} is written to by another run; give another path for metrics", path);
  return Status();
}

void add_point(LossCurve& curve, bool is_eval, int64_t step, double loss) {
  (is_eval ? curve.eval : curve.train).push_back({step, loss});
}

}  // namespace

Result<std::unique_ptr<MetricsLog>> MetricsLog::open(const Options& options) {
  std::unique_ptr<MetricsLog> log(new MetricsLog());
  log->path_ = options.jsonl;
  log->tensorboard_ = options.tensorboard;
  log->steps_ = options.steps;
  for (const auto& [job, steps] : options.steps) log->curves_[job].job = job;
  if (log->path_.empty()) return log;
  if (const auto parent = std::filesystem::path(log->path_).parent_path(); !parent.empty())
    LK_RETURN_IF_ERROR(make_directories(parent));
  // A pipe or a device is only written to.
  if (std::error_code error; std::filesystem::is_regular_file(log->path_, error))
    LK_RETURN_IF_ERROR(log->take_over(options));
  log->file_.reset(std::fopen(log->path_.c_str(), "abe"));
  if (log->file_ == nullptr) return io_error("cannot open {}: {}", log->path_, std::strerror(errno));
  LK_RETURN_IF_ERROR(lock(log->file_.get(), log->path_));
  return log;
}

// Keeps what counts of the file that is there: all of other runs' jobs, and of this run's what the resumed state has
// seen. A torn last line goes.
Status MetricsLog::take_over(const Options& options) {
  const std::unique_ptr<std::FILE, Close> old(std::fopen(path_.c_str(), "rbe"));
  if (old == nullptr) return io_error("cannot open {}: {}", path_, std::strerror(errno));
  LK_RETURN_IF_ERROR(lock(old.get(), path_));
  const std::string rest = path_ + ".rest";
  {
    std::ifstream in(path_, std::ios::binary);
    std::ofstream out(rest, std::ios::binary | std::ios::trunc);
    bool any = false;
    for (std::string line; std::getline(in, line) && !in.eof();) {
      json::error_code error;
      const json::value value = json::parse(line, error);
      const bool torn = error || !value.is_object();
      if (torn && any) continue;  // a disk was full, or power was lost
      any = true;
      if (torn)
        return data_loss("{} has a line that is no JSON object; it is not a metrics file: give another path", path_);
      const json::object& entry = value.get_object();
      const json::value* job = entry.if_contains("job");
      if (job == nullptr || !job->is_string() || !entry.contains("step") || !entry.contains("loss"))
        return data_loss(
            "{} has a line without \"job\", \"step\" and \"loss\"; it is not a metrics file: give another path", path_);
      const auto known = options.steps.find(std::string(job->get_string()));
      if (known != options.steps.end()) {
        const double step = number_at(entry, "step");
        if (known->second == 0 || !(step <= static_cast<double>(known->second))) continue;
        if (!entry.contains("file"))
          add_point(curves_[known->first], entry.contains("perplexity"), static_cast<int64_t>(step),
                    number_at(entry, "loss"));
      }
      out << line << '\n';
    }
    out.flush();
    if (!out) return io_error("cannot write {}", rest);
  }
  std::error_code error;
  std::filesystem::rename(rest, path_, error);
  return error ? io_error("cannot replace {}: {}", path_, error.message()) : Status();
}

Status MetricsLog::write_line(const std::string& line) {
  if (file_ == nullptr) return Status();
  const std::string bytes = (std::exchange(torn_, true) ? "\n" : "") + line + "\n";
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size() || std::fflush(file_.get()) != 0)
    return io_error("cannot write {}: {}", path_, std::strerror(errno));
  torn_ = false;
  return Status();
}

Status MetricsLog::write_scalars(const std::string& job, int64_t step,
                                 const std::vector<std::pair<std::string, double>>& scalars) {
  if (tensorboard_.empty()) return Status();
  auto events = events_.find(job);
  if (events == events_.end()) {
    const auto taken = steps_.find(job);
    const int64_t first = taken == steps_.end() || taken->second == 0 ? 0 : taken->second + 1;
    LK_ASSIGN_OR_RETURN(TensorboardEvents created,
                        TensorboardEvents::create(join_path(tensorboard_, job), first, wall_time()));
    events = events_.emplace(job, std::move(created)).first;
  }
  return events->second.add(step, wall_time(), scalars);
}

Status MetricsLog::add(const StepMetrics& m) {
  LossCurve& curve = curves_[m.job];
  curve.job = m.job;
  add_point(curve, false, m.step, m.loss);
  LK_RETURN_IF_ERROR(write_line(json_text(json::object{{"job", m.job},
                                                       {"step", m.step},
                                                       {"epoch", m.epoch},
                                                       {"loss", m.loss},
                                                       {"learning_rate", m.learning_rate},
                                                       {"grad_norm", m.grad_norm},
                                                       {"tokens", m.tokens},
                                                       {"loss_tokens", m.loss_tokens},
                                                       {"tokens_per_second", m.tokens_per_second},
                                                       {"seconds", m.seconds}})));
  return write_scalars(m.job, m.step,
                       {{"train/loss", m.loss},
                        {"train/learning_rate", m.learning_rate},
                        {"train/grad_norm", m.grad_norm},
                        {"train/tokens_per_second", m.tokens_per_second}});
}

Status MetricsLog::add(const EvalMetrics& m) {
  const bool whole = m.file.empty();  // the curve is drawn of all together
  if (whole) {
    LossCurve& curve = curves_[m.job];
    curve.job = m.job;
    add_point(curve, true, m.step, m.loss);
  }
  json::object entry{{"job", m.job},           {"step", m.step},
                     {"loss", m.loss},         {"perplexity", m.perplexity},
                     {"accuracy", m.accuracy}, {"loss_tokens", m.loss_tokens}};
  if (!whole) entry["file"] = m.file;
  const std::string tag = whole ? "eval/" : fmt::format("eval/{}/", m.file);
  std::vector<std::pair<std::string, double>> scalars{
      {tag + "loss", m.loss}, {tag + "perplexity", m.perplexity}, {tag + "accuracy", m.accuracy}};
  if (m.exact_match) {
    entry["exact_match"] = *m.exact_match;
    scalars.emplace_back(tag + "exact_match", *m.exact_match);
  }
  entry["seconds"] = m.seconds;
  LK_RETURN_IF_ERROR(write_line(json_text(entry)));
  return write_scalars(m.job, m.step, scalars);
}

std::vector<LossCurve> MetricsLog::curves() const {
  std::vector<LossCurve> curves;
  for (const auto& [job, curve] : curves_) curves.push_back(curve);
  return curves;
}

}  // namespace lk
