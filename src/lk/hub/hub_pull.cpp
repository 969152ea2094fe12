// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_pull.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "lk/base/bytes.h"
#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/hub/blob_download.h"
#include "lk/hub/hub_client.h"

namespace lk {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxDownloads = 8;  // at the same time, as the Python client

bool matches(std::string_view path, std::string_view pattern) {
  const size_t star = pattern.find('*');
  if (star == pattern.npos) return path == pattern;
  const std::string_view before = pattern.substr(0, star), after = pattern.substr(star + 1);
  return path.size() >= before.size() + after.size() && path.starts_with(before) && path.ends_with(after) &&
         path.substr(before.size(), path.size() - before.size() - after.size()).find('/') == path.npos;
}

std::string in_folder(const std::string& folder, const std::string& path) {
  return folder.empty() ? path : folder + "/" + path;
}

// Paths relative to `folder` of those that lie in it.
std::vector<std::string> within(const std::vector<std::string>& files, const std::string& folder) {
  if (folder.empty()) return files;
  std::vector<std::string> inside;
  for (const std::string& file : files)
    if (file.starts_with(folder + "/")) inside.push_back(file.substr(folder.size() + 1));
  return inside;
}

bool is_index(const std::string& path) { return path.ends_with(kIndexEnd); }

// One pull.
class Pull {
 public:
  Pull(const HubSettings& settings, const HubName& name, std::span<const HubKind> kinds, PullWatcher& watcher)
      : settings_(settings), name_(name), kinds_(kinds), watcher_(watcher) {}

  Result<Pulled> run() {
    Result<Pulled> cached = from_cache();
    if (settings_.cached_only || !settings_.offline_by.empty())
      return cached.ok() ? std::move(cached) : offline(cached.status());
    Result<HubListing> listing = list(cached.ok());
    if (!listing.ok()) {
      if (!cached.ok() || listing.status().code() == StatusCode::kInvalidArgument) return listing.status();
      watcher_.on_note(fmt::format("{}; going on with commit {} in the cache", listing.status().message(),
                                   cached->commit.substr(0, 12)));
      return cached;
    }
    commit_ = listing->commit;
    Result<Pulled> pulled = bring(*listing);
    if (!pulled.ok() && pulled.status().code() == StatusCode::kUnavailable && cached.ok())
      return Status(StatusCode::kUnavailable, fmt::format("{}. Commit {} is in the cache: HF_HUB_OFFLINE=1 uses it",
                                                          pulled.status().message(), cached->commit.substr(0, 12)));
    return pulled;
  }

 private:
  // --- What is there

  Result<Pulled> from_cache() const {
    LK_ASSIGN_OR_RETURN(const RepoCache cache, RepoCache::open(settings_.cache, name_.repo, false));
    LK_ASSIGN_OR_RETURN(const std::optional<std::string> commit, cache.commit_of(name_.revision));
    if (!commit) return not_found("{} has no revision \"{}\"", settings_.cache, name_.revision);
    const std::string directory = in_folder(cache.snapshot_path(*commit), name_.subfolder);
    if (name_.subfolder.empty() && !is_directory(directory)) return not_found("{} does not exist", directory);
    LK_RETURN_IF_ERROR(cache.check_links(*commit, name_.subfolder));
    std::vector<std::string> files;
    std::error_code error;
    for (fs::recursive_directory_iterator at(directory, error); !error && at != fs::recursive_directory_iterator();
         at.increment(error))
      if (at->is_regular_file(error)) files.push_back(at->path().lexically_relative(directory).string());
    LK_ASSIGN_OR_RETURN(const std::vector<std::string> selected, select_files(files, kinds_, directory));
    for (const std::string& file : selected) {
      if (!is_index(file)) continue;
      LK_ASSIGN_OR_RETURN(const std::vector<std::string> shards, shards_of(join_path(directory, file)));
      for (const std::string& shard : shards)
        if (std::ranges::find(files, shard) == files.end())
          return not_found("{} lacks {}, which {} names", directory, shard, file);
    }
    return Pulled{.directory = directory, .commit = *commit};
  }

  Status offline(const Status& why) const {
    if (why.code() != StatusCode::kNotFound) return why;
    const std::string missing =
        fmt::format("{} is not in the cache {} ({})", name_.text(), settings_.cache, why.message());
    if (settings_.offline_by.empty())
      return not_found("{}, and a check downloads nothing: run `lorikeet pull {}` first", missing, name_.text());
    return not_found("{}, and nothing is downloaded while {} is set; run `lorikeet pull {}` without it", missing,
                     settings_.offline_by, name_.text());
  }

  // --- What the hub has

