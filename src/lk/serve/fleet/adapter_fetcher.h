// SPDX-License-Identifier: Apache-2.0
// AdapterFetcher: brings adapters from other replicas into the cache, file by file, by SHA-256 and in pieces, so that
// whoever is asked next goes on where the last one broke off. Nothing is believed before the whole file was checked. A
// replica that sent other bytes, or sends too slowly, is not asked for this adapter again: what one of them can cost is
// the time of one piece.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lk/base/workshop.h"
#include "lk/net/http_client.h"
#include "lk/serve/fleet/adapter_cache.h"

namespace lk {

// GET this + SHA-256, with a Range.
inline constexpr std::string_view kBlobPath = "/v1/fleet/blobs/";
// Most bytes of one answer: what a replica holds in memory for somebody who fetches.
inline constexpr int64_t kBlobPiece = int64_t{4} << 20;

class AdapterFetcher {
 public:
  struct Options {
    std::string fleet_key;  // of scope fleet, at every replica; "" = replicas without keys
    std::string tls_ca;
    int num_threads = 4;                              // adapters at once
    std::chrono::milliseconds piece_timeout{30'000};  // for a whole piece, which is 140 kB/s at least
    std::chrono::milliseconds first_pause{1000};      // between rounds; twice as long each time
    int rounds = 4;
  };
  // Urls of who may have an adapter, the likeliest first. Any thread.
  using Holders = std::function<std::vector<std::string>(const AdapterRecord& record)>;

  static Result<std::unique_ptr<AdapterFetcher>> create(const Options& options, AdapterCache& cache, Holders holders);
  ~AdapterFetcher() { stop(); }
  // Those who wait, and who ask from then on, hear kCancelled. No callback runs any more when it returns. Not by two
  // threads at once.
  void stop();

  // `done` on a thread of the fetcher, or at once when it is here. Who asks for what is being fetched waits for that.
  void fetch(const AdapterRecord& record, std::function<void(const Status& status)> done);

  struct Stats {
    int64_t fetched = 0, failed = 0, bytes = 0, wrong = 0;  // wrong: files with other bytes
    int64_t waiting = 0;                                    // being fetched, or to be
  };
  Stats stats() const;

 private:
  AdapterFetcher(const Options& options, AdapterCache& cache, Holders holders)
      : options_(options), cache_(cache), holders_(std::move(holders)) {}
  void run(const AdapterRecord& record, const std::stop_token& stop);
  Status bring(const AdapterRecord& record, const std::stop_token& stop);
  struct Partial;
  Status bring_file(Partial& partial, std::vector<std::string>& urls, std::vector<std::string>& shunned,
                    const std::stop_token& stop);
  Status bring_pieces(Partial& partial, const std::string& url, const std::stop_token& stop);
  Result<std::string> get(const std::string& url, const AdapterRecord::File& file, int64_t offset);

  const Options options_;
  AdapterCache& cache_;
  const Holders holders_;
  std::unique_ptr<HttpClient> http_;
  mutable std::mutex mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;                                                           // guarded by mutex_, like all below
  std::map<std::string, std::vector<std::function<void(const Status&)>>> waiting_;  // by content
  Stats stats_;
  std::unique_ptr<Workshop> workshop_;
};

}  // namespace lk
