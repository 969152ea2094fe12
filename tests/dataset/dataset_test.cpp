// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <set>

#include "dataset/dataset_util.h"
#include "lk/base/sha256.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

std::shared_ptr<const JsonlFile> open(const std::string& path) {
  auto file = JsonlFile::open(path);
  LK_CHECK(file.ok(), "{}", file.status().message());
  return *file;
}

std::string lines(int count) {
  std::string bytes;
  for (int k = 0; k < count; ++k) bytes += fmt::format("{{\"text\": \"number {}\"}}\n", k);
  return bytes;
}

std::shared_ptr<const Renderer> renderer(const RenderOptions& options = {}) {
  return std::make_shared<Renderer>(testing::fixture_tokenizer("gpt2"), nullptr, 700, options);
}

TEST(Permutation, IsOneForEverySize) {
  for (int64_t size = 1; size <= 300; ++size)
    for (const uint64_t seed : {0, 1, 77}) {
      const Permutation order(seed, size);
      std::vector<bool> seen(static_cast<size_t>(size));
      for (int64_t index = 0; index < size; ++index) {
        const int64_t value = order(index);
        ASSERT_TRUE(value >= 0 && value < size && !seen[static_cast<size_t>(value)]) << size;
        seen[static_cast<size_t>(value)] = true;
      }
    }
  const Permutation large(3, int64_t{1} << 40);
  EXPECT_NE(large(0), large(1));
}

TEST(Permutation, EveryPlaceIsAboutEquallyLikely) {
  constexpr int64_t kSize = 10;
  constexpr int kSeeds = 20'000;
  int64_t counts[kSize][kSize] = {};
  for (int seed = 0; seed < kSeeds; ++seed)
    for (int64_t index = 0; index < kSize; ++index)
      ++counts[index][Permutation(static_cast<uint64_t>(seed), kSize)(index)];
  for (const auto& row : counts)
    for (const int64_t count : row) EXPECT_NEAR(static_cast<double>(count), kSeeds / kSize, 6 * 45);  // 6 sigma
}

TEST(Permutation, IsTheSameOnEveryMachine) {
  const Permutation order(42, 10);
  std::vector<int64_t> values;
  for (int64_t index = 0; index < 10; ++index) values.push_back(order(index));
  EXPECT_THAT(values, ::testing::ElementsAre(9, 0, 5, 1, 7, 6, 4, 8, 2, 3));
}

TEST(JsonlFile, FindsRecordsAndTheirLines) {
  const TempDir dir;
  dir.write("d", "\xEF\xBB\xBF{\"text\": \"a\"}\r\n\n   \n{\"text\": \"b\"}\n\n{\"text\": \"c\"}");
  const auto file = open(dir.file("d"));
  ASSERT_EQ(file->num_records(), 3);
  EXPECT_EQ(file->format(), RecordFormat::kText);
  EXPECT_EQ(file->read(0)->text, "a");
  EXPECT_EQ(file->read(1)->text, "b");
  EXPECT_EQ(file->read(2)->text, "c");
  EXPECT_EQ(file->where(0), dir.file("d") + ":1");
  EXPECT_EQ(file->where(1), dir.file("d") + ":4");
  EXPECT_EQ(file->where(2), dir.file("d") + ":6");
  const std::string bytes = dir.read("d");
  Sha256 sha;
  sha.update(bytes.data(), bytes.size());
  EXPECT_EQ(file->digest(), to_hex(sha.finish()));
  EXPECT_TRUE(file->verify().ok());
}

TEST(JsonlFile, LargeFilesAcrossPieces) {
  const TempDir dir;
  std::string bytes;
  std::vector<std::string> texts;
  for (int k = 0; k < 3000; ++k) {
    texts.push_back(std::string(static_cast<size_t>(k * 37 % 1500), 'x') + std::to_string(k));
    bytes += fmt::format("{{\"text\": \"{}\"}}\n", texts.back());
    if (k % 100 == 0) bytes += "\n";
  }
  dir.write("d", bytes);
  const auto file = open(dir.file("d"));
  ASSERT_EQ(file->num_records(), 3000);
  for (int k = 2999; k >= 0; --k) ASSERT_EQ(file->read(k)->text, texts[static_cast<size_t>(k)]);
  EXPECT_EQ(file->where(2999), fmt::format("{}:{}", dir.file("d"), 3000 + 30));
}

