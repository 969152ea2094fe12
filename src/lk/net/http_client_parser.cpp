// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_client_parser.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace lk {
namespace {

constexpr size_t kMaxChunkLine = 1024;

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

bool list_has(std::string_view list, std::string_view item) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    if (lower(trim(list.substr(0, comma))) == item) return true;
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
  }
  return false;
}

// Digits only, at most 18 of them (16 in base 16 would not fit a signed 64-bit size).
bool parse_size(std::string_view text, int base, uint64_t& value) {
  if (text.empty() || text.size() > (base == 16 ? 15u : 18u)) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size();
}

// What may be shown in a message of bytes that are no HTTP.
std::string printable_prefix(std::string_view text) {
  std::string out(text.substr(0, 32));
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < ' ' || c >= 0x7f; }, '?');
  return out;
}

}  // namespace

void HttpResponseParser::start(Sink sink, bool head) {
  sink_ = std::move(sink);
  head_ = head;
  started_ = chunked_ = has_length_ = http_1_0_ = false;
  keep_alive_ = true;
  state_ = State::kStatusLine;
  line_.clear();
  headers_.clear();
  header_bytes_ = 0;
  remaining_ = 0;
}

Result<size_t> HttpResponseParser::push(std::string_view bytes) {
  const size_t size = bytes.size();
  started_ |= size > 0;
  while (!bytes.empty() && state_ != State::kDone) {
    if (state_ == State::kBody || state_ == State::kUntilClose || state_ == State::kChunkData) {
      take_body(bytes);
      continue;
    }
    Status status;
    if (!take_line(bytes, status)) {
      if (!status.ok()) return status;
      break;
    }
    LK_RETURN_IF_ERROR(on_line());
    line_.clear();
  }
  return size - bytes.size();
}

// Moves bytes into line_; true when it is complete, without its line end.
bool HttpResponseParser::take_line(std::string_view& bytes, Status& status) {
  const size_t end = bytes.find('\n');
  const std::string_view part = bytes.substr(0, end);
  const bool is_chunk_line = state_ == State::kChunkSize || state_ == State::kChunkEnd;
  if (!is_chunk_line) header_bytes_ += static_cast<int64_t>(part.size()) + 1;
  if (is_chunk_line ? line_.size() + part.size() > kMaxChunkLine : header_bytes_ > max_header_bytes_) {
    status = data_loss("the answer's {} exceeds {} bytes", is_chunk_line ? "chunk header" : "header",
                       is_chunk_line ? kMaxChunkLine : static_cast<size_t>(max_header_bytes_));
    return false;
  }
  line_ += part;
  if (end == std::string_view::npos) {
    bytes = {};
    if (!is_chunk_line) --header_bytes_;  // the line end has not come yet
    return false;
  }
  bytes.remove_prefix(end + 1);
  if (!line_.empty() && line_.back() == '\r') line_.pop_back();
  if (line_.find('\0') != std::string::npos || line_.find('\r') != std::string::npos) {
    status = data_loss("the answer's header holds a NUL or a bare carriage return");
    return false;
  }
  return true;
}

Status HttpResponseParser::on_line() {
  switch (state_) {
    case State::kStatusLine:
      return parse_status_line();
    case State::kHeader:
      return line_.empty() ? end_of_head() : parse_header_line();
    case State::kChunkSize:
      return parse_chunk_size();
    case State::kChunkEnd:
      if (!line_.empty()) return data_loss("the answer's chunk is longer than its size says");
      state_ = State::kChunkSize;
      return Status();
    case State::kTrailer:
      if (line_.empty()) state_ = State::kDone;
      return Status();
    default:
      break;
  }
  LK_CHECK(false, "no line is expected in state {}", static_cast<int>(state_));
  return Status();
}

