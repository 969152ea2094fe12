// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/logging.h"

#include <fcntl.h>
#include <spdlog/async.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>

#include "lk/base/file.h"
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

// Appends whole lines to a file, in pieces of up to 64 KiB; knows how many it lost, and can go on in another file.
class FileSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FileSink(std::string path) : path_(std::move(path)) {}
  ~FileSink() override {
    flush_();
    if (fd_ >= 0) ::close(fd_);
  }

  Status open() {
    const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (fd < 0) return io_error("log {}: {}", path_, std::strerror(errno));
    const std::lock_guard lock(mutex_);
    flush_();
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
    return Status();
  }
  uint64_t num_lost() const { return num_lost_.load(std::memory_order_relaxed); }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    waiting_.append(line.data(), line.size());
    if (waiting_.size() >= kPiece) flush_();
  }
  void flush_() override {
    const size_t done = write_all(fd_, waiting_);
    const bool whole = done == waiting_.size();
    const bool torn = !whole && done > 0 && waiting_[done - 1] != '\n';
    if (!whole)  // a full disk: they are not kept, the next ones may find room
      num_lost_.fetch_add(
          static_cast<uint64_t>(std::count(waiting_.begin() + static_cast<ptrdiff_t>(done), waiting_.end(), '\n')),
          std::memory_order_relaxed);
    waiting_ = torn ? "\n" : "";
  }

 private:
  static constexpr size_t kPiece = 64 << 10;
  const std::string path_;
  int fd_ = -1;
  std::string waiting_;
  std::atomic<uint64_t> num_lost_{0};
};

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
  std::shared_ptr<FileSink> file;  // null: standard error or a stream
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
    spdlog::sink_ptr sink;
    if (options.stream) {
      sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(*options.stream);
    } else if (options.file.empty()) {
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    } else {
      sink = self->impl_->file = std::make_shared<FileSink>(options.file);
      LK_RETURN_IF_ERROR(self->impl_->file->open());
    }
    logger = std::make_shared<spdlog::async_logger>("lorikeet", std::move(sink), self->impl_->writer,
                                                    spdlog::async_overflow_policy::overrun_oldest);
    logger->set_pattern("%v", spdlog::pattern_time_type::utc);
    logger->set_level(spdlog::level::trace);  // level_ decides
    logger->flush_on(spdlog::level::warn);
    return self;
  } catch (const std::exception& e) {  // system_error: no thread
    return io_error("log {}: {}", options.file.empty() ? "standard error" : options.file, e.what());
  }
}

void Log::write(LogLevel level, LogWord event, std::initializer_list<LogField> fields) {
  if (enabled(level)) write_always(level, event.text(), fields);
}

void Log::audit(std::initializer_list<LogField> fields) { write_always(LogLevel::kInfo, "audit", fields); }

void Log::write_always(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  impl_->logger->log(spdlog_level(level),
                     spdlog::string_view_t(format_log_line(impl_->format, now(), level, event, fields)));
}

Status Log::reopen() { return impl_->file ? impl_->file->open() : Status(); }

void Log::flush() { impl_->logger->flush(); }

uint64_t Log::num_dropped() const {
  return impl_->writer->overrun_counter() + (impl_->file ? impl_->file->num_lost() : 0);
}

}  // namespace lk