  Result<HubListing> list(bool cached) {
    LK_ASSIGN_OR_RETURN(HubClient * client, client_of(0));
    return client->list(name_, cached ? 1 : HubClient::kTries);
  }

  // Trainers leave checkpoints in folders, PEFT adapters in one of the adapter's name: what could have been meant.
  Status with_folders(const Status& why, const std::vector<std::string>& files) const {
    std::set<std::string> folders;
    for (const std::string& file : files)
      if (const size_t slash = file.rfind('/'); slash != file.npos) folders.insert(file.substr(0, slash));
    std::vector<std::string> names;
    for (const std::string& folder : folders) {
      if (!select_files(within(files, folder), kinds_, folder).ok()) continue;
      HubName name = name_;
      name.subfolder = in_folder(name_.subfolder, folder);
      names.push_back(name.text());
    }
    if (names.empty()) return why;
    constexpr size_t kMostNames = 5;
    const size_t more = names.size() - std::min(names.size(), kMostNames);
    names.resize(names.size() - more);
    return Status(why.code(), fmt::format("{}; what its folders have is {}{}", why.message(), fmt::join(names, ", "),
                                          more > 0 ? fmt::format(" and {} more", more) : ""));
  }

  Result<Pulled> bring(const HubListing& listing) {
    const std::vector<std::string> files = within(listing.files, name_.subfolder);
    Result<std::vector<std::string>> selection = select_files(files, kinds_, name_.text());
    if (!selection.ok()) return with_folders(selection.status(), files);
    std::vector<std::string> selected = std::move(*selection);
    LK_ASSIGN_OR_RETURN(std::vector<HubFile> found, look_up(selected));
    // Indexes first: they say what else there is.
    std::set<std::string> shards;
    for (const std::string& index : selected) {
      if (!is_index(index)) continue;
      LK_ASSIGN_OR_RETURN(const std::vector<std::string> named, read_index(index, found));
      for (const std::string& shard : named) {
        if (std::ranges::find(files, shard) == files.end())
          return data_loss("{}: {} names {}, which is not there", name_.text(), index, shard);
        shards.insert(shard);
      }
    }
    for (const std::string& file : selected) shards.erase(file);
    LK_ASSIGN_OR_RETURN(std::vector<HubFile> more, look_up({shards.begin(), shards.end()}));
    std::ranges::move(more, std::back_inserter(found));
    LK_RETURN_IF_ERROR(fetch(found));
    return finish(files, found);
  }

  // Those of the files that the snapshot does not have.
  Result<std::vector<HubFile>> look_up(const std::vector<std::string>& files) {
    std::vector<std::string> wanted;
    const Result<RepoCache> cache = RepoCache::open(settings_.cache, name_.repo, false);
    for (const std::string& file : files) {
      const std::string path = in_folder(name_.subfolder, file);
      if (cache.ok()) {
        LK_ASSIGN_OR_RETURN(const bool there, cache->has(commit_, path));
        if (there) continue;
      }
      wanted.push_back(path);
    }
    std::vector<HubFile> found(wanted.size());
    LK_RETURN_IF_ERROR(in_parallel(wanted.size(), [&](HubClient& client, size_t index) -> Status {
      LK_ASSIGN_OR_RETURN(found[index], client.look_up(name_, commit_, wanted[index]));
      return Status();
    }));
    return found;
  }

  Result<std::vector<std::string>> read_index(const std::string& index, const std::vector<HubFile>& found) {
    const std::string path = in_folder(name_.subfolder, index);
    const auto file = std::ranges::find(found, path, &HubFile::path);
    LK_ASSIGN_OR_RETURN(const RepoCache cache, RepoCache::open(settings_.cache, name_.repo, file != found.end()));
    if (file == found.end()) return shards_of(join_path(cache.snapshot_path(commit_), path));
    LK_ASSIGN_OR_RETURN(HubClient * client, client_of(0));
    LK_RETURN_IF_ERROR(fetch_blob(cache, *client, name_, commit_, *file, quiet()));
    return shards_of(cache.blob_path(file->etag));
  }

  // --- Bytes

