// SPDX-License-Identifier: Apache-2.0
// What clients hear of failures: nothing that they would try again for ever, and not where the server keeps its files.
#include <gtest/gtest.h>

#include <boost/json/object.hpp>

#include "lk/base/file.h"
#include "lk/serve/openai/openai.h"
#include "lk/text/chat_template.h"
#include "lk/text/tokenizer.h"

namespace lk {
namespace {

TEST(ErrorsTest, WhatIsTooLargeForEverIsNotARateLimit) {
  const auto template_status = [](const std::string& source, const TemplateLimits& limits = {}) {
    const auto parsed = ChatTemplate::parse(source, "t");
    return parsed.ok() ? (*parsed)->render({}, limits).status() : parsed.status();
  };
  const std::string loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
  const Status permanent[] = {
      read_file("LICENSE", 1).status(),
      template_status(std::string(2 << 20, 'x')),
      template_status("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}"),
      template_status(loop),
      template_status(loop, {.max_steps = INT64_MAX, .max_time = std::chrono::milliseconds(1)}),
      template_status("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
      Tokenizer::parse(
          R"({"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(?:a+)+[bc]"},"behavior":"Isolated","invert":false},
          "model":{"type":"BPE","vocab":{"a":0},"merges":[]}})",
          "t.json")
          .value()
          ->encode(std::string(2000, 'a'), false)
          .status(),
  };
  for (const Status& status : permanent) {
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(api_error(status).status, 400) << status.message();
    EXPECT_EQ(api_error(status).retry_after_seconds, 0) << status.message();
  }
  EXPECT_EQ(api_error(resource_exhausted("the queue is full")).status, 429);
}

TEST(ErrorsTest, PathsOfTheServerAreShortOnTheWire) {
  const auto message_of = [](const std::string& message) { return api_error(data_loss("{}", message)).message; };
  EXPECT_EQ(message_of("/srv/models/qwen/tokenizer_config.json: line 3: the template ran longer than 2000 ms"),
            "qwen/tokenizer_config.json: line 3: the template ran longer than 2000 ms");
  EXPECT_EQ(message_of("a: \"/cache/x/adapter_config.json\" differs (/y/z/w/b.json)"),
            "a: \"x/adapter_config.json\" differs (w/b.json)");
  EXPECT_EQ(message_of("ask /v1/adapters, or a/b/c, 1 / 2"), "ask /v1/adapters, or a/b/c, 1 / 2");
  EXPECT_EQ(api_error(unavailable("/a/b/c: busy")).message, "b/c: busy");
}

}  // namespace
}  // namespace lk
