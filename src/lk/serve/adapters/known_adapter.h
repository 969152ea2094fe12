// SPDX-License-Identifier: Apache-2.0
// What the registry keeps of adapters that are not loaded, and of directories that are watched.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "lk/base/file.h"

namespace lk {

// Why an adapter that is known could not be loaded.
struct Trouble {
  enum Kind : uint8_t {
    kChanged,     // its files are not what the version stands for
    kUnreadable,  // they are gone, or the system does not give them now
    kNoMemory,    // there is no room
    kRefused,     // they are no adapter of this base
  };
  static constexpr size_t kNumKinds = 4;
  Kind kind = kUnreadable;
  std::string reason;  // for operators: names paths
  int attempts = 0;
  uint64_t stamp = 0;  // of the files then: with the same ones some kinds need no other try
  std::chrono::steady_clock::time_point retry_at;

  bool is_about_content() const { return kind == kChanged || kind == kRefused; }
};

// For metrics and /v1/adapters.
inline const char* to_string(Trouble::Kind kind) {
  switch (kind) {
    case Trouble::kChanged:
      return "changed";
    case Trouble::kUnreadable:
      return "unreadable";
    case Trouble::kNoMemory:
      return "no_memory";
    case Trouble::kRefused:
      return "refused";
  }
  return "";
}

// A version that can be loaded. There may be tens of thousands: small.
struct KnownAdapter {
  std::shared_ptr<const std::string> root;  // the watched directory that the adapter's name lies in
  std::string path;                         // of one that is stored
  std::string digest;                       // what the version stands for; "": nothing yet
  std::string tenant;                       // whose it is; "" = nobody's
  bool pinned = false;
  bool load_now = false;  // not only when somebody asks
  bool proved = false;    // this content passed the probe
  bool fleet = false;  // of the fleet's registry: `path` is filled by the AdapterSupply, and nothing else knows of it
  std::unique_ptr<Trouble> trouble;

  bool watched() const { return root != nullptr; }
  bool stored() const { return !watched() && !fleet; }
  std::string directory(const std::string& name) const { return root ? join_path(*root, name) : path; }
};

struct WatchedDirectory {
  enum class State : uint8_t {
    kOk,
    kEmpty,       // all it held went away at once: kept until it is seen again, or the operator says so
    kUnreadable,  // the system does not give it now: what it held is kept
  };
  std::shared_ptr<const std::string> root;
  State state = State::kOk;
  std::string reason;
  int64_t num_adapters = 0;
};

inline const char* to_string(WatchedDirectory::State state) {
  switch (state) {
    case WatchedDirectory::State::kOk:
      return "ok";
    case WatchedDirectory::State::kEmpty:
      return "empty";
    case WatchedDirectory::State::kUnreadable:
      return "unreadable";
  }
  return "";
}

}  // namespace lk