  Status fetch(std::vector<HubFile>& files) {
    if (files.empty()) return Status();
    LK_ASSIGN_OR_RETURN(const RepoCache cache, RepoCache::open(settings_.cache, name_.repo, true));
    // The largest first: at the end nobody waits for one that began late.
    std::ranges::sort(files, [](const HubFile& a, const HubFile& b) {
      return std::pair(-a.size, a.path) < std::pair(-b.size, b.path);
    });
    LK_RETURN_IF_ERROR(check_etags(files));
    int64_t total = 0, missing = 0;
    std::set<std::string> etags;
    for (const HubFile& file : files) {
      total += std::max<int64_t>(file.size, 0);
      LK_ASSIGN_OR_RETURN(const bool there, cache.has_blob(file.etag, file.size));
      if (!there && etags.insert(file.etag).second) missing += missing_bytes(cache, file);
    }
    LK_RETURN_IF_ERROR(check_room(missing));
    watcher_.on_start(name_, std::ssize(files), total);
    const Status status = in_parallel(files.size(), [&](HubClient& client, size_t index) {
      const HubFile& file = files[index];
      const Status fetched = fetch_blob(cache, client, name_, commit_, file, loud());
      if (fetched.ok()) {
        const std::lock_guard lock(mutex_);
        watcher_.on_file(file.path, file.size);
      }
      return fetched;
    });
    watcher_.on_end();
    return status;
  }

  // Two files may have one ETag when it says that their bytes are the same.
  Status check_etags(const std::vector<HubFile>& files) {
    std::map<std::string, const HubFile*> by_etag;
    for (const HubFile& file : files) {
      const auto& [etag, first] = *by_etag.emplace(file.etag, &file).first;
      const bool checked = digest_of_etag(etag) != BlobDigest::kNone;
      if (first != &file && (!checked || first->size != file.size))
        return data_loss("{}: {} and {} have the same ETag \"{}\", {}", name_.text(), first->path, file.path, etag,
                         checked ? "and not the same size" : "which is no digest of their bytes");
      if (!checked) note(fmt::format("{}: the hub says no digest; its bytes are not checked", file.path));
    }
    return Status();
  }

  Status check_room(int64_t missing) const {
    struct statvfs info {};
    if (::statvfs(settings_.cache.c_str(), &info) != 0) return Status();  // writing will say
    const auto block = static_cast<int64_t>(info.f_frsize);
    const int64_t most = std::numeric_limits<int64_t>::max() / std::max<int64_t>(block, 1);
    const int64_t room = block * std::min(static_cast<int64_t>(info.f_bavail), most);
    if (missing <= room) return Status();
    return resource_exhausted("{} needs {} more in {}, where {} are free; HF_HUB_CACHE says where else", name_.text(),
                              format_bytes(missing), settings_.cache, format_bytes(room));
  }

  // Only when all bytes are there: a snapshot of this program is complete, and a revision's name moves to nothing less.
  Result<Pulled> finish(const std::vector<std::string>& files, std::vector<HubFile>& fetched) {
    const auto last = [&](const HubFile& file) {
      return std::ranges::any_of(kinds_, [&](const HubKind& kind) {
        return std::ranges::find(kind.marks, within({file.path}, name_.subfolder).front()) != kind.marks.end();
      });
    };
    std::ranges::stable_partition(fetched, [&](const HubFile& file) { return !last(file); });
    LK_ASSIGN_OR_RETURN(const RepoCache cache, RepoCache::open(settings_.cache, name_.repo, !fetched.empty()));
    for (const HubFile& file : fetched) LK_RETURN_IF_ERROR(cache.link(commit_, file.path, file.etag));
    const Status written = note_commit(cache, files);
    if (!written.ok() && !fetched.empty()) return written;  // else it may be a cache to read only
    LK_RETURN_IF_ERROR(cache.check_links(commit_, name_.subfolder));
    return Pulled{.directory = in_folder(cache.snapshot_path(commit_), name_.subfolder),
                  .commit = commit_,
                  .num_fetched = std::ssize(fetched)};
  }

  Status note_commit(const RepoCache& cache, const std::vector<std::string>& files) const {
    LK_RETURN_IF_ERROR(cache.set_ref(name_.revision, commit_));
    for (const HubKind& kind : kinds_)
      for (const auto* names : {&kind.marks, &kind.weights, &kind.others})
        for (const std::string& name : *names)
          if (name.find('*') == name.npos && std::ranges::find(files, name) == files.end())
            LK_RETURN_IF_ERROR(cache.set_missing(commit_, in_folder(name_.subfolder, name)));
    return Status();
  }

  // --- Threads

  Result<HubClient*> client_of(size_t worker) {
    if (clients_.size() <= worker) clients_.resize(worker + 1);
    if (!clients_[worker]) {
      LK_ASSIGN_OR_RETURN(clients_[worker],
                          HubClient::open(
                              settings_, [this](const std::string& text) { note(text); }, quiet().stopped));
    }
    return clients_[worker].get();
  }

