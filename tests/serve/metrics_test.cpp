// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/metrics.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <ctime>
#include <functional>
#include <regex>
#include <thread>

#include "lk/base/file.h"
#include "lk/serve/observe/histogram.h"
#include "lk/serve/observe/metric_families.h"
#include "serve/exposition.h"

namespace lk {
namespace {

using testing::Exposition;
using testing::LabelSet;

std::unique_ptr<Metrics> make(int cap = 200) {
  return Metrics::create({.model_name = "tiny", .version = "1.2.3", .max_label_values = cap});
}

LabelSet vllm(LabelSet more = {}) {
  more.insert({{"model_name", "tiny"}, {"engine", "0"}});
  return more;
}

RequestRecord record(std::string_view adapter = "a", std::string_view finish = "stop") {
  return {.endpoint = "chat",
          .tenant = "acme",
          .adapter = adapter,
          .finish = finish,
          .prompt_tokens = 10,
          .cached_tokens = 4,
          .output_tokens = 5,
          .max_tokens = 64,
          .n = 2,
          .queue_seconds = 0.5,
          .time_to_first_token = 2,
          .e2e_seconds = 6};
}

AdapterSnapshot adapter(const std::string& name, const std::string& tier, int64_t running = 0, int64_t waiting = 0) {
  AdapterSnapshot a;
  a.name = name, a.tier = tier, a.running = running, a.waiting = waiting, a.rank = 8, a.device_bytes = 1000;
  return a;
}

TEST(Metrics, EveryNameOfTheContractIsThereOnceWithHelpAndTypeBeforeAnyRequest) {
  const Exposition e(make()->scrape({}));
  const std::map<std::string, std::string> expected{{"vllm:num_requests_running", "gauge"},
                                                    {"vllm:num_requests_waiting", "gauge"},
                                                    {"vllm:kv_cache_usage_perc", "gauge"},
                                                    {"vllm:gpu_cache_usage_perc", "gauge"},
                                                    {"vllm:prompt_tokens_total", "counter"},
                                                    {"vllm:generation_tokens_total", "counter"},
                                                    {"vllm:request_success_total", "counter"},
                                                    {"vllm:num_preemptions_total", "counter"},
                                                    {"vllm:prefix_cache_queries_total", "counter"},
                                                    {"vllm:prefix_cache_hits_total", "counter"},
                                                    {"vllm:time_to_first_token_seconds", "histogram"},
                                                    {"vllm:inter_token_latency_seconds", "histogram"},
                                                    {"vllm:time_per_output_token_seconds", "histogram"},
                                                    {"vllm:e2e_request_latency_seconds", "histogram"},
                                                    {"vllm:request_queue_time_seconds", "histogram"},
                                                    {"vllm:request_prefill_time_seconds", "histogram"},
                                                    {"vllm:request_decode_time_seconds", "histogram"},
                                                    {"vllm:request_inference_time_seconds", "histogram"},
                                                    {"vllm:request_prompt_tokens", "histogram"},
                                                    {"vllm:request_generation_tokens", "histogram"},
                                                    {"vllm:request_max_num_generation_tokens", "histogram"},
                                                    {"vllm:request_params_n", "histogram"},
                                                    {"vllm:request_params_max_tokens", "histogram"},
                                                    {"vllm:iteration_tokens_total", "histogram"},
                                                    {"vllm:cache_config_info", "gauge"},
                                                    {"vllm:lora_requests_info", "gauge"},
                                                    {"vllm:lora_adapter_loaded", "gauge"},
                                                    {"vllm:num_gpu_loaded_lora_adapters", "gauge"},
                                                    {"vllm:num_cpu_loaded_lora_adapters", "gauge"},
                                                    {"vllm:max_gpu_lora_adapters", "gauge"},
                                                    {"vllm:lora_adapter_load_seconds", "histogram"},
                                                    {"lorikeet_build_info", "gauge"},
                                                    {"lorikeet_pool_pages", "gauge"},
                                                    {"lorikeet_requests_refused_total", "counter"},
                                                    {"process_resident_memory_bytes", "gauge"}};
  for (const auto& [name, type] : expected) {
    ASSERT_TRUE(e.families.contains(name)) << name;
    EXPECT_EQ(e.families.at(name).type, type) << name;
  }
  for (const auto& [name, family] : e.families) {
    EXPECT_TRUE(name.starts_with("vllm:") || name.starts_with("lorikeet_") || name.starts_with("process_")) << name;
    // vLLM has a histogram named _total; ours keep the convention.
    if (!name.starts_with("vllm:")) {
      EXPECT_EQ(name.ends_with("_total"), family.type == "counter") << name;
      continue;
    }
    for (const auto& [sample, series] : family.samples)
      for (const auto& [labels, value] : series)
        EXPECT_TRUE(labels.at("model_name") == "tiny" && labels.at("engine") == "0") << sample;
  }
  EXPECT_EQ(e.value("vllm:request_success_total", vllm({{"finished_reason", "abort"}})), 0);  // rate() needs the zero
}

TEST(Metrics, BucketsAreThoseOfTheDashboards) {
  const Exposition e(make()->scrape({}));
  const auto bounds = [&](const std::string& name) {
    std::set<double> values;
    for (const auto& [labels, v] : e.families.at(name).samples.at(name + "_bucket"))
      if (labels.at("le") != "+Inf") values.insert(std::stod(labels.at("le")));
    return values;
  };
  EXPECT_EQ(bounds("vllm:time_to_first_token_seconds"),
            (std::set<double>{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                              1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560}));
  EXPECT_EQ(bounds("vllm:inter_token_latency_seconds"),
            (std::set<double>{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}));
  EXPECT_EQ(
      bounds("vllm:e2e_request_latency_seconds"),
      (std::set<double>{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}));
  EXPECT_EQ(bounds("vllm:request_queue_time_seconds"), bounds("vllm:e2e_request_latency_seconds"));
}

TEST(Metrics, RequestIsCountedInEveryPlace) {
  const auto metrics = make();
  metrics->request_finished(record());
  metrics->request_finished(record("a", "cancelled"));
  metrics->request_finished(record("", "tool_calls"));
  auto no_token = record("b", "deadline");
  no_token.time_to_first_token = -1;
  metrics->request_finished(no_token);
  metrics->request_finished(record("b", "no such word"));
  const Exposition e(metrics->scrape({}));
  EXPECT_EQ(e.value("vllm:request_success_total", vllm({{"finished_reason", "stop"}})), 2);
  EXPECT_EQ(e.value("vllm:request_success_total", vllm({{"finished_reason", "abort"}})), 2);
  EXPECT_EQ(e.value("vllm:request_success_total", vllm({{"finished_reason", "error"}})), 1);
  EXPECT_EQ(e.value("lorikeet_requests_total", {{"finish", "tool_calls"}}), 1);
  EXPECT_EQ(e.value("lorikeet_requests_total", {{"finish", "other"}}), 1);
  EXPECT_EQ(e.value("lorikeet_adapter_requests_total", {{"adapter", "a"}}), 2);
  EXPECT_EQ(e.value("lorikeet_adapter_requests_total", {{"adapter", "base"}}), 1);
  EXPECT_EQ(e.value("lorikeet_adapter_prompt_tokens_total", {{"adapter", "b"}}), 20);
  EXPECT_EQ(e.value("lorikeet_adapter_output_tokens_total", {{"adapter", "b"}}), 10);
  EXPECT_EQ(e.value("lorikeet_tenant_requests_total", {{"tenant", "acme"}}), 5);
  EXPECT_EQ(e.value("lorikeet_cached_prompt_tokens_total", {}), 20);
  EXPECT_EQ(e.value("vllm:time_to_first_token_seconds_count", vllm()), 4);
  EXPECT_EQ(e.value("vllm:time_to_first_token_seconds_sum", vllm()), 8);
  EXPECT_EQ(e.value("vllm:time_to_first_token_seconds_bucket", vllm({{"le", "1"}})), 0);
  EXPECT_EQ(e.value("vllm:time_to_first_token_seconds_bucket", vllm({{"le", "2.5"}})), 4);
  EXPECT_EQ(e.value("vllm:request_queue_time_seconds_sum", vllm()), 2.5);
  EXPECT_EQ(e.value("vllm:request_prefill_time_seconds_sum", vllm()), 6);  // 4 x (2 - 0.5)
  EXPECT_EQ(e.value("vllm:request_decode_time_seconds_sum", vllm()), 16);  // 4 x (6 - 2)
  EXPECT_EQ(e.value("vllm:request_inference_time_seconds_sum", vllm()), 27.5);
  EXPECT_EQ(e.value("vllm:request_params_n_bucket", vllm({{"le", "2"}})), 5);
  EXPECT_EQ(e.value("vllm:request_params_max_tokens_sum", vllm()), 320);
  EXPECT_EQ(e.value("lorikeet_adapter_time_to_first_token_seconds_count", {{"adapter", "b"}}), 1);
}

TEST(Metrics, SnapshotTotalsNeverFall) {
  const auto metrics = make();
  ServerSnapshot s;
  s.prompt_tokens = 100, s.num_preemptions = 3, s.prefix_queries_tokens = 50, s.prefix_hit_tokens = 20,
  s.generation_tokens = 7, s.num_sampling_failures = 6;
  s.merging = {.chooser = "always", .adapter = "hot", .builds = 2, .merged_steps = 9};
  EXPECT_EQ(Exposition(metrics->scrape(s)).value("vllm:prompt_tokens_total", vllm()), 100);
  s.prompt_tokens = 90, s.generation_tokens = 8;  // an older snapshot overtaken by a newer one
  const Exposition e(metrics->scrape(s));
  EXPECT_EQ(e.value("vllm:prompt_tokens_total", vllm()), 100);
  EXPECT_EQ(e.value("vllm:generation_tokens_total", vllm()), 8);
  EXPECT_EQ(e.value("vllm:prefix_cache_hits_total", vllm()), 20);
  EXPECT_EQ(e.value("vllm:num_preemptions_total", vllm()), 3);
  EXPECT_EQ(e.value("lorikeet_sampling_failures_total", {}), 6);
  EXPECT_EQ(e.value("lorikeet_merge_builds_total", {}), 2);
  EXPECT_EQ(e.value("lorikeet_merge_steps_total", {}), 9);
  EXPECT_EQ(e.value("lorikeet_merge_info", {{"chooser", "always"}, {"adapter", "hot"}}), 1);
}

TEST(Metrics, SnapshotGauges) {
  ServerSnapshot s;
  s.num_running = 3, s.num_waiting = 2, s.pages = 100, s.pages_free = 10, s.pages_cached = 20, s.pages_kv = 30,
  s.pages_adapter = 20, s.pages_merged = 20, s.page_bytes = 500;
  s.adapters = {adapter("b", "device", 2, 0), adapter("a", "device", 1, 1), adapter("idle", "host"),
                adapter("w", "disk", 0, 1)};
  s.tenants = {{.name = "acme", .in_flight = 4}};
  const double before = static_cast<double>(std::time(nullptr));
  const Exposition e(make()->scrape(s));
  EXPECT_EQ(e.value("vllm:num_requests_running", vllm()), 3);
  EXPECT_EQ(e.value("vllm:num_requests_waiting", vllm()), 2);
  EXPECT_EQ(e.value("vllm:kv_cache_usage_perc", vllm()), 0.375);
  EXPECT_EQ(e.value("vllm:gpu_cache_usage_perc", vllm()), 0.375);
  EXPECT_EQ(e.value("vllm:cache_config_info",
                    vllm({{"block_size", "16"}, {"num_gpu_blocks", "100"}, {"enable_prefix_caching", "True"}})),
            1);
  // 100 pages of 500 bytes hold 50 adapters of 1000.
  const double now =
      e.value("vllm:lora_requests_info",
              vllm({{"max_lora", "50"}, {"running_lora_adapters", "a,b"}, {"waiting_lora_adapters", "a,w"}}));
  EXPECT_GE(now, before);
  EXPECT_LT(now, before + 600);
  EXPECT_EQ(e.value("vllm:lora_adapter_loaded",
                    vllm({{"adapter_name", "a"}, {"level", "gpu"}, {"pinned", "false"}, {"rank", "8"}})),
            1);
  EXPECT_EQ(e.value("vllm:lora_adapter_loaded",
                    vllm({{"adapter_name", "idle"}, {"level", "cpu"}, {"pinned", "false"}, {"rank", "8"}})),
            1);
  EXPECT_EQ(e.total("vllm:lora_adapter_loaded"), 3);
  EXPECT_EQ(e.value("vllm:num_gpu_loaded_lora_adapters", vllm()), 2);
  EXPECT_EQ(e.value("vllm:num_cpu_loaded_lora_adapters", vllm()), 1);
  EXPECT_EQ(e.value("lorikeet_adapters", {{"tier", "disk"}}), 1);
  EXPECT_EQ(e.total("lorikeet_pool_pages"), 100);
  EXPECT_EQ(e.value("lorikeet_tenant_in_flight", {{"tenant", "acme"}}), 4);
}

TEST(Metrics, KvUsageOfAPoolFullOfAdaptersIsOne) {
  ServerSnapshot s;
  s.pages = s.pages_adapter = 10;
  EXPECT_EQ(Exposition(make()->scrape(s)).value("vllm:kv_cache_usage_perc", vllm()), 1);
}

TEST(Metrics, LabelsBeyondTheCapAreOther) {
  const auto metrics = make(3);
  ServerSnapshot s;
  for (int i = 0; i < 50; ++i) {
    const std::string name = "n" + std::to_string(i);
    metrics->request_finished(record(name));
    metrics->request_refused(name, name);
    metrics->http_request(name, 200, 0.1);
    s.adapters.push_back(adapter(name, "host", 1, 1));
    s.tenants.push_back({.name = name, .in_flight = 1});
  }
  metrics->request_finished(record("n1"));  // keeps its name
  const Exposition e(metrics->scrape(s));
  EXPECT_EQ(e.value("lorikeet_adapter_requests_total", {{"adapter", "n1"}}), 2);
  EXPECT_EQ(e.value("lorikeet_adapter_requests_total", {{"adapter", "other"}}), 47);
  for (const char* name : {"lorikeet_adapter_requests_total", "lorikeet_tenant_in_flight",
                           "lorikeet_requests_refused_total", "lorikeet_http_requests_total"})
    EXPECT_EQ(e.families.at(name).samples.at(name).size(), 4u) << name;
  EXPECT_EQ(e.total("lorikeet_requests_refused_total"), 50);
  EXPECT_EQ(e.total("lorikeet_tenant_in_flight"), 50);
  EXPECT_EQ(e.total("vllm:lora_adapter_loaded"), 3);
  const auto& info = e.families.at("vllm:lora_requests_info").samples.at("vllm:lora_requests_info");
  EXPECT_EQ(info.begin()->first.at("running_lora_adapters"), "n0,n1,n10");
}

TEST(Metrics, ACapOfZeroNamesNothing) {
  const auto metrics = make(0);
  metrics->request_finished(record("a"));
  EXPECT_EQ(Exposition(metrics->scrape({})).value("lorikeet_adapter_requests_total", {{"adapter", "other"}}), 1);
}

TEST(Metrics, HostileLabelValuesStayInTheirQuotes) {
  const auto metrics = make();
  const std::string nasty = "a\"} 1\nevil{x=\"\\y\xff\x00z";
  metrics->request_finished(record(std::string_view(nasty.data(), nasty.size())));
  metrics->http_request("/x\"y", 99999, 1);
  ServerSnapshot s;
  s.adapters = {adapter("comma,name", "host", 1), adapter("quote\"", "host", 1)};
  const Exposition e(metrics->scrape(s));
  EXPECT_EQ(e.value("lorikeet_adapter_requests_total", {{"adapter", "a\"} 1?evil{x=\"\\y?"}}), 1);
  EXPECT_EQ(e.value("lorikeet_http_requests_total", {{"route", "/x\"y"}, {"status", "invalid"}}), 1);
  const auto& info = e.families.at("vllm:lora_requests_info").samples.at("vllm:lora_requests_info");
  EXPECT_EQ(info.begin()->first.at("running_lora_adapters"), "quote\"");
}

TEST(Metrics, LabelValuesAreValidUtf8OfBoundedLength) {
  EXPECT_EQ(clean_label_value("grün €😀"), "grün €😀");
  EXPECT_EQ(clean_label_value("\xed\xa0\x80"), "???");                 // a surrogate
  EXPECT_EQ(clean_label_value("\xc0\xaf\xf4\x90\x80\x80"), "??????");  // overlong, above U+10FFFF
  EXPECT_EQ(clean_label_value("\xe2\x82"), "??");                      // cut off
  const std::string cut = clean_label_value(std::string(255, 'a') + "€");
  EXPECT_EQ(cut, std::string(255, 'a'));  // never half a character
}

TEST(Metrics, CountsOfManyThreadsAreExact) {
  const auto metrics = make();
  constexpr int kThreads = 8, kEach = 2000;
  std::vector<std::jthread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        metrics->token_gap(0.0625);
        metrics->request_finished(record(t % 2 ? "odd" : "even"));
        metrics->step_finished(7, 0.25);
        metrics->adapter_load(0.5, i % 2 == 0);
        if (i % 500 == 0) {
          EXPECT_NO_THROW(Exposition(metrics->scrape({})));
        }
      }
    });
  threads.clear();
  const Exposition e(metrics->scrape({}));
  constexpr double kTotal = kThreads * kEach;
  EXPECT_EQ(e.value("vllm:inter_token_latency_seconds_count", vllm()), kTotal);
  EXPECT_EQ(e.value("vllm:inter_token_latency_seconds_sum", vllm()), kTotal / 16);
  EXPECT_EQ(e.value("vllm:time_per_output_token_seconds_bucket", vllm({{"le", "0.05"}})), 0);
  EXPECT_EQ(e.value("vllm:time_per_output_token_seconds_bucket", vllm({{"le", "0.075"}})), kTotal);
  EXPECT_EQ(e.value("lorikeet_adapter_requests_total", {{"adapter", "odd"}}), kTotal / 2);
  EXPECT_EQ(e.value("vllm:iteration_tokens_total_sum", vllm()), kTotal * 7);
  EXPECT_EQ(e.value("lorikeet_step_seconds_sum", {}), kTotal / 4);
  EXPECT_EQ(e.value("lorikeet_adapter_load_failures_total", {}), kTotal / 2);
  EXPECT_EQ(e.value("vllm:lora_adapter_load_seconds_count", vllm()), kTotal / 2);
}

