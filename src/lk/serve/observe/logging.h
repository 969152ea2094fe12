// SPDX-License-Identifier: Apache-2.0
// Log: one line per event, JSON for machines or plain text for a terminal, written by a thread of its own.
//
// Prompts, answers and keys have no way in: events and field names must be literals, values are numbers or short names
// and ids (cut at 256 bytes, control characters replaced). A full queue drops its oldest lines, a full disk those that
// do not fit: logging never holds up the caller, and num_dropped() tells.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "lk/base/status.h"

namespace lk {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
Result<LogLevel> parse_log_level(std::string_view text);  // "debug", "info", "warning", "error"
const char* to_string(LogLevel level);

// Text known at compile time, so that nothing a client sent can be one: lower case letters, digits, '_' and '.'.
class LogWord {
 public:
  consteval LogWord(const char* text) : text_(text) {  // NOLINT(google-explicit-constructor)
    for (const char c : text_)
      if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.'))
        throw "a log word has letters, digits, '_' and '.' only";
    if (text_.empty()) throw "a log word must not be empty";
  }
  std::string_view text() const { return text_; }

 private:
  std::string_view text_;
};

struct LogField {
  LogWord name;
  std::variant<std::string_view, int64_t, uint64_t, double, bool> value;

  LogField(LogWord n, std::string_view v) : name(n), value(v) {}
  LogField(LogWord n, const std::string& v) : name(n), value(std::string_view(v)) {}
  LogField(LogWord n, const char* v) : name(n), value(std::string_view(v)) {}
  LogField(LogWord n, bool v) : name(n), value(v) {}
  LogField(LogWord n, double v) : name(n), value(v) {}
  template <class T>
  requires(std::is_integral_v<T> && !std::is_same_v<T, bool>) LogField(LogWord n, T v) : name(n) {
    if constexpr (std::is_signed_v<T>)
      value = static_cast<int64_t>(v);
    else
      value = static_cast<uint64_t>(v);
  }
};

class Log {
 public:
  enum class Format : uint8_t { kJson, kText };
  struct Options {
    LogLevel level = LogLevel::kInfo;
    Format format = Format::kJson;
    std::string file;                // appended to; "" = standard error
    std::ostream* stream = nullptr;  // instead of both, for tests; outlives the Log
    size_t queue_lines = 8192;
  };
  static Result<std::unique_ptr<Log>> create(const Options& options);
  ~Log();  // writes what is queued

  // Thread safe; log->write(LogLevel::kInfo, "adapter_loaded", {{"adapter", name}, {"rank", 16}});
  void write(LogLevel level, LogWord event, std::initializer_list<LogField> fields = {});
  bool enabled(LogLevel level) const { return level >= level_.load(std::memory_order_relaxed); }
  void set_level(LogLevel level) { level_.store(level, std::memory_order_relaxed); }
  // Writes whatever the level is: what changed, on whose behalf.
  void audit(std::initializer_list<LogField> fields);
  void flush();                  // asks the writer to; does not wait
  Status reopen();               // goes on in a file of the same name (logrotate); the old file stays when that fails
  uint64_t num_dropped() const;  // lines lost to a full queue, or that could not be written

 private:
  struct Impl;
  explicit Log(LogLevel level);
  void write_always(LogLevel level, std::string_view event, std::initializer_list<LogField> fields);
  std::atomic<LogLevel> level_;
  std::unique_ptr<Impl> impl_;
};

// The line without its end; `unix_seconds` with fraction. For Log and its tests.
std::string format_log_line(Log::Format format, double unix_seconds, LogLevel level, std::string_view event,
                            std::initializer_list<LogField> fields);

}  // namespace lk
