// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/browser_guard.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

HttpRequest request(HttpHeaders headers, std::string method = "POST", std::string target = "/v1/chat/completions") {
  HttpRequest made;
  made.method = std::move(method);
  made.target = std::move(target);
  made.headers = std::move(headers);
  made.peer = "127.0.0.1";
  return made;
}

std::string code(const BrowserGuard& guard, const HttpRequest& asked, bool any_host = false) {
  const std::optional<ApiError> error = guard.check(asked, any_host);
  EXPECT_TRUE(!error || error->status == 403);
  return error ? error->code : "";
}

std::string find(const HttpHeaders& headers, std::string_view name) {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return "";
}

TEST(BrowserGuard, HostsThatOnlyTheirUserCanHaveChosen) {
  for (const char* host : {"localhost", "localhost:8000", "LOCALHOST:1", "api.localhost:80", "127.0.0.1", "127.9.9.9:1",
                           "10.1.2.3:8000", "[::1]", "[::1]:8000", "[2001:db8::1]:80"})
    EXPECT_TRUE(is_literal_host(host)) << host;
  for (const char* host : {"evil.example", "evil.example:8000", "127.0.0.1.evil.example", "127.evil.example:80",
                           "localhost.evil.example", "evillocalhost", "[evil.example]", "[]", "", ":8000",
                           "127.0.0.1:x", "::1", "0x7f.1", "2130706433", "localhost:80:80"})
    EXPECT_FALSE(is_literal_host(host)) << host;
}

TEST(BrowserGuard, WithoutOrigin) {
  const BrowserGuard guard = BrowserGuard::create({}).value();
  EXPECT_EQ(code(guard, request({{"host", "127.0.0.1:8000"}})), "");
  EXPECT_EQ(code(guard, request({})), "");  // HTTP/1.0; no browser
  EXPECT_EQ(code(guard, request({{"host", "evil.example:8000"}})), "foreign_host");
  EXPECT_EQ(code(guard, request({{"host", "evil.example:8000"}}), true), "");
  EXPECT_EQ(code(guard, request({{"host", "localhost"}}, "GET", "http://evil.example/v1/models")), "foreign_host");
  EXPECT_EQ(code(guard, request({{"host", "evil.example"}}, "GET", "http://localhost/v1/models")), "");
  EXPECT_EQ(code(guard, request({{"host", "localhost"}}, "GET", "/x?u=http://evil.example/")), "");
  HttpRequest local = request({{"host", "%2Frun%2Florikeet.sock"}});
  local.peer = "unix";
  EXPECT_EQ(code(guard, local), "");
}

TEST(BrowserGuard, PagesOfOtherOrigins) {
  const BrowserGuard none = BrowserGuard::create({}).value();
  const BrowserGuard some = BrowserGuard::create({"https://App.example", "http://localhost:3000"}).value();
  const auto from = [](const char* origin, const char* host = "localhost:8000") {
    return request({{"host", host}, {"origin", origin}});
  };
  EXPECT_EQ(code(none, from("http://localhost:8000")), "");
  EXPECT_EQ(code(none, from("https://app.example")), "foreign_origin");
  EXPECT_EQ(code(none, from("http://localhost:3000")), "foreign_origin");
  EXPECT_EQ(code(none, from("null")), "foreign_origin");
  EXPECT_EQ(code(none, from("https://app.example"), true), "foreign_origin");
  EXPECT_EQ(code(none, from("http://models.example", "models.example"), true), "");  // its own page
  EXPECT_EQ(code(some, from("https://app.example")), "");
  EXPECT_EQ(code(some, from("http://localhost:3000")), "");
  EXPECT_EQ(code(some, from("http://app.example")), "foreign_origin");  // another scheme is another origin
  EXPECT_EQ(code(some, from("https://app.example.evil.example")), "foreign_origin");
  EXPECT_EQ(code(some, from("https://app.example", "evil.example")), "foreign_host");
}

TEST(BrowserGuard, OriginsAreChecked) {
  for (const char* origin : {"", "app.example", "https://", "https://app.example/", "https://a b", "null", "://x",
                             "https://app.example\r\nx: y", "https://user@app.example"})
    EXPECT_FALSE(BrowserGuard::create({origin}).ok()) << origin;
}

TEST(BrowserGuard, Preflights) {
  const HttpHeaders asked{{"host", "h"},
                          {"origin", "https://app.example"},
                          {"access-control-request-method", "POST"},
                          {"access-control-request-headers", "authorization,x-stainless-os"},
                          {"access-control-request-private-network", "true"}};
  const BrowserGuard none = BrowserGuard::create({}).value();
  const BrowserGuard some = BrowserGuard::create({"https://app.example"}).value();
  EXPECT_FALSE(none.is_preflight(request(asked, "OPTIONS")));
  EXPECT_TRUE(some.is_preflight(request(asked, "OPTIONS")));
  EXPECT_FALSE(some.is_preflight(request(asked, "POST")));
  const HttpHeaders headers = some.preflight_headers(request(asked, "OPTIONS"), "POST");
  EXPECT_EQ(find(headers, "access-control-allow-origin"), "https://app.example");
  EXPECT_EQ(find(headers, "access-control-allow-methods"), "POST");
  EXPECT_EQ(find(headers, "access-control-allow-headers"), "authorization,x-stainless-os");
  EXPECT_EQ(find(headers, "access-control-allow-private-network"), "true");
  EXPECT_EQ(find(headers, "vary"), "Origin");
  HttpHeaders strange = asked;
  strange[3].second = "x\"<>";
  EXPECT_EQ(find(some.preflight_headers(request(strange, "OPTIONS"), "POST"), "access-control-allow-headers").find('<'),
            std::string::npos);
}

TEST(BrowserGuard, WhatAPageMayRead) {
  const auto headers = [](std::vector<std::string> origins, const char* origin) {
    HttpHeaders made;
    BrowserGuard::create(std::move(origins)).value().add_headers(request({{"origin", origin}}), made);
    return made;
  };
  EXPECT_TRUE(headers({}, "https://app.example").empty());
  const HttpHeaders others = headers({"https://app.example"}, "https://evil.example");
  ASSERT_EQ(others.size(), 1U);
  EXPECT_EQ(find(others, "vary"), "Origin");
  EXPECT_NE(find(headers({"https://app.example"}, "https://app.example"), "access-control-expose-headers")
                .find("x-request-id"),
            std::string::npos);
  EXPECT_EQ(find(headers({"*"}, "https://any.example"), "access-control-allow-origin"), "*");
}

}  // namespace
}  // namespace lk
