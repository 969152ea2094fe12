// SPDX-License-Identifier: Apache-2.0
#include "lk/train/checkpoint_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <set>

#include "lk/base/file.h"
#include "lk/base/rng.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::TempDir;
using ::testing::UnorderedElementsAre;

CheckpointStore claim(const std::string& path, CheckpointStore::Options options = {}) {
  CheckpointStore store(path, std::move(options));
  const Status status = store.claim();
  LK_CHECK(status.ok(), "{}", status.message());
  return store;
}
// Two files whose bytes follow from the step.
std::string bytes_of(int64_t step, size_t size) {
  std::string bytes(size, '\0');
  for (size_t k = 0; k < size; ++k) bytes[k] = static_cast<char>(mix64(static_cast<uint64_t>(step)) >> (k % 8 * 8));
  return bytes;
}
std::vector<CheckpointPart> parts_of(int64_t step) {
  return {bytes_part("small", bytes_of(step, 10)), bytes_part("large", bytes_of(step, 300'000))};
}
std::set<std::string> names_in(const std::string& path) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path)) names.insert(entry.path().filename());
  return names;
}
void expect_newest(const std::string& path, int64_t step) {
  const auto found = CheckpointStore(path, {}).newest();
  ASSERT_TRUE(found.ok()) << found.status().message();
  ASSERT_TRUE(found->has_value());
  EXPECT_EQ((**found).step, step);
  EXPECT_EQ(*read_file((**found).path + "/small"), bytes_of(step, 10));
  EXPECT_EQ(*read_file((**found).path + "/large"), bytes_of(step, 300'000));
}

TEST(CheckpointStore, KeepsTheNewest) {
  const TempDir dir;
  const std::string path = dir.file("a/b");
  CheckpointStore store = claim(path, {.keep = 2});
  EXPECT_FALSE(store.newest()->has_value());
  for (const int64_t step : {0, 9, 10, 100}) {
    const Status status = store.save(step, parts_of(step));
    ASSERT_TRUE(status.ok()) << status.message();
    expect_newest(path, step);
  }
  EXPECT_THAT(names_in(path), UnorderedElementsAre("checkpoint-10", "checkpoint-100"));
  EXPECT_THAT(names_in(path + "/checkpoint-10"), UnorderedElementsAre("small", "large", "checkpoint.json"));
  // The same step once more.
  ASSERT_TRUE(store.save(100, parts_of(100)).ok());
  expect_newest(path, 100);
}

TEST(CheckpointStore, LeftoversGoAndForeignFilesStay) {
  const TempDir dir;
  CheckpointStore store = claim(dir.path());
  ASSERT_TRUE(store.save(5, parts_of(5)).ok());
  store = CheckpointStore(dir.path(), {});  // gives the directory up
  for (const char* name : {".checkpoint-7", "checkpoint-x", "other"})
    std::filesystem::create_directories(dir.file(name));
  dir.write(".checkpoint-7/small", "half");
  dir.write("adapter_config.json", "{}");
  expect_newest(dir.path(), 5);
  EXPECT_TRUE(file_exists(dir.file(".checkpoint-7")));  // who only looks changes nothing
  (void)claim(dir.path());
  expect_newest(dir.path(), 5);
  EXPECT_THAT(names_in(dir.path()),
              UnorderedElementsAre("checkpoint-5", "checkpoint-x", "other", "adapter_config.json"));
}

TEST(CheckpointStore, OneWriterAtATime) {
  const TempDir dir;
  const std::string path = dir.file("a");
  EXPECT_FALSE(CheckpointStore(path, {}).newest()->has_value());
  EXPECT_FALSE(file_exists(path));
  std::optional<CheckpointStore> first = claim(path);
  CheckpointStore second(path, {});
  EXPECT_THAT(second.claim().message(), HasSubstr("is written to by another run"));
  first.reset();
  EXPECT_TRUE(second.claim().ok());
}

TEST(CheckpointStore, DamagedOnesAreSkipped) {
  const TempDir dir;
  CheckpointStore store = claim(dir.path(), {.keep = 9});
  for (int64_t step = 1; step <= 5; ++step) ASSERT_TRUE(store.save(step, parts_of(step)).ok());
  dir.write("checkpoint-5/small", bytes_of(4, 10));
  std::filesystem::remove(dir.file("checkpoint-4/checkpoint.json"));
  std::filesystem::resize_file(dir.file("checkpoint-3/large"), 7);
  const auto found = store.newest();
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((**found).step, 2);
  ASSERT_THAT((**found).skipped, SizeIs(3));
  EXPECT_THAT((**found).skipped[0], HasSubstr("checkpoint-5/small is not the file that was written"));
  // A new one of a damaged one's step takes its place.
  ASSERT_TRUE(store.save(5, parts_of(5)).ok());
  expect_newest(dir.path(), 5);
  dir.write("checkpoint-5/checkpoint.json", R"({"step": 5, "files": [{"name": "../x", "bytes": 1, "sha256": ""}]})");
  EXPECT_EQ((**store.newest()).step, 2);

  const TempDir all_bad;
  std::filesystem::create_directories(all_bad.file("checkpoint-1"));
  EXPECT_EQ(claim(all_bad.path()).newest().status().code(), StatusCode::kDataLoss);
}

TEST(CheckpointStore, ADamagedNewerOneDoesNotPushOutTheGood) {
  const TempDir dir;
  std::filesystem::create_directories(dir.file("checkpoint-9"));
  CheckpointStore store = claim(dir.path(), {.keep = 1});
  ASSERT_TRUE(store.save(5, parts_of(5)).ok());
  expect_newest(dir.path(), 5);
}

TEST(CheckpointStore, EveryFailureLeavesTheLastGoodOne) {
  const TempDir dir;
  // How many operations a save asks for.
  int operations = 0;
  {
    CheckpointStore store =
        claim(dir.path(), {.keep = 1, .fault = [&](std::string_view) { return ++operations, Status(); }});
    ASSERT_TRUE(store.save(1, parts_of(1)).ok());
  }
  ASSERT_GE(operations, 9);
  int64_t newest = 1;
  for (int failing = 0; failing <= operations; ++failing) {
    SCOPED_TRACE(failing);
    int asked = 0;
    std::string failed;
    const int64_t step = failing + 2;
    CheckpointStore store = claim(dir.path(), {.keep = 1, .fault = [&](std::string_view operation) {
                                                 if (asked++ != failing) return Status();
                                                 failed = operation;
                                                 return io_error("disk full at {}", operation);
                                               }});
    const Status status = store.save(step, parts_of(step));
    if (failed == "sync parent" || failed == "remove" || failed.empty()) newest = step;  // it is there all the same
    EXPECT_EQ(status.ok(), failed == "remove" || failed.empty()) << failed;
    if (!status.ok()) {
      EXPECT_THAT(status.message(), HasSubstr(fmt::format("checkpoint of step {}: disk full", step)));
    }
    expect_newest(dir.path(), newest);
    for (const std::string& name : names_in(dir.path())) EXPECT_FALSE(name.starts_with(".")) << name;
  }
}

TEST(CheckpointStore, AWriterThatFailsFailsTheCheckpoint) {
  const TempDir dir;
  CheckpointStore store = claim(dir.path());
  ASSERT_TRUE(store.save(1, parts_of(1)).ok());
  EXPECT_EQ(store.save(2, {{{"part"}, [](const std::string&) { return internal_error("no"); }}}).code(),
            StatusCode::kInternal);
  EXPECT_FALSE(store.save(2, {{{"part"}, [](const std::string&) { return Status(); }}}).ok());  // wrote nothing
  expect_newest(dir.path(), 1);
}

// Runs in a child process; its exit code.
template <class F>
int in_child(F work) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(CheckpointStore, AFullDiskLeavesTheLastGoodOne) {
  const TempDir dir;
  ASSERT_TRUE(claim(dir.path()).save(1, parts_of(1)).ok());
  const int code = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);  // "large" is larger
    const Status status = claim(dir.path()).save(2, parts_of(2));
    return status.code() == StatusCode::kIoError && status.message().find("large") != std::string::npos ? 7 : 1;
  });
  EXPECT_EQ(code, 7);
  expect_newest(dir.path(), 1);
  EXPECT_THAT(names_in(dir.path()), UnorderedElementsAre("checkpoint-1"));
}

