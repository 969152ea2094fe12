// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/adapter_fetcher.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/sha256.h"
#include "lk/net/pending_answer.h"

namespace lk {
namespace {

bool contains(const std::vector<std::string>& list, const std::string& value) {
  return std::ranges::find(list, value) != list.end();
}

}  // namespace

// A file that is being brought.
struct AdapterFetcher::Partial {
  const AdapterRecord::File* file = nullptr;
  std::string path;
  int64_t have = 0;
  Sha256 hash;         // of what there is
  std::string source;  // who gave all of it; "" = several
  bool complete = false;

  // Of all of it. Once: restart(), if not.
  bool matches() { return to_hex(hash.finish()) == file->sha256; }
  Status restart() {
    have = 0;
    hash = Sha256();
    source.clear();
    if (::truncate(path.c_str(), 0) != 0 && errno != ENOENT)
      return io_error("cannot write {}: {}", path, std::strerror(errno));
    return Status();
  }
  Status append(std::string_view bytes) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return io_error("cannot write {}: {}", path, std::strerror(errno));
    Status status;
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t put = ::pwrite(fd, bytes.data() + done, bytes.size() - done, have + static_cast<int64_t>(done));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) {
        status = io_error("cannot write {}: {}", path, std::strerror(errno));
        break;
      }
      done += static_cast<size_t>(put);
    }
    ::close(fd);
    if (!status.ok()) return status;
    hash.update(bytes.data(), bytes.size());
    have += static_cast<int64_t>(bytes.size());
    return Status();
  }
};

Result<std::unique_ptr<AdapterFetcher>> AdapterFetcher::create(const Options& options, AdapterCache& cache,
                                                               Holders holders) {
  std::unique_ptr<AdapterFetcher> self(new AdapterFetcher(options, cache, std::move(holders)));
  LK_ASSIGN_OR_RETURN(self->http_,
                      HttpClient::create({.tls_ca = options.tls_ca, .connect_timeout = std::chrono::seconds(2)}));
  self->workshop_ = std::make_unique<Workshop>(
      std::vector<Workshop::Bench>{{.name = "lk-fetch", .num_threads = options.num_threads}});
  return Result<std::unique_ptr<AdapterFetcher>>(std::move(self));
}

void AdapterFetcher::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopped_.notify_all();
  http_.reset();  // whoever waits for an answer has one
  workshop_.reset();
  for (const auto& [content, callbacks] : std::exchange(waiting_, {}))
    for (const auto& callback : callbacks) callback(cancelled("the server is shutting down"));
}

AdapterFetcher::Stats AdapterFetcher::stats() const {
  std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.waiting = std::ssize(waiting_);
  return stats;
}

void AdapterFetcher::fetch(const AdapterRecord& record, std::function<void(const Status&)> done) {
  const std::string content = record.content();
  if (cache_.has(content)) return done(Status());
  {
    std::lock_guard lock(mutex_);
    if (!stopping_) {
      auto& callbacks = waiting_[content];
      callbacks.push_back(std::move(done));
      if (callbacks.size() == 1)
        workshop_->submit(0, [this, record](const std::stop_token& stop) {
          run(record, stop);
          return Workshop::Finish();
        });
      return;
    }
  }
  done(cancelled("the server is shutting down"));
}

void AdapterFetcher::run(const AdapterRecord& record, const std::stop_token& stop) {
  const std::string content = record.content();
  Status status;
  const Status thrown =
      guarded("an adapter's transfer", [&] { status = cache_.has(content) ? Status() : bring(record, stop); });
  if (!thrown.ok()) status = thrown;
  std::vector<std::function<void(const Status&)>> callbacks;
  {
    std::lock_guard lock(mutex_);
    ++(status.ok() ? stats_.fetched : stats_.failed);
    const auto waiting = waiting_.find(content);
    callbacks = std::move(waiting->second);
    waiting_.erase(waiting);
  }
  for (const auto& callback : callbacks) callback(status);
}

Status AdapterFetcher::bring(const AdapterRecord& record, const std::stop_token& stop) {
  for (const AdapterRecord::File& file : record.files)
    if (!is_possible(file))
      return data_loss("{}: {} bytes cannot have the SHA-256 {}", file.name, file.bytes, file.sha256);
  LK_ASSIGN_OR_RETURN(const std::string directory, cache_.begin(record));
  std::vector<Partial> partials(record.files.size());
  for (size_t i = 0; i < partials.size(); ++i) {
    partials[i].file = &record.files[i];
    partials[i].path = join_path(directory, record.files[i].name);
  }
  std::vector<std::string> shunned;
  Status last = unavailable("no other replica is known");
  auto pause = options_.first_pause;
  for (int round = 0; round < options_.rounds && !stop.stop_requested(); ++round, pause *= 2) {
    std::unique_lock lock(mutex_);
    if (round > 0 && stopped_.wait_for(lock, pause, [this] { return stopping_; })) break;
    lock.unlock();
    std::vector<std::string> urls = holders_(record);
    std::erase_if(urls, [&](const std::string& url) { return contains(shunned, url); });
    Status status = urls.empty() ? last : Status();
    for (Partial& partial : partials)
      if (status.ok() && !partial.complete) status = bring_file(partial, urls, shunned, stop);
    if (status.ok()) return cache_.finish(record);
    last = std::move(status);
    if (last.code() == StatusCode::kIoError || last.code() == StatusCode::kCancelled) break;  // this disk's; the end
  }
  cache_.abandon(record);
  return last;
}

