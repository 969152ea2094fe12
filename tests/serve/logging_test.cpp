// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/logging.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <condition_variable>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "lk/base/file.h"

namespace lk {
namespace {

namespace json = boost::json;
constexpr double kTime = 1700000000.125;

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> all;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

TEST(Logging, JsonLineHoldsTypedFields) {
  EXPECT_EQ(
      format_log_line(Log::Format::kJson, kTime, LogLevel::kWarning, "request_done",
                      {{"adapter", "sql"},
                       {"tokens", 5},
                       {"seconds", 0.25},
                       {"cached", true},
                       {"salt", uint64_t{18446744073709551615u}},
                       {"delta", int64_t{-3}}}),
      R"({"ts":"2023-11-14T22:13:20.125Z","level":"warning","event":"request_done","adapter":"sql","tokens":5,"seconds":0.25,)"
      R"("cached":true,"salt":18446744073709551615,"delta":-3})");
}

TEST(Logging, TextLineQuotesOnlyWhatNeedsIt) {
  EXPECT_EQ(format_log_line(Log::Format::kText, kTime, LogLevel::kInfo, "x.y",
                            {{"a", "plain"}, {"b", "two words"}, {"c", ""}, {"d", "k=\"v\""}, {"n", 7}}),
            R"(2023-11-14T22:13:20.125Z info    x.y a=plain b="two words" c="" d="k=\"v\"" n=7)");
}

TEST(Logging, HostileValuesStayInTheirLineAndField) {
  const std::string hostile = "a\"},\\{\n\r\t\x1b[31m\x00\xff\xc2\x9b€";
  for (const auto format : {Log::Format::kJson, Log::Format::kText}) {
    const std::string line = format_log_line(format, kTime, LogLevel::kError, "e", {{"v", hostile}});
    EXPECT_EQ(line.find_first_of("\n\r\t\x1b"), std::string::npos) << line;
  }
  const std::string line =
      format_log_line(Log::Format::kJson, kTime, LogLevel::kError, "e", {{"v", std::string_view(hostile)}});
  EXPECT_EQ(json::parse(line).at("v"), "a\"},\\{????[31m");  // the literal ends at its NUL byte
  const std::string with_nul("a\0b\xff\xc2\x9b\x7f€", 10);
  EXPECT_EQ(json::parse(format_log_line(Log::Format::kJson, kTime, LogLevel::kError, "e", {{"v", with_nul}})).at("v"),
            "a?b???€");
}

TEST(Logging, LongValuesAreCutAndBadNumbersAreNull) {
  const std::string line = format_log_line(Log::Format::kJson, kTime, LogLevel::kInfo, "e",
                                           {{"v", std::string(100'000, 'x')}, {"d", 0.0 / 0.0}});
  EXPECT_EQ(json::parse(line).at("v").as_string().size(), 256u);
  EXPECT_TRUE(json::parse(line).at("d").is_null());
}

TEST(Logging, LevelFiltersAndCanChange) {
  std::ostringstream out;
  {
    auto log = Log::create({.level = LogLevel::kWarning, .stream = &out});
    ASSERT_TRUE(log.ok());
    (*log)->write(LogLevel::kInfo, "unseen");
    (*log)->write(LogLevel::kWarning, "seen");
    EXPECT_FALSE((*log)->enabled(LogLevel::kInfo));
    (*log)->set_level(LogLevel::kDebug);
    (*log)->write(LogLevel::kDebug, "seen_too");
  }
  const auto all = lines(out.str());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(json::parse(all[0]).at("event"), "seen");
  EXPECT_EQ(json::parse(all[1]).at("level"), "debug");
}

TEST(Logging, LinesOfManyThreadsAreWholeAndAllThere) {
  std::ostringstream out;
  constexpr int kThreads = 8, kEach = 500;
  {
    auto log = Log::create({.stream = &out, .queue_lines = kThreads * kEach});
    ASSERT_TRUE(log.ok());
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&, t] {
        for (int i = 0; i < kEach; ++i)
          (*log)->write(LogLevel::kInfo, "tick", {{"thread", t}, {"i", i}, {"text", "quote\" \n"}});
      });
    threads.clear();
    EXPECT_EQ((*log)->num_dropped(), 0u);
  }
  std::set<std::pair<int64_t, int64_t>> seen;
  for (const std::string& line : lines(out.str())) {
    const json::value v = json::parse(line);
    EXPECT_EQ(v.at("text"), "quote\" ?");
    EXPECT_TRUE(seen.emplace(v.at("thread").as_int64(), v.at("i").as_int64()).second);
  }
  EXPECT_EQ(seen.size(), size_t{kThreads * kEach});
}

// A sink that takes nothing until it is opened.
class Gate : public std::stringbuf {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  std::streamsize xsputn(const char* text, std::streamsize length) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
    return std::stringbuf::xsputn(text, length);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

TEST(Logging, AFullQueueDropsTheOldestAndNeverBlocks) {
  Gate gate;
  std::ostream out(&gate);
  {
    auto log = Log::create({.stream = &out, .queue_lines = 16});
    ASSERT_TRUE(log.ok());
    for (int i = 0; i < 1000; ++i) (*log)->write(LogLevel::kInfo, "tick", {{"i", i}});  // would hang here if it blocked
    EXPECT_GE((*log)->num_dropped(), 900u);
    gate.open();
  }
  const auto all = lines(gate.str());
  ASSERT_GE(all.size(), 15u);
  EXPECT_LE(all.size(), 20u);
  EXPECT_EQ(json::parse(all.back()).at("i"), 999);
}

TEST(Logging, WritesToAFileAndReportsOneItCannotOpen) {
  const std::string path = ::testing::TempDir() + "lk_logging_test.log";
  std::remove(path.c_str());
  {
    auto log = Log::create({.format = Log::Format::kText, .file = path});
    ASSERT_TRUE(log.ok()) << log.status().message();
    (*log)->write(LogLevel::kInfo, "hello");
    (*log)->flush();
  }
  EXPECT_NE(read_file(path).value().find("info    hello\n"), std::string::npos);
  std::remove(path.c_str());
  const auto bad = Log::create({.file = "/proc/no/such/file"});
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().code(), StatusCode::kIoError);
  EXPECT_FALSE(Log::create({.queue_lines = 0}).ok());
}

TEST(Logging, GoesOnInANewFileAfterARotation) {
  const std::string path = ::testing::TempDir() + "lk_logging_rotated.log", old = path + ".1";
  std::remove(path.c_str());
  {
    auto log = Log::create({.file = path});
    ASSERT_TRUE(log.ok()) << log.status().message();
    (*log)->write(LogLevel::kInfo, "before");
    (*log)->flush();
    while (read_file(path)->empty()) std::this_thread::yield();
    ASSERT_EQ(std::rename(path.c_str(), old.c_str()), 0);
    ASSERT_TRUE((*log)->reopen().ok());
    (*log)->write(LogLevel::kInfo, "after");
  }
  EXPECT_NE(read_file(old)->find("before"), std::string::npos);
  EXPECT_EQ(read_file(old)->find("after"), std::string::npos);
  EXPECT_NE(read_file(path)->find("after"), std::string::npos);
  std::remove(path.c_str());
  std::remove(old.c_str());
}

TEST(Logging, LinesThatFindNoRoomAreCounted) {
  auto log = Log::create({.file = "/dev/full"});
  ASSERT_TRUE(log.ok()) << log.status().message();
  for (int i = 0; i < 3; ++i) (*log)->write(LogLevel::kInfo, "lost");
  (*log)->flush();
  while ((*log)->num_dropped() < 3) std::this_thread::yield();
  EXPECT_EQ((*log)->num_dropped(), 3u);
}

TEST(Logging, AuditLinesAreWrittenAtEveryLevel) {
  std::ostringstream out;
  {
    auto log = Log::create({.level = LogLevel::kError, .stream = &out});
    ASSERT_TRUE(log.ok());
    (*log)->audit({{"action", "key_revoked"}, {"key", "abc"}});
  }
  EXPECT_EQ(json::parse(out.str()).at("action"), "key_revoked");
}

TEST(Logging, LevelsAreParsed) {
  EXPECT_EQ(parse_log_level("warning").value(), LogLevel::kWarning);
  EXPECT_FALSE(parse_log_level("verbose").ok());
}

// As a disk that is full or gone, by way of exceptions.
TEST(Log, AStreamThatThrowsLosesItsLinesAndNothingElse) {
  struct Throwing : std::streambuf {
    int_type overflow(int_type) override { throw std::runtime_error("thrown by the test"); }
    std::streamsize xsputn(const char*, std::streamsize) override { throw std::runtime_error("thrown by the test"); }
    int sync() override { throw std::runtime_error("thrown by the test"); }
  } buffer;
  std::ostream stream(&buffer);
  stream.exceptions(std::ios::badbit | std::ios::failbit);
  auto log = Log::create({.format = Log::Format::kJson, .stream = &stream});
  ASSERT_TRUE(log.ok());
  for (int i = 0; i < 10; ++i) (*log)->write(LogLevel::kWarning, "test", {{"number", i}});
  (*log)->flush();
  log->reset();
}

}  // namespace
}  // namespace lk