// Only the record itself is bad: those behind it are where they are, however much lies between.
TEST(JsonlFile, ALineThatIsTooLongIsABadRecord) {
  constexpr size_t kMax = size_t{32} << 20;
  const TempDir dir;
  const std::string frame = R"({"text": ""})";
  const auto record = [&](size_t bytes) { return R"({"text": ")" + std::string(bytes - frame.size(), 'x') + "\"}\n"; };
  dir.write("d", record(kMax + 1) + "\n" + record(kMax) + record(20) + record(2 * kMax + 5) +
                     std::string(kMax + 3, ' ') + "\n" + record(21) + std::string(kMax + 1, 'y'));
  const auto file = open(dir.file("d"));
  ASSERT_EQ(file->num_records(), 6);
  EXPECT_EQ(file->format(), RecordFormat::kText);
  for (const int64_t bad : {0, 3, 5}) {
    const auto line = file->read_line(bad);
    EXPECT_EQ(line.status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(line.status().message(), HasSubstr(file->where(bad) + ": the line is longer than"));
  }
  EXPECT_EQ(file->read_line(1)->size(), kMax);
  EXPECT_EQ(file->read_line(2)->size(), 20u);
  EXPECT_EQ(file->read_line(4)->size(), 21u);
  const std::vector<int> lines_of = {1, 3, 4, 5, 7, 8};
  for (int64_t k = 0; k < 6; ++k)
    EXPECT_EQ(file->where(k), fmt::format("{}:{}", dir.file("d"), lines_of[static_cast<size_t>(k)]));

  dir.write("e", record(20) + record(kMax + 1) + record(21));
  const SampleReader strict(all_records(open(dir.file("e"))), renderer(), {.shuffle = false});
  EXPECT_THAT(strict.survey().status().message(), HasSubstr("e:2: the line is longer than"));
  const SampleReader skipping(all_records(open(dir.file("e"))), renderer(), {.shuffle = false, .skip_bad = true});
  const DataCounts counts = skipping.survey().value();
  EXPECT_EQ(counts.bad, 1);
  EXPECT_EQ(counts.samples, 2);
}

