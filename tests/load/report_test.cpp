// SPDX-License-Identifier: Apache-2.0
#include "lk/load/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace lk::load {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Percentile, InterpolatesAsNumpyDoes) {
  const std::vector<double> values{1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 50), 2.5);
  EXPECT_DOUBLE_EQ(percentile(values, 90), 3.7);
  EXPECT_DOUBLE_EQ(percentile(values, 99), 3.97);
  EXPECT_DOUBLE_EQ(percentile(values, 100), 4);
  EXPECT_DOUBLE_EQ(percentile(std::vector<double>{7}, 99), 7);
}

TEST(Summary, OfUnsortedValuesAndOfNone) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Summary s = summarize(values);
  EXPECT_EQ(s.count, 101);
  EXPECT_DOUBLE_EQ(s.mean, 50);
  EXPECT_DOUBLE_EQ(s.p50, 50);
  EXPECT_DOUBLE_EQ(s.p90, 90);
  EXPECT_DOUBLE_EQ(s.p99, 99);
  EXPECT_DOUBLE_EQ(s.max, 100);
  EXPECT_EQ(summarize({}).count, 0);
}

// Sent at `sent`, first content `ttft` later, then tokens every `gap`.
RequestRecord answered(double sent, double ttft, double gap, int tokens, int adapter = -1) {
  RequestRecord record{.adapter = adapter,
                       .wanted_tokens = tokens,
                       .scheduled_s = sent,
                       .sent_s = sent,
                       .first_s = sent + ttft,
                       .end_s = sent + ttft + gap * (tokens - 1),
                       .prompt_tokens = 10,
                       .output_tokens = tokens,
                       .has_usage = true,
                       .http_status = 200,
                       .outcome = Outcome::kOk};
  record.gaps_s.assign(static_cast<size_t>(tokens - 1), static_cast<float>(gap));
  return record;
}

RequestRecord failed(Outcome outcome, int status, std::string error) {
  return {.end_s = 1, .http_status = status, .outcome = outcome, .error = std::move(error)};
}

TEST(Slo, IsParsedInMillisecondsOrWithAUnit) {
  const Slo slo = parse_slo("ttft=500,tpot=30ms,e2e=2.5s").value();
  EXPECT_DOUBLE_EQ(*slo.ttft, 0.5);
  EXPECT_DOUBLE_EQ(*slo.tpot, 0.03);
  EXPECT_DOUBLE_EQ(*slo.e2e, 2.5);
  EXPECT_TRUE(parse_slo("").value().empty());
  for (const char* bad :
       {"ttft", "ttft=", "ttft=x", "ttft=-1", "ttft=0", "itl=5", "ttft=5,,", "ttft=1 2", "ttft=inf", "ttft=nan"})
    EXPECT_FALSE(parse_slo(bad).ok()) << bad;
}

TEST(Slo, EveryObjectiveMustBeMet) {
  const RequestRecord record = answered(0, 0.2, 0.01, 11);  // TTFT 200 ms, TPOT 10 ms, E2E 300 ms
  for (const auto& [text, met] : std::map<std::string, bool>{{"ttft=201", true},
                                                             {"ttft=199", false},
                                                             {"tpot=10.1", true},
                                                             {"tpot=9.9", false},
                                                             {"e2e=301", true},
                                                             {"e2e=299", false},
                                                             {"ttft=201,tpot=10.1,e2e=299", false},
                                                             {"ttft=201,tpot=10.1,e2e=301", true}})
    EXPECT_EQ(parse_slo(text)->met_by(record), met) << text;
  EXPECT_FALSE(parse_slo("ttft=1000")->met_by(failed(Outcome::kTimeout, 200, "")));
  EXPECT_TRUE(parse_slo("tpot=1")->met_by(answered(0, 0.2, 0.01, 1)));  // one token has no TPOT
}

