// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/access_json.h"

#include <boost/json/array.hpp>

#include <charconv>
#include <ctime>

#include "lk/base/plain_text.h"

namespace lk {

namespace json = boost::json;

json::object key_json(const ApiKey& key, int64_t now_unix) {
  return {{"id", key.id},     {"object", "api_key"},    {"tenant", key.tenant},   {"scopes", format_scopes(key.scopes)},
          {"note", key.note}, {"created", key.created}, {"expires", key.expires}, {"state", key.state(now_unix)}};
}

json::object tenant_json(const Tenant& tenant) {
  json::array adapters(tenant.adapters.begin(), tenant.adapters.end());
  return {{"name", tenant.name},
          {"object", "tenant"},
          {"weight", tenant.weight},
          {"max_in_flight", tenant.max_in_flight},
          {"tokens_per_minute", tenant.tokens_per_minute},
          {"adapters", std::move(adapters)},
          {"max_adapters", tenant.max_adapters},
          {"max_versions", tenant.max_versions},
          {"max_sums", tenant.max_sums}};
}

Result<int64_t> parse_expiry(const std::string& text, int64_t now_unix) {
  if (text.empty() || text == "never") return 0;
  const Status refusal = invalid_argument(
      "\"{}\" is neither a span such as 30d, 12h or 2w nor a date such as 2027-01-31", printable(text));
  int64_t count = 0;
  const auto [unit, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error == std::errc() && unit == text.data() + text.size() - 1) {
    const int64_t seconds = *unit == 'h' ? 3600 : *unit == 'd' ? 86400 : *unit == 'w' ? 7 * 86400 : 0;
    if (seconds == 0 || count <= 0 || count > 100'000) return refusal;
    return now_unix + count * seconds;
  }
  for (const char* format : {"%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"}) {
    std::tm parts{};
    const char* end = ::strptime(text.c_str(), format, &parts);
    if (end == nullptr || *end != '\0') continue;
    const std::tm given = parts;
    const int64_t seconds = ::timegm(&parts);
    if (parts.tm_mday != given.tm_mday || parts.tm_mon != given.tm_mon) return refusal;  // 30 February
    if (seconds <= now_unix) return invalid_argument("{} is in the past", printable(text));
    return seconds;
  }
  return refusal;
}

}  // namespace lk
