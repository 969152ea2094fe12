// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_client.h"

#include <algorithm>
#include <charconv>
#include <thread>
#include <tuple>
#include <utility>

#include "lk/base/json_fields.h"
#include "lk/base/plain_text.h"

namespace lk {
namespace {

constexpr int kMaxRedirects = 10;
constexpr size_t kMaxListingBytes = size_t{16} << 20;
constexpr size_t kMaxErrorBytes = size_t{16} << 10;
constexpr size_t kMaxFiles = size_t{1} << 18;
constexpr int64_t kMaxFileBytes = int64_t{1} << 44;  // of kMaxFiles files the sum is a number yet
constexpr int64_t kLongestWait_s = 60;

// Where the token may go beside the endpoint: a mirror sends requests for gated files there.
constexpr std::string_view kHubOrigins[] = {"https://huggingface.co:443", "https://hf.co:443"};

// W/"abc" or "abc" as abc.
std::string plain_etag(std::string_view etag) {
  if (etag.starts_with("W/")) etag.remove_prefix(2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
  return std::string(etag);
}

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// Gathers a body, up to a limit.
HubConnection::OnBody into(std::string& text, size_t max_bytes) {
  return [&text, max_bytes](std::span<const std::byte> piece) -> Status {
    if (text.size() + piece.size() > max_bytes) return data_loss("the hub's answer has more than {} bytes", max_bytes);
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return Status();
  };
}

// {"error": "..."}; empty for anything else.
std::string error_in(std::string_view body) {
  if (body.empty() || body.front() != '{') return "";
  const Result<boost::json::object> object = parse_json_object(body, "");
  if (!object.ok()) return "";
  const boost::json::value* error = object->if_contains("error");
  return error != nullptr && error->is_string() ? std::string(error->get_string()) : "";
}

// Seconds until another try makes sense: Retry-After, or t= of RateLimit where nothing remains (r=0).
int64_t wanted_wait(const HubReply& reply) {
  const auto bounded = [](int64_t seconds) { return std::clamp<int64_t>(seconds, 0, kLongestWait_s + 1); };
  if (const int64_t seconds = reply.length("retry-after"); seconds >= 0) return bounded(seconds);
  const std::string_view limit = reply.header("ratelimit");
  const size_t at = limit.find(";t=");
  if (at == limit.npos || limit.find(";r=0") == limit.npos) return 0;
  int64_t seconds = 0;
  (void)std::from_chars(limit.data() + at + 3, limit.data() + limit.size(), seconds);
  return bounded(seconds);
}

}  // namespace

Result<std::unique_ptr<HubClient>> HubClient::open(const HubSettings& settings, Note note, AskStop stop) {
  std::unique_ptr<HubClient> client(new HubClient(settings, std::move(note), stop));
  LK_ASSIGN_OR_RETURN(client->connection_, HubConnection::open(settings, std::move(stop)));
  LK_ASSIGN_OR_RETURN(client->endpoint_, parse_hub_url(settings.endpoint));
  return client;
}

bool HubClient::is_hub(const HubUrl& url) const {
  return url.origin == endpoint_.origin || std::ranges::find(kHubOrigins, url.origin) != std::end(kHubOrigins);
}

Result<HubReply> HubClient::ask(Asked asked, bool metadata, const HubConnection::OnHead& on_head,
                                const HubConnection::OnBody& on_body) {
  for (int redirects = 0; redirects <= kMaxRedirects; ++redirects) {
    HubRequest request{.url = asked.url, .head = asked.head, .begin = asked.begin, .small = asked.small};
    request.timeout = asked.small ? settings_.metadata_timeout : settings_.download_timeout;
    if (is_hub(asked.url)) request.token = settings_.token;
    std::string error;
    const auto head = [&](const HubReply& reply) { return reply.status < 300 && on_head ? on_head(reply) : Status(); };
    int status = 0;
    const auto whole_head = [&](const HubReply& reply) {
      status = reply.status;
      return head(reply);
    };
    // Of a redirect and of a failure a little is read, for its reason; of what was asked for, everything.
    const auto body = [&](std::span<const std::byte> piece) {
      if (status < 300) return on_body ? on_body(piece) : Status();
      const size_t room = kMaxErrorBytes - std::min(error.size(), kMaxErrorBytes);
      error.append(reinterpret_cast<const char*>(piece.data()), std::min(piece.size(), room));
      return room < piece.size() ? data_loss("an error of more than {} bytes", kMaxErrorBytes) : Status();
    };
    LK_ASSIGN_OR_RETURN(HubReply reply, connection_->exchange(request, whole_head, body));
    asked_to_wait_s_ = wanted_wait(reply);
    last_origin_ = asked.url.origin;
    if (!is_redirect(reply.status)) {
      if (reply.status >= 300) reply.headers["error"] = error_in(error);
      return reply;
    }
    LK_ASSIGN_OR_RETURN(HubUrl next, parse_hub_url(std::string(reply.header("location")), asked.url.text));
    if (asked.url.tls && !next.tls)
      return permission_denied("{} redirects to {}, which is not encrypted: not followed", asked.url.origin,
                               next.origin);
    if (metadata && !is_hub(next)) return reply;
    asked.url = std::move(next);
  }
  return data_loss("more than {} redirects, the last to {}", kMaxRedirects, asked.url.origin);
}

Status HubClient::failure_of(const HubReply& reply, const HubName& name, const std::string& what,
                             std::string_view body) const {
  if (reply.status >= 200 && reply.status < 300) return Status();
  if (is_redirect(reply.status)) return Status();
  const std::string_view code = reply.header("x-error-code");
  std::string said = clean_text(reply.header("x-error-message"), 300);
  if (said.empty()) said = clean_text(body, 300);
  const std::string because = said.empty() ? "" : fmt::format(" ({})", said);
  const bool token = !settings_.token.empty();
  const std::string& host = last_origin_.empty() ? settings_.endpoint : last_origin_;
  if (code == "RevisionNotFound") return invalid_argument("{} has no revision \"{}\"", name.repo, name.revision);
  if (code == "EntryNotFound") return not_found("{} has no file {}", name.repo, what);
  if (code == "GatedRepo")
    return permission_denied(
        "{} is gated: accept its licence at {}/{}, then {}{}", name.repo, settings_.endpoint, name.repo,
        token ? fmt::format("try again; the token in {} must be of the account that accepted it", settings_.token_place)
              : "set HF_TOKEN to a token of that account (or run `hf auth login`)",
        because);
  if (said == "Invalid credentials in Authorization header")
    return unauthenticated("{} does not accept the token in {}", host, settings_.token_place);
  if (code == "RepoNotFound" || reply.status == 401)
    return not_found("{} is not on {}{}", name.repo, settings_.endpoint,
                     token ? fmt::format(", or the token in {} may not see it", settings_.token_place)
                           : "; if it is private or gated, set HF_TOKEN");
  const std::string answers = fmt::format("{}: {} answers {} for {}{}", name.repo, host, reply.status, what, because);
  if (reply.status == 404) return Status(StatusCode::kNotFound, answers);
  if (reply.status == 403) return Status(StatusCode::kPermissionDenied, answers);
  if (reply.status == 408 || reply.status == 429 || reply.status >= 500)
    return Status(StatusCode::kUnavailable, answers);
  return Status(StatusCode::kDataLoss, answers);
}

Status HubClient::wait(int attempt, const Status& why) {
  const auto doubled = settings_.first_wait * (1 << std::min(attempt - 1, 3));
  const auto asked = std::chrono::milliseconds(asked_to_wait_s_ * 1000);
  if (asked_to_wait_s_ > kLongestWait_s) return why;
  const auto wait = std::max<std::chrono::milliseconds>(doubled, asked);
  if (note_) note_(fmt::format("{}; another try in {:.1f} s", why.message(), static_cast<double>(wait.count()) / 1e3));
  asked_to_wait_s_ = 0;
  return wait_unless_stopped(wait, stop_);
}

Result<HubListing> HubClient::list(const HubName& name, int tries) {
  LK_ASSIGN_OR_RETURN(const HubUrl url, parse_hub_url(fmt::format("{}/api/models/{}/revision/{}", settings_.endpoint,
                                                                  name.repo, url_quote(name.revision, false))));
  std::string body;
  for (int attempt = 1;; ++attempt) {
    body.clear();
    const Result<HubReply> reply = ask({.url = url}, false, {}, into(body, kMaxListingBytes));
    const Status status =
        reply.ok() ? failure_of(*reply, name, "the list of files", reply->header("error")) : reply.status();
    if (status.ok()) break;
    // Where nobody answers at all, it may be that the name was meant as a path: that should not take long.
    const int most = reply.ok() ? tries : std::min(tries, 2);
    if (status.code() != StatusCode::kUnavailable || attempt >= most) return status;
    LK_RETURN_IF_ERROR(wait(attempt, status));
  }
  const std::string where = fmt::format("the answer of {} about {}", settings_.endpoint, name.repo);
  LK_ASSIGN_OR_RETURN(const boost::json::object object, parse_json_object(body, where));
  JsonFields fields(object, where);
  HubListing listing;
  fields.read_string("sha", listing.commit);
  const boost::json::array* siblings = fields.array("siblings", kMaxFiles);
  if (fields.failed()) return Status(StatusCode::kDataLoss, fields.status().message());
  if (!is_commit(listing.commit) || siblings == nullptr)
    return data_loss("{} has no commit or no list of files: is it a hub?", where);
  if (is_commit(name.revision) && listing.commit != name.revision)
    return data_loss("{} is of commit {}, not of {}", where, listing.commit, name.revision);
  for (const boost::json::value& sibling : *siblings) {
    const boost::json::value* file = sibling.is_object() ? sibling.get_object().if_contains("rfilename") : nullptr;
    if (file == nullptr || !file->is_string()) return data_loss("{}: a file without \"rfilename\"", where);
    if (is_plain_relative_path(file->get_string())) listing.files.emplace_back(file->get_string());
  }
  return listing;
}

Result<HubUrl> HubClient::resolve_url(const HubName& name, const std::string& commit, const std::string& path) const {
  return parse_hub_url(
      fmt::format("{}/{}/resolve/{}/{}", settings_.endpoint, name.repo, commit, url_quote(path, true)));
}

Result<HubFile> HubClient::look_up(const HubName& name, const std::string& commit, const std::string& path) {
  LK_ASSIGN_OR_RETURN(const HubUrl url, resolve_url(name, commit, path));
  HubReply reply;
  for (int attempt = 1;; ++attempt) {
    Result<HubReply> answer = ask({.url = url, .head = true}, true, {}, {});
    const Status status = answer.ok() ? failure_of(*answer, name, path, "") : answer.status();
    if (status.ok()) {
      reply = *std::move(answer);
      break;
    }
    if (status.code() != StatusCode::kUnavailable || attempt >= kTries) return status;
    LK_RETURN_IF_ERROR(wait(attempt, status));
  }
  const std::string_view linked = reply.header("x-linked-etag");
  HubFile file{.path = path, .etag = plain_etag(linked.empty() ? reply.header("etag") : linked)};
  file.size = reply.length("x-linked-size");
  if (file.size < 0 && !is_redirect(reply.status)) file.size = reply.length("content-length");
  if (file.size > kMaxFileBytes)
    return data_loss("{}: {} is said to have {} bytes", settings_.endpoint, path, file.size);
  const std::string_view said = reply.header("x-repo-commit");
  if (said.empty() || file.etag.empty())
    return data_loss("{} says neither commit nor ETag of {}: is HF_ENDPOINT a hub?", settings_.endpoint, path);
  if (said != commit)
    return data_loss("{} gives {} of commit {}, asked for that of {}", settings_.endpoint, path, printable(said, 64),
                     commit);
  if (!is_blob_name(file.etag))
    return data_loss("{}: the ETag of {} cannot name a file in the cache: \"{}\"", settings_.endpoint, path,
                     printable(file.etag, 100));
  return file;
}

Status HubClient::download(const HubName& name, const std::string& commit, const std::string& path, int64_t begin,
                           const OnBegin& on_begin, const HubConnection::OnBody& on_body) {
  LK_ASSIGN_OR_RETURN(const HubUrl url, resolve_url(name, commit, path));
  const auto head = [&](const HubReply& reply) -> Status {
    if (reply.status == 200) return on_begin(0, reply.length("content-length"));
    // "bytes 100-199/200"
    const std::string_view range = reply.header("content-range");
    int64_t first = -1, last = -1, total = -1;
    const char* const end = range.data() + range.size();
    auto [at, error] = std::from_chars(range.data() + std::min(range.size(), size_t{6}), end, first);
    if (error == std::errc() && at != end && *at == '-')
      std::tie(at, error) = [&] {
        const auto parsed = std::from_chars(at + 1, end, last);
        return std::pair(parsed.ptr, parsed.ec);
      }();
    if (error == std::errc() && at != end && *at == '/') (void)std::from_chars(at + 1, end, total);
    if (reply.status != 206 || !range.starts_with("bytes ") || first != begin)
      return data_loss("{}: asked for bytes from {} on, got status {} and the range \"{}\"", path, begin, reply.status,
                       printable(range, 64));
    return on_begin(first, total);
  };
  const Result<HubReply> reply = ask({.url = url, .small = false, .begin = begin}, false, head, on_body);
  if (!reply.ok()) return reply.status();
  // The file is shorter than what is there already, or a link of the storage has expired.
  if (reply->status == 416) return data_loss("{}: there is nothing from byte {} on", path, begin);
  return failure_of(*reply, name, path, reply->header("error"));
}

}  // namespace lk