TEST(CheckpointStore, KilledAtAnyPointTheNewestIsComplete) {
  const TempDir dir;
  Rng random(3);
  int64_t newest = 0;
  ASSERT_TRUE(claim(dir.path()).save(0, parts_of(0)).ok());
  for (int round = 0; round < 40; ++round) {
    SCOPED_TRACE(round);
    const pid_t child = ::fork();
    if (child == 0) {
      CheckpointStore store = claim(dir.path());
      for (int64_t step = newest + 1;; ++step)
        if (!store.save(step, parts_of(step)).ok()) ::_exit(1);
    }
    ::usleep(static_cast<useconds_t>(random.below(20'000)));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto found = claim(dir.path()).newest();
    ASSERT_TRUE(found.ok()) << found.status().message();
    ASSERT_TRUE(found->has_value());
    EXPECT_THAT((**found).skipped, SizeIs(0));
    ASSERT_GE((**found).step, newest);
    newest = (**found).step;
    expect_newest(dir.path(), newest);
  }
  // Each kill may have come between a rename and the removal of what is too old; the next save makes up for it.
  ASSERT_TRUE(claim(dir.path()).save(newest + 1, parts_of(newest + 1)).ok());
  EXPECT_EQ(names_in(dir.path()).size(), 2u);
}

}  // namespace
}  // namespace lk
