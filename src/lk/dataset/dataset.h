// SPDX-License-Identifier: Apache-2.0
// Training data on disk. JsonlFile knows where its records lie and never holds them; SampleReader walks through them in
// an order that seed and epoch decide, so that its whole state is a cursor.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "lk/base/stop.h"
#include "lk/dataset/permutation.h"
#include "lk/dataset/record.h"
#include "lk/dataset/render.h"

namespace lk {

// A JSONL file that stays open: one that is replaced by another is still the old one here, one that is changed in place
// is an error. Lines of white space are no records.
// Thread safety: immutable.
class JsonlFile {
 public:
  // Reads the file once. `format` absent: that of the first record that has one.
  static Result<std::shared_ptr<const JsonlFile>> open(const std::string& path, std::optional<RecordFormat> format = {},
                                                       const AskStop& stop = {});
  ~JsonlFile();
  JsonlFile(const JsonlFile&) = delete;
  JsonlFile& operator=(const JsonlFile&) = delete;

  const std::string& path() const { return path_; }
  RecordFormat format() const { return format_; }
  int64_t num_records() const { return num_records_; }
  const std::string& digest() const { return digest_; }  // SHA-256 of the bytes, in hex

  // "path:line" of a record, for messages. Requires: 0 <= record < num_records().
  std::string where(int64_t record) const;
  // kDataLoss when the file has changed; kResourceExhausted when the line is longer than any record may be.
  Result<std::string> read_line(int64_t record) const;
  Result<Record> read(int64_t record) const;
  // Reads the file again: kDataLoss when its bytes are not those of open() any more.
  Status verify() const;

 private:
  // The offsets of records come in blocks: the first of a block in full, the rest relative to it. They count the bytes
  // of records only, and of those at most kMaxLine: 64 of them fit 32 bits.
  static constexpr int64_t kBlock = 64;
  struct Scan;

  JsonlFile() = default;
  Status index(const AskStop& stop);
  Result<RecordFormat> detect_format() const;
  Status check_unchanged() const;
  int64_t offset(int64_t record) const;  // num_records(): the end of the file
  struct Gap;
  const Gap* gap_before(int64_t record) const;  // null: none

  std::string path_, digest_;
  RecordFormat format_ = RecordFormat::kMessages;
  int fd_ = -1;
  int64_t size_ = 0, mtime_ns_ = 0;
  int64_t num_records_ = 0;
  std::vector<int64_t> block_offsets_;  // of each block's first record
  std::vector<uint32_t> offsets_;       // of each record, from its block's first
  // What offsets_ leave out before this record and all earlier ones, where it grows: blank lines, and what makes a
  // record too long.
  struct Gap {
    int64_t record, num_lines, num_bytes;
  };
  std::vector<Gap> gaps_;
};

// Opens each file once for all who ask.
class JsonlFiles {
 public:
  explicit JsonlFiles(AskStop stop = {}) : stop_(std::move(stop)) {}
  Result<std::shared_ptr<const JsonlFile>> open(const std::string& path, std::optional<RecordFormat> format = {});
  // All of them are still what they were.
  Status verify() const;

 private:
  AskStop stop_;
  std::map<std::pair<std::string, std::optional<RecordFormat>>, std::shared_ptr<const JsonlFile>> files_;
};

// Some records of a file in an order of their own.
struct RecordSubset {
  std::shared_ptr<const JsonlFile> file;
  int64_t begin = 0, size = 0;   // of the order below
  std::optional<uint64_t> seed;  // absent: as in the file

  int64_t record(int64_t index) const {
    return seed ? Permutation(*seed, file->num_records())(begin + index) : begin + index;
  }
};
RecordSubset all_records(std::shared_ptr<const JsonlFile> file);
// A random share of the records for evaluation and the rest for training; equal seeds give equal shares. Both have at
// least one record, or it is an error.
struct TrainEvalSplit {
  RecordSubset train, eval;
};
Result<TrainEvalSplit> split_records(std::shared_ptr<const JsonlFile> file, double eval_share, uint64_t seed);

struct DataCursor {
  int64_t epoch = 0;
  int64_t index = 0;  // of the next record in the epoch's order
  bool operator==(const DataCursor&) const = default;
};

struct DataCounts {
  int64_t samples = 0, tokens = 0, loss_tokens = 0;
  int64_t truncated = 0, dropped = 0;  // dropped: too long, or nothing to learn left after truncation
  int64_t bad = 0;                     // skipped because of skip_bad
  std::string first_bad;               // why
  int64_t longest = 0;                 // tokens of a sample, as given out
  int64_t endless = 0;                 // whose answer ends with a token behind which no server stops
  bool operator==(const DataCounts&) const = default;
};

class SampleReader {
 public:
  struct Options {
    bool shuffle = true;
    uint64_t seed = 0;
    bool skip_bad = false;
  };
  SampleReader(RecordSubset records, std::shared_ptr<const Renderer> renderer, const Options& options)
      : records_(std::move(records)), renderer_(std::move(renderer)), options_(options) {}

  // The next sample, of the next epoch if need be. An error if a whole epoch gives none.
  Result<Sample> next();
  // Nothing at the end of the epoch; the next call begins the next one.
  Result<std::optional<Sample>> next_in_epoch();

  const DataCursor& cursor() const { return cursor_; }
  void seek(const DataCursor& cursor) { cursor_ = cursor; }
  int64_t num_records() const { return records_.size; }
  const DataCounts& counts() const { return counts_; }  // since construction
  const RecordSubset& records() const { return records_; }
  const Renderer& renderer() const { return *renderer_; }

  // What one epoch holds, at least one sample; reads and renders every record, and leaves cursor and counts alone. So a
  // bad record is found before anything is trained.
  Result<DataCounts> survey(const AskStop& stop = {}) const;
  // Steps of the next epoch, if each takes samples until it has so many tokens.
  Result<int64_t> steps_of_epoch(int64_t batch_tokens, const AskStop& stop = {}) const;

  // Record `index` of those read, as a question to a model. Nothing: skipped, dropped or truncated. An error if it has
  // no answer to compare with.
  Result<std::optional<Exercise>> exercise(int64_t index) const;

  const Options& options() const { return options_; }

 private:
  // Nothing: dropped or skipped, and counted.
  Result<std::optional<Sample>> render(int64_t record);
  Status no_samples() const;

  RecordSubset records_;
  std::shared_ptr<const Renderer> renderer_;
  Options options_;
  DataCursor cursor_;
  DataCounts counts_;
};

// What readers find in an epoch, found once for all that read the same records in the same way: the jobs of a sweep.
class Surveys {
 public:
  explicit Surveys(AskStop stop = {}) : stop_(std::move(stop)) {}
  Result<DataCounts> survey(const SampleReader& reader);
  Result<int64_t> steps_of_epoch(const SampleReader& reader, int64_t batch_tokens);

 private:
  struct Reading {
    const JsonlFile* file;  // which the caller keeps open
    int64_t begin, size;
    std::optional<uint64_t> seed;
    RenderOptions render;
    bool skip_bad;
    auto operator<=>(const Reading&) const = default;
  };
  static Reading reading_of(const SampleReader& reader);

  AskStop stop_;
  std::map<Reading, DataCounts> counts_;
  std::map<std::tuple<Reading, bool, uint64_t, int64_t>, int64_t> steps_;
};

}  // namespace lk
