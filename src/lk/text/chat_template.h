// SPDX-License-Identifier: Apache-2.0
// Chat templates: a bounded subset of Jinja2, enough for the templates of the supported model families. Rendering is
// limited in steps, nesting, output bytes and time, so that a hostile template fails instead of hanging.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/json/value.hpp>

#include "lk/base/status.h"

namespace lk {

struct TemplateLimits {
  int64_t max_steps = 1'000'000;
  int64_t max_depth = 64;  // macro calls inside macro calls; other nesting has fixed limits
  int64_t max_output_bytes = 8 << 20;
  std::chrono::milliseconds max_time{1000};
};

// Thread safety: immutable after parse.
class ChatTemplate {
 public:
  // Names and values that every rendering sees: the model's special tokens.
  using Variables = std::vector<std::pair<std::string, std::string>>;
  static Result<std::shared_ptr<const ChatTemplate>> parse(std::string_view source, std::string_view where,
                                                           const Variables& variables = {});
  // The same template with these variables instead.
  std::shared_ptr<const ChatTemplate> with_variables(const Variables& variables) const;
  ~ChatTemplate();

  const std::string& source() const;

  // variables: {"messages": [...], "tools": [...], "add_generation_prompt": true, ...}; the template's own are
  // added unless given; so are tools and documents (none) and add_generation_prompt (false), as transformers does.
  // raise_exception(...) in the template is kInvalidArgument with its message alone; other failures name the line.
  // strftime_now_unix (seconds, read as UTC) replaces the clock.
  Result<std::string> render(const boost::json::object& variables, const TemplateLimits& limits = {}) const;
  // Also says which bytes the template marks as the assistant's with {% generation %}; none when it has no marks.
  struct Marked {
    std::string text;
    std::vector<std::pair<size_t, size_t>> generations;  // [begin, end), in order
  };
  Result<Marked> render_marked(const boost::json::object& variables, const TemplateLimits& limits = {}) const;

 private:
  struct Parsed;
  ChatTemplate(std::shared_ptr<const Parsed> parsed, Variables variables);
  std::shared_ptr<const Parsed> parsed_;
  Variables variables_;
};

}  // namespace lk
