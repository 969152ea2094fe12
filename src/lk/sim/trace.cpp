// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>

#include "lk/sim/workload.h"

namespace lk::sim {
namespace {

constexpr int64_t kMaxTokens = 1 << 22;

// Letters and digits in lower case: "Context_Tokens" is "contexttokens".
std::string normalised(const std::string& text) {
  std::string out;
  for (const char c : text)
    if (std::isalnum(static_cast<unsigned char>(c)))
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

struct Columns {
  int time = -1, input = -1, output = -1, adapter = -1, tenant = -1;
};

Result<Columns> find_columns(const std::vector<std::string>& header) {
  Columns columns;
  const std::array<std::pair<int Columns::*, std::vector<std::string>>, 5> names{{
      {&Columns::time,
       {"time", "timestamp", "arrival", "arrivaltime", "arrivals", "arrivaltimes", "arrivedat", "times", "ts"}},
      {&Columns::input,
       {"contexttokens", "context", "input", "inputtokens", "inputlength", "prompttokens", "numprompttokens",
        "promptlen", "requesttokens"}},
      {&Columns::output,
       {"generatedtokens", "generated", "output", "outputtokens", "outputlength", "completiontokens", "numoutputtokens",
        "responsetokens", "numdecodetokens"}},
      {&Columns::adapter, {"adapter", "adapterid", "lora", "loraid", "model"}},
      {&Columns::tenant, {"tenant", "tenantid", "client", "user", "customer", "account"}},
  }};
  for (size_t i = 0; i < header.size(); ++i)
    for (const auto& [member, accepted] : names)
      if (std::find(accepted.begin(), accepted.end(), normalised(header[i])) != accepted.end()) {
        if (columns.*member >= 0) return invalid_argument("line 1: two columns mean the same as \"{}\"", header[i]);
        columns.*member = static_cast<int>(i);
      }
  if (columns.time < 0 || columns.input < 0 || columns.output < 0)
    return invalid_argument(
        "line 1: the header needs a time, a prompt and an output column, for example "
        "time,context_tokens,generated_tokens[,adapter][,tenant]");
  return columns;
}

// Seconds, or a date and time of day.
std::optional<double> parse_time(const std::string& text) {
  if (const Result<double> seconds = parse_number(text, "time", 0, 1e12); seconds.ok()) return *seconds;
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, used = 0;
  if (std::sscanf(text.c_str(), "%4d-%2d-%2d%*1[ T]%2d:%2d:%n", &year, &month, &day, &hour, &minute, &used) != 5 ||
      used == 0)
    return std::nullopt;
  std::string seconds = text.substr(static_cast<size_t>(used));
  if (const size_t zone = seconds.find_first_of("Z+"); zone != std::string::npos) seconds.resize(zone);
  const Result<double> second = parse_number(seconds, "seconds", 0, 60);
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!second.ok() || !date.ok() || hour < 0 || hour > 23 || minute < 0 || minute > 59) return std::nullopt;
  const auto days = static_cast<double>(std::chrono::sys_days(date).time_since_epoch().count());
  return days * 86400 + hour * 3600 + minute * 60 + *second;
}

class TraceReader {
 public:
  TraceReader(const Columns& columns, size_t width, int64_t num_adapters, double speed, double max_tokens_factor)
      : columns_(columns),
        width_(width),
        speed_(speed),
        factor_(max_tokens_factor),
        names_are_adapters_(num_adapters == 0) {
    workload_.num_adapters = num_adapters;
  }

  Status add(const std::vector<std::string>& fields) {
    if (fields.size() != width_) return invalid_argument("{} columns instead of {}", fields.size(), width_);
    const std::optional<double> time = parse_time(fields[static_cast<size_t>(columns_.time)]);
    if (!time)
      return invalid_argument("\"{}\" is neither seconds nor YYYY-MM-DD HH:MM:SS",
                              fields[static_cast<size_t>(columns_.time)]);
    if (!first_time_) first_time_ = *time;
    if (*time < last_time_) return invalid_argument("out of order: it arrives before the line above");
    last_time_ = *time;
    SimRequest request{.arrival = static_cast<Micros>(std::llround((*time - *first_time_) / speed_ * 1e6))};
    LK_ASSIGN_OR_RETURN(const int64_t input,
                        parse_integer(fields[static_cast<size_t>(columns_.input)], "the prompt", 1, kMaxTokens));
    LK_ASSIGN_OR_RETURN(const int64_t output,
                        parse_integer(fields[static_cast<size_t>(columns_.output)], "the output", 1, kMaxTokens));
    request.input = static_cast<int32_t>(input);
    request.output = static_cast<int32_t>(output);
    request.max_tokens = static_cast<int32_t>(std::ceil(static_cast<double>(output) * factor_));
    if (columns_.adapter >= 0) {
      LK_ASSIGN_OR_RETURN(request.adapter, adapter(fields[static_cast<size_t>(columns_.adapter)]));
    }
    if (columns_.tenant >= 0) request.tenant = tenant(fields[static_cast<size_t>(columns_.tenant)]);
    workload_.requests.push_back(request);
    return Status();
  }

  Workload finish() {
    if (workload_.tenants.empty()) workload_.tenants.push_back({"t0"});
    workload_.duration_s = static_cast<double>(workload_.requests.back().arrival + 1) * 1e-6;
    return std::move(workload_);
  }

 private:
  Result<AdapterId> adapter(const std::string& name) {
    if (name.empty()) return kBaseModel;
    if (names_are_adapters_) {
      const auto [it, is_new] = adapters_.emplace(name, static_cast<AdapterId>(adapters_.size()));
      workload_.num_adapters = static_cast<int64_t>(adapters_.size());
      return it->second;
    }
    const Result<int64_t> number = parse_integer(name, "adapter", 0, workload_.num_adapters - 1);
    if (!number.ok())
      return invalid_argument("unknown adapter \"{}\": there are {}, numbered from 0", name, workload_.num_adapters);
    return static_cast<AdapterId>(*number);
  }
  int32_t tenant(const std::string& name) {
    const auto [it, is_new] = tenants_.emplace(name, static_cast<int32_t>(tenants_.size()));
    if (is_new) workload_.tenants.push_back({name.empty() ? "-" : name});
    return it->second;
  }

  const Columns columns_;
  const size_t width_;
  const double speed_, factor_;
  const bool names_are_adapters_;
  std::optional<double> first_time_;
  double last_time_ = 0;
  std::map<std::string, AdapterId> adapters_;
  std::map<std::string, int32_t> tenants_;
  Workload workload_;
};

}  // namespace

Result<Workload> parse_trace(const std::string& text, int64_t num_adapters, double speed, double max_tokens_factor) {
  const std::vector<std::string> lines = split(text, '\n');
  const std::vector<std::string> header = split(lines.front(), ',');
  LK_ASSIGN_OR_RETURN(const Columns columns, find_columns(header));
  TraceReader reader(columns, header.size(), num_adapters, speed, max_tokens_factor);
  int64_t count = 0;
  for (size_t i = 1; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    LK_RETURN_IF_ERROR(reader.add(split(lines[i], ',')).with_context(fmt::format("line {}", i + 1)));
    ++count;
  }
  if (count == 0) return invalid_argument("the trace has no requests");
  return reader.finish();
}

}  // namespace lk::sim
