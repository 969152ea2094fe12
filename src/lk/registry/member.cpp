// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/member.h"

#include <boost/json/object.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/net/http_client_url.h"

namespace lk {
namespace {

constexpr int64_t kForm = 1;
constexpr size_t kMaxText = 300, kMaxValue = 8192;
constexpr std::string_view kBase = "base";

struct Text {
  const char* name;
  std::string Member::*value;
};
constexpr Text kTexts[] = {{"id", &Member::id},     {"url", &Member::url},     {"incarnation", &Member::incarnation},
                           {"base", &Member::base}, {"model", &Member::model}, {"version", &Member::version}};

}  // namespace

std::string format_member(const Member& member) {
  boost::json::object object{{"form", kForm}};
  for (const Text& text : kTexts) object[text.name] = member.*text.value;
  return json_text(object);
}

Result<Member> parse_member(std::string_view name, std::string_view value) {
  if (value.size() > kMaxValue) return data_loss("{} bytes", value.size());
  const Result<boost::json::object> object = parse_json_object(value, "it");
  if (!object.ok()) return data_loss("{}", object.status().message());
  JsonFields fields(*object, "it");
  int64_t form = 0;
  fields.read_int("form", form, 0, std::numeric_limits<int64_t>::max());
  if (!fields.failed() && form != kForm) return unsupported("its form is {}, known here is {}", form, kForm);
  Member member;
  for (const Text& text : kTexts) fields.read_string(text.name, member.*text.value, 0, kMaxText);
  if (fields.failed()) return data_loss("{}", fields.status().message());
  if (!is_valid_name(member.id) || name != std::string(kMembers) + member.id)
    return data_loss("its id \"{}\" is not its name", member.id);
  if (const Status url = check_member_url(member.url); !url.ok()) return data_loss("{}", url.message());
  return member;
}

Status check_member_url(std::string_view url) {
  if (url.size() > kMaxText) return invalid_argument("an address of {} bytes", url.size());
  const Result<ClientUrl> parsed = parse_client_url(url);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->unix_path.empty() || parsed->target != "/" || url.ends_with('/') || url.find('#') != url.npos)
    return invalid_argument("\"{}\": an address is http://HOST:PORT or https://HOST:PORT", url);
  return Status();
}

Registry::Announcement announcement_of(const Member& member) {
  Registry::Announcement announcement{.name = std::string(kMembers) + member.id, .value = format_member(member)};
  announcement.may_replace = [url = member.url, name = announcement.name](const std::string& found) {
    const Result<Member> other = parse_member(name, found);
    return other.ok() && other->url == url;
  };
  announcement.agreed = {std::string(kBase), json_text(boost::json::object{{"form", kForm}, {"base", member.base}})};
  return announcement;
}

std::vector<Member> MemberReader::read(const Registry::Entries& entries) {
  std::vector<Member> members;
  std::erase_if(told_, [&](const auto& entry) { return !entries.contains(entry.first); });
  for (const auto& [name, entry] : entries) {
    Result<Member> member = parse_member(name, entry.value);
    if (member.ok()) {
      members.push_back(std::move(*member));
    } else if (std::exchange(told_[name], entry.revision) != entry.revision && log_) {
      log_("member_ignored", fmt::format("{}: {}", name, member.status().message()));
    }
  }
  return members;
}

}  // namespace lk
