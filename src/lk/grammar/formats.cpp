// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <string>

#include "lk/grammar/frontends.h"

namespace lk::grammar {
namespace {

// Each is a part of what its RFC allows, chosen so that every text is valid for strict readers too.
std::map<std::string, Format, std::less<>> make_formats() {
  const std::string year = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})";
  const std::string leap_year = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)";
  const std::string date =
      "(" + year +
      "-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|" +
      leap_year + "-02-29)";
  const std::string hours = "([01][0-9]|2[0-3])";
  const std::string time = hours + ":[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]" + hours + ":[0-5][0-9])";
  const std::string label = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
  const std::string hostname = label + "(\\." + label + "){0,3}";  // at most 255 bytes
  const std::string octet = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
  const std::string group = "[0-9a-fA-F]{1,4}";
  const std::string atom = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]";
  std::string ipv6 = "((" + group + ":){7}" + group;
  for (int before = 0; before <= 6; ++before) {  // "::" stands for at least one group
    const std::string left = before == 0 ? ":" : "(" + group + ":){" + std::to_string(before) + "}";
    ipv6 += "|" + left + ":(" + group + "(:" + group + "){0," + std::to_string(6 - before) + "})?";
  }
  ipv6 += "|(" + group + ":){7}:)";
  const std::string seconds = "[0-9]{1,9}S", minutes = "[0-9]{1,9}M(" + seconds + ")?";
  const std::string clock = "T([0-9]{1,9}H(" + minutes + ")?|" + minutes + "|" + seconds + ")";
  const std::string days = "[0-9]{1,9}D", months = "[0-9]{1,9}M(" + days + ")?";
  const std::string calendar = "([0-9]{1,9}Y(" + months + ")?|" + months + "|" + days + ")";
  const std::string path = "([a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*";
  constexpr int kLabel = 63, kHostname = 4 * kLabel + 3;
  return {
      {"date", {date, 10}},
      {"time", {time, 21}},
      {"date-time", {date + "T" + time, 32}},
      {"duration", {"P(" + calendar + "(" + clock + ")?|" + clock + "|[0-9]{1,9}W)", 62}},
      {"uuid", {"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", 36}},
      {"email", {atom + "{1,24}(\\." + atom + "{1,24})?@" + label + "(\\." + label + "){1,3}", 50 + 4 * kLabel + 3}},
      {"hostname", {hostname, kHostname}},
      {"ipv4", {octet + "(\\." + octet + "){3}", 15}},
      {"ipv6", {ipv6, 39}},
      {"uri",
       {"[a-zA-Z][a-zA-Z0-9+.-]{0,20}://" + hostname + "(:[0-9]{1,5})?", 21 + 3 + kHostname + 6, "(/" + path + ")?"}},
  };
}

}  // namespace

const Format* find_format(std::string_view name) {
  static const auto formats = make_formats();
  const auto at = formats.find(name);
  return at == formats.end() ? nullptr : &at->second;
}

}  // namespace lk::grammar
