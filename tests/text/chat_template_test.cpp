// SPDX-License-Identifier: Apache-2.0
#include "lk/text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/string.hpp>

#include "lk/base/file.h"

namespace lk {
namespace {

const std::string kFixtures = "tests/text/fixtures/templates";

std::string text_of(const boost::json::value& value) {
  const auto& text = value.as_string();
  return std::string(text.data(), text.size());
}

boost::json::object object_of(std::string_view json) { return boost::json::parse(json).as_object(); }

Result<std::string> render(std::string_view source, std::string_view variables = "{}",
                           const TemplateLimits& limits = {}) {
  LK_ASSIGN_OR_RETURN(const auto parsed, ChatTemplate::parse(source, "t"));
  return parsed->render(object_of(variables), limits);
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = testing::TempDir() + "chat_template_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  void write(const std::string& name, std::string_view bytes) const {
    ASSERT_TRUE(write_file_atomic(join_path(path_, name), bytes).ok());
  }

 private:
  std::string path_;
};

// cases.json holds what jinja2 gives (tools/compare_templates.py --write).
TEST(ChatTemplate, FixturesMatchJinja2) {
  const auto bytes = read_file(kFixtures + "/cases.json");
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  const auto cases = boost::json::parse(*bytes).as_array();
  EXPECT_GE(cases.size(), 200u);
  for (const auto& entry : cases) {
    const auto& one = entry.as_object();
    const std::string name = text_of(one.at("template"));
    SCOPED_TRACE(name + " / " + text_of(one.at("case")));
    const auto source = read_file(join_path(kFixtures, name));
    ASSERT_TRUE(source.ok());
    const auto parsed = ChatTemplate::parse(*source, name);
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    const auto rendered = (*parsed)->render(one.at("variables").as_object());
    if (one.contains("output")) {
      ASSERT_TRUE(rendered.ok()) << rendered.status().message();
      EXPECT_EQ(*rendered, text_of(one.at("output")));
    } else {
      ASSERT_FALSE(rendered.ok());
      const std::string raised = text_of(one.at("error"));  // empty: an error of Python's wording
      if (!raised.empty()) {
        EXPECT_EQ(rendered.status().code(), StatusCode::kInvalidArgument);
        EXPECT_EQ(rendered.status().message(), raised);
      }
    }
  }
}

TEST(ChatTemplate, LoadsTheFileAndTheSpecialTokens) {
  const TemporaryDirectory directory;
  directory.write("chat_template.jinja", "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}\n");
  directory.write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "chat_template": "no"})");
  const auto loaded = ChatTemplate::load(directory.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(*(*loaded)->render({}), "<s>|</s>|False");
  EXPECT_EQ(*(*loaded)->render(object_of(R"({"bos_token": "B"})")), "B|</s>|False");
}

TEST(ChatTemplate, LoadsTheDefaultEntryOfAList) {
  const TemporaryDirectory directory;
  directory.write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "r"},
                                               {"name": "default", "template": "d{{ 1 + 1 }}"}]})");
  const auto loaded = ChatTemplate::load(directory.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(*(*loaded)->render({}), "d2");
}

