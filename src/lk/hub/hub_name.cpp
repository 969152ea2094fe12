// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_name.h"

#include <algorithm>

#include "lk/base/plain_text.h"

namespace lk {
namespace {

bool is_alnum(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool only(std::string_view text, std::string_view also) {
  return std::ranges::all_of(text, [&](char c) { return is_alnum(c) || also.find(c) != also.npos; });
}

// The hub's rule for an organisation's or a repository's name.
bool is_repo_part(std::string_view part) {
  const auto edge = [](char c) { return is_alnum(c) || c == '_'; };
  return !part.empty() && part.size() <= 96 && only(part, "-_.") && edge(part.front()) && edge(part.back()) &&
         part.find("--") == part.npos && part.find("..") == part.npos;
}

std::string_view without_prefix(std::string_view text) { return text.starts_with("hf://") ? text.substr(5) : text; }

}  // namespace

std::string HubName::text() const {
  std::string text = repo;
  if (!subfolder.empty()) text += "/" + subfolder;
  if (revision != "main") text += "@" + revision;
  return text;
}

Result<HubName> parse_hub_name(std::string_view written) {
  std::string_view text = without_prefix(written);
  const auto wrong = [&](std::string_view why) {
    return invalid_argument("\"{}\" is no name on the hub: {}", printable(written, 200), why);
  };
  HubName name;
  if (const size_t at = text.find('@'); at != text.npos) {
    name.revision = text.substr(at + 1);
    text = text.substr(0, at);
    if (!is_plain_relative_path(name.revision)) return wrong("behind '@' stands a branch, a tag or a commit");
  }
  const size_t first = text.find('/');
  const size_t second = first == text.npos ? text.npos : text.find('/', first + 1);
  name.repo = text.substr(0, second);
  if (second != text.npos) name.subfolder = text.substr(second + 1);
  const std::string_view org = first == text.npos ? "" : text.substr(0, first);
  const std::string_view repo = std::string_view(name.repo).substr(first == text.npos ? 0 : first + 1);
  if ((first != text.npos && !is_repo_part(org)) || !is_repo_part(repo) || repo.ends_with(".git"))
    return wrong("it is ORG/NAME[/SUBFOLDER][@REVISION], of letters, digits and \"-_.\"");
  if (second != text.npos && !is_plain_relative_path(name.subfolder))
    return wrong("behind the second '/' stands a folder of the repository");
  return name;
}

bool looks_like_hub_name(std::string_view written) {
  if (written.starts_with("hf://")) return true;
  return written.find('/') != written.npos && parse_hub_name(written).ok();
}

bool is_commit(std::string_view text) {
  return text.size() == 40 && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
         });
}

bool is_plain_relative_path(std::string_view path) {
  if (path.empty() || path.size() > 1024) return false;
  if (!std::ranges::all_of(path, [](char c) { return c >= ' ' && c <= '~' && c != '\\'; })) return false;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part.front() == '.' || part.size() > 255) return false;
    begin = end + 1;
  }
  return true;
}

bool is_blob_name(std::string_view etag) {
  return !etag.empty() && etag.size() <= 200 && only(etag, "._+=-") && etag.front() != '.' &&
         !etag.ends_with(".incomplete") && !etag.ends_with(".lock");
}

std::string repo_directory_name(std::string_view repo) {
  std::string name = "models--";
  for (const char c : repo) c == '/' ? name += "--" : name += c;
  return name;
}

std::string url_quote(std::string_view text, bool keep_slashes) {
  std::string quoted;
  for (const char c : text) {
    if (is_alnum(c) || std::string_view("-._~").find(c) != std::string_view::npos || (c == '/' && keep_slashes))
      quoted += c;
    else
      quoted += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return quoted;
}

}  // namespace lk
