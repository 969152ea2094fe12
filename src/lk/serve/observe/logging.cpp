// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/logging.h"

#include <spdlog/async.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <chrono>
#include <cmath>
#include <ctime>

#include "lk/base/plain_text.h"

namespace lk {
namespace {

constexpr size_t kMaxValueBytes = 256;

// Of clean text only quotes and backslashes are left to escape, in JSON as in plain text.
void append_quoted(std::string& line, std::string_view clean) {
  line += '"';
  for (const char c : clean) {
    if (c == '"' || c == '\\') line += '\\';
    line += c;
  }
  line += '"';
}

bool reads_as_one_word(std::string_view text) {
  return !text.empty() && text.find_first_of(" \"\\=") == std::string_view::npos;
}

void append_value(std::string& line, const LogField& field, Log::Format format) {
  const bool is_json = format == Log::Format::kJson;
  if (const auto* text = std::get_if<std::string_view>(&field.value)) {
    const std::string clean = clean_text(*text, kMaxValueBytes);
    if (is_json || !reads_as_one_word(clean))
      append_quoted(line, clean);
    else
      line += clean;
  } else if (const auto* real = std::get_if<double>(&field.value)) {
    if (std::isfinite(*real))
      line += fmt::format("{:.9g}", *real);
    else
      line += is_json ? "null" : "nan";
  } else if (const auto* boolean = std::get_if<bool>(&field.value)) {
    line += *boolean ? "true" : "false";
  } else if (const auto* number = std::get_if<int64_t>(&field.value)) {
    line += fmt::format("{}", *number);
  } else {
    line += fmt::format("{}", std::get<uint64_t>(field.value));
  }
}

std::string timestamp(double unix_seconds) {
  const double whole = std::floor(unix_seconds);
  const auto seconds = static_cast<std::time_t>(whole);
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec, static_cast<int>((unix_seconds - whole) * 1000));
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

spdlog::sink_ptr make_sink(const Log::Options& options) {
  if (options.stream) return std::make_shared<spdlog::sinks::ostream_sink_mt>(*options.stream);
  if (options.file.empty()) return std::make_shared<spdlog::sinks::stderr_sink_mt>();
  return std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
}

}  // namespace

const char* to_string(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

Result<LogLevel> parse_log_level(std::string_view text) {
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError})
    if (text == to_string(level)) return level;
  return invalid_argument("log level \"{}\" must be debug, info, warning or error", clean_text(text, kMaxValueBytes));
}

std::string format_log_line(Log::Format format, double unix_seconds, LogLevel level, std::string_view event,
                            std::initializer_list<LogField> fields) {
  std::string line;
  if (format == Log::Format::kJson) {
    line = fmt::format(R"({{"ts":"{}","level":"{}","event":"{}")", timestamp(unix_seconds), to_string(level), event);
    for (const LogField& field : fields) {
      line += fmt::format(R"(,"{}":)", field.name.text());
      append_value(line, field, format);
    }
    return line + '}';
  }
  line = fmt::format("{} {:<7} {}", timestamp(unix_seconds), to_string(level), event);
  for (const LogField& field : fields) {
    line += fmt::format(" {}=", field.name.text());
    append_value(line, field, format);
  }
  return line;
}

struct Log::Impl {
  Format format;
  std::shared_ptr<spdlog::async_logger> logger;
  // Goes first: it writes what is queued and ends its thread while the logger, which refers to it weakly, still has its
  // sink.
  std::shared_ptr<spdlog::details::thread_pool> writer;
};

Log::Log(LogLevel level) : level_(level) {}
Log::~Log() = default;

Result<std::unique_ptr<Log>> Log::create(const Options& options) {
  if (options.queue_lines == 0 || options.queue_lines > (size_t{1} << 20))
    return invalid_argument("the log's queue of {} lines must have 1 to {}", options.queue_lines, size_t{1} << 20);
  try {
    std::unique_ptr<Log> self(new Log(options.level));
    self->impl_ = std::make_unique<Impl>();
    self->impl_->format = options.format;
    self->impl_->writer = std::make_shared<spdlog::details::thread_pool>(options.queue_lines, 1);
    auto& logger = self->impl_->logger;
    logger = std::make_shared<spdlog::async_logger>("lorikeet", make_sink(options), self->impl_->writer,
                                                    spdlog::async_overflow_policy::overrun_oldest);
    logger->set_pattern("%v", spdlog::pattern_time_type::utc);
    logger->set_level(spdlog::level::trace);  // level_ decides
    logger->flush_on(spdlog::level::warn);
    return self;
  } catch (const std::exception& e) {  // spdlog_ex: the file cannot be opened; system_error: no thread
    return io_error("log {}: {}", options.file.empty() ? "standard error" : options.file, e.what());
  }
}

void Log::write(LogLevel level, LogWord event, std::initializer_list<LogField> fields) {
  if (!enabled(level)) return;
  impl_->logger->log(spdlog_level(level),
                     spdlog::string_view_t(format_log_line(impl_->format, now(), level, event.text(), fields)));
}

void Log::flush() { impl_->logger->flush(); }

uint64_t Log::num_dropped() const { return impl_->writer->overrun_counter(); }

}  // namespace lk
