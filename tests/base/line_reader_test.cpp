// SPDX-License-Identifier: Apache-2.0
#include "lk/base/line_reader.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

namespace lk {
namespace {

class LineReaderTest : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  std::vector<LineReader::Line> lines_of(const std::string& bytes, size_t max_bytes = 1 << 20) {
    std::ofstream(path_, std::ios::binary) << bytes;
    Result<LineReader> reader = LineReader::open(path_, max_bytes);
    EXPECT_TRUE(reader.ok()) << reader.status().message();
    std::vector<LineReader::Line> lines;
    for (;;) {
      Result<std::optional<LineReader::Line>> line = reader->next();
      EXPECT_TRUE(line.ok());
      if (!line.ok() || !*line) break;
      EXPECT_EQ((*line)->number, std::ssize(lines) + 1);
      lines.push_back(std::move(**line));
    }
    EXPECT_EQ(reader->bytes_read(), std::ssize(bytes));
    EXPECT_EQ(reader->file_bytes(), std::ssize(bytes));
    return lines;
  }
  std::vector<std::string> texts_of(const std::string& bytes) {
    std::vector<std::string> texts;
    for (const LineReader::Line& line : lines_of(bytes)) texts.push_back(line.text);
    return texts;
  }

  const std::string path_ = ::testing::TempDir() + "/line_reader_test";
};

TEST_F(LineReaderTest, BreaksOfBothKindsAndMarkOfUtf8AreNoPart) {
  EXPECT_EQ(texts_of("a\nb\r\n\nc"), (std::vector<std::string>{"a", "b", "", "c"}));
  EXPECT_EQ(texts_of("\xEF\xBB\xBF"
                     "a\n\xEF\xBB\xBF"
                     "b\n"),
            (std::vector<std::string>{"a",
                                      "\xEF\xBB\xBF"
                                      "b"}));
  EXPECT_TRUE(texts_of("").empty());
  EXPECT_EQ(texts_of("\n"), (std::vector<std::string>{""}));
}

TEST_F(LineReaderTest, ALastLineWithoutABreakIsNotWhole) {
  const auto lines = lines_of("a\nb\r");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_TRUE(lines[0].whole);
  EXPECT_FALSE(lines[1].whole);
  EXPECT_EQ(lines[1].text, "b\r");
}

TEST_F(LineReaderTest, OfALineThatIsTooLongNothingIsHeld) {
  for (const size_t length : {size_t{10}, size_t{11}, size_t{200'000}}) {
    const auto lines = lines_of("a\n" + std::string(length, 'x') + "\r\nb\n", 10);
    ASSERT_EQ(lines.size(), 3U) << length;
    EXPECT_EQ(lines[1].too_long, length > 10) << length;
    EXPECT_EQ(lines[1].text.size(), length > 10 ? 0 : length);
    EXPECT_EQ(lines[2].text, "b");
  }
}

TEST_F(LineReaderTest, LinesMaySpanManyPieces) {
  const std::string long_line(300'001, 'y');
  EXPECT_EQ(texts_of(long_line + "\n" + long_line), (std::vector<std::string>{long_line, long_line}));
}

TEST_F(LineReaderTest, KnowsItsFileByAnyName) {
  (void)lines_of("a\n");
  const Result<LineReader> reader = LineReader::open(path_, 10);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(reader->is_same_file(::testing::TempDir() + "/./line_reader_test"));
  EXPECT_FALSE(reader->is_same_file("/dev/null"));
  EXPECT_EQ(LineReader::open(path_ + ".none", 10).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(LineReader::open(::testing::TempDir(), 10).ok());
}

}  // namespace
}  // namespace lk
