// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/batch/batch.h"

#include <sys/stat.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <unordered_set>
#include <utility>

#include "lk/base/line_reader.h"
#include "lk/base/sha256.h"
#include "lk/base/thread_name.h"
#include "lk/serve/batch/batch_line.h"
#include "lk/serve/batch/batch_output.h"

namespace lk {
namespace {

using Digest = std::array<uint8_t, 16>;
struct DigestHash {
  size_t operator()(const Digest& digest) const {
    size_t hash;
    std::memcpy(&hash, digest.data(), sizeof hash);
    return hash;
  }
};
using Digests = std::unordered_set<Digest, DigestHash>;

constexpr std::string_view kIdPrefix = "batch_req_";
// What was answered is on the disk within about this time.
constexpr std::chrono::milliseconds kSyncInterval{1000}, kProgressInterval{100};
// A server of its own refuses for a moment only, while others are read or their grammars compiled; an adapter that
// cannot be loaded is tried a few times.
constexpr int kMostAttempts = 1000, kMostLoads = 3;

Digest digest_of(std::initializer_list<std::string_view> parts) {
  Sha256 sha;
  for (const std::string_view part : parts) {
    const uint64_t size = part.size();
    sha.update(&size, sizeof size);
    sha.update(part.data(), part.size());
  }
  const auto whole = sha.finish();
  Digest digest;
  std::copy_n(whole.begin(), digest.size(), digest.begin());
  return digest;
}

std::optional<Digest> digest_from(std::string_view id) {
  Digest digest;
  if (!id.starts_with(kIdPrefix) || id.size() != kIdPrefix.size() + 2 * digest.size()) return std::nullopt;
  id.remove_prefix(kIdPrefix.size());
  const auto value = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (size_t i = 0; i < digest.size(); ++i) {
    const int high = value(id[2 * i]), low = value(id[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    digest[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return digest;
}

struct Request {
  std::string id, custom_id, url, body;
  int attempts = 0;
};

struct Line {
  std::string text;
  bool failed = false;
};

class BatchImpl final : public Batch {
 public:
  BatchImpl(BatchOptions options, LineReader input) : options_(std::move(options)), input_(std::move(input)) {}

  Status open_outputs() {
    const auto found = [this](std::string_view line) {
      if (const std::optional<Digest> digest = digest_from(batch_id_of(line))) done_.insert(*digest);
    };
    for (const std::string& path : {options_.output, options_.errors}) {
      if (path.empty()) continue;
      if (input_.is_same_file(path)) return invalid_argument("{} would be written over its own input", path);
      LK_ASSIGN_OR_RETURN(BatchOutput output, BatchOutput::open(path, found));
      (output_ ? errors_ : output_).emplace(std::move(output));
    }
    return Status();
  }

  Result<BatchProgress> run(Server& server, const std::string& base) override;

 private:
  using Clock = std::chrono::steady_clock;
  bool stopped() const { return options_.stop != nullptr && *options_.stop != 0; }
  Status feed(Server& server, const std::string& base);
  void take(Server& server, const std::string& base, const LineReader::Line& line);
  void send(Server& server, const std::shared_ptr<Request>& request);
  void answered(const std::shared_ptr<Request>& request, HttpResponse response);
  void write_all(Server& server);
  Status write(const std::deque<Line>& lines);

  const BatchOptions options_;
  LineReader input_;
  std::optional<BatchOutput> output_, errors_;
  Digests done_;        // results that were there
  Digests custom_ids_;  // of the lines so far
  std::set<std::string> ignored_;
  bool any_ = false;  // a line that is not blank

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Line> to_write_;
  std::vector<std::pair<Clock::time_point, std::shared_ptr<Request>>> again_;  // to be sent again, and when
  BatchProgress progress_;
  int64_t bytes_under_way_ = 0;
  bool ended_ = false;  // nothing more will be written
  Status failure_;      // of writing
};

Status BatchImpl::feed(Server& server, const std::string& base) {
  while (!stopped()) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(200), [&] {
        return !failure_.ok() ||
               (progress_.under_way < options_.max_under_way && bytes_under_way_ < options_.max_bytes_under_way);
      });
      if (!failure_.ok()) return Status();
      if (progress_.under_way >= options_.max_under_way || bytes_under_way_ >= options_.max_bytes_under_way) continue;
    }
    Result<std::optional<LineReader::Line>> line = input_.next(options_.stop);
    if (!line.ok()) return line.status().code() == StatusCode::kCancelled ? Status() : line.status();
    if (!*line) return Status();
    if (!(*line)->too_long && (*line)->text.find_first_not_of(" \t\r") == std::string::npos) continue;
    any_ = true;
    take(server, base, **line);
  }
  return Status();
}

void BatchImpl::take(Server& server, const std::string& base, const LineReader::Line& line) {
  BatchLine parsed = parse_batch_line(line);
  if (!parsed.error && !custom_ids_.insert(digest_of({parsed.custom_id})).second)
    parsed.error = BatchError{"duplicate_custom_id",
                              fmt::format("The custom_id '{}' for this request is a duplicate of another request. The "
                                          "custom_id parameter must be unique for each request in a batch.",
                                          parsed.custom_id),
                              "custom_id"};
  for (const std::string& name : parsed.ignored)
    if (ignored_.size() < 64 && ignored_.insert(name).second && options_.on_ignored)
      options_.on_ignored(line.number, name);
  // A request is known by all of its line, wherever it stands; one that is none by its place, too.
  const Digest digest =
      parsed.error ? digest_of({base, line.text, std::to_string(line.number)}) : digest_of({base, line.text});
  const std::string id = fmt::format("{}{}", kIdPrefix, to_hex(digest));
  if (done_.contains(digest)) {
    const std::lock_guard lock(mutex_);
    ++progress_.before;
    progress_.bytes_read = input_.bytes_read();
    return;
  }
  std::shared_ptr<Request> request;
  {
    const std::lock_guard lock(mutex_);
    progress_.bytes_read = input_.bytes_read();
    if (parsed.error) {
      to_write_.push_back({format_batch_error(id, parsed.custom_id, line.number, *parsed.error), true});
    } else {
      request = std::make_shared<Request>(
          Request{id, std::move(parsed.custom_id), std::move(parsed.url), std::move(parsed.body)});
      ++progress_.under_way;
      bytes_under_way_ += std::ssize(request->body);
    }
  }
  changed_.notify_all();
  if (request) send(server, request);
}

void BatchImpl::send(Server& server, const std::shared_ptr<Request>& request) {
  HttpRequest http{
      .method = "POST",
      .target = request->url,
      .path = request->url,
      .headers = {{"content-type", "application/json"}, {"x-request-id", request->id.substr(kIdPrefix.size())}},
      .body = request->body};
  ++request->attempts;
  server.ask(std::move(http), [this, request](HttpResponse response) { answered(request, std::move(response)); });
}

// On an io thread.
void BatchImpl::answered(const std::shared_ptr<Request>& request, HttpResponse response) {
  if (stopped()) return;  // it may say that the server ends
  if (response.status == 429 || response.status == 503) {
    const bool loads = response.body.find("\"adapter_unavailable\"") != std::string::npos;
    const bool gives_up = request->attempts >= (loads ? kMostLoads : kMostAttempts);
    for (const auto& [name, value] : response.headers) {
      if (name != "retry-after" || gives_up) continue;
      const std::lock_guard lock(mutex_);
      again_.emplace_back(Clock::now() + std::chrono::seconds(std::clamp(std::atoi(value.c_str()), 1, 60)), request);
      return;
    }
  }
  Line line{format_batch_answer(request->id, request->custom_id, response.status,
                                std::string_view(request->id).substr(kIdPrefix.size()), response.body),
            response.status != 200};
  {
    const std::lock_guard lock(mutex_);
    to_write_.push_back(std::move(line));
    --progress_.under_way;
    bytes_under_way_ -= std::ssize(request->body);
  }
  changed_.notify_all();
}

Status BatchImpl::write(const std::deque<Line>& lines) {
  for (const Line& line : lines) {
    BatchOutput& output = line.failed && errors_ ? *errors_ : *output_;
    LK_RETURN_IF_ERROR(output.append(line.text + "\n"));
  }
  return Status();
}

// A thread of its own: neither the input nor the answers wait for the disk.
void BatchImpl::write_all(Server& server) {
  set_thread_name("lk-batch");
  Clock::time_point synced = Clock::now(), shown{};
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait_for(lock, kProgressInterval, [&] { return ended_ || !to_write_.empty(); });
    const std::deque<Line> lines = std::exchange(to_write_, {});
    const bool last = ended_ && lines.empty();
    std::vector<std::shared_ptr<Request>> due;
    std::erase_if(again_, [&](const auto& entry) {
      if (entry.first > Clock::now()) return false;
      due.push_back(entry.second);
      return true;
    });
    lock.unlock();
    if (!stopped())
      for (const auto& request : due) send(server, request);
    Status status = write(lines);
    const Clock::time_point now = Clock::now();
    if (status.ok() && (last || now - synced >= kSyncInterval)) {
      for (std::optional<BatchOutput>* output : {&output_, &errors_})
        if (*output && status.ok()) status = (*output)->sync();
      synced = Clock::now();
    }
    lock.lock();
    for (const Line& line : lines) ++(line.failed ? progress_.failed : progress_.answered);
    if (!status.ok() && failure_.ok()) failure_ = status;
    if (options_.on_progress && (last || now - shown >= kProgressInterval)) {
      const BatchProgress progress = progress_;
      lock.unlock();
      options_.on_progress(progress);
      lock.lock();
      shown = now;
    }
    if (last || !failure_.ok()) {
      changed_.notify_all();
      return;
    }
  }
}

Result<BatchProgress> BatchImpl::run(Server& server, const std::string& base) {
  progress_.file_bytes = input_.file_bytes();
  std::thread writer([&] { write_all(server); });
  const Status read = feed(server, base);
  {
    std::unique_lock lock(mutex_);
    while (progress_.under_way > 0 && failure_.ok() && !stopped())
      changed_.wait_for(lock, std::chrono::milliseconds(200));
    ended_ = true;
  }
  changed_.notify_all();
  writer.join();
  const std::lock_guard lock(mutex_);
  LK_RETURN_IF_ERROR(failure_);
  LK_RETURN_IF_ERROR(read);
  if (stopped()) return Status(StatusCode::kCancelled, "interrupted");
  if (!any_)
    return invalid_argument("{} is empty: a batch has at least one request",
                            options_.input == "-" ? "standard input" : options_.input);
  // The file that people wait for comes last.
  if (errors_) LK_RETURN_IF_ERROR(errors_->commit());
  LK_RETURN_IF_ERROR(output_->commit());
  return progress_;
}

}  // namespace

Result<std::unique_ptr<Batch>> Batch::open(BatchOptions options) {
  LK_ASSIGN_OR_RETURN(LineReader input, LineReader::open(options.input, options.max_line));
  if (input.file_bytes() == 0) return invalid_argument("{} is empty: a batch has at least one request", options.input);
  if (!options.errors.empty() && options.errors == options.output)
    return invalid_argument("results and errors cannot both go to {}", options.output);
  auto batch = std::make_unique<BatchImpl>(std::move(options), std::move(input));
  LK_RETURN_IF_ERROR(batch->open_outputs());
  return std::unique_ptr<Batch>(std::move(batch));
}

}  // namespace lk
