// SPDX-License-Identifier: Apache-2.0
#include "lk/base/json_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <cmath>

#include "lk/base/json_form.h"
#include "lk/base/json_reader.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

boost::json::object object(std::string_view text) { return boost::json::parse(text).as_object(); }

TEST(JsonFields, TheFirstFailureSticksAndHasThePath) {
  const auto outer = object(R"({"a": 5, "inner": {"b": "x", "c": [1]}})");
  JsonErrors errors;
  JsonFields fields(outer, "", errors);
  JsonFields inner(*fields.object("inner"), "inner[2]", errors);
  int64_t number = 7;
  bool flag = true;
  inner.read_int("b", number, 0, 9);
  inner.read_bool("c", flag);
  fields.read_int("a", number, 0, 9);
  EXPECT_EQ(errors.path(), "inner[2].b");
  EXPECT_EQ(errors.status().message(), "\"inner[2].b\" must be an integer, is a string");
  EXPECT_EQ(number, 5);
  EXPECT_TRUE(flag);
}

TEST(JsonFields, EachDocumentSpeaksInItsOwnStyle) {
  const auto body = object(R"({"n": 1.5, "s": {"k": "v"}})");
  const auto message = [&](JsonErrors errors, const char* key) {
    JsonFields fields(body, "", errors);
    std::string text;
    int64_t number = 0;
    if (*key == 's')
      fields.read_string(key, text);
    else
      fields.read_int(key, number, 0, 3);
    return errors.status().message();
  };
  EXPECT_EQ(message(JsonErrors(), "s"), "\"s\" must be a string, is an object");
  EXPECT_EQ(message(JsonErrors({.where = "f.json"}), "n"), "f.json: \"n\" must be an integer from 0 to 3");
  EXPECT_EQ(message(JsonErrors({.noun = "field ", .shows_values = true}), "s"),
            R"(field "s" must be a string, got {"k":"v"})");
  EXPECT_EQ(message(JsonErrors({.noun = "field ", .shows_values = true}), "n"),
            "field \"n\" must be an integer in range, got 1.5E0");
}

TEST(JsonFields, AShownValueIsCutBetweenCharacters) {
  const boost::json::object body{{"x", std::string(100, 'a').replace(78, 2, "é")}};
  JsonErrors errors({.shows_values = true});
  JsonFields fields(body, "", errors);
  bool flag = false;
  fields.read_bool("x", flag);
  EXPECT_TRUE(errors.status().message().ends_with("aaa")) << errors.status().message();
}

TEST(JsonFields, KnowsWhatNobodyAskedFor) {
  const auto body = object(R"({"a": 1, "b": null, "c": 2, "d": 3})");
  JsonErrors errors;
  JsonFields fields(body, "p", errors);
  EXPECT_NE(fields.find("a"), nullptr);
  EXPECT_EQ(fields.find("b"), nullptr);
  EXPECT_EQ(fields.find("absent"), nullptr);
  EXPECT_THAT(fields.unknown(), ElementsAre("p.c", "p.d"));
  EXPECT_THAT(fields.unknown(1), ElementsAre("p.c"));
  fields.refuse_unknown();
  EXPECT_EQ(errors.status().message(), "unknown field \"p.c\"");
}

TEST(JsonFields, NumbersOfAnyForm) {
  const auto body = object(R"({"whole": 2048.0, "huge": 18446744073709551615, "big": 1e300, "below": -3})");
  const auto read = [&](const char* key) {
    JsonErrors errors;
    JsonFields fields(body, "", errors);
    const auto number = fields.integer(key, 0, kNoMaximum);
    return number ? std::to_string(*number) : errors.status().message();
  };
  EXPECT_EQ(read("whole"), "2048");
  EXPECT_THAT(read("huge"), HasSubstr("an integer in range"));
  EXPECT_THAT(read("big"), HasSubstr("an integer in range"));
  EXPECT_THAT(read("below"), HasSubstr("must be at least 0, is -3"));
  EXPECT_EQ(number_problem(0, 0, 1), "");
  EXPECT_THAT(number_problem(0, 0, 1, true), HasSubstr("must be above 0 and at most 1, is 0"));
  EXPECT_NE(number_problem(std::nan(""), 0, 1), "");
  EXPECT_NE(number_problem(INFINITY, 0, 1), "");
}

constexpr uint32_t kOne = 1, kTwo = 2;
constexpr Field kTestFields[] = {
    rows::integer("size", kOne, rows::kOurs, 1, 5, ""),
    rows::word("mode", kOne | kTwo, rows::kOurs, "on|off", "\"on\""),
    rows::integer("size", kTwo, rows::kOurs, 1, 50, ""),
    rows::refused("old", kOne, rows::kOurs, "use mode"),
    rows::ignored("note", kOne, rows::kOurs),
};

TEST(FormFields, ARowCountsForItsForms) {
  const auto message = [](uint32_t form, std::string_view text) {
    const auto body = object(text);
    JsonErrors errors;
    FormFields<kTestFields> fields(body, form, "", errors);
    int64_t size = 0;
    std::string mode;
    fields.read("size", size);
    fields.read("mode", mode);
    fields.refuse_others();
    fields.refuse_unknown();
    return errors.status().message();
  };
  EXPECT_EQ(message(kOne, R"({"size": 5, "mode": "off", "note": [1], "old": null})"), "");
  EXPECT_EQ(message(kOne, R"({"size": 6})"), "\"size\" must be from 1 to 5, is 6");
  EXPECT_EQ(message(kTwo, R"({"size": 6})"), "");
  EXPECT_EQ(message(kOne, R"({"mode": "maybe"})"), "\"mode\" must be one of on, off");
  EXPECT_EQ(message(kOne, R"({"old": 1})"), "\"old\" is not supported: use mode");
  EXPECT_EQ(message(kTwo, R"({"old": 1})"), "unknown field \"old\"");
}

TEST(JsonReader, IsStrict) {
  for (const char* bad : {"", "{", "{} {}", "{\"a\":1,\"a\":2}", "1e999", "99999999999999999999", "\"\xff\"",
                          "\"\\ud800\"", "NaN", "{'a':1}", "[1,]", "// c\n1"})
    EXPECT_FALSE(read_json(bad).ok()) << bad;
  EXPECT_FALSE(read_json(std::string(65, '[') + std::string(65, ']')).ok());
  EXPECT_EQ(read_json(R"({"a":[1,2.5,"é",null,true,18446744073709551615]})").value(),
            boost::json::parse(R"({"a":[1,2.5,"é",null,true,18446744073709551615]})"));
}

}  // namespace
}  // namespace lk
