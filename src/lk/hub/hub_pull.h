// SPDX-License-Identifier: Apache-2.0
// From a name on the hub to a directory with its files: the snapshot in the cache, brought up to date as the Python
// client does it. Asked of the hub each time, unless it is offline; when it cannot be reached, what is there is used.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lk/hub/hub_cache.h"
#include "lk/hub/hub_name.h"
#include "lk/hub/hub_settings.h"

namespace lk {

// What makes a directory of one kind. Never other files: no pickles, no programs.
struct HubKind {
  std::string noun;                  // "a model", "an adapter"
  std::vector<std::string> marks;    // one of them says that it is one: "config.json"
  std::vector<std::string> weights;  // the first that is there is taken; one of them has to be
  std::vector<std::string> others;   // taken where they are there; '*' stands for any characters but '/'
};
// Among weights, a file whose name ends so stands for those that it names, too.
inline constexpr std::string_view kIndexEnd = ".index.json";

// The files that a directory with `files` has for each of the kinds that it is, without what indexes name. kNotFound
// when it is none of them: what is missing, and what it has instead that nobody here reads.
Result<std::vector<std::string>> select_files(const std::vector<std::string>& files, std::span<const HubKind> kinds,
                                              const std::string& where);
// The files that an index names, each a plain file name; kDataLoss otherwise.
Result<std::vector<std::string>> shards_of(const std::string& index_path);

// Hears of the work; calls come from several threads, one at a time.
class PullWatcher {
 public:
  virtual ~PullWatcher() = default;
  virtual void on_start(const HubName& name, int64_t num_files, int64_t total_bytes) = 0;
  virtual void on_bytes(int64_t bytes) = 0;  // of the total: more are there, or fewer
  virtual void on_file(const std::string& path, int64_t bytes) = 0;
  virtual void on_end() = 0;
  virtual void on_note(const std::string& text) = 0;
  // Asked for each piece of a file, by any thread at any time; true ends the work as kCancelled.
  virtual bool stopped() const { return false; }
};

struct Pulled {
  std::string directory, commit;
  int64_t num_fetched = 0;  // files that were not there before
};

// Codes as HubClient's and fetch_blob's; kNotFound also when it is offline and not in the cache, with what to do.
Result<Pulled> pull_from_hub(const HubSettings& settings, const HubName& name, std::span<const HubKind> kinds,
                             PullWatcher& watcher);

}  // namespace lk
