// SPDX-License-Identifier: Apache-2.0
#include "lk/hub/hub_settings.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <memory>

#include "lk/base/file.h"

namespace lk {
namespace {

class Environment {
 public:
  explicit Environment(const std::function<const char*(const char*)>& variable) : variable_(variable) {}

  std::string get(const char* name) const {
    const char* value = variable_(name);
    return value == nullptr ? "" : value;
  }
  bool has(const char* name) const { return variable_(name) != nullptr; }
  // 1, ON, YES, TRUE in any case; everything else is false.
  bool flag(const char* name) const {
    std::string value = get(name);
    std::ranges::transform(value, value.begin(), [](char c) { return c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c; });
    return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
  }
  // "~" at the beginning and variables within, as Python's expanduser and expandvars; what is not set stays.
  std::string path(const std::string& given) const {
    const bool of_home = (given == "~" || given.starts_with("~/")) && !get("HOME").empty();
    const std::string text = of_home ? get("HOME") + given.substr(1) : given;
    std::string out;
    for (size_t at = 0; at < text.size();) {
      if (text[at] != '$') {
        out += text[at++];
        continue;
      }
      const bool braces = at + 1 < text.size() && text[at + 1] == '{';
      const size_t begin = at + (braces ? 2 : 1);
      size_t end = begin;
      const auto of_name = [](char c) {
        return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
      };
      while (end < text.size() && (braces ? text[end] != '}' : of_name(text[end]))) ++end;
      const std::string name = text.substr(begin, end - begin);
      const bool closed = !braces || end < text.size();
      const size_t next = std::min(end + (braces ? 1 : 0), text.size());
      out += closed && has(name.c_str()) ? get(name.c_str()) : text.substr(at, next - at);
      at = next;
    }
    return out;
  }
  Result<std::chrono::milliseconds> seconds(const char* name, std::chrono::milliseconds standard) const {
    const std::string text = get(name);
    if (text.empty()) return standard;
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > 86400)
      return invalid_argument("{} must be a number of seconds, is \"{}\"", name, text);
    return value == 0 ? standard : std::chrono::milliseconds(value * 1000);
  }

 private:
  const std::function<const char*(const char*)>& variable_;
};

std::string first_of(const Environment& environment, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (std::string value = environment.get(name); !value.empty()) return value;
  return "";
}

// Without line ends and the blanks around it.
std::string clean(std::string text) {
  std::erase_if(text, [](char c) { return c == '\r' || c == '\n'; });
  const size_t begin = text.find_first_not_of(" \t");
  return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

Status read_token(const Environment& environment, const std::string& home, HubSettings& settings) {
  if (environment.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return Status();
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (!settings.token.empty()) break;
    settings.token = clean(environment.get(name));
    settings.token_place = name;
  }
  if (settings.token.empty()) {
    const std::string given = environment.get("HF_TOKEN_PATH");
    const std::string path = environment.path(given.empty() ? join_path(home, "token") : given);
    const Result<std::string> text = read_file(path, size_t{64} << 10);
    if (!text.ok() && text.status().code() != StatusCode::kNotFound) return text.status();
    if (text.ok()) settings.token = clean(*text);
    settings.token_place = path;
  }
  // It becomes a header.
  if (!std::ranges::all_of(settings.token, [](char c) { return c > ' ' && c <= '~'; }))
    return invalid_argument("the token in {} has characters that no token has", settings.token_place);
  return Status();
}

}  // namespace

Result<HubSettings> read_hub_settings(const std::function<const char*(const char*)>& variable) {
  const Environment environment(variable);
  HubSettings settings;
  if (std::string endpoint = environment.get("HF_ENDPOINT"); !endpoint.empty()) {
    while (endpoint.ends_with('/')) endpoint.pop_back();
    settings.endpoint = std::move(endpoint);
  }
  if (!settings.endpoint.starts_with("https://") && !settings.endpoint.starts_with("http://"))
    return invalid_argument("HF_ENDPOINT must begin with https:// or http://, is \"{}\"", settings.endpoint);
  std::string home = environment.get("HF_HOME");
  if (home.empty()) {
    const std::string caches = environment.get("XDG_CACHE_HOME");
    home = join_path(caches.empty() ? "~/.cache" : caches, "huggingface");
  }
  home = environment.path(home);
  settings.cache = environment.path(first_of(environment, {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}));
  if (settings.cache.empty()) settings.cache = join_path(home, "hub");
  if (!settings.cache.starts_with('/')) {
    // Python's are relative to where it runs, too, unless there is no home at all.
    if (settings.cache.starts_with("~")) return invalid_argument("HOME is not set: HF_HOME says where the cache is");
    const std::unique_ptr<char, void (*)(void*)> here(::getcwd(nullptr, 0), std::free);
    if (!here) return io_error("the working directory is gone: give HF_HOME as an absolute path");
    settings.cache = join_path(here.get(), settings.cache);
  }
  if (const char* name = environment.get("HF_HUB_OFFLINE").empty() ? "TRANSFORMERS_OFFLINE" : "HF_HUB_OFFLINE";
      environment.flag(name))
    settings.offline_by = name;
  settings.progress = !environment.flag("HF_HUB_DISABLE_PROGRESS_BARS");
  LK_ASSIGN_OR_RETURN(settings.metadata_timeout, environment.seconds("HF_HUB_ETAG_TIMEOUT", settings.metadata_timeout));
  LK_ASSIGN_OR_RETURN(settings.download_timeout,
                      environment.seconds("HF_HUB_DOWNLOAD_TIMEOUT", settings.download_timeout));
  settings.ca_file = first_of(environment, {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"});
  settings.ca_directory = environment.get("SSL_CERT_DIR");
  LK_RETURN_IF_ERROR(read_token(environment, home, settings));
  return settings;
}

Result<HubSettings> read_hub_settings() {
  return read_hub_settings([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace lk
