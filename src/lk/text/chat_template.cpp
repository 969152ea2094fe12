// SPDX-License-Identifier: Apache-2.0
#include "lk/text/chat_template.h"

#include <new>
#include <utility>
#include <vector>

#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

#include "lk/base/utf8.h"
#include "lk/text/jinja/eval.h"
#include "lk/text/jinja/json.h"
#include "lk/text/jinja/parser.h"
#include "lk/text/jinja/text.h"

namespace lk {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;

Status to_status(const jinja::TemplateError& error, std::string_view where, int line) {
  if (error.raised) return Status(error.code, error.message);
  const int at = error.line > 0 ? error.line : line;
  if (at <= 0) return Status(error.code, fmt::format("{}: {}", where, error.message));
  return Status(error.code, fmt::format("{}: line {}: {}", where, at, error.message));
}

}  // namespace

struct ChatTemplate::Parsed {
  std::string where, source;
  jinja::Block body;
};

ChatTemplate::ChatTemplate(std::shared_ptr<const Parsed> parsed, Variables variables)
    : parsed_(std::move(parsed)), variables_(std::move(variables)) {}
ChatTemplate::~ChatTemplate() = default;
const std::string& ChatTemplate::source() const { return parsed_->source; }

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::parse(std::string_view source, std::string_view where,
                                                                const Variables& variables) {
  auto parsed = std::make_shared<Parsed>();
  parsed->where = std::string(where);
  parsed->source = std::string(source);
  if (source.size() > kMaxSourceBytes) {
    return unsupported("{}: a chat template is limited to {} bytes, this one has {}", where, kMaxSourceBytes,
                       source.size());
  }
  if (!utf8::is_valid(source)) return invalid_argument("{}: the chat template is not valid UTF-8", where);
  try {
    parsed->body = jinja::parse(source);
  } catch (const jinja::TemplateError& error) {
    return to_status(error, where, 0);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("{}: out of memory while parsing the chat template", where);
  }
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(std::move(parsed), variables));
}

std::shared_ptr<const ChatTemplate> ChatTemplate::with_variables(const Variables& variables) const {
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(parsed_, variables));
}

Result<std::string> ChatTemplate::render(const boost::json::object& variables, const TemplateLimits& limits) const {
  LK_ASSIGN_OR_RETURN(Marked marked, render_marked(variables, limits));
  return std::move(marked.text);
}

Result<ChatTemplate::Marked> ChatTemplate::render_marked(const boost::json::object& variables,
                                                         const TemplateLimits& limits) const {
  // Declared in this order: values are released before the budget they are charged to.
  jinja::Runtime runtime(limits);
  int line = 0;
  try {
    const auto known = std::make_shared<jinja::Dict>(runtime.meter());
    // transformers always passes these three, so templates may test them without "is defined".
    known->set(runtime.string("tools"), jinja::none());
    known->set(runtime.string("documents"), jinja::none());
    known->set(runtime.string("add_generation_prompt"), jinja::boolean(false));
    for (const auto& [name, text] : variables_) known->set(runtime.string(name), runtime.string(text));
    for (const auto& entry : variables) {
      const std::string_view name(entry.key().data(), entry.key().size());
      known->set(runtime.string(name), jinja::from_json(runtime, entry.value()));
    }
    runtime.allow_input(known->weight());
    jinja::Evaluator evaluator(runtime, *known);
    try {
      Marked marked{.text = evaluator.run(parsed_->body), .generations = evaluator.generations()};
      return marked;
    } catch (const jinja::TemplateError&) {
      line = evaluator.line();
      throw;
    }
  } catch (const jinja::TemplateError& error) {
    return to_status(error, parsed_->where, line);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("{}: out of memory while rendering the chat template", parsed_->where);
  }
}

}  // namespace lk
