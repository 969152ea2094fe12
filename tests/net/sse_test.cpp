// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "lk/net/http_client.h"

namespace lk {
namespace {

std::vector<std::string> events_of(std::string_view stream, size_t piece) {
  std::vector<std::string> events;
  SseParser parser([&](std::string_view data) { events.emplace_back(data); });
  for (size_t at = 0; at < stream.size(); at += piece) EXPECT_TRUE(parser.push(stream.substr(at, piece)));
  return events;
}

TEST(SseParser, GivesTheSameEventsHoweverTheStreamIsCut) {
  const std::string stream =
      "\xef\xbb\xbf"
      "data: one\n\n: comment\r\nid: 7\rdata:two\r\ndata:  three\r\n\r\n\n\ndata\n\ndata: [DONE]\n\ndata: unfinished\n";
  const std::vector<std::string> expected{"one", "two\n three", "", "[DONE]"};
  for (size_t piece = 1; piece <= stream.size(); ++piece)
    EXPECT_EQ(events_of(stream, piece), expected) << "pieces of " << piece;
}

TEST(SseParser, LoneCarriageReturnsEndLines) {
  EXPECT_EQ(events_of("data: a\r\rdata: b\r\r", 3), (std::vector<std::string>{"a", "b"}));
}

TEST(SseParser, RefusesALineLongerThanTheLimitAndStaysRefusing) {
  int events = 0;
  SseParser parser([&](std::string_view) { ++events; }, 100);
  EXPECT_TRUE(parser.push("data: " + std::string(90, 'x')));
  EXPECT_FALSE(parser.push("yyyyy"));
  EXPECT_FALSE(parser.push("\n\ndata: a\n\n"));
  EXPECT_EQ(events, 0);
}

TEST(SseParser, RefusesAnEventOfTooManyShortLines) {
  SseParser parser([](std::string_view) {}, 100);
  bool ok = true;
  int lines = 0;
  while (ok && lines < 1000) ok = parser.push("data: 123456789\n"), ++lines;
  EXPECT_EQ(lines, 11);  // 10 x "123456789\n" fit
}

}  // namespace
}  // namespace lk
