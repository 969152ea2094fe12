// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/directory_watcher.h"

#include <dirent.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/names.h"
#include "lk/base/plain_text.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

using DirectoryState = WatchedDirectory::State;

constexpr int kNice = 10;

bool may_be_directory(const dirent& entry) {
  return entry.d_type == DT_DIR || entry.d_type == DT_LNK || entry.d_type == DT_UNKNOWN;
}

}  // namespace

DirectoryWatcher::DirectoryWatcher(AdapterRegistry& registry, Log& log, Options options)
    : registry_(registry), log_(log), options_(std::move(options)) {
  for (const std::string& path : options_.directories)
    directories_.push_back({.root = std::make_shared<const std::string>(path)});
}

Result<std::unique_ptr<DirectoryWatcher>> DirectoryWatcher::start(AdapterRegistry& registry, Log& log,
                                                                  Options options) {
  std::unique_ptr<DirectoryWatcher> self(new DirectoryWatcher(registry, log, std::move(options)));
  self->look();
  for (const Directory& directory : self->directories_)
    if (directory.state == DirectoryState::kUnreadable)
      return io_error("cannot read --lora-dir {}: {}", *directory.root, directory.reason);
  for (auto& [name, entry] : self->entries_) entry.settled = true;  // what is there at the start is taken for whole
  self->act();
  DirectoryWatcher* raw = self.get();
  self->thread_ = std::thread([raw] {
    set_thread_name("lk-watcher");
    lower_thread_priority(kNice);  // a look at ten thousand names is no reason for anybody's token to be late
    std::unique_lock lock(raw->mutex_);
    while (!raw->stop_.wait_for(lock, raw->options_.interval, [&] { return raw->stopping_; })) {
      lock.unlock();
      (void)guarded("a look at directories", [raw] { raw->scan(); });  // the next one sees what this one did not
      lock.lock();
    }
  });
  return self;
}

DirectoryWatcher::~DirectoryWatcher() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void DirectoryWatcher::accept_empty() { accept_empty_ = true; }

void DirectoryWatcher::scan() {
  look();
  act();
  take_out_missing();
}

// --- Looking

void DirectoryWatcher::look() {
  const bool accept_empty = accept_empty_.exchange(false);
  for (auto& [name, entry] : entries_) entry.listed = false;
  for (size_t i = 0; i < directories_.size(); ++i) {
    Directory& directory = directories_[i];
    const auto index = static_cast<uint16_t>(i);
    std::vector<Sight> sights;
    const Status status = read(directory, sights);
    const bool had_content =
        std::ranges::any_of(entries_, [&](const auto& entry) { return entry.second.directory == index; });
    const auto has_content = [&](const Sight& sight) {
      const auto known = entries_.find(sight.name);
      return sight.files.complete() || (known != entries_.end() && known->second.directory == index);
    };
    const bool is_empty = had_content && std::ranges::none_of(sights, has_content);
    if (!status.ok()) {
      set_state(directory, DirectoryState::kUnreadable, status.message());
    } else if (is_empty && !accept_empty) {
      set_state(directory, DirectoryState::kEmpty,
                "all its adapters went away at once, as when a volume is unmounted: they are kept");
    } else {
      set_state(directory, DirectoryState::kOk, "");
      for (const Sight& sight : sights) note(index, sight);
      if (is_empty)  // and that is meant
        for (auto& [name, entry] : entries_)
          if (entry.directory == index) entry.missing = kMissingLooks;
      continue;
    }
    // Nothing is known of what lies in it: that stays as it is, and nobody else takes its names.
    for (auto& [name, entry] : entries_)
      if (entry.directory == index) {
        entry.listed = true;
        entry.missing = 0;
      }
  }
  publish_states();
}

