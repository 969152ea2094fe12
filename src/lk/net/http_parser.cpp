// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_parser.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <charconv>

namespace lk {
namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;
using BeastView = boost::beast::string_view;

std::string_view view(BeastView text) { return {text.data(), text.size()}; }

std::string to_lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string_view HttpRequest::header(std::string_view lower_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_name) return value;
  }
  return {};
}

bool percent_decode(std::string_view in, std::string* out) {
  out->clear();
  out->reserve(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    if (in[i] != '%') {
      *out += in[i];
      continue;
    }
    if (i + 2 >= in.size()) return false;
    const int high = hex_value(in[i + 1]), low = hex_value(in[i + 2]);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return false;
    *out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return true;
}

// Receives what Beast finds in a head.
class HttpParser::HeadParser final : public http::basic_parser<true> {
 public:
  explicit HeadParser(HttpParser& owner) : owner_(owner) {
    header_limit(static_cast<uint32_t>(owner.limits_.max_header_bytes) + 1);  // ours comes first
    body_limit(boost::none);                                                  // likewise
  }

 private:
  void on_request_impl(http::verb, BeastView method, BeastView target, int version, error_code&) override {
    owner_.request_.method = std::string(view(method));
    owner_.request_.target = std::string(view(target));
    owner_.http_1_0_ = version == 10;
  }
  void on_field_impl(http::field, BeastView name, BeastView value, error_code& ec) override {
    if (static_cast<int64_t>(owner_.request_.headers.size()) < kMaxHeaders) {
      owner_.request_.headers.emplace_back(to_lower(view(name)), std::string(view(value)));
      return;
    }
    owner_.fail(431, "too many header fields");
    ec = http::error::bad_field;
  }
  // A head is all it is given.
  void on_response_impl(int, BeastView, int, error_code&) override {}
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(BeastView, error_code&) override { return 0; }
  void on_chunk_header_impl(uint64_t, BeastView, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, BeastView, error_code&) override { return 0; }
  void on_finish_impl(error_code&) override {}
  HttpParser& owner_;
};

HttpParser::HttpParser(const HttpLimits& limits) : limits_(limits) {}

HttpParser::Event HttpParser::fail(int status, std::string message) {
  if (error_.status == 0) error_ = {status, std::move(message)};
  return Event::kError;
}

HttpParser::Event HttpParser::parse(std::string_view data, size_t* consumed) {
  *consumed = 0;
  if (error_.status != 0) return Event::kError;
  return head_done_ ? parse_body(data, consumed) : parse_head(data, consumed);
}

// Looks at the bytes that came since the last call. True when the head is complete and ends before `end`.
bool HttpParser::scan_head(std::string_view data, size_t* end) {
  for (size_t i = scanned_; i < data.size(); ++i) {
    const auto c = static_cast<unsigned char>(data[i]);
    if (c == '\n') {
      if (i == 0 || data[i - 1] != '\r') {
        fail(400, "a header line ends in LF without CR");
        return false;
      }
      if (i >= 3 && data[i - 2] == '\n') {
        *end = i + 1;
        return true;
      }
    } else if (i > 0 && data[i - 1] == '\r') {
      fail(400, "a CR in the header is not followed by LF");
      return false;
    } else if ((c == ' ' || c == '\t') && i > 0 && data[i - 1] == '\n') {
      fail(400, "folded header lines are not accepted");
      return false;
    } else if ((c < 0x20 && c != '\t' && c != '\r') || c == 0x7f) {
      fail(400, "the header contains a control character");
      return false;
    }
  }
  scanned_ = data.size();
  return false;
}

HttpParser::Event HttpParser::parse_head(std::string_view data, size_t* consumed) {
  while (scanned_ == 0 && data.starts_with("\r\n")) {  // empty lines before a request are skipped (RFC 9112, 2.2)
    if (++blank_lines_ > kMaxBlankLines) return fail(400, "too many empty lines before the request");
    *consumed += 2;
    data.remove_prefix(2);
  }
  if (scanned_ == 0 && data == "\r") return Event::kNeedMore;

  size_t end = 0;
  const size_t limit = static_cast<size_t>(limits_.max_header_bytes);
  const bool complete = scan_head(data.substr(0, limit), &end);
  if (error_.status != 0) return Event::kError;
  if (!complete) {
    if (data.size() >= limit) return fail(431, fmt::format("the header is larger than {} bytes", limit));
    return Event::kNeedMore;
  }
  HeadParser head(*this);
  error_code ec;
  const size_t used = head.put(boost::asio::const_buffer(data.data(), end), ec);
  if (error_.status != 0) return Event::kError;
  if (ec || used != end || !head.is_header_done()) {
    const bool version = ec == http::error::bad_version;
    return fail(version ? 505 : 400,
                fmt::format("malformed request header{}{}", ec ? ": " : "", ec ? ec.message() : ""));
  }
  *consumed += end;
  keep_alive_ = head.keep_alive();
  check_framing();
  check_expectation();
  parse_target();
  if (error_.status != 0) return Event::kError;
  head_done_ = true;
  return Event::kHead;
}

void HttpParser::check_expectation() {
  const std::string expect = to_lower(request_.header("expect"));
  if (expect.empty() || http_1_0_) return;
  if (expect != "100-continue") fail(417, "the only supported expectation is 100-continue");
  expects_continue_ = has_body();
}

void HttpParser::check_framing() {
  int lengths = 0, codings = 0, hosts = 0;
  for (const auto& [name, value] : request_.headers) {
    if (name == "host") ++hosts;
    if (name == "content-length") {
      ++lengths;
      if (value.empty() || value.find_first_not_of("0123456789") != std::string::npos) {
        fail(400, "Content-Length is not a number");
        return;
      }
    }
    if (name == "transfer-encoding") {
      ++codings;
      if (to_lower(value) != "chunked") {
        fail(400, "the only supported Transfer-Encoding is chunked");
        return;
      }
    }
  }
  if (lengths > 1 || codings > 1 || (lengths == 1 && codings == 1)) {
    fail(400, "conflicting Content-Length or Transfer-Encoding fields");
    return;
  }
  if (hosts > 1 || (hosts == 0 && !http_1_0_)) {
    fail(400, hosts > 1 ? "more than one Host field" : "the Host field is missing");
    return;
  }
  if (codings == 1) {
    if (http_1_0_) fail(400, "Transfer-Encoding in an HTTP/1.0 request");
    content_length_ = -1;
    chunks_ = std::make_unique<ChunkDecoder>(limits_.max_body_bytes);
  } else if (lengths == 1) {
    const std::string_view digits = request_.header("content-length");
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), content_length_);
    if (error != std::errc() || content_length_ > limits_.max_body_bytes) {  // an overflow is larger than anything
      fail(413, fmt::format("the body is larger than {} bytes", limits_.max_body_bytes));
    }
  }
}

