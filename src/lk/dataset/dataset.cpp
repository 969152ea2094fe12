// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/dataset.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string_view>

#include "lk/base/sha256.h"

namespace lk {
namespace {

constexpr int64_t kMaxLine = int64_t{32} << 20;  // 64 of them, and a line break each, fit 32-bit offsets
constexpr size_t kPiece = size_t{1} << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

Status errno_status(const char* verb, const std::string& path) {
  const StatusCode code = errno == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError;
  return Status(code, fmt::format("cannot {} {}: {}", verb, path, std::strerror(errno)));
}

int64_t nanoseconds(const timespec& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; }

// All bytes of an open file, piece by piece.
Status read_through(int fd, const std::string& path, const std::function<Status(std::string_view)>& on_bytes) {
  std::string piece(kPiece, '\0');
  for (int64_t done = 0;;) {
    const ssize_t got = ::pread(fd, piece.data(), piece.size(), done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status("read", path);
    if (got == 0) return Status();
    LK_RETURN_IF_ERROR(on_bytes(std::string_view(piece).substr(0, static_cast<size_t>(got))));
    done += got;
  }
}

std::string hex_of(Sha256& sha) { return to_hex(sha.finish()); }

}  // namespace

// Finds the lines of bytes that come piece by piece.
struct JsonlFile::Scan {
  JsonlFile& file;
  int64_t position = 0;    // of the next byte
  int64_t line_begin = 0;  // of the line it is in
  bool blank = true;
  int64_t num_blank = 0, left_out = 0;  // lines and bytes, so far