  // Does `work` for each index below `count`. The first failure ends the others, too.
  Status in_parallel(size_t count, const std::function<Status(HubClient&, size_t)>& work) {
    const size_t num_workers = std::min(count, kMaxDownloads);
    for (size_t worker = 0; worker < num_workers; ++worker) LK_RETURN_IF_ERROR(client_of(worker).status());
    std::atomic<size_t> next = 0;
    Status first;
    const auto take = [&](size_t worker) {
      for (size_t index = next++; index < count && !stopped_; index = next++) {
        const Status status = work(*clients_[worker], index);
        if (status.ok()) continue;
        const std::lock_guard lock(mutex_);
        if (!stopped_.exchange(true)) first = status;
      }
    };
    {
      std::vector<std::jthread> threads;
      for (size_t worker = 1; worker < num_workers; ++worker) threads.emplace_back(take, worker);
      if (num_workers > 0) take(0);
    }
    return first;
  }

  void note(const std::string& text) {
    const std::lock_guard lock(mutex_);
    if (!stopped_) watcher_.on_note(text);
  }
  BlobWatcher loud() {
    BlobWatcher watcher = quiet();
    watcher.on_bytes = [this](int64_t bytes) {
      const std::lock_guard lock(mutex_);
      watcher_.on_bytes(bytes);
    };
    return watcher;
  }
  BlobWatcher quiet() {
    return {.on_bytes = [](int64_t) {},
            .on_note = [this](const std::string& text) { note(text); },
            .stopped = [this] { return stopped_ || watcher_.stopped(); }};
  }

  const HubSettings& settings_;
  const HubName& name_;
  const std::span<const HubKind> kinds_;
  std::string commit_;
  std::vector<std::unique_ptr<HubClient>> clients_;  // one per worker
  std::atomic<bool> stopped_ = false;
  std::mutex mutex_;  // watcher_ among the workers
  PullWatcher& watcher_;
};

}  // namespace

Result<std::vector<std::string>> select_files(const std::vector<std::string>& files, std::span<const HubKind> kinds,
                                              const std::string& where) {
  const auto there = [&](const std::string& name) { return std::ranges::find(files, name) != files.end(); };
  std::set<std::string> selected;
  std::string problem, nouns;
  for (const HubKind& kind : kinds) {
    nouns += (nouns.empty() ? "" : " nor ") + kind.noun;
    const bool marked = std::ranges::any_of(kind.marks, there);
    const auto weights = std::ranges::find_if(kind.weights, there);
    if (!marked || weights == kind.weights.end()) {
      if (marked) problem = fmt::format("it has no {}", fmt::join(kind.weights, " or "));
      continue;
    }
    selected.insert(*weights);
    std::ranges::copy_if(kind.marks, std::inserter(selected, selected.end()), there);
    for (const std::string& pattern : kind.others)
      for (const std::string& file : files)
        if (matches(file, pattern)) selected.insert(file);
  }
  if (!selected.empty()) return std::vector<std::string>(selected.begin(), selected.end());
  if (problem.empty()) {
    std::vector<std::string> marks;
    for (const HubKind& kind : kinds) marks.insert(marks.end(), kind.marks.begin(), kind.marks.end());
    problem = files.empty() ? "it has no files" : fmt::format("it has no {}", fmt::join(marks, " or "));
  }
  for (const auto& [end, what] : {std::pair(".bin", "pickles, which can run code and are not read"),
                                  {".pt", "pickles, which can run code and are not read"},
                                  {".gguf", "GGUF files, which are not read"}})
    if (std::ranges::any_of(files, [&](const std::string& file) { return file.ends_with(end); }))
      return not_found("{} is {}{}: {}; there are {}", where, kinds.size() > 1 ? "neither " : "not ", nouns, problem,
                       what);
  return not_found("{} is {}{}: {}", where, kinds.size() > 1 ? "neither " : "not ", nouns, problem);
}

Result<std::vector<std::string>> shards_of(const std::string& index_path) {
  LK_ASSIGN_OR_RETURN(const boost::json::object index, load_json_object(index_path));
  const boost::json::value* map = index.if_contains("weight_map");
  if (map == nullptr || !map->is_object()) return data_loss("{}: no object \"weight_map\"", index_path);
  std::set<std::string> shards;
  for (const auto& field : map->get_object()) {
    const std::string shard = field.value().is_string() ? std::string(field.value().get_string()) : "";
    if (!is_plain_relative_path(shard) || shard.find('/') != shard.npos || !shard.ends_with(".safetensors"))
      return data_loss("{}: the shard of a tensor is no plain name of a safetensors file", index_path);
    shards.insert(shard);
  }
  return std::vector<std::string>(shards.begin(), shards.end());
}

Result<Pulled> pull_from_hub(const HubSettings& settings, const HubName& name, std::span<const HubKind> kinds,
                             PullWatcher& watcher) {
  return Pull(settings, name, kinds, watcher).run();
}

}  // namespace lk
