// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_connection.h"

#include <charconv>

#ifdef LK_HAVE_CURL
#include <curl/curl.h>

#include <algorithm>
#include <mutex>

#include "lk/base/plain_text.h"
#endif

namespace lk {

std::string_view HubReply::header(std::string_view name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string_view() : found->second;
}

int64_t HubReply::length(std::string_view name) const {
  const std::string_view text = header(name);
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0 ? value : -1;
}

#ifdef LK_HAVE_CURL
namespace {

// Of all headers of an answer: the hub's have about 3 KiB.
constexpr size_t kMaxHeaderBytes = size_t{128} << 10;

struct FreeUrl {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
struct FreeText {
  void operator()(char* text) const { curl_free(text); }
};

std::string part_of(CURLU* url, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, flags) != CURLUE_OK) return "";
  const std::unique_ptr<char, FreeText> owned(text);
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; });
  return out;
}

class CurlConnection : public HubConnection {
 public:
  CurlConnection(const HubSettings& settings, AskStop stop)
      : settings_(settings), stop_(std::move(stop)), curl_(curl_easy_init()) {}
  ~CurlConnection() override {
    if (curl_ != nullptr) curl_easy_cleanup(curl_);
  }
  CurlConnection(const CurlConnection&) = delete;
  CurlConnection& operator=(const CurlConnection&) = delete;

  bool ready() const { return curl_ != nullptr; }

  Result<HubReply> exchange(const HubRequest& request, const OnHead& on_head, const OnBody& on_body) override {
    reply_ = {};
    status_ = Status();
    header_bytes_ = 0;
    head_said_ = false;
    on_head_ = &on_head;
    on_body_ = &on_body;
    error_[0] = '\0';
    set_up(request);
    curl_slist* headers = curl_slist_append(nullptr, "Accept-Encoding: identity");
    // Not by CURLOPT_XOAUTH2_BEARER: a header of our own goes to this url and no other, since nothing is followed.
    if (!request.token.empty())
      headers = curl_slist_append(headers, ("Authorization: Bearer " + request.token).c_str());
    if (request.begin > 0) headers = curl_slist_append(headers, fmt::format("Range: bytes={}-", request.begin).c_str());
    curl_easy_setopt(curl_, CURLOPT_HTTPHEADER, headers);
    const CURLcode code = curl_easy_perform(curl_);
    curl_easy_setopt(curl_, CURLOPT_HTTPHEADER, nullptr);
    curl_slist_free_all(headers);
    if (!status_.ok()) return status_;
    if (code != CURLE_OK) return failure(code, request);
    if (!head_said_ && on_head) LK_RETURN_IF_ERROR(on_head(reply_));
    return std::move(reply_);
  }

