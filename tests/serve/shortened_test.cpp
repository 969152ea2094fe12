// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/shortened.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <string>

namespace lk {
namespace {

// "suat": system, user, assistant, tool; the content is the place.
boost::json::array conversation(std::string_view roles) {
  boost::json::array messages;
  for (const char role : roles)
    messages.push_back({{"role", role == 's'   ? "system"
                                 : role == 'u' ? "user"
                                 : role == 'a' ? "assistant"
                                               : "tool"},
                        {"content", std::to_string(messages.size())}});
  return messages;
}

// The places that stay.
std::string kept(std::string_view roles, int64_t steps) {
  std::string places;
  for (const boost::json::value& message : without_oldest(conversation(roles), steps))
    places += std::string(message.at("content").as_string()) + " ";
  return places;
}

TEST(ShortenedTest, LosesTurnsFromTheBeginning) {
  EXPECT_EQ(num_oldest_steps(conversation("suauau")), 2);
  EXPECT_EQ(kept("suauau", 0), "0 1 2 3 4 5 ");
  EXPECT_EQ(kept("suauau", 1), "0 3 4 5 ");
  EXPECT_EQ(kept("suauau", 2), "0 5 ");
  EXPECT_EQ(num_oldest_steps(conversation("su")), 0);
  EXPECT_EQ(num_oldest_steps({}), 0);
}

TEST(ShortenedTest, CutsBetweenUserItemsThatFollowEachOther) {
  EXPECT_EQ(num_oldest_steps(conversation("uu")), 1);
  EXPECT_EQ(kept("uu", 1), "1 ");
  EXPECT_EQ(kept("suuau", 1), "0 2 3 4 ");
}

TEST(ShortenedTest, LosesTheOldestCallsOfAnAgentWithTheirResults) {
  EXPECT_EQ(num_oldest_steps(conversation("suattatat")), 2);
  EXPECT_EQ(kept("suattatat", 1), "0 1 5 6 7 8 ");
  EXPECT_EQ(kept("suattatat", 2), "0 1 7 8 ");
  EXPECT_EQ(num_oldest_steps(conversation("suat")), 0) << "the last results stay";
  EXPECT_EQ(kept("uauatata", 1), "2 3 4 5 6 7 ") << "whole turns go first";
  EXPECT_EQ(kept("uauatata", 2), "2 5 6 7 ");
}

TEST(ShortenedTest, TheSearchGoesByWhatFits) {
  for (const int64_t most : {1, 2, 3, 7, 1000, 65'000})
    for (int64_t wanted = 1; wanted <= most; wanted = wanted < 10 ? wanted + 1 : wanted * 3) {
      int64_t rendered = 0;
      const int64_t found = fewest_steps(most, [&](int64_t steps) {
        EXPECT_GE(steps, 1);
        EXPECT_LE(steps, most);
        rendered += most - steps + 1;  // turns that are left
        return steps >= wanted;
      });
      EXPECT_EQ(found, wanted) << most;
      const int64_t fitting = most - wanted + 1;
      EXPECT_LE(rendered, 32 * (fitting + 1)) << most << " turns, of which " << fitting << " fit";
    }
  EXPECT_EQ(fewest_steps(5, [](int64_t) { return false; }), 5);
}

}  // namespace
}  // namespace lk