Status HttpResponseParser::parse_status_line() {
  const bool known = line_.starts_with("HTTP/1.1 ") || line_.starts_with("HTTP/1.0 ");
  uint64_t status = 0;
  if (!known || line_.size() < 12 || !parse_size(std::string_view(line_).substr(9, 3), 10, status) || status < 100 ||
      (line_.size() > 12 && line_[12] != ' '))
    return data_loss("the peer does not speak HTTP/1.1: its answer begins with \"{}\"", printable_prefix(line_));
  http_1_0_ = line_[7] == '0';
  status_ = static_cast<int>(status);
  state_ = State::kHeader;
  return Status();
}

Status HttpResponseParser::parse_header_line() {
  const size_t colon = line_.find(':');
  if (colon == std::string::npos || colon == 0 || line_.front() == ' ' || line_.front() == '\t' ||
      line_[colon - 1] == ' ' || line_[colon - 1] == '\t')
    return data_loss("malformed header line in the answer");
  const std::string_view line = line_;
  headers_.emplace_back(lower(line.substr(0, colon)), std::string(trim(line.substr(colon + 1))));
  return Status();
}

Status HttpResponseParser::end_of_head() {
  if (status_ == 101) return data_loss("the peer switches protocols without being asked");
  if (status_ < 200) {  // an interim answer; the real one follows, and both count against the header limit
    headers_.clear();
    state_ = State::kStatusLine;
    return Status();
  }
  keep_alive_ = !http_1_0_;
  bool has_coding = false;
  for (const auto& [name, value] : headers_) {
    if (name == "content-length") {
      uint64_t length = 0;
      if (!parse_size(value, 10, length) || (has_length_ && length != remaining_))
        return data_loss("bad Content-Length in the answer");
      has_length_ = true;
      remaining_ = length;
    } else if (name == "transfer-encoding") {
      if (has_coding || lower(value) != "chunked")
        return data_loss("the answer's transfer coding is not understood: only chunked is");
      has_coding = chunked_ = true;
    } else if (name == "connection") {
      if (list_has(value, "close"))
        keep_alive_ = false;
      else if (http_1_0_ && list_has(value, "keep-alive"))
        keep_alive_ = true;
    }
  }
  if (chunked_ && has_length_)
    keep_alive_ = false;  // contradicting lengths: believe the chunks and trust nothing after them
  if (sink_.on_head) sink_.on_head(status_, headers_);
  if (head_ || status_ == 204 || status_ == 304) {
    state_ = State::kDone;
  } else if (chunked_) {
    state_ = State::kChunkSize;
  } else if (has_length_) {
    state_ = remaining_ == 0 ? State::kDone : State::kBody;
  } else {
    keep_alive_ = false;
    state_ = State::kUntilClose;
  }
  return Status();
}

Status HttpResponseParser::parse_chunk_size() {
  std::string_view size = line_;
  size = trim(size.substr(0, size.find(';')));  // extensions are ignored
  if (!parse_size(size, 16, remaining_)) return data_loss("bad chunk size in the answer");
  state_ = remaining_ == 0 ? State::kTrailer : State::kChunkData;
  return Status();
}

void HttpResponseParser::take_body(std::string_view& bytes) {
  const size_t count =
      state_ == State::kUntilClose ? bytes.size() : static_cast<size_t>(std::min<uint64_t>(bytes.size(), remaining_));
  if (state_ != State::kUntilClose) {
    remaining_ -= count;
    if (remaining_ == 0) state_ = state_ == State::kBody ? State::kDone : State::kChunkEnd;
  }
  const std::string_view part = bytes.substr(0, count);
  bytes.remove_prefix(count);
  if (sink_.on_data) sink_.on_data(part);
}

Status HttpResponseParser::finish() {
  if (state_ == State::kUntilClose) state_ = State::kDone;
  if (state_ == State::kDone) return Status();
  return started_ ? data_loss("the connection was closed in the middle of the answer")
                  : data_loss("the connection was closed without an answer");
}

}  // namespace lk
