// SPDX-License-Identifier: Apache-2.0
// Renders templates for tools/compare_templates.py. Reads one JSON object per line,
// {"template": "...", "variables": {...}}, and answers {"output": "..."} or {"error": "..."}.
#include <iostream>
#include <string>

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/string.hpp>

#include "lk/text/chat_template.h"

namespace {

boost::json::object answer(const boost::json::object& request) {
  boost::json::object out;
  const auto& source = request.at("template").as_string();
  const auto parsed = lk::ChatTemplate::parse(std::string_view(source.data(), source.size()), "template");
  if (!parsed.ok()) {
    out["error"] = parsed.status().message();
    return out;
  }
  const auto rendered = (*parsed)->render(request.at("variables").as_object());
  out[rendered.ok() ? "output" : "error"] = rendered.ok() ? *rendered : rendered.status().message();
  return out;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << boost::json::serialize(answer(boost::json::parse(line).as_object())) << '\n';
  }
}
