// SPDX-License-Identifier: Apache-2.0
// Member: what a replica says of itself in the registry, under members/ID, for as long as it lives.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lk/registry/registry.h"

namespace lk {

inline constexpr std::string_view kMembers = "members/";

struct Member {
  std::string id;
  std::string url;          // http(s)://HOST:PORT, where routers and other replicas reach it
  std::string incarnation;  // of the process, random
  std::string base;         // digest of the base model
  std::string model;        // what it calls it
  std::string version;      // of the program
  bool operator==(const Member&) const = default;
};

std::string format_member(const Member& member);
// kUnsupported: of a form that is not known here; kDataLoss: it is none.
Result<Member> parse_member(std::string_view name, std::string_view value);
// http(s)://HOST:PORT and nothing else, at most 300 bytes: whoever is asked there gets the fleet's key.
Status check_member_url(std::string_view url);

// How a replica stands in the registry: alone under its name, and of the base that the fleet has. One that was started
// again at the same address takes the place of its former self.
Registry::Announcement announcement_of(const Member& member);

// Reads members, and says once of each value that is none why.
class MemberReader {
 public:
  using Log = std::function<void(std::string_view event, std::string_view detail)>;
  explicit MemberReader(Log log) : log_(std::move(log)) {}
  std::vector<Member> read(const Registry::Entries& entries);  // by id

 private:
  const Log log_;
  std::map<std::string, int64_t> told_;  // revisions, by name
};

}  // namespace lk
