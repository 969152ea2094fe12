// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/shortened.h"

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

// Where turns begin, but the first: at each user's message behind somebody else's.
std::vector<size_t> later_turns(const boost::json::array& messages) {
  std::vector<size_t> begins;
  for (size_t i = first_of_turns(messages) + 1; i < messages.size(); ++i)
    if (is_of(messages[i], "user") && !is_of(messages[i - 1], "user")) begins.push_back(i);
  return begins;
}

}  // namespace

int64_t num_oldest_turns(const boost::json::array& messages) {
  return static_cast<int64_t>(later_turns(messages).size());
}

boost::json::array without_oldest(const boost::json::array& messages, int64_t turns) {
  const size_t first = first_of_turns(messages);
  const size_t begin = turns == 0 ? first : later_turns(messages).at(static_cast<size_t>(turns) - 1);
  boost::json::array kept;
  for (size_t i = 0; i < messages.size(); ++i)
    if (i < first || i >= begin) kept.push_back(messages[i]);
  return kept;
}

}  // namespace lk