TEST(LoadReport, ComputesTheDefinitions) {
  std::vector<RequestRecord> records{answered(0, 0.1, 0.01, 11, 0),
                                     answered(1, 0.3, 0.02, 21, 1),
                                     answered(2, 0.2, 0.01, 1, 0),
                                     failed(Outcome::kHttpError, 429, "slow down"),
                                     failed(Outcome::kHttpError, 503, "full"),
                                     failed(Outcome::kHttpError, 429, "again"),
                                     failed(Outcome::kTimeout, 200, "late")};
  records[1].scheduled_s = 0.5;
  const LoadReport r =
      make_report(records, {.duration_s = 4, .peak_concurrency = 3, .open_loop = true}, parse_slo("ttft=250").value());
  EXPECT_EQ(r.requests, 7);
  EXPECT_EQ(r.ok, 3);
  EXPECT_EQ(r.output_tokens, 33);
  EXPECT_EQ(r.prompt_tokens, 30);
  EXPECT_DOUBLE_EQ(r.requests_per_s, 0.75);
  EXPECT_DOUBLE_EQ(r.output_tokens_per_s, 33 / 4.0);
  EXPECT_DOUBLE_EQ(r.total_tokens_per_s, 63 / 4.0);
  EXPECT_DOUBLE_EQ(*r.goodput, 0.5);
  EXPECT_DOUBLE_EQ(*r.slo_attainment, 2 / 7.0);
  EXPECT_EQ(r.ttft_ms.count, 3);
  EXPECT_NEAR(r.ttft_ms.mean, 200, 1e-6);
  EXPECT_NEAR(r.ttft_ms.max, 300, 1e-6);
  EXPECT_EQ(r.tpot_ms.count, 2);
  EXPECT_NEAR(r.tpot_ms.mean, 15, 1e-6);
  EXPECT_EQ(r.itl_ms.count, 30);
  EXPECT_NEAR(r.itl_ms.mean, (10 * 10 + 20 * 20) / 30.0, 1e-4);
  EXPECT_NEAR(r.e2e_ms.p50, 200, 1e-6);
  EXPECT_NEAR(r.e2e_ms.max, 700, 1e-6);
  EXPECT_EQ(r.delay_ms.count, 7);
  EXPECT_NEAR(r.delay_ms.max, 500, 1e-6);
  EXPECT_EQ(r.errors, (std::map<std::string, int64_t>{{"429", 2}, {"503", 1}, {"timeout", 1}}));
  EXPECT_EQ(r.refused_ms.count, 3);
  EXPECT_DOUBLE_EQ(r.refused_ms.p50, 1000);
  EXPECT_EQ(r.adapters.at(0).ok, 2);
  EXPECT_EQ(r.adapters.at(0).output_tokens, 12);
  EXPECT_NEAR(r.adapters.at(1).ttft_ms.p50, 300, 1e-6);
  EXPECT_EQ(r.adapters.at(-1).ok, 0);
}

TEST(LoadReport, TokensPerTokenTimeUsesTheServersCount) {
  RequestRecord record = answered(0, 0.1, 0.05, 3);  // three events ...
  record.output_tokens = 11;                         // ... that held eleven tokens
  EXPECT_NEAR(record.tpot_s(), 0.01, 1e-9);
}

TEST(LoadReport, AnswersThatWereNotStreamedHaveNoFirstToken) {
  RequestRecord record = answered(0, 0.1, 0.01, 5);
  record.first_s = -1;
  record.gaps_s.clear();
  const LoadReport r = make_report(std::vector{record}, {.duration_s = 1}, {});
  EXPECT_EQ(r.ttft_ms.count, 0);
  EXPECT_EQ(r.tpot_ms.count, 0);
  EXPECT_EQ(r.e2e_ms.count, 1);
  EXPECT_FALSE(r.goodput.has_value());
  EXPECT_TRUE(report_json(r, {}).at("ttft_ms").is_null());
}

TEST(LoadReport, TheTableTellsWhatWentWrong) {
  std::vector<RequestRecord> records{answered(0, 0.1, 0.01, 11, 0),
                                     failed(Outcome::kHttpError, 429, "slow\x1b[31m down")};
  records[0].has_usage = false;
  records[0].wanted_tokens = 20;
  records[0].sent_s = 0.05;
  const LoadReport r = make_report(records, {.duration_s = 1, .open_loop = true}, {});
  const std::string table = format_report(r, {"sql"}, true);
  for (const char* text :
       {"1 ok of 2", "1 x 429: slow", "without usage", "fewer tokens", "after their time", "sql", "(base)"})
    EXPECT_THAT(table, HasSubstr(text));
  EXPECT_THAT(table, Not(HasSubstr("\x1b")));
  EXPECT_THAT(format_report(r, {"sql"}, false), Not(HasSubstr("sql")));
  const boost::json::object json = report_json(r, {"sql"});
  EXPECT_EQ(json.at("errors").at("429").at("count"), 1);
  EXPECT_EQ(json.at("adapters").at("sql").at("ok"), 1);
}

TEST(LoadReport, OfNothingIsEmpty) {
  const LoadReport r = make_report({}, {}, parse_slo("ttft=1").value());
  EXPECT_EQ(r.requests, 0);
  EXPECT_FALSE(r.slo_attainment.has_value());
  EXPECT_THAT(format_report(r, {}, true), HasSubstr("0 ok of 0"));
}

}  // namespace
}  // namespace lk::load
