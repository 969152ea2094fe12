// SPDX-License-Identifier: Apache-2.0
#include "lk/text/chat_templates.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <filesystem>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/string.hpp>

#include "lk/base/file.h"

namespace lk {
namespace {

using ::testing::HasSubstr;

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

Result<std::shared_ptr<const ChatTemplates>> load(const TemporaryDirectory& directory) {
  LK_ASSIGN_OR_RETURN(const TokenizerConfig config, TokenizerConfig::load(directory.path()));
  return ChatTemplates::parse(config);
}

TEST(ChatTemplates, LoadsTheFileAndTheSpecialTokens) {
  const TemporaryDirectory directory;
  directory.write("chat_template.jinja", "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}\n");
  directory.write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "chat_template": "no"})");
  const auto loaded = load(directory);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const ChatTemplate& chat = *(*loaded)->choose("", false).value()->body;
  EXPECT_EQ(*chat.render({}), "<s>|</s>|False");
  EXPECT_EQ(*chat.render(object_of(R"({"bos_token": "B"})")), "B|</s>|False");
  EXPECT_EQ(*chat.with_variables({{"eos_token", "E"}})->render({}), "|E|False");
}

TEST(ChatTemplates, LoadSaysWhatIsMissingOrBroken) {
  const TemporaryDirectory directory;
  EXPECT_EQ(*load(directory), nullptr);
  directory.write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(*load(directory), nullptr);
  directory.write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "r"}]})");
  EXPECT_THAT((*load(directory))->choose("", true).status().message(),
              HasSubstr("none is the default: name one of rag"));
  EXPECT_THAT((*load(directory))->choose("no", true).status().message(), HasSubstr("it has rag"));
  EXPECT_EQ((*load(directory))->choose("rag", true).value()->name, "rag");
  for (const char* broken : {"{", R"({"chat_template": 1})", R"({"chat_template": [{"name": "rag"}]})",
                             R"({"eos_token": 5})", R"({"eos_token": {"x": "y"}})", R"({"added_tokens_decoder": []})",
                             R"({"added_tokens_decoder": {"x": {"content": "y"}}})", R"({"extra_special_tokens": "x"})",
                             R"({"add_prefix_space": "yes"})"}) {
    directory.write("tokenizer_config.json", broken);
    EXPECT_EQ(load(directory).status().code(), StatusCode::kDataLoss) << broken;
    EXPECT_THAT(load(directory).status().message(), HasSubstr("tokenizer_config.json")) << broken;
  }
  directory.write("tokenizer_config.json", R"({"chat_template": "{% if %}"})");
  EXPECT_EQ(load(directory).status().code(), StatusCode::kInvalidArgument);
}

ChatTemplates::Entry entry_of(const std::string& source) {
  return ChatTemplates::of(ChatTemplate::parse(source, "t").value())->entries()[0];
}
std::string shown(const std::string& source, const std::string& conversation) {
  const auto object = object_of(conversation);
  Conversation given{.messages = object.at("messages").as_array()};
  if (object.contains("tools")) given.tools = object.at("tools").as_array();
  const ChatTemplates::Entry entry = entry_of(source);
  const auto rendered = entry.render(given);
  if (!rendered.ok()) return rendered.status().message();
  const Status tools = entry.check_tools(given.tools, rendered->text);
  return tools.ok() ? rendered->text : tools.message();
}

TEST(ChatTemplates, ListsReachTemplatesThatWalkThem) {
  const std::string list =
      R"({"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                       {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]}]})";
  EXPECT_EQ(shown("{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}", list),
            "<a><b><c><d>");
  EXPECT_EQ(shown("{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
                  "{% for p in m['content'] %}<{{ p['text'] }}>{% endfor %}{% endif %}{% endfor %}",
                  list),
            "<a><b><c><d>");
  // Only the user's content is walked: the system's is text to it.
  EXPECT_EQ(shown("{% for m in messages %}{% if m.role == 'user' and m.content is not string %}{% for p in m.content %}"
                  "<{{ p.text }}>{% endfor %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
                  list),
            "[a\nb]<c><d>");
  // Templates that would print the list, in either notation, or fail, or drop it, get the text.
  for (const char* source :
       {"{% for m in messages %}{{ m.content }};{% endfor %}",
        "{% for m in messages %}{{ m.content if m.content is string else m.content|tojson }};{% endfor %}",
        "{% for m in messages %}{{ m.content + ';' }}{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content }};{% endif %}{% endfor %}"})
    EXPECT_EQ(shown(source, list), "a\nb;c\nd;") << source;
}