// Every expression of the dashboard, by walking its JSON.
std::vector<std::string> dashboard_expressions() {
  namespace json = boost::json;
  std::vector<std::string> found;
  const std::function<void(const json::value&)> walk = [&](const json::value& v) {
    if (v.is_array())
      for (const json::value& item : v.get_array()) walk(item);
    if (!v.is_object()) return;
    for (const auto& [key, item] : v.get_object()) {
      if (key == "expr")
        found.emplace_back(item.as_string());
      else
        walk(item);
    }
  };
  walk(json::parse(read_file("packaging/grafana.json").value()));
  return found;
}

TEST(Metrics, DashboardAsksForNamesAndLabelsThatExist) {
  const auto metrics = make();
  metrics->request_finished(record());
  metrics->request_refused("overload", "acme");
  metrics->http_request("/v1/models", 200, 0.1);
  const Exposition e(metrics->scrape({}));
  const std::set<std::string> names = e.sample_names();
  const std::regex name(R"((vllm:|lorikeet_|process_)[a-z0-9_]+)"), grouping(R"(by \(([a-z_, ]+)\))");
  int num_names = 0;
  for (const std::string& expression : dashboard_expressions()) {
    std::set<std::string> labels{"instance"};  // the scraper's
    for (std::sregex_iterator it(expression.begin(), expression.end(), name), end; it != end; ++it, ++num_names) {
      EXPECT_TRUE(names.contains(it->str())) << it->str();
      for (const auto& [family_name, family] : e.families)
        if (const auto found = family.samples.find(it->str()); found != family.samples.end())
          for (const auto& [label, value] : found->second.begin()->first) labels.insert(label);
    }
    const std::regex comma(", *");
    for (std::sregex_iterator it(expression.begin(), expression.end(), grouping), end; it != end; ++it) {
      const std::string list = (*it)[1];
      for (std::sregex_token_iterator label(list.begin(), list.end(), comma, -1), none; label != none; ++label)
        EXPECT_TRUE(labels.contains(label->str())) << *label << " in " << expression;
    }
  }
  EXPECT_GE(num_names, 40);
}

TEST(Histogram, BoundsAreInclusiveAndNanPoisonsNothing) {
  static constexpr double bounds[] = {1, 2};
  Histogram plain(bounds);
  ShardedHistogram sharded(bounds);
  for (const double v : {1.0, 1.5, 2.0, 3.0, std::nan(""), static_cast<double>(INFINITY)})
    plain.observe(v), sharded.observe(v);
  EXPECT_EQ(plain.counts, (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(plain.sum, 7.5);
  EXPECT_EQ(sharded.read().counts, plain.counts);
  EXPECT_EQ(sharded.read().sum, 7.5);
}

}  // namespace
}  // namespace lk