bool HttpParser::limit_body(int64_t max_bytes) {
  if (chunks_) chunks_ = std::make_unique<ChunkDecoder>(max_bytes);  // none was looked at
  return content_length_ <= max_bytes;
}

void HttpParser::parse_target() {
  std::string_view target = request_.target;
  if (target.starts_with("http://") || target.starts_with("https://")) {  // absolute form: a proxy's habit
    const size_t path = target.find_first_of("/?", target.find("//") + 2);
    target = path == std::string_view::npos ? "/" : target.substr(path);
  } else if (target != "*" && !target.starts_with('/')) {
    fail(400, "the request target is neither a path nor an http URL");
    return;
  }
  if (target.find('#') != std::string_view::npos) {
    fail(400, "the request target contains a fragment");
    return;
  }
  const size_t question = target.find('?');
  if (question != std::string_view::npos) request_.query = std::string(target.substr(question + 1));
  if (!percent_decode(target.substr(0, question), &request_.path)) fail(400, "the request path has a malformed escape");
  if (request_.path.empty()) request_.path.assign(1, '/');
}

void HttpParser::add_body(std::string_view bytes) {
  // Memory that is not written to is not resident: a body that never comes costs nothing, one that comes is not copied
  // as it grows.
  if (!discard_body_ && body_bytes_ == 0 && content_length_ > 0)
    request_.body.reserve(static_cast<size_t>(content_length_));
  body_bytes_ += static_cast<int64_t>(bytes.size());
  if (!discard_body_) request_.body.append(bytes);
}

HttpParser::Event HttpParser::parse_body(std::string_view data, size_t* consumed) {
  if (chunks_ == nullptr) {
    *consumed = static_cast<size_t>(std::min(content_length_ - body_bytes_, static_cast<int64_t>(data.size())));
    add_body(data.substr(0, *consumed));
    return body_bytes_ == content_length_ ? Event::kDone : Event::kNeedMore;
  }
  std::string_view rest = data, piece;
  ChunkDecoder::Event event;
  while ((event = chunks_->next(&rest, &piece)) == ChunkDecoder::Event::kData) add_body(piece);
  *consumed = data.size() - rest.size();
  if (event == ChunkDecoder::Event::kError) return fail(chunks_->error().status, chunks_->error().message);
  return event == ChunkDecoder::Event::kDone ? Event::kDone : Event::kNeedMore;
}

}  // namespace lk
