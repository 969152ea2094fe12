// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "lk/base/bytes.h"
#include "lk/base/file.h"
#include "lk/base/sha256.h"
#include "lk/base/status.h"
#include "lk/base/thread_pool.h"

namespace lk {
namespace {

TEST(Bytes, UnitsAndRange) {
  for (const auto& [text, bytes] : std::vector<std::pair<std::string, int64_t>>{{"1", 1},
                                                                                {"7B", 7},
                                                                                {"1.5KiB", 1536},
                                                                                {"2M", 2 << 20},
                                                                                {"8GiB", int64_t{8} << 30},
                                                                                {"2TiB", int64_t{2} << 40},
                                                                                {"2T", int64_t{2} << 40},
                                                                                {"3TB", 3'000'000'000'000},
                                                                                {"1024TiB", int64_t{1} << 50}}) {
    const Result<int64_t> parsed = parse_bytes(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    EXPECT_EQ(*parsed, bytes) << text;
  }
  for (const char* text : {"0", "0GiB", "-1GiB", "0.5", "1025TiB", "1e300", "nan", "inf"})
    EXPECT_EQ(parse_bytes(text).status().message(), std::string(text) + " must be from 1 byte to 1024TiB");
  for (const char* text : {"", "GiB", "8 GiB", "8gib", "8PiB", "x"})
    EXPECT_NE(parse_bytes(text).status().message().find("is not a size; write for example 8GiB"), std::string::npos);
  EXPECT_EQ(format_bytes(int64_t{3} << 39), "1.50 TiB");
}

Status fails() { return not_found("no {}", "file"); }
Result<int> half(int x) {
  if (x % 2 != 0) return invalid_argument("{} is odd", x);
  return x / 2;
}
Result<int> quarter(int x) {
  LK_ASSIGN_OR_RETURN(const int h, half(x));
  LK_ASSIGN_OR_RETURN(const int q, half(h));
  return q;
}

TEST(Status, CarriesCodeMessageAndContext) {
  const Status status = fails().with_context("adapter x");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "adapter x: no file");
}

TEST(Result, MacrosReturnTheFirstFailure) {
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(6).status().message(), "3 is odd");
}

TEST(Sha256, MatchesPublishedVectors) {
  const auto digest = [](std::string_view text) {
    Sha256 sha;
    for (char c : text) sha.update(&c, 1);
    return to_hex(sha.finish());
  };
  EXPECT_EQ(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(ThreadPool, ForEachVisitsEveryItemOnce) {
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (int64_t items : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(items));
      pool.for_each(items, [&](int64_t item) { visits[static_cast<size_t>(item)].fetch_add(1); });
      for (const auto& count : visits) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, RunReachesThreadsThatAreFree) {
  ThreadPool pool(3);
  // Whoever entered waits for the others: this only ends when all three are inside at once.
  std::atomic<int> inside{0};
  pool.run([&](int) {
    ++inside;
    while (inside < 3) std::this_thread::yield();
  });
  EXPECT_EQ(inside, 3);
}

TEST(ThreadPool, RunEndsWithItsWorkAndNobodyEntersLater) {
  ThreadPool pool(4);
  for (int round = 0; round < 20000; ++round) {
    // A worker that entered after the end would write to a dead frame; the counts would not add up.
    std::atomic<int64_t> next{0}, sum{0};
    std::atomic<int> inside{0};
    pool.run([&](int thread_idx) {
      ++inside;
      ASSERT_LT(thread_idx, 4);
      for (int64_t item; (item = next.fetch_add(1)) < 7;) sum += item;
      --inside;
    });
    ASSERT_EQ(sum, 21);
    ASSERT_EQ(inside, 0);
  }
}

TEST(File, ReadNamesTheMissingPathAndCapsTheSize) {
  EXPECT_EQ(read_file("/nonexistent/x").status().code(), StatusCode::kNotFound);
  const std::string path = testing::TempDir() + "/lk_file_test";
  ASSERT_TRUE(write_file_atomic(path, "hello").ok());
  EXPECT_EQ(*read_file(path), "hello");
  EXPECT_EQ(read_file(path, 4).status().code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(read_file(testing::TempDir()).ok());
}

}  // namespace
}  // namespace lk
