// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_client_parser.h"

#include <gtest/gtest.h>

#include "lk/net/http_client_url.h"

namespace lk {
namespace {

struct Answer {
  Status status;
  int code = 0;
  std::string type, body;
  bool done = false, keep_alive = false;
  size_t consumed = 0;
};

// Feeds `stream` in pieces, and the end of the connection after it.
Answer parse(std::string_view stream, size_t piece, bool head = false, int64_t max_header_bytes = 1024) {
  Answer answer;
  HttpResponseParser parser(max_header_bytes);
  parser.start({[&](int code, const HttpHeaders& headers) {
                  answer.code = code;
                  for (const auto& [name, value] : headers)
                    if (name == "content-type") answer.type = value;
                },
                [&](std::string_view bytes) { answer.body += bytes; }},
               head);
  for (size_t at = 0; at < stream.size() && !parser.done(); at += piece) {
    const Result<size_t> consumed = parser.push(stream.substr(at, piece));
    if (!consumed.ok()) {
      answer.status = consumed.status();
      return answer;
    }
    answer.consumed += *consumed;
  }
  answer.done = parser.done();
  answer.keep_alive = parser.keep_alive();
  answer.status = parser.finish();
  return answer;
}

void expect_body(const std::string& stream, int code, const std::string& body, bool keep_alive, bool head = false) {
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    const Answer answer = parse(stream, piece, head);
    EXPECT_TRUE(answer.status.ok()) << answer.status.message() << " in pieces of " << piece;
    EXPECT_EQ(answer.code, code);
    EXPECT_EQ(answer.body, body) << piece;
    EXPECT_EQ(answer.keep_alive, keep_alive);
  }
}

TEST(HttpResponseParser, ReadsEveryKindOfBodyHoweverItIsCut) {
  expect_body("HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", true);
  expect_body("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, "", true);
  expect_body(
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\nA\r\n 0123\r\n456\r\n0\r\nTrailer: "
      "1\r\n\r\n",
      200, "hello 0123\r\n456", true);
  expect_body("HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "until the end", false);
  expect_body(
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno",
      404, "no", true);
  expect_body("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true);
  expect_body("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 200, "", true, true);
  expect_body("HTTP/1.1 200 OK\r\nConnection: X, Close\r\nContent-Length: 1\r\n\r\nx", 200, "x", false);
  expect_body("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x", false);
  expect_body("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", 200, "x", true);
  expect_body("HTTP/1.1 200 OK\nContent-Length: 1\n\nx", 200, "x", true);
}

TEST(HttpResponseParser, ContradictingLengthsEndTheConnection) {
  expect_body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 200, "x",
              false);
}

TEST(HttpResponseParser, LeavesWhatFollowsTheAnswer) {
  const std::string first = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
  EXPECT_EQ(parse(first + "HTTP/1.1", 1000).consumed, first.size());
}

TEST(HttpResponseParser, RefusesMalformedAnswers) {
  for (const std::string head : {"SSH-2.0-x\r\n",
                                 "HTTP/2 200 OK\r\n",
                                 "HTTP/1.1 20x OK\r\n",
                                 "HTTP/1.1 2000 OK\r\n",
                                 "HTTP/1.1 099 OK\r\n",
                                 "HTTP/1.1 101 Switching\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\n: x\r\n",
                                 "HTTP/1.1 200 OK\r\nA b\r\n",
                                 "HTTP/1.1 200 OK\r\nA : b\r\n",
                                 "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n",
                                 "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n",
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n",
                                 "HTTP/1.1 200 OK\r\nA: b\rc\r\n"}) {
    for (size_t piece : {size_t{1}, size_t{7}, head.size()}) {
      const Answer answer = parse(head, piece);
      EXPECT_EQ(answer.status.code(), StatusCode::kDataLoss) << head;
      EXPECT_FALSE(answer.done) << head;
    }
  }
  EXPECT_FALSE(parse(std::string("HTTP/1.1 200 OK\r\nA: b\0c\r\n", 24), 100).status.ok());
}

TEST(HttpResponseParser, AnAnswerThatBreaksOffIsAFailure) {
  for (const std::string stream :
       {"", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nA: b\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"})
    EXPECT_EQ(parse(stream, 4).status.code(), StatusCode::kDataLoss) << stream;
}

TEST(HttpResponseParser, BoundsHeadersInterimAnswersTrailersAndChunkLines) {
  const std::string ok = "HTTP/1.1 200 OK\r\n";
  const std::string chunked = ok + "Transfer-Encoding: chunked\r\n\r\n";
  std::string many, interim;
  for (int i = 0; i < 200; ++i) many += "a: bcdef\r\n", interim += "HTTP/1.1 100 Continue\r\n\r\n";
  for (const std::string& stream : {ok + "A: " + std::string(2000, 'x'), ok + many, interim, chunked + "0\r\n" + many,
                                    chunked + "1;" + std::string(2000, 'x'), std::string(2000, 'H')})
    for (size_t piece : {size_t{1}, size_t{100}, stream.size()})
      EXPECT_FALSE(parse(stream, piece).status.ok()) << stream.substr(0, 40);
  EXPECT_TRUE(parse(ok + "A: " + std::string(900, 'x') + "\r\nContent-Length: 0\r\n\r\n", 1).status.ok());
}

TEST(ClientUrl, TakesHostsAddressesAndUnixSockets) {
  const auto url = [](std::string_view text) { return parse_client_url(text).value(); };
  EXPECT_EQ(url("http://h/a?b#c").target, "/a?b");
  EXPECT_EQ(url("http://h").port, "80");
  EXPECT_EQ(url("http://h?x").target, "/?x");
  EXPECT_EQ(url("https://h:08443/").pool_key(), "https://h:8443");
  EXPECT_TRUE(url("https://h").tls);
  EXPECT_EQ(url("http://[::1]:81/x").host, "::1");
  EXPECT_EQ(url("http://[::1]:81/x").host_header, "[::1]:81");
  EXPECT_EQ(url("unix:/run/a.sock:/v1/models").unix_path, "/run/a.sock");
  EXPECT_EQ(url("unix:/run/a.sock:/v1/models").target, "/v1/models");
  EXPECT_EQ(url("unix:/run/a.sock").target, "/");
  for (const char* bad :
       {"", "h:80", "ftp://h", "http://", "http://:80", "http://h:0", "http://h:65536", "http://h:8x", "http://u:p@h/",
        "http://[::1", "http://[::1]x", "http://h/a b", "http://h/\r\nX: y", "unix:relative", "unix:"})
    EXPECT_FALSE(parse_client_url(bad).ok()) << bad;
}

TEST(ClientRequest, RefusesWhatWouldBreakTheFraming) {
  const ClientUrl url = parse_client_url("http://h:1/x").value();
  EXPECT_EQ(format_client_request({.method = "POST", .headers = {{"A", "b"}}, .body = "{}"}, url).value(),
            "POST /x HTTP/1.1\r\nA: b\r\nHost: h:1\r\nUser-Agent: lorikeet\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(format_client_request({.method = "GET", .headers = {{"host", "z"}, {"user-agent", "u"}}}, url).value(),
            "GET /x HTTP/1.1\r\nhost: z\r\nuser-agent: u\r\n\r\n");
  for (const HttpHeaders& headers : {HttpHeaders{{"A", "b\r\nX: y"}},
                                     {{"A b", "c"}},
                                     {{"", "c"}},
                                     {{"A", std::string(1, '\0')}},
                                     {{"Content-Length", "1"}},
                                     {{"transfer-encoding", "chunked"}}})
    EXPECT_FALSE(format_client_request({.headers = headers}, url).ok());
  EXPECT_FALSE(format_client_request({.method = "GET /"}, url).ok());
}

}  // namespace
}  // namespace lk