// Everything from one open directory: a link to it that is turned meanwhile does not mix two.
Status DirectoryWatcher::read(const Directory& directory, std::vector<Sight>& sights) {
  const int root = ::open(directory.root->c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (root < 0) return io_error("{}", std::strerror(errno));
  const Status status = list(root, "", sights);
  ::close(root);
  return status;
}

// The adapters of `folder`, "" or "ORG/", in the open directory `root`. Of what is known by name only, and not loaded,
// nothing but the name is looked at: ten thousand adapters cost one listing. A folder with files of its own is no
// organization: what lies in a trainer's folder are its checkpoints. Nor is a link: what it leads to is nobody's to
// list.
Status DirectoryWatcher::list(int root, const std::string& folder, std::vector<Sight>& sights) {
  const std::string path = folder.empty() ? "." : folder.substr(0, folder.size() - 1);
  const int fd = ::openat(root, path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return io_error("{}", std::strerror(errno));
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::fdopendir(fd), &::closedir);
  if (!open) return io_error("{}", std::strerror(errno));
  const bool lazy = is_lazy();
  std::vector<std::string> organizations;
  const size_t before = sights.size();
  for (;;) {
    errno = 0;
    const dirent* found = ::readdir(open.get());
    if (!found && errno != 0) return io_error("{}", std::strerror(errno));
    if (!found) break;
    if (!folder.empty() && !may_be_directory(*found) && found->d_name[0] != '.') {
      sights.resize(before);
      return Status();
    }
    std::string name = folder + found->d_name;
    if (!may_be_directory(*found)) continue;
    if (!is_adapter_name(name)) {
      if (found->d_name[0] != '.' && stat_adapter(root, name).complete() && unusable_names_.insert(name).second)
        log_.write(LogLevel::kWarning, "adapter_failed",
                   {{"name", printable(name)}, {"reason", check_adapter_name("the directory", name).message()}});
      continue;
    }
    AdapterStat files;
    const auto known = entries_.find(name);
    if (lazy && known != entries_.end() && known->second.told == known->second.seen &&
        registry_.watched(name).state == AdapterRegistry::Watched::kOffered)
      files = {.state = AdapterStat::State::kComplete, .stamp = known->second.seen};
    else
      files = stat_adapter(root, name);
    if (folder.empty() && files.empty && files.state == AdapterStat::State::kIncomplete)
      organizations.push_back(name + "/");
    if (files.state != AdapterStat::State::kGone) sights.push_back({.name = std::move(name), .files = files});
  }
  for (const std::string& organization : organizations) {
    const Status status = list(root, organization, sights);
    const auto known = entries_.lower_bound(organization);
    // What is known to lie in it is not gone because it cannot be read now.
    if (!status.ok() && known != entries_.end() && known->first.starts_with(organization)) return status;
  }
  return Status();
}

void DirectoryWatcher::note(uint16_t index, const Sight& sight) {
  auto it = entries_.find(sight.name);
  if (it == entries_.end()) {
    if (!sight.files.complete()) return;
    it = entries_.emplace(sight.name, Entry{.directory = index}).first;
  }
  Entry& entry = it->second;
  if (entry.listed) return;  // the first directory wins
  // One that is being rewritten, or cannot be read now, stays what it is.
  if (!sight.files.complete() && entry.directory != index) return;
  entry.listed = true;
  entry.missing = 0;
  if (!sight.files.complete()) return;
  if (entry.directory != index) {
    entry.directory = index;
    entry.seen = entry.told = 0;
  }
  entry.settled = entry.seen == sight.files.stamp;
  entry.seen = sight.files.stamp;
}

void DirectoryWatcher::set_state(Directory& directory, DirectoryState state, std::string reason) {
  if (state != directory.state)
    log_.write(state == DirectoryState::kOk ? LogLevel::kInfo : LogLevel::kWarning, "lora_dir",
               {{"directory", *directory.root}, {"state", to_string(state)}, {"reason", reason}});
  directory.state = state;
  directory.reason = std::move(reason);
}

void DirectoryWatcher::publish_states() {
  std::vector<WatchedDirectory> states;
  for (size_t i = 0; i < directories_.size(); ++i) {
    const auto count = std::ranges::count_if(entries_, [&](const auto& e) { return e.second.directory == i; });
    states.push_back({.root = directories_[i].root,
                      .state = directories_[i].state,
                      .reason = directories_[i].reason,
                      .num_adapters = count});
  }
  registry_.set_directories(std::move(states));
}

// --- Acting

// Offers what is new, loads it unless there are too many, and replaces what changed. Loads run side by side.
void DirectoryWatcher::act() {
  const bool lazy = is_lazy();
  std::vector<std::future<void>> loads;
  for (auto& [name, entry] : entries_) {
    if (!entry.listed || !entry.settled || entry.told == entry.seen) continue;
    const Directory& directory = directories_[entry.directory];
    if (directory.state != DirectoryState::kOk) continue;
    entry.told = entry.seen;
    const AdapterRegistry::Watched now = registry_.watched(name);
    // One that was loaded meanwhile, from these very files.
    if (now.state == AdapterRegistry::Watched::kLoaded && now.stamp == entry.seen) continue;
    if (now.state != AdapterRegistry::Watched::kLoaded && registry_.offer(name, directory.root, !lazy) && lazy)
      continue;
    if (now.state == AdapterRegistry::Watched::kOthers && lazy) continue;
    auto done = std::make_shared<std::promise<void>>();
    loads.push_back(done->get_future());
    registry_.load({.name = name,
                    .path = join_path(*directory.root, name),
                    .replace = true,
                    .persist = false,
                    .by_content = true,
                    .root = directory.root},
                   [done](const Result<AdapterLease>&) { done->set_value(); });
  }
  for (std::future<void>& load : loads) load.wait();
}

void DirectoryWatcher::take_out_missing() {
  for (auto it = entries_.begin(); it != entries_.end();) {
    Entry& entry = it->second;
    if (entry.listed || (entry.missing < kMissingLooks && ++entry.missing < kMissingLooks)) {
      ++it;
      continue;
    }
    registry_.withdraw(it->first);
    it = entries_.erase(it);
  }
}

}  // namespace lk
