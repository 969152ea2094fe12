// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/shortened.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include <boost/json.hpp>

namespace lk {
namespace {

bool is_of(const boost::json::value& message, std::string_view role) { return message.at("role").as_string() == role; }

size_t first_of_turns(const boost::json::array& messages) {
  size_t first = 0;
  while (first < messages.size() && is_of(messages[first], "system")) ++first;
  return first;
}

// What stays in front, besides the system messages, and where the rest begins.
struct Cut {
  bool keeps_user = false;
  size_t user = 0, begin = 0;
};

std::vector<Cut> cuts_of(const boost::json::array& messages) {
  std::vector<Cut> cuts;
  const size_t first = first_of_turns(messages);
  size_t last_user = messages.size();
  for (size_t i = first; i < messages.size(); ++i) {
    if (!is_of(messages[i], "user")) continue;
    if (i > first) cuts.push_back({.begin = i});
    last_user = i;
  }
  // Results stay with their calls; many templates want a user's message before both.
  for (size_t i = last_user + 2; i < messages.size(); ++i)
    if (is_of(messages[i - 1], "tool") && !is_of(messages[i], "tool"))
      cuts.push_back({.keeps_user = true, .user = last_user, .begin = i});
  return cuts;
}

}  // namespace

int64_t num_oldest_steps(const boost::json::array& messages) { return std::ssize(cuts_of(messages)); }

boost::json::array without_oldest(const boost::json::array& messages, int64_t steps) {
  if (steps == 0) return messages;
  const size_t first = first_of_turns(messages);
  const Cut cut = cuts_of(messages).at(static_cast<size_t>(steps) - 1);
  boost::json::array kept;
  for (size_t i = 0; i < first; ++i) kept.push_back(messages[i]);
  if (cut.keeps_user) kept.push_back(messages[cut.user]);
  for (size_t i = cut.begin; i < messages.size(); ++i) kept.push_back(messages[i]);
  return kept;
}

int64_t fewest_steps(int64_t most, const std::function<bool(int64_t)>& fits) {
  int64_t too_few = 0, enough = most;
  if (!fits(most)) return most;
  for (int64_t back = 1; enough - too_few > 1; back *= 2) {
    const int64_t steps = std::max(too_few + 1, most - back);
    if (!fits(steps)) {
      too_few = steps;
      break;
    }
    enough = steps;
  }
  while (enough - too_few > 1) {
    const int64_t middle = too_few + (enough - too_few) / 2;
    (fits(middle) ? enough : too_few) = middle;
  }
  return enough;
}

}  // namespace lk
