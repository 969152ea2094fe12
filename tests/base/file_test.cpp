// SPDX-License-Identifier: Apache-2.0
#include "lk/base/file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <thread>

#include "testing/mapped_pages.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using testing::TempDir;

std::string text_of(const MmapFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MmapFile, CopyEqualsTheMapAndOutlivesTheFilesEnd) {
  const TempDir dir;
  std::string bytes(3 * 4096 + 17, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 >> 3);
  dir.write("file", bytes);
  const auto copy = MmapFile::copy(dir.file("file"), bytes.size());
  ASSERT_TRUE(copy.ok()) << copy.status().message();
  EXPECT_EQ(text_of(*copy), text_of(*MmapFile::open(dir.file("file"))));
  EXPECT_EQ(copy->path(), dir.file("file"));
  std::filesystem::resize_file(dir.file("file"), 0);  // a map would be SIGBUS from here on
  EXPECT_EQ(text_of(*copy), bytes);
}

TEST(MmapFile, ReadsInPiecesToAnAlignedPlace) {
  const TempDir dir;
  std::string bytes((3 << 20) + 5, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 >> 3);
  dir.write("file", bytes);
  for (const size_t offset : {0, 1, 63, 64, 1'000'001}) {
    auto file = MmapFile::reserve(dir.file("file"), bytes.size(), offset);
    ASSERT_TRUE(file.ok()) << file.status().message();
    std::string seen;
    const Status status = file->read_all([&](std::span<const std::byte> piece) {
      seen.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    });
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(seen, bytes);
    EXPECT_EQ(text_of(*file), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file->bytes().data() + offset) % 64, 0u) << offset;
  }
  EXPECT_EQ(read_prefix(dir.file("file"), 10).value(), bytes.substr(0, 10));
  EXPECT_EQ(read_prefix(dir.file("file"), 1 << 30).value(), bytes);
}

TEST(MmapFile, DroppedPagesLeaveMemoryAndComeBack) {
  const TempDir dir;
  std::string bytes((4 << 20) + 77, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 >> 3);
  dir.write("file", bytes);
  const std::string path = std::filesystem::canonical(dir.file("file"));
  const auto file = MmapFile::open(path);
  EXPECT_EQ(text_of(*file), bytes);
  EXPECT_GT(testing::mapped_bytes_in_memory(path), 3 << 20);
  file->drop_pages(file->bytes().subspan(1'000'001, 2 << 20));
  EXPECT_LT(testing::mapped_bytes_in_memory(path), (2 << 20) + 2 * 4096 + 77);
  file->drop_pages(file->bytes());
  EXPECT_EQ(testing::mapped_bytes_in_memory(path), 0);
  EXPECT_EQ(text_of(*file), bytes);
  // What was copied is all there is.
  const auto copy = MmapFile::copy(path, bytes.size());
  copy->drop_pages(copy->bytes());
  EXPECT_EQ(text_of(*copy), bytes);
}

TEST(MmapFile, CopyChecksTheSizeAndTheKind) {
  const TempDir dir;
  dir.write("file", std::string(100, 'x'));
  dir.write("empty", "");
  EXPECT_EQ(MmapFile::copy(dir.file("file"), 99).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(MmapFile::copy(dir.file("file"), 100).ok());
  const auto empty = MmapFile::copy(dir.file("empty"), 0);
  ASSERT_TRUE(empty.ok());
  EXPECT_TRUE(empty->bytes().empty());
  EXPECT_EQ(MmapFile::copy(dir.file("missing"), 100).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(MmapFile::copy(dir.path(), 100).status().code(), StatusCode::kInvalidArgument);
}

// Whatever the moment, the copy is an error or a whole length of bytes that were in the file.
TEST(MmapFile, CopyOfAFileThatShrinksIsAnErrorOrWhole) {
  const TempDir dir;
  const std::string path = dir.file("file");
  const size_t size = 8 << 20;
  dir.write("file", std::string(size, 'x'));
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done) {
      std::filesystem::resize_file(path, 1000);
      std::filesystem::resize_file(path, size);  // zeros behind 1000
    }
  });
  int whole = 0, errors = 0;
  for (int i = 0; i < 50; ++i) {
    const auto copy = MmapFile::copy(path, size);
    if (!copy.ok()) {
      EXPECT_EQ(copy.status().code(), StatusCode::kDataLoss) << copy.status().message();
      ++errors;
      continue;
    }
    ++whole;
    EXPECT_TRUE(copy->bytes().size() == size || copy->bytes().size() == 1000) << copy->bytes().size();
    EXPECT_TRUE(std::all_of(copy->bytes().begin(), copy->bytes().begin() + 1000,
                            [](std::byte byte) { return byte == std::byte{'x'}; }));
  }
  done = true;
  other.join();
  EXPECT_EQ(whole + errors, 50);
}

}  // namespace
}  // namespace lk
