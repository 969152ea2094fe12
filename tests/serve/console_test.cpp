// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/console.h"

#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <string>
#include <vector>

#include "lk/base/file.h"

namespace lk {
namespace {

const std::vector<std::pair<std::string, std::string>> kFiles = {{"/", "http/console/index.html"},
                                                                 {"/console/console.css", "http/console/console.css"},
                                                                 {"/console/console.js", "http/console/console.js"},
                                                                 {"/console/icon.svg", "http/console/icon.svg"}};

std::string body(std::string_view path) { return std::string(console_file(path).value().body); }

TEST(Console, ServesTheFilesOfTheSourceTreeEachWithItsTag) {
  std::set<std::string_view> tags;
  for (const auto& [path, source] : kFiles) {
    const auto file = console_file(path);
    ASSERT_TRUE(file.has_value()) << path;
    EXPECT_EQ(file->body, read_file("src/lk/serve/" + source).value()) << path;
    EXPECT_TRUE(std::regex_match(std::string(file->etag), std::regex("\"[0-9a-f]{32}\""))) << file->etag;
    EXPECT_TRUE(tags.insert(file->etag).second);
    EXPECT_FALSE(file->content_type.empty());
  }
  EXPECT_EQ(console_page(), console_file("/")->body);
}

TEST(Console, OtherPathsAreNotServed) {
  for (const char* path :
       {"", "//", "/console", "/console/", "/console/../index.html", "/console/index.html", "/openapi.json"})
    EXPECT_FALSE(console_file(path).has_value()) << path;
}

TEST(Console, IsSmall) {
  size_t bytes = 0;
  for (const auto& [path, source] : kFiles) bytes += body(path).size();
  EXPECT_LT(bytes, 60u << 10);
}

// What the policy forbids would break in the browser only; here it fails early.
TEST(Console, PageNeedsNothingInlineAndNothingFromElsewhere) {
  const std::string page = body("/");
  EXPECT_FALSE(
      std::regex_search(page, std::regex(R"(<style|\sstyle=|\son[a-z]+=|javascript:|<script(?![^>]*\ssrc=))")));
  const std::regex reference("(src|href)=\"([^\"]*)\"");
  int num_references = 0;
  for (std::sregex_iterator it(page.begin(), page.end(), reference), end; it != end; ++it) {
    const std::string target = (*it)[2];
    if (target.starts_with("#")) continue;
    ++num_references;
    const bool is_route = target == "/metrics" || target == "/openapi.json" || target == "/v1/models";
    EXPECT_TRUE(is_route || console_file(target).has_value()) << target;
  }
  EXPECT_GE(num_references, 4);
  for (const char* path : {"/", "/console/console.css", "/console/console.js"})
    EXPECT_EQ(body(path).find("//www."), std::string::npos);
  for (const char* path : {"/", "/console/console.css", "/console/console.js"})
    EXPECT_FALSE(std::regex_search(body(path), std::regex("https?:"))) << path;
}

TEST(Console, ScriptPutsInTextOnlyAndKeepsTheKeyForTheTab) {
  const std::string script = body("/console/console.js");
  EXPECT_FALSE(std::regex_search(
      script,
      std::regex(R"(innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser)")));
  EXPECT_FALSE(std::regex_search(script, std::regex(R"(localStorage|indexedDB|document\.cookie)")));
  EXPECT_NE(script.find("sessionStorage"), std::string::npos);
}

TEST(Console, EveryElementTheScriptAsksForExists) {
  const std::string page = body("/"), script = body("/console/console.js");
  const std::regex use(R"(\$\('([a-z-]+)'\))");
  int num_uses = 0;
  for (std::sregex_iterator it(script.begin(), script.end(), use), end; it != end; ++it, ++num_uses)
    EXPECT_NE(page.find("id=\"" + (*it)[1].str() + "\""), std::string::npos) << (*it)[1];
  EXPECT_GE(num_uses, 20);
}

TEST(Console, PolicyAllowsOwnFilesOnly) {
  const std::string policy(console_csp());
  EXPECT_EQ(policy.find("unsafe"), std::string::npos);
  EXPECT_EQ(policy.find('*'), std::string::npos);
  EXPECT_TRUE(policy.starts_with("default-src 'none'"));
  EXPECT_NE(policy.find("frame-ancestors 'none'"), std::string::npos);
}

TEST(Console, TagsAreMatchedAsTheHeaderMayWriteThem) {
  EXPECT_TRUE(etag_matches("\"a\"", "\"a\""));
  EXPECT_TRUE(etag_matches("\"b\" , W/\"a\"", "\"a\""));
  EXPECT_TRUE(etag_matches("*", "\"a\""));
  EXPECT_FALSE(etag_matches("", "\"a\""));
  EXPECT_FALSE(etag_matches("a", "\"a\""));
  EXPECT_FALSE(etag_matches("\"aa\", \"b\",", "\"a\""));
}

}  // namespace
}  // namespace lk