TEST(ChatTemplates, ToolsThatAreNotShownAreAnError) {
  const std::string tools = R"({"messages": [{"role": "user", "content": "get_x"}],
      "tools": [{"type": "function", "function": {"name": "get_x"}}, {"type": "function", "function": {"name": "put_y"}}]})";
  const std::string all = "{% for t in tools %}{{ t.function.name }} {% endfor %}{{ messages[0].content }}";
  EXPECT_EQ(shown(all, tools), "get_x put_y get_x");
  EXPECT_THAT(shown("{{ messages[0].content }} put_y", tools), HasSubstr("does not show the model any tools"));
  EXPECT_THAT(shown("{{ tools_note }}{{ messages[0].content }} put_y", tools), HasSubstr("any tools"));
  EXPECT_THAT(shown("{% for t in tools[:1] %}{{ t.function.name }}{% endfor %}", tools), HasSubstr("\"put_y\""));
  EXPECT_THAT(shown("{% if messages|length > 3 %}{{ tools }}{% endif %}", tools), HasSubstr("\"get_x\""));
}

TEST(ChatTemplates, WhatAModelWroteItselfIsNeverRefused) {
  const std::string source =
      "{% for m in messages %}{{ m.role[0] }}:{{ m.content | trim }}{% for c in m.tool_calls or [] %}"
      "{% for k, v in c.function.arguments.items() %}({{ k }}={{ v }}){% endfor %}{% endfor %};{% endfor %}";
  EXPECT_EQ(shown(source, R"({"messages": [{"role": "assistant", "tool_calls":
      [{"function": {"name": "f", "arguments": "{\"city\": \"Par"}}]}, {"role": "tool", "content": "x"}]})"),
            "a:(arguments={\"city\": \"Par);t:x;");
  EXPECT_EQ(shown(source, R"({"messages": [{"role": "assistant", "tool_calls":
      [{"function": {"name": "f", "arguments": [1, 2]}}]}]})"),
            "a:(arguments=[1, 2]);");
  // What the template can print is left as it is.
  EXPECT_EQ(shown("{% for c in messages[0].tool_calls %}{{ c.function.arguments }}{% endfor %}",
                  R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{\"a"}}]}]})"),
            "{\"a");
  EXPECT_EQ(shown("{{ messages[0].content is defined }}", R"({"messages": [{"role": "assistant"}]})"), "False");
  for (const char* name : {"reasoning", "reasoning_content", "thinking"})
    EXPECT_EQ(shown("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}",
                    std::string(R"({"messages": [{"role": "assistant", "content": "", ")") + name + R"(": "hm"}]})"),
              "hmhm");
}

TEST(ChatTemplate, TheStepLimitGrowsWithTheConversation) {
  boost::json::array messages;
  for (int k = 0; k < 20'000; ++k) messages.push_back({{"role", "user"}, {"content", "a word or two"}});
  const auto chat = ChatTemplate::parse(
      "{% for m in messages %}{% for x in range(20) %}{% set y = x %}{% endfor %}"
      "{{ m.content }}{% endfor %}",
      "t");
  const auto rendered = (*chat)->render({{"messages", messages}}, {.max_time = std::chrono::minutes(5)});
  ASSERT_TRUE(rendered.ok()) << rendered.status().message();
  EXPECT_EQ(rendered->size(), 20'000 * std::string_view("a word or two").size());
  EXPECT_EQ(
      (*ChatTemplate::parse("{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}", "t"))
          ->render({{"messages", {{{"role", "user"}}}}}, {.max_time = std::chrono::minutes(5)})
          .status()
          .code(),
      StatusCode::kInvalidArgument);
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
  EXPECT_EQ(rendered.status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lk