  void bytes(std::string_view piece) {
    for (size_t at = 0; at < piece.size();) {
      const size_t end = std::min(piece.find('\n', at), piece.size());
      const std::string_view part = piece.substr(at, end - at);
      blank = blank && part.find_first_not_of(" \t\r") == std::string_view::npos;
      position += static_cast<int64_t>(part.size());
      if (end == piece.size()) break;
      ++position;
      end_line();
      at = end + 1;
    }
  }
  void end_line() {
    const int64_t length = position - line_begin;
    if (blank) {
      num_blank += length > 0 ? 1 : 0;  // not what follows a last line break
      left_out += length;
    } else {
      const int64_t counted = line_begin - left_out;
      if (file.num_records_ % kBlock == 0) file.block_offsets_.push_back(counted);
      if (left_out > (file.gaps_.empty() ? 0 : file.gaps_.back().num_bytes))
        file.gaps_.push_back({file.num_records_, num_blank, left_out});
      file.offsets_.push_back(static_cast<uint32_t>(counted - file.block_offsets_.back()));
      ++file.num_records_;
      left_out += std::max<int64_t>(length - kMaxLine - 1, 0);
    }
    line_begin = position;
    blank = true;
  }
};

Result<std::shared_ptr<const JsonlFile>> JsonlFile::open(const std::string& path, std::optional<RecordFormat> format,
                                                         const AskStop& stop) {
  std::shared_ptr<JsonlFile> file(new JsonlFile());
  file->path_ = path;
  file->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe is refused, not waited for
  if (file->fd_ < 0) return errno_status("open", path);
  LK_RETURN_IF_ERROR(file->index(stop));
  if (file->num_records_ == 0) return invalid_argument("{} has no records; write one JSON object per line", path);
  if (!format) {
    LK_ASSIGN_OR_RETURN(format, file->detect_format());
  }
  file->format_ = *format;
  return std::shared_ptr<const JsonlFile>(std::move(file));
}

// That of the first record that has one: whether bad ones may stand before it is for the reader to say.
Result<RecordFormat> JsonlFile::detect_format() const {
  constexpr int64_t kMaxTried = 1000;
  Status first;
  for (int64_t record = 0; record < std::min(num_records_, kMaxTried); ++record) {
    const Result<std::string> line = read_line(record);
    const Result<RecordFormat> format =
        line.ok() ? detect_record_format(*line, where(record)) : Result<RecordFormat>(line.status());
    if (format.ok()) return format;
    if (record == 0) first = format.status();
  }
  return first;
}

JsonlFile::~JsonlFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status JsonlFile::index(const AskStop& stop) {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return errno_status("stat", path_);
  if (!S_ISREG(info.st_mode)) return invalid_argument("{} is not a regular file", path_);
  size_ = info.st_size, mtime_ns_ = nanoseconds(info.st_mtim);
  Sha256 sha;
  Scan scan{.file = *this};
  LK_RETURN_IF_ERROR(read_through(fd_, path_, [&](std::string_view piece) {
    sha.update(piece.data(), piece.size());
    scan.bytes(piece);
    return check_stop(stop);
  }));
  scan.end_line();  // a last line without a line break
  offsets_.shrink_to_fit();
  digest_ = hex_of(sha);
  if (scan.position != size_) return data_loss("{} was written to while it was read; try again", path_);
  return check_unchanged();
}

Status JsonlFile::check_unchanged() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return errno_status("stat", path_);
  if (info.st_size == size_ && nanoseconds(info.st_mtim) == mtime_ns_) return Status();
  return data_loss("{} has changed since it was opened; training data must stay as it is, so start again", path_);
}

const JsonlFile::Gap* JsonlFile::gap_before(int64_t record) const {
  const auto after = std::upper_bound(gaps_.begin(), gaps_.end(), record,
                                      [](int64_t wanted, const Gap& gap) { return wanted < gap.record; });
  return after == gaps_.begin() ? nullptr : &*std::prev(after);
}

int64_t JsonlFile::offset(int64_t record) const {
  if (record == num_records_) return size_;
  const Gap* gap = gap_before(record);
  return block_offsets_[static_cast<size_t>(record / kBlock)] + offsets_[static_cast<size_t>(record)] +
         (gap ? gap->num_bytes : 0);
}

Result<std::string> JsonlFile::read_line(int64_t record) const {
  const int64_t begin = offset(record);
  // Blank lines may follow, or the rest of a line that is too long.
  std::string line(static_cast<size_t>(std::min(offset(record + 1) - begin, kMaxLine + 1)), '\0');
  for (size_t done = 0; done < line.size();) {
    const ssize_t got = ::pread(fd_, line.data() + done, line.size() - done, begin + static_cast<int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status("read", path_);
    if (got == 0) break;  // became shorter, which is found below
    done += static_cast<size_t>(got);
  }
  LK_RETURN_IF_ERROR(check_unchanged());
  line.resize(std::min(line.find('\n'), line.size()));
  if (static_cast<int64_t>(line.size()) > kMaxLine)
    return resource_exhausted("{}: the line is longer than {} bytes; shorten or split the record", where(record),
                              kMaxLine);
  if (record == 0 && line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
  return line;
}

std::string JsonlFile::where(int64_t record) const {
  const Gap* gap = gap_before(record);
  return fmt::format("{}:{}", path_, record + 1 + (gap ? gap->num_lines : 0));
}

Result<Record> JsonlFile::read(int64_t record) const {
  LK_ASSIGN_OR_RETURN(const std::string line, read_line(record));
  return parse_record(line, format_, where(record));
}

Status JsonlFile::verify() const {
  LK_RETURN_IF_ERROR(check_unchanged());
  Sha256 sha;
  LK_RETURN_IF_ERROR(read_through(fd_, path_, [&](std::string_view piece) {
    sha.update(piece.data(), piece.size());
    return Status();
  }));
  if (hex_of(sha) == digest_) return Status();
  return data_loss(
      "{} has changed since it was opened: its SHA-256 is not {} any more; what was learnt from it since "
      "is in doubt, so start again",
      path_, digest_);
}

Result<std::shared_ptr<const JsonlFile>> JsonlFiles::open(const std::string& path, std::optional<RecordFormat> format) {
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::canonical(path, error);
  auto& file = files_[{error ? path : canonical.string(), format}];
  if (file == nullptr) {
    Result<std::shared_ptr<const JsonlFile>> opened = JsonlFile::open(path, format, stop_);
    if (!opened.ok()) return opened.status();
    file = std::move(opened).value();
  }
  return file;
}

Status JsonlFiles::verify() const {
  for (const auto& [key, file] : files_)
    if (file != nullptr) LK_RETURN_IF_ERROR(file->verify());
  return Status();
}

RecordSubset all_records(std::shared_ptr<const JsonlFile> file) {
  const int64_t size = file->num_records();
  return {.file = std::move(file), .begin = 0, .size = size, .seed = {}};
}

Result<TrainEvalSplit> split_records(std::shared_ptr<const JsonlFile> file, double eval_share, uint64_t seed) {
  const int64_t size = file->num_records();
  const int64_t num_eval = std::llround(static_cast<double>(size) * eval_share);
  if (num_eval < 1 || num_eval >= size)
    return invalid_argument(
        "{}: a share of {} of {} records leaves {} for evaluation and {} for training; give a file of its own for "
        "evaluation, or another share",
        file->path(), eval_share, size, num_eval, size - num_eval);
  return TrainEvalSplit{.train = {.file = file, .begin = num_eval, .size = size - num_eval, .seed = seed},
                        .eval = {.file = file, .begin = 0, .size = num_eval, .seed = seed}};
}

Result<std::optional<Sample>> SampleReader::render(int64_t record) {
  const JsonlFile& file = *records_.file;
  const Result<std::string> line = file.read_line(record);
  // All else that fails here is not a matter of the record: never skipped.
  if (!line.ok() && line.status().code() != StatusCode::kResourceExhausted) return line.status();
  const std::string where = file.where(record);
  Result<Record> parsed = line.ok() ? parse_record(*line, file.format(), where) : Result<Record>(line.status());
  Result<std::optional<Sample>> sample =
      parsed.ok() ? renderer_->render(*parsed, where) : Result<std::optional<Sample>>(parsed.status());
  if (!sample.ok()) {
    if (!options_.skip_bad) return sample.status();
    if (counts_.bad++ == 0) counts_.first_bad = sample.status().message();
    return std::optional<Sample>();
  }
  if (!sample->has_value()) return ++counts_.dropped, std::optional<Sample>();
  Sample& found = **sample;
  found.record = record;
  ++counts_.samples;
  counts_.truncated += found.truncated ? 1 : 0;
  counts_.tokens += static_cast<int64_t>(found.ids.size());
  counts_.loss_tokens += std::count_if(found.weights.begin(), found.weights.end(), [](float w) { return w != 0; });
  counts_.endless += renderer_->ends_answer(found) ? 0 : 1;
  counts_.longest = std::max(counts_.longest, static_cast<int64_t>(found.ids.size()));
  return sample;
}

Result<std::optional<Sample>> SampleReader::next_in_epoch() {
  while (cursor_.index < records_.size) {
    const Permutation order(mix64(options_.seed) ^ static_cast<uint64_t>(cursor_.epoch), records_.size);
    const int64_t record = records_.record(options_.shuffle ? order(cursor_.index) : cursor_.index);
    LK_ASSIGN_OR_RETURN(std::optional<Sample> sample, render(record));
    ++cursor_.index;  // a failed read may be tried again
    if (sample) return sample;
  }
  cursor_ = {.epoch = cursor_.epoch + 1, .index = 0};
  return std::optional<Sample>();
}

Status SampleReader::no_samples() const {
  return failed_precondition("{}: no record gives a sample: {} of {} are bad, {} were dropped as too long{}",
                             records_.file->path(), counts_.bad, counts_.bad + counts_.dropped, counts_.dropped,
                             counts_.first_bad.empty() ? "" : "; the first bad one: " + counts_.first_bad);
}

Result<Sample> SampleReader::next() {
  // What is left of this epoch, and one whole one.
  for (int epochs = 0; epochs < 2; ++epochs) {
    LK_ASSIGN_OR_RETURN(std::optional<Sample> sample, next_in_epoch());
    if (sample) return std::move(*sample);
  }
  return no_samples();
}

Result<DataCounts> SampleReader::survey(const AskStop& stop) const {
  SampleReader reader(records_, renderer_, {.shuffle = false, .seed = 0, .skip_bad = options_.skip_bad});
  while (true) {
    LK_ASSIGN_OR_RETURN(const std::optional<Sample> sample, reader.next_in_epoch());
    LK_RETURN_IF_ERROR(check_stop(stop));
    if (sample) continue;
    if (reader.counts_.samples == 0) return reader.no_samples();
    return reader.counts_;
  }
}

Result<int64_t> SampleReader::steps_of_epoch(int64_t batch_tokens, const AskStop& stop) const {
  SampleReader reader = *this;
  int64_t steps = 0, tokens = 0;
  for (;;) {
    LK_ASSIGN_OR_RETURN(const std::optional<Sample> sample, reader.next_in_epoch());
    LK_RETURN_IF_ERROR(check_stop(stop));
    if (!sample) return steps + (tokens > 0 ? 1 : 0);
    tokens += static_cast<int64_t>(sample->ids.size());
    if (tokens < batch_tokens) continue;
    ++steps;
    tokens = 0;
  }
}

Result<std::optional<Exercise>> SampleReader::exercise(int64_t index) const {
  const int64_t number = records_.record(index);
  const std::string where = records_.file->where(number);
  SampleReader reader = *this;  // whose counts nobody reads
  LK_ASSIGN_OR_RETURN(const std::optional<Sample> sample, reader.render(number));
  if (!sample || sample->truncated) return std::optional<Exercise>();
  LK_ASSIGN_OR_RETURN(const Record record, records_.file->read(number));
  LK_ASSIGN_OR_RETURN(Exercise exercise, renderer_->exercise(record, where));
  return std::optional<Exercise>(std::move(exercise));
}

Surveys::Reading Surveys::reading_of(const SampleReader& reader) {
  const RecordSubset& records = reader.records();
  return {.file = records.file.get(),
          .begin = records.begin,
          .size = records.size,
          .seed = records.seed,
          .render = reader.renderer().options(),
          .skip_bad = reader.options().skip_bad};
}

Result<DataCounts> Surveys::survey(const SampleReader& reader) {
  const Reading reading = reading_of(reader);
  if (const auto known = counts_.find(reading); known != counts_.end()) return known->second;
  LK_ASSIGN_OR_RETURN(DataCounts counts, reader.survey(stop_));
  return counts_.emplace(reading, std::move(counts)).first->second;
}

Result<int64_t> Surveys::steps_of_epoch(const SampleReader& reader, int64_t batch_tokens) {
  const std::tuple key(reading_of(reader), reader.options().shuffle, reader.options().seed, batch_tokens);
  if (const auto known = steps_.find(key); known != steps_.end()) return known->second;
  LK_ASSIGN_OR_RETURN(const int64_t steps, reader.steps_of_epoch(batch_tokens, stop_));
  return steps_.emplace(key, steps).first->second;
}

}  // namespace lk
