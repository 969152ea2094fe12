// SPDX-License-Identifier: Apache-2.0
// What is refused: everything that is not HTTP, and everything two parsers could read differently.
#include "lk/net/http_parser.h"
#include "net/raw_client.h"

namespace lk::testing {
namespace {

using namespace std::string_literals;  // with a NUL inside

struct Parsed {
  HttpParser::Event last = HttpParser::Event::kNeedMore;
  HttpError error;
  HttpRequest request;
  bool keep_alive = false;
  size_t consumed = 0;
};

// Feeds `text` in pieces of `step` bytes, keeping what was not consumed.
Parsed parse(std::string_view text, size_t step, const HttpLimits& limits = {}) {
  HttpParser parser(limits);
  Parsed result;
  std::string pending;
  for (size_t at = 0; at < text.size(); at += step) {
    pending.append(text.substr(at, step));
    for (;;) {
      size_t used = 0;
      result.last = parser.parse(pending, &used);
      pending.erase(0, used);
      result.consumed += used;
      if (result.last != HttpParser::Event::kHead) break;
    }
    if (result.last != HttpParser::Event::kNeedMore) break;
  }
  result.error = parser.error();
  result.request = parser.request();
  if (result.last == HttpParser::Event::kDone) result.keep_alive = parser.keep_alive();
  return result;
}

std::vector<std::pair<std::string, int>> bad_requests() {
  const std::string start = "POST / HTTP/1.1\r\nHost: t\r\n";
  const std::string chunked = start + "Transfer-Encoding: chunked\r\n\r\n";
  std::vector<std::pair<std::string, int>> cases = {
      {"hello\r\n\r\n", 400},
      {"GET /\r\n\r\n", 400},
      {"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"GET / HTTP/2.0\r\nHost: t\r\n\r\n", 505},
      {"GET / HTTP/1.1 \r\nHost: t\r\n\r\n", 505},
      {"GET  / HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"G@T / HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"GET / HTTP/1.1\nHost: t\n\n", 400},
      {"GET / HTTP/1.1\rHost: t\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n\r\n", 400},  // no Host
      {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: t\r\nBad Name: x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: t\r\nName : x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: t\r\nNoColon\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: t\r\nA: b\r\n folded\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n Host: t\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: t\r\nA: \0b\r\n\r\n"s, 400},
      {"GET / HTTP/1.1\r\nHost: t\r\nA: \x01\r\n\r\n", 400},
      {"\x16\x03\x01\x02", 400},  // TLS on a plain port
      {"GET nothing HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"GET /%zz HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"GET /%4 HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"GET /%00 HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"GET /a#b HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {start + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
      {start + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
      {start + "Content-Length: 3, 3\r\n\r\nabc", 400},
      {start + "Content-Length: +3\r\n\r\nabc", 400},
      {start + "Content-Length: -3\r\n\r\nabc", 400},
      {start + "Content-Length: 0x3\r\n\r\nabc", 400},
      {start + "Content-Length: \r\n\r\nabc", 400},
      {start + "Content-Length: 99999999999999999999999\r\n\r\nabc", 400},
      {start + "Content-Length: 9223372036854775808\r\n\r\nabc", 413},
      {start + "Content-Length: 18446744073709551615\r\n\r\nabc", 413},
      {start + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {start + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400},
      {start + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {start + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400},
      {start + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
      {start + "Transfer-Encoding: identity\r\n\r\n", 400},
      {start + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
      {start + "Transfer-Encoding:\x0b"
               "chunked\r\n\r\n0\r\n\r\n",
       400},
      {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {chunked + "zz\r\n", 400},
      {chunked + "-1\r\n", 400},
      {chunked + "0x5\r\nhello\r\n", 400},
      {chunked + " 5\r\nhello\r\n", 400},
      {chunked + "5\r\nhello!\r\n", 400},
      {chunked + "5\nhello\r\n", 400},
      {chunked + "ffffffffffffffff\r\n", 400},
      {chunked + "fffffffffffffff\r\n", 413},
      {chunked + "5 \r\nhello\r\n", 400},
      {chunked + "5;\x01\r\nhello\r\n", 400},
      {chunked + "5;a\nhello\r\n", 400},
      {chunked + "0\r\n: x\r\n\r\n", 400},
      {chunked + "0\r\nA: b\r\n c\r\n\r\n", 400},
      {chunked + "0\r\n\rX", 400},
      {chunked + "5" + std::string(20'000, '0'), 400},
      {chunked + "5;" + std::string(5'000, 'x') + "\r\nhello\r\n", 400},
      {chunked + "0\r\nbad trailer\r\n\r\n", 400},
      {chunked + "0\r\nA: " + std::string(20'000, 'x'), 400},
  };
  std::string many_fields = "GET / HTTP/1.1\r\nHost: t\r\n";
  for (int i = 0; i < 200; ++i) many_fields += "a: b\r\n";
  cases.emplace_back(many_fields + "\r\n", 431);
  std::string many_chunks = chunked;
  for (int i = 0; i < 20'000; ++i) many_chunks += "1\r\nx\r\n";
  cases.emplace_back(many_chunks + "0\r\n\r\n", 400);
  return cases;
}

TEST(HttpParser, RefusesMalformedRequestsHoweverTheyArrive) {
  for (const auto& [text, status] : bad_requests()) {
    for (const size_t step : {text.size(), size_t{1}, size_t{7}, size_t{4096}}) {
      const Parsed p = parse(text, step);
      EXPECT_EQ(p.last, HttpParser::Event::kError) << text.substr(0, 100) << " step " << step;
      EXPECT_EQ(p.error.status, status) << text.substr(0, 100) << " step " << step << ": " << p.error.message;
    }
  }
}

TEST(HttpParser, ReadsTheSameRequestHoweverItArrives) {
  const std::string text =
      "\r\nPOST /p%41th?q HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Obs: caf\xe9\r\nTransfer-Encoding: "
      "CHUNKED\r\n\r\n"
      "005;a=b\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: 1\r\n\r\n";
  for (size_t step = 1; step <= text.size(); ++step) {
    const Parsed p = parse(text + "NEXT", step);
    ASSERT_EQ(p.last, HttpParser::Event::kDone) << step << " " << p.error.message;
    EXPECT_EQ(p.consumed, text.size());
    EXPECT_EQ(p.request.body, "hello!");
    EXPECT_EQ(p.request.path, "/pAth");
    EXPECT_EQ(p.request.header("x-obs"), "caf\xe9");
    EXPECT_EQ(p.request.header("trailer"), "");
    EXPECT_FALSE(p.keep_alive);
  }
}

TEST(HttpParser, ReservesNothingForADeclaredBody) {
  const Parsed p = parse("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 8000000\r\n\r\nabc", 1000);
  EXPECT_EQ(p.last, HttpParser::Event::kNeedMore);
  EXPECT_LT(p.request.body.capacity(), 1000U);
}

TEST(HttpParser, PercentDecoding) {
  std::string out;
  EXPECT_TRUE(percent_decode("a%20b%2f%C3%a9", &out));
  EXPECT_EQ(out, "a b/\xc3\xa9");
  for (const char* bad : {"%", "%a", "%g0", "%0g", "%00", "x%"}) EXPECT_FALSE(percent_decode(bad, &out)) << bad;
}

TEST(HttpServer, AnswersMalformedRequestsAndCloses) {
  int handled = 0;
  const auto server = start_server(local_options(), [&](HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
    ++handled;
    echo(std::move(request), reply);
  });
  int64_t bad = 0;
  for (const auto& [text, status] : bad_requests()) {
    RawClient client(server->address(0));
    client.send(get("/good"));  // a good one before it does not matter
    EXPECT_EQ(client.read().status, 200);
    client.send(text + get("/smuggled"));
    const RawResponse r = client.read();
    EXPECT_EQ(r.status, status) << text.substr(0, 100);
    EXPECT_TRUE(r.has("Connection: close"));
    EXPECT_TRUE(r.has("Content-Type: application/json"));
    EXPECT_EQ(r.body.find("{\"error\":{\"message\":\""), 0U) << r.body;
    const std::string type = status < 500 ? "invalid_request_error" : "server_error";
    EXPECT_NE(r.body.find("\"type\":\"" + type + "\",\"param\":null,\"code\":\""), std::string::npos) << r.body;
    EXPECT_TRUE(client.closed());
    ++bad;
  }
  EXPECT_EQ(handled, bad);  // the good ones
  EXPECT_EQ(server->stats().bad_requests, bad);
}

}  // namespace
}  // namespace lk::testing