 private:
  void set_up(const HubRequest& request) {
    curl_easy_reset(curl_);  // connections stay
    const auto set = [&](CURLoption option, auto value) { (void)curl_easy_setopt(curl_, option, value); };
    set(CURLOPT_URL, request.url.text.c_str());
    set(CURLOPT_NOBODY, request.head ? 1L : 0L);
    set(CURLOPT_NOSIGNAL, 1L);  // there are threads
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));  // a connection per file
    set(CURLOPT_USERAGENT, "lorikeet");
    set(CURLOPT_ERRORBUFFER, error_);
    set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    set(CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
    const long ms = static_cast<long>(request.timeout.count());
    set(CURLOPT_CONNECTTIMEOUT_MS, ms);
    if (request.small) set(CURLOPT_TIMEOUT_MS, 6 * ms);
    if (!request.small) set(CURLOPT_BUFFERSIZE, 512L << 10);
    set(CURLOPT_LOW_SPEED_LIMIT, 1L);
    set(CURLOPT_LOW_SPEED_TIME, std::max(ms / 1000, 1L));
    if (!settings_.ca_file.empty()) set(CURLOPT_CAINFO, settings_.ca_file.c_str());
    if (!settings_.ca_directory.empty()) set(CURLOPT_CAPATH, settings_.ca_directory.c_str());
    // Asked about once a second when nothing comes.
    set(CURLOPT_NOPROGRESS, 0L);
    set(CURLOPT_XFERINFOFUNCTION, &CurlConnection::look_up_stop);
    set(CURLOPT_XFERINFODATA, static_cast<void*>(this));
    set(CURLOPT_HEADERFUNCTION, &CurlConnection::take_header);
    set(CURLOPT_HEADERDATA, static_cast<void*>(this));
    set(CURLOPT_WRITEFUNCTION, &CurlConnection::take_body);
    set(CURLOPT_WRITEDATA, static_cast<void*>(this));
  }

  static int look_up_stop(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    return check_stop(static_cast<CurlConnection*>(self)->stop_).ok() ? 0 : 1;
  }
  static size_t take_header(char* data, size_t, size_t size, void* self) {
    return static_cast<CurlConnection*>(self)->header({data, size}) ? size : 0;
  }
  static size_t take_body(char* data, size_t, size_t size, void* self) {
    const bool ok = static_cast<CurlConnection*>(self)->body({reinterpret_cast<const std::byte*>(data), size});
    return ok ? size : CURL_WRITEFUNC_ERROR;
  }

  bool header(std::string_view line) {
    header_bytes_ += line.size();
    if (header_bytes_ > kMaxHeaderBytes) {
      status_ = data_loss("an answer with more than {} bytes of headers", kMaxHeaderBytes);
      return false;
    }
    if (line.starts_with("HTTP/")) {  // also behind "100 Continue"
      reply_ = {};
      const size_t blank = line.find(' ');
      if (blank != line.npos) (void)std::from_chars(line.data() + blank + 1, line.data() + line.size(), reply_.status);
      return true;
    }
    const size_t colon = line.find(':');
    if (colon == line.npos) return true;
    std::string_view value = line.substr(colon + 1);
    const size_t begin = value.find_first_not_of(" \t\r\n");
    value = begin == value.npos ? "" : value.substr(begin, value.find_last_not_of(" \t\r\n") - begin + 1);
    reply_.headers.insert_or_assign(lower(line.substr(0, colon)), std::string(value));
    return true;
  }

  bool body(std::span<const std::byte> piece) {
    if (!std::exchange(head_said_, true) && *on_head_) status_ = (*on_head_)(reply_);
    if (status_.ok() && *on_body_) status_ = (*on_body_)(piece);
    return status_.ok();
  }

  Status failure(CURLcode code, const HubRequest& request) const {
    const std::string why = clean_text(error_[0] != '\0' ? error_ : curl_easy_strerror(code), 300);
    const std::string& host = request.url.origin;
    switch (code) {
      case CURLE_PEER_FAILED_VERIFICATION:
      case CURLE_SSL_CACERT_BADFILE:
        return failed_precondition(
            "{} is not trusted: {}. Certificates are those of the package ca-certificates, or of SSL_CERT_FILE", host,
            why);
      case CURLE_ABORTED_BY_CALLBACK:
        return cancelled("{}: interrupted", host);
      case CURLE_UNSUPPORTED_PROTOCOL:
      case CURLE_URL_MALFORMAT:
        return failed_precondition("{}: {}", host, why);
      default:
        return unavailable("{}: {}", host, why);
    }
  }

  const HubSettings settings_;
  const AskStop stop_;
  CURL* const curl_;
  char error_[CURL_ERROR_SIZE] = {};
  HubReply reply_;
  Status status_;
  size_t header_bytes_ = 0;
  bool head_said_ = false;
  const OnHead* on_head_ = nullptr;
  const OnBody* on_body_ = nullptr;
};

}  // namespace

Result<HubUrl> parse_hub_url(const std::string& text, const std::string& base) {
  const std::unique_ptr<CURLU, FreeUrl> url(curl_url());
  LK_CHECK(url != nullptr, "out of memory");
  if (!base.empty() && curl_url_set(url.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK)
    return invalid_argument("{} is no address", printable(base, 200));
  const CURLUcode code = curl_url_set(url.get(), CURLUPART_URL, text.c_str(), CURLU_DISALLOW_USER);
  const std::string scheme = code == CURLUE_OK ? lower(part_of(url.get(), CURLUPART_SCHEME)) : "";
  if (scheme != "http" && scheme != "https")
    return invalid_argument("\"{}\" is no address of http:// or https://", printable(text, 200));
  HubUrl parsed{.text = part_of(url.get(), CURLUPART_URL), .tls = scheme == "https"};
  parsed.origin = fmt::format("{}://{}:{}", scheme, lower(part_of(url.get(), CURLUPART_HOST)),
                              part_of(url.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT));
  return parsed;
}

Result<std::unique_ptr<HubConnection>> HubConnection::open(const HubSettings& settings, AskStop stop) {
  static const bool ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  auto connection = std::make_unique<CurlConnection>(settings, std::move(stop));
  if (!ready || !connection->ready()) return internal_error("libcurl cannot start");
  return std::unique_ptr<HubConnection>(std::move(connection));
}

#else

Result<HubUrl> parse_hub_url(const std::string& text, const std::string&) { return HubUrl{.text = text}; }

Result<std::unique_ptr<HubConnection>> HubConnection::open(const HubSettings&, AskStop) {
  return unsupported(
      "this lorikeet was built without libcurl and downloads nothing; what other programs put into the cache is used "
      "(build it with libcurl4-openssl-dev)");
}

#endif

}  // namespace lk
