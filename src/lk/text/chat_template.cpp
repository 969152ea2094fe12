// SPDX-License-Identifier: Apache-2.0
#include "lk/text/chat_template.h"

#include <new>
#include <utility>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/string.hpp>

#include "lk/base/file.h"
#include "lk/base/utf8.h"
#include "lk/text/jinja/eval.h"
#include "lk/text/jinja/json.h"
#include "lk/text/jinja/parser.h"
#include "lk/text/jinja/text.h"

namespace lk {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;
constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

std::string_view view(const boost::json::string& text) { return {text.data(), text.size()}; }

Status to_status(const jinja::TemplateError& error, std::string_view where, int line) {
  if (error.raised) return Status(error.code, error.message);
  const int at = error.line > 0 ? error.line : line;
  if (at <= 0) return Status(error.code, fmt::format("{}: {}", where, error.message));
  return Status(error.code, fmt::format("{}: line {}: {}", where, at, error.message));
}

// The text of a token of tokenizer_config.json: a string, or an object with the string in
// "content".
const boost::json::string* token_text(const boost::json::value& value) {
  if (const auto* text = value.if_string()) return text;
  const auto* object = value.if_object();
  const auto* content = object != nullptr ? object->if_contains("content") : nullptr;
  return content != nullptr ? content->if_string() : nullptr;
}

// "chat_template" of tokenizer_config.json: a string, or a list of {"name", "template"}.
Result<std::string> template_of_config(const boost::json::object& config, const std::string& path) {
  const auto* value = config.if_contains("chat_template");
  if (value == nullptr || value->is_null()) return not_found("{} has no chat_template", path);
  if (const auto* text = value->if_string()) return std::string(view(*text));
  const auto* entries = value->if_array();
  if (entries == nullptr) return data_loss("{}: chat_template must be a string or a list", path);
  for (const auto& entry : *entries) {
    const auto* object = entry.if_object();
    const auto* name = object != nullptr ? object->if_contains("name") : nullptr;
    const auto* text = object != nullptr ? object->if_contains("template") : nullptr;
    if (name == nullptr || !name->is_string() || text == nullptr || !text->is_string()) {
      return data_loss("{}: an entry of chat_template lacks \"name\" or \"template\"", path);
    }
    if (view(name->get_string()) == "default") return std::string(view(text->get_string()));
  }
  return not_found("{}: chat_template has no entry named \"default\"", path);
}

}  // namespace

struct ChatTemplate::Impl {
  std::string where, source;
  jinja::Block body;
  std::vector<std::pair<std::string, std::string>> special_tokens;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;
const std::string& ChatTemplate::source() const { return impl_->source; }

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::parse(std::string_view source, std::string_view where) {
  auto impl = std::make_unique<Impl>();
  impl->where = std::string(where);
  impl->source = std::string(source);
  if (source.size() > kMaxSourceBytes) {
    return resource_exhausted("{}: a chat template is limited to {} bytes, this one has {}", where, kMaxSourceBytes,
                              source.size());
  }
  if (!utf8::is_valid(source)) return invalid_argument("{}: the chat template is not valid UTF-8", where);
  try {
    impl->body = jinja::parse(source);
  } catch (const jinja::TemplateError& error) {
    return to_status(error, where, 0);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("{}: out of memory while parsing the chat template", where);
  }
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(std::move(impl)));
}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::load(const std::string& directory) {
  const std::string template_path = join_path(directory, "chat_template.jinja");
  const std::string config_path = join_path(directory, "tokenizer_config.json");
  boost::json::object config;
  if (file_exists(config_path)) {
    LK_ASSIGN_OR_RETURN(const std::string bytes, read_file(config_path, kMaxConfigBytes));
    boost::system::error_code error;
    boost::json::value parsed = boost::json::parse(bytes, error);
    if (error) return data_loss("{} is not valid JSON: {}", config_path, error.message());
    if (!parsed.is_object()) return data_loss("{} must hold a JSON object", config_path);
    config = std::move(parsed.get_object());
  }
  std::string source;
  std::string where = template_path;
  if (file_exists(template_path)) {
    LK_ASSIGN_OR_RETURN(source, read_file(template_path, kMaxSourceBytes));
  } else {
    where = config_path;
    if (config.empty()) {
      return not_found(
          "{} has neither chat_template.jinja nor a tokenizer_config.json with a chat_template; "
          "give the template explicitly or send plain prompts",
          directory);
    }
    LK_ASSIGN_OR_RETURN(source, template_of_config(config, config_path));
  }
  LK_ASSIGN_OR_RETURN(auto chat_template, parse(source, where));
  for (const char* name : kSpecialTokens) {
    const auto* value = config.if_contains(name);
    if (value == nullptr || value->is_null()) continue;
    const auto* text = token_text(*value);
    if (text == nullptr) return data_loss("{}: {} must be a string or have \"content\"", config_path, name);
    chat_template->impl_->special_tokens.emplace_back(name, std::string(view(*text)));
  }
  return chat_template;
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
    for (const auto& [name, text] : impl_->special_tokens) known->set(runtime.string(name), runtime.string(text));
    for (const auto& entry : variables) {
      const std::string_view name(entry.key().data(), entry.key().size());
      known->set(runtime.string(name), jinja::from_json(runtime, entry.value()));
    }
    jinja::Evaluator evaluator(runtime, *known);
    try {
      Marked marked{.text = evaluator.run(impl_->body), .generations = evaluator.generations()};
      return marked;
    } catch (const jinja::TemplateError&) {
      line = evaluator.line();
      throw;
    }
  } catch (const jinja::TemplateError& error) {
    return to_status(error, impl_->where, line);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("{}: out of memory while rendering the chat template", impl_->where);
  }
}

}  // namespace lk