TEST(ChatTemplate, LoadSaysWhatIsMissingOrBroken) {
  const TemporaryDirectory directory;
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kNotFound);
  directory.write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kNotFound);
  directory.write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "r"}]})");
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kNotFound);
  directory.write("tokenizer_config.json", "{");
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kDataLoss);
  directory.write("tokenizer_config.json", R"({"chat_template": "{% if %}"})");
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kInvalidArgument);
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  EXPECT_EQ(render("a\n{{ x.y }}").status().message(), "t: line 2: 'x' is undefined");
  EXPECT_EQ(render("{% if a %}\n\n{% endfor %}").status().message(),
            "t: line 3: unknown tag {% endfor %}; {% endif %} is still to come");
  EXPECT_EQ(render("\n{% include 'x' %}").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(render("{% for x in y recursive %}{% endfor %}").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(render("{{ cycler(1) }}").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(render("{{ 'a' | urlize }}").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(render("{{ 9223372036854775807 + 1 }}").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(render("{{ raise_exception('no ' ~ 1) }}").status().message(), "no 1");
  EXPECT_FALSE(ChatTemplate::parse("\xff", "t").ok());
}

TEST(ChatTemplate, MissingVariablesAreThoseOfTransformers) {
  EXPECT_EQ(*render("{{ tools is none }}{{ documents }}{{ add_generation_prompt }}{{ messages is defined }}"),
            "TrueNoneFalseFalse");
}

TEST(ChatTemplate, GenerationBlocksAreMarked) {
  const auto parsed = ChatTemplate::parse(
      "{% for m in messages %}{{ m }}:{% generation %}{{ m }}!{% endgeneration %};{% endfor %}"
      "{% set x %}{% generation %}y{% endgeneration %}{% endset %}{{ x }}",
      "t");
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const auto marked = (*parsed)->render_marked(object_of(R"({"messages": ["a", "bc"]})"));
  ASSERT_TRUE(marked.ok()) << marked.status().message();
  EXPECT_EQ(marked->text, "a:a!;bc:bc!;y");
  EXPECT_EQ(marked->generations, (std::vector<std::pair<size_t, size_t>>{{2, 4}, {8, 11}}));
}

TEST(ChatTemplate, ClockCanBeFixed) {
  EXPECT_EQ(*render("{{ strftime_now('%d %b %Y %H:%M') }}", R"({"strftime_now_unix": 1760000000})"),
            "09 Oct 2025 08:53");
  EXPECT_EQ(render("{{ strftime_now('%99999d') }}").status().code(), StatusCode::kUnsupported);
}

TEST(ChatTemplate, HostileTemplatesHitALimit) {
  const TemplateLimits limits{.max_steps = 100'000, .max_output_bytes = 1 << 20};
  for (const std::string_view source : {
           "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
           "{{ 'x' * 9000000000000 }}",
           "{{ [0] * 9000000000000 }}",
           "{{ range(9000000000000) }}",
           "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% "
           "endfor %}",
           "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l, ns.l] %}{% "
           "endfor %}",
           "{% set ns = namespace(l=1) %}{% for i in range(999) %}{% set ns.l = [ns.l].index %}{% "
           "endfor %}",
           "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
           "{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% "
           "endfor %}",
           "{{ 'a' | center(9000000000000) }}",
           "{{ '%9000000000000d' % 1 }}",
           "{{ '{:>999999999}'.format('x') }}",
           "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
           "{{ [1] | tojson(indent=9000000000000) }}",
           "{{ ('a' * 1000000) | list | map('center', 1000) | join }}",
       }) {
    SCOPED_TRACE(source);
    const auto rendered = render(source, "{}", limits);
    ASSERT_FALSE(rendered.ok());
    EXPECT_NE(rendered.status().message(), "");
  }
}

TEST(ChatTemplate, DeepNestingIsRefused) {
  const auto repeat = [](std::string_view text, int count) {
    std::string out;
    for (int k = 0; k < count; ++k) out += text;
    return out;
  };
  for (const std::string_view opener : {"(", "[", "{1:", "-", "not ", "a.b[", "f(", "x if y else "}) {
    EXPECT_FALSE(render("{{ " + repeat(opener, 100'000)).ok()) << opener;
  }
  EXPECT_FALSE(render("{{ 1" + repeat(" + 1", 100'000) + " }}").ok());
  EXPECT_FALSE(render("{{ 1" + repeat("|abs", 100'000) + " }}").ok());
  EXPECT_FALSE(render(repeat("{% if 1 %}", 50'000)).ok());
  EXPECT_FALSE(render("{% set " + repeat("(", 50'000)).ok());
  EXPECT_EQ(*render("{{ " + repeat("(", 50) + "1" + repeat(")", 50) + " }}"), "1");
  EXPECT_EQ(*render("{{ ''" + repeat(" ~ 1", 150) + " }}"), std::string(150, '1'));
}

TEST(ChatTemplate, CyclesAreReleased) {  // checked by the leak sanitizer
  EXPECT_TRUE(render("{% set ns = namespace() %}{% set ns.self = [ns] %}{% macro m() %}{{ ns }}{% endmacro %}"
                     "{% set ns.m = m %}{% for i in [1, 2] %}{% set ns.loop = loop %}"
                     "{% set x = loop.changed(loop) %}{% macro k() %}{{ x }}{% endmacro %}{% set y = k %}{% "
                     "endfor %}")
                  .ok());
  EXPECT_FALSE(render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}").ok());
}

TEST(ChatTemplate, TimeLimitHolds) {
  TemplateLimits limits;
  limits.max_time = std::chrono::milliseconds(30);
  limits.max_steps = INT64_MAX;
  const auto rendered =
      render("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "{}", limits);
  EXPECT_EQ(rendered.status().code(), StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace lk