TEST(JsonlFile, WhatTakesLongCanBeStopped) {
  const TempDir dir;
  dir.write("d", lines(100));
  int asked = 0;
  const AskStop at_once = [&] { return ++asked > 0; };
  EXPECT_EQ(JsonlFile::open(dir.file("d"), {}, at_once).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(JsonlFiles(at_once).open(dir.file("d")).status().code(), StatusCode::kCancelled);
  const SampleReader reader(all_records(open(dir.file("d"))), renderer(), {});
  EXPECT_EQ(reader.survey(at_once).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(reader.steps_of_epoch(50, at_once).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(asked, 4);
  Surveys surveys([&] { return asked++ == 10; });
  EXPECT_EQ(surveys.survey(reader).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(surveys.survey(reader)->samples, 100);  // what was broken off is not remembered
}

TEST(JsonlFile, RefusesWhatIsNoDataAtOpen) {
  const TempDir dir;
  const auto error = [&](const std::string& bytes) {
    dir.write("d", bytes);
    return JsonlFile::open(dir.file("d")).status().message();
  };
  EXPECT_THAT(error(""), HasSubstr("has no records"));
  EXPECT_THAT(error(" \n\n"), HasSubstr("has no records"));
  EXPECT_THAT(error("\n{\"text\""), HasSubstr("d:2: not valid JSON"));
  EXPECT_EQ(error("bad\n{\"text\": \"a\"}"), "");  // whether bad records may stand here is not the file's to say
  EXPECT_THAT(error("[\n"), HasSubstr("one object per line"));
  EXPECT_EQ(JsonlFile::open(dir.file("none")).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(JsonlFile::open(dir.path()).status().message(), HasSubstr("not a regular file"));
}

TEST(JsonlFile, NoticesChangedData) {
  const TempDir dir;
  dir.write("d", lines(100));
  const auto replaced = open(dir.file("d"));
  dir.write("new", lines(5));
  std::filesystem::rename(dir.file("new"), dir.file("d"));
  EXPECT_EQ(replaced->read(99)->text, "number 99");  // the file that was opened is still there
  EXPECT_TRUE(replaced->verify().ok());

  dir.write("d", lines(100));
  const auto longer = open(dir.file("d"));
  std::ofstream(dir.file("d"), std::ios::app) << "{}\n";
  EXPECT_EQ(longer->read(0).status().code(), StatusCode::kDataLoss);

  dir.write("d", lines(100));
  const auto shorter = open(dir.file("d"));
  std::filesystem::resize_file(dir.file("d"), 50);
  EXPECT_THAT(shorter->read(99).status().message(), HasSubstr("has changed since it was opened"));

  // Size and time as they were: only the digest tells.
  dir.write("d", lines(100));
  const auto file = open(dir.file("d"));
  const auto time = std::filesystem::last_write_time(dir.file("d"));
  std::string other = lines(100);
  other[other.size() - 4] = 'X';
  dir.write("d", other);
  std::filesystem::last_write_time(dir.file("d"), time);
  EXPECT_TRUE(file->read(0).ok());
  EXPECT_THAT(file->verify().message(), HasSubstr("has changed since it was opened"));
}

TEST(JsonlFiles, OpensAFileOnce) {
  const TempDir dir;
  dir.write("d", lines(3));
  JsonlFiles files;
  const auto first = files.open(dir.file("d"));
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*files.open(dir.path() + "/./d"), *first);
  EXPECT_FALSE(files.open(dir.file("none")).ok());
  EXPECT_TRUE(files.verify().ok());
  std::ofstream(dir.file("d"), std::ios::app) << "{}\n";
  EXPECT_FALSE(files.verify().ok());
}

TEST(Split, IsDisjointCompleteAndRepeatable) {
  const TempDir dir;
  dir.write("d", lines(101));
  const auto file = open(dir.file("d"));
  const auto split = split_records(file, 0.1, 5);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(split->eval.size, 10);
  std::set<int64_t> train, eval;
  for (int64_t k = 0; k < split->train.size; ++k) train.insert(split->train.record(k));
  for (int64_t k = 0; k < split->eval.size; ++k) eval.insert(split->eval.record(k));
  EXPECT_EQ(train.size() + eval.size(), 101u);
  train.insert(eval.begin(), eval.end());
  EXPECT_EQ(train.size(), 101u);
  EXPECT_EQ(split_records(file, 0.1, 5)->eval.record(3), split->eval.record(3));
  std::set<int64_t> other;
  for (int64_t k = 0; k < 10; ++k) other.insert(split_records(file, 0.1, 6)->eval.record(k));
  EXPECT_NE(other, eval);
  EXPECT_THAT(split_records(file, 0.001, 5).status().message(), HasSubstr("leaves 0 for evaluation and 101"));
  EXPECT_FALSE(split_records(file, 1, 5).ok());
}

TEST(SampleReader, EpochsAreDifferentOrdersOfAllRecords) {
  const TempDir dir;
  dir.write("d", lines(50));
  SampleReader reader(all_records(open(dir.file("d"))), renderer(), {.seed = 9});
  std::vector<std::vector<int64_t>> epochs(3);
  for (auto& epoch : epochs)
    for (int k = 0; k < 50; ++k) epoch.push_back(reader.next()->record);
  for (const auto& epoch : epochs) EXPECT_EQ(std::set<int64_t>(epoch.begin(), epoch.end()).size(), 50u);
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  EXPECT_EQ(reader.cursor(), (DataCursor{2, 50}));

  // A cursor is all it takes to go on.
  for (const DataCursor cursor : {DataCursor{1, 17}, DataCursor{0, 50}, DataCursor{2, 0}}) {
    SampleReader resumed(all_records(open(dir.file("d"))), renderer(), {.seed = 9});
    resumed.seek(cursor);
    const auto at = static_cast<size_t>(cursor.epoch * 50 + cursor.index);
    for (size_t k = at; k < std::min<size_t>(at + 40, 150); ++k)
      ASSERT_EQ(resumed.next()->record, epochs[k / 50][k % 50]);
  }
  SampleReader ordered(all_records(open(dir.file("d"))), renderer(), {.shuffle = false});
  for (int64_t k = 0; k < 120; ++k) EXPECT_EQ(ordered.next()->record, k % 50);
}

TEST(SampleReader, BadRecordsFailOrAreCounted) {
  const TempDir dir;
  dir.write("d", lines(4) + "{\"text\": 5}\nnot JSON\n" + lines(2));
  const auto file = open(dir.file("d"));
  SampleReader strict(all_records(file), renderer(), {.shuffle = false});
  for (int k = 0; k < 4; ++k) EXPECT_TRUE(strict.next().ok());
  EXPECT_THAT(strict.next().status().message(), HasSubstr("d:5: \"text\" must be a string"));
  EXPECT_FALSE(strict.survey().ok());

  SampleReader lax(all_records(file), renderer(), {.shuffle = false, .skip_bad = true});
  const auto survey = lax.survey();
  ASSERT_TRUE(survey.ok());
  EXPECT_EQ(survey->samples, 6);
  EXPECT_EQ(survey->bad, 2);
  EXPECT_THAT(survey->first_bad, HasSubstr("d:5: "));
  for (int64_t k = 0; k < 12; ++k) EXPECT_TRUE(lax.next().ok());
  EXPECT_EQ(lax.cursor(), (DataCursor{1, 8}));
  EXPECT_EQ(lax.counts().bad, 4);
  EXPECT_EQ(lax.counts().tokens, 2 * survey->tokens);

  // Data that changes is never skipped.
  std::ofstream(dir.file("d"), std::ios::app) << "{}\n";
  EXPECT_EQ(lax.next().status().code(), StatusCode::kDataLoss);
}

TEST(SampleReader, LongSamplesAreCounted) {
  const TempDir dir;
  dir.write("d", lines(3) + fmt::format("{{\"text\": \"{}\"}}\n", std::string(100, '7')));
  const auto file = open(dir.file("d"));
  const auto survey = [&](LongSamples policy) {
    return *SampleReader(all_records(file), renderer({.max_length = 20, .long_samples = policy}), {}).survey();
  };
  EXPECT_EQ(survey(LongSamples::kDrop).dropped, 1);
  EXPECT_EQ(survey(LongSamples::kDrop).samples, 3);
  EXPECT_EQ(survey(LongSamples::kTruncate).truncated, 1);
  EXPECT_EQ(survey(LongSamples::kTruncate).longest, 20);
}

TEST(SampleReader, AFileWithoutAnySampleDoesNotSpin) {
  const TempDir dir;
  dir.write("d", lines(3));
  SampleReader reader(all_records(open(dir.file("d"))), renderer({.max_length = 1, .long_samples = LongSamples::kDrop}),
                      {});
  EXPECT_THAT(reader.next().status().message(), HasSubstr("no record gives a sample"));
  EXPECT_THAT(reader.survey().status().message(), HasSubstr("no record gives a sample"));
}

TEST(SampleReader, RecordsAreQuestions) {
  const TempDir dir;
  dir.write("d", R"({"prompt": "1+1=", "completion": "2"})"
                 "\n"
                 R"({"prompt": "1+1=", "completion": "777777777777777777777777777777"})"
                 "\n{\n");
  const RenderOptions options{.max_length = 20, .long_samples = LongSamples::kTruncate};
  const auto file = open(dir.file("d"));
  const auto exercise = [&](int64_t record, bool skip_bad) {
    return SampleReader(all_records(file), renderer(options), {.skip_bad = skip_bad}).exercise(record);
  };
  EXPECT_EQ((*exercise(0, false))->answer, "2");
  EXPECT_GT((*exercise(0, false))->max_tokens, 1);
  EXPECT_EQ(*exercise(1, false), std::nullopt) << "what is cut off is no question";
  EXPECT_THAT(exercise(2, false).status().message(), HasSubstr("d:3: not valid JSON"));
  EXPECT_EQ(*exercise(2, true), std::nullopt);
  dir.write("t", lines(1));
  const auto text = SampleReader(all_records(open(dir.file("t"))), renderer(options), {}).exercise(0);
  EXPECT_THAT(text.status().message(), HasSubstr("t:1: the record has no answer to compare with"));
}

TEST(Surveys, AFileIsReadOnceForAllWhoReadItAlike) {
  const TempDir dir;
  dir.write("d", lines(5));
  const auto file = open(dir.file("d"));
  const auto reader = [&](const RenderOptions& options, uint64_t seed) {
    return SampleReader(all_records(file), renderer(options), {.seed = seed});
  };
  Surveys surveys;
  const auto first = surveys.survey(reader({}, 1));
  const auto steps = surveys.steps_of_epoch(reader({}, 1), 4);
  ASSERT_TRUE(first.ok() && steps.ok());
  EXPECT_EQ(first->samples, 5);
  EXPECT_EQ(*steps, *reader({}, 1).steps_of_epoch(4));
  std::ofstream(dir.file("d"), std::ios::app) << "{}\n";  // who reads it again fails
  EXPECT_EQ(*surveys.survey(reader({}, 2)), *first);
  EXPECT_EQ(*surveys.steps_of_epoch(reader({}, 1), 4), *steps);
  EXPECT_FALSE(surveys.survey(reader({.max_length = 5}, 1)).ok());
  EXPECT_FALSE(surveys.steps_of_epoch(reader({}, 2), 4).ok());
  EXPECT_FALSE(surveys.steps_of_epoch(reader({}, 1), 5).ok());
}

}  // namespace
}  // namespace lk