// What one holder gives, from where the last one broke off.
Status AdapterFetcher::bring_pieces(Partial& partial, const std::string& url, const std::stop_token& stop) {
  while (partial.have < partial.file->bytes) {
    if (stop.stop_requested()) return cancelled("the server is shutting down");
    Result<std::string> piece = get(url, *partial.file, partial.have);
    if (!piece.ok()) return piece.status().with_context(fmt::format("{} from {}", partial.file->name, url));
    partial.source = partial.have == 0 || partial.source == url ? url : "";
    LK_RETURN_IF_ERROR(partial.append(*piece));
    std::lock_guard lock(mutex_);
    stats_.bytes += std::ssize(*piece);
  }
  return Status();
}

// Asks one after the other, each for as long as it gives pieces, and none of them more than twice. Who fails leaves
// `urls`: in this round it is not asked for the other files either.
Status AdapterFetcher::bring_file(Partial& partial, std::vector<std::string>& urls, std::vector<std::string>& shunned,
                                  const std::stop_token& stop) {
  const AdapterRecord::File& file = *partial.file;
  if (file.bytes == 0) {  // there is nothing to ask for
    partial.complete = true;
    return partial.append("");
  }
  Status last = unavailable("no replica has {}", file.name);
  for (const std::string& url : std::vector<std::string>(urls))
    for (bool again = true; std::exchange(again, false) && !contains(shunned, url);) {
      if (const Status brought = bring_pieces(partial, url, stop); !brought.ok()) {
        last = brought;
        std::erase(urls, url);
        if (last.code() == StatusCode::kIoError || last.code() == StatusCode::kCancelled) return last;
        if (last.code() == StatusCode::kDeadlineExceeded || last.code() == StatusCode::kDataLoss)
          shunned.push_back(url);
        continue;
      }
      if (partial.matches()) {
        partial.complete = true;
        return Status();
      }
      last = data_loss("{}: what {} sent is something else", file.name, url);
      if (!partial.source.empty()) {
        shunned.push_back(partial.source);
        std::lock_guard lock(mutex_);
        ++stats_.wrong;
      } else {
        again = true;  // of several, any may have sent it: this one gives all of it by itself
      }
      LK_RETURN_IF_ERROR(partial.restart());
    }
  return last;
}

Result<std::string> AdapterFetcher::get(const std::string& url, const AdapterRecord::File& file, int64_t offset) {
  const int64_t wanted = std::min(kBlobPiece, file.bytes - offset);
  ClientRequest request{.method = "GET", .url = fmt::format("{}{}{}", url, kBlobPath, file.sha256)};
  request.headers.emplace_back("range", fmt::format("bytes={}-{}", offset, offset + wanted - 1));
  if (!options_.fleet_key.empty()) request.headers.emplace_back("authorization", "Bearer " + options_.fleet_key);
  request.timeout = options_.piece_timeout;
  std::optional<PendingAnswer> pending;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return cancelled("the server is shutting down");
    pending.emplace(*http_, std::move(request), static_cast<size_t>(wanted));
  }
  Result<ClientAnswer> answer = pending->wait();
  if (answer.status().code() == StatusCode::kResourceExhausted) return data_loss("it sent more than was asked for");
  if (answer.status().code() == StatusCode::kDeadlineExceeded) return answer.status();
  if (!answer.ok()) return unavailable("{}", answer.status().message());
  if (answer->status == 404) return not_found("it does not have it");
  if (answer->status == 401 || answer->status == 403)
    return permission_denied("it answered {}: is the fleet key one of its keys with scope fleet?", answer->status);
  if (answer->status != 206) return unavailable("it answered {}", answer->status);
  // A piece is sent whole, so that its time bounds how slowly the adapter comes.
  if (!answer->header("content-range").starts_with(fmt::format("bytes {}-{}/", offset, offset + wanted - 1)) ||
      std::ssize(answer->body) != wanted)
    return data_loss("it sent another part than was asked for");
  return std::move(answer->body);
}

}  // namespace lk
