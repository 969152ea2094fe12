// SPDX-License-Identifier: Apache-2.0
#include "config_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>

#include "lk/base/file.h"

namespace lk::apps {
namespace {

constexpr size_t kMaxFile = 1 << 20;

std::string normalized(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = c == '_' || c == ' ' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

// "; did you mean \"x\"?" for the nearest of `names`, if one is near.
template <class Map>
std::string suggestion(const std::string& given, const Map& names) {
  if (given.size() > 64) return "";
  size_t best = std::max<size_t>(2, given.size() / 3) + 1;
  std::string found;
  for (const auto& [name, unused] : names) {
    const size_t distance = edit_distance(given, name);
    if (distance < best) {
      best = distance;
      found = name;
    }
  }
  return found.empty() ? "" : fmt::format("; did you mean \"{}\"?", found);
}

bool is_flag(const CLI::Option& option) { return option.get_expected_min() == 0; }
bool is_integer(const CLI::Option& option) {
  return option.get_type_name().starts_with("INT") || option.get_type_name().starts_with("UINT");
}
bool is_real(const CLI::Option& option) { return option.get_type_name().starts_with("FLOAT"); }
bool is_list(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

std::string type_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number with a fraction";
    case toml::node_type::boolean:
      return "true or false";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::table:
      return "a table";
    default:
      return "a date or time";
  }
}

// The text that the option would get on the command line; nothing when the type is another.
std::optional<std::string> scalar(const CLI::Option& option, const toml::node& node) {
  if (is_flag(option)) {
    const auto* value = node.as_boolean();
    return value == nullptr ? std::nullopt : std::optional<std::string>(value->get() ? "true" : "false");
  }
  if (is_integer(option) || is_real(option)) {
    if (const auto* value = node.as_integer()) return fmt::format("{}", value->get());
    const auto* real = is_real(option) ? node.as_floating_point() : nullptr;
    return real == nullptr || !std::isfinite(real->get()) ? std::nullopt
                                                          : std::optional<std::string>(fmt::format("{}", real->get()));
  }
  const auto* text = node.as_string();
  return text == nullptr ? std::nullopt : std::optional<std::string>(text->get());
}

const char* wanted_type(const CLI::Option& option) {
  if (is_flag(option)) return "true or false";
  if (is_integer(option)) return "an integer";
  if (is_real(option)) return "a number";
  return is_list(option) ? "a string or a list of strings" : "a string";
}

class Reader {
 public:
  Reader(const std::string& file, const CLI::App& command) : file_(file) {
    for (const CLI::Option* each : command.get_options()) {
      auto* option = const_cast<CLI::Option*>(each);
      if (option == command.get_help_ptr() || !option->get_configurable()) continue;
      options_[normalized(config_key(*option))] = {option, config_key(*option)};
      for (const std::string& name : option->get_lnames()) options_[normalized(name)] = {option, name};
      groups_[normalized(option->get_group())] = true;
    }
  }

  Status read(const toml::table& table, bool top) {
    std::vector<std::pair<std::string, const toml::node*>>
        entries;  // the parser's order is alphabetic; errors follow the file
    for (const auto& [key, node] : table) entries.emplace_back(std::string(key.str()), &node);
    const auto position = [](const auto& entry) {
      return std::pair(entry.second->source().begin.line, entry.second->source().begin.column);
    };
    std::sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) { return position(a) < position(b); });
    for (const auto& [name, pointer] : entries) {
      const toml::node& node = *pointer;
      const std::string where = fmt::format("{}:{}", file_, node.source().begin.line);
      if (const toml::table* inner = node.as_table(); inner != nullptr && top && groups_.contains(normalized(name))) {
        LK_RETURN_IF_ERROR(read(*inner, false));
        continue;
      }
      if (node.is_table() && top && !options_.contains(normalized(name)))
        return invalid_argument("{}: unknown table \"{}\"{}", where, name, suggestion(normalized(name), groups_));
      LK_RETURN_IF_ERROR(read_key(name, node, where));
    }
    return Status();
  }

  std::vector<Setting> take() { return std::move(settings_); }

 private:
  struct Target {
    CLI::Option* option;
    std::string name;  // the long name behind the key; a flag's names may mean different values
  };

  Status read_key(const std::string& name, const toml::node& node, const std::string& where) {
    const auto found = options_.find(normalized(name));
    if (found == options_.end())
      return invalid_argument("{}: unknown key \"{}\"{}", where, name, suggestion(normalized(name), options_));
    CLI::Option* option = found->second.option;
    const std::string& long_name = found->second.name;
    if (const auto [first, added] = seen_.emplace(option, where); !added)
      return invalid_argument("{}: \"{}\" was already given at {}", where, name, first->second);
    Setting setting{.option = option, .values = {}, .where = fmt::format("{}: {}", where, name)};
    const toml::array* list = node.as_array();
    if (list != nullptr && !is_list(*option))
      return invalid_argument("{}: \"{}\" must be {}, not a list", where, name, wanted_type(*option));
    const auto add = [&](const toml::node& element) -> Status {
      std::optional<std::string> text = scalar(*option, element);
      if (!text)
        return invalid_argument("{}:{}: \"{}\" must be {}, not {}", file_, element.source().begin.line, name,
                                wanted_type(*option), type_of(element));
      setting.values.push_back(is_flag(*option) ? option->get_flag_value(long_name, *text) : *text);
      return Status();
    };
    if (list == nullptr) LK_RETURN_IF_ERROR(add(node));
    for (size_t i = 0; list != nullptr && i < list->size(); ++i) LK_RETURN_IF_ERROR(add((*list)[i]));
    settings_.push_back(std::move(setting));
    return Status();
  }

  std::string file_;
  std::map<std::string, Target> options_;  // by normalized name
  std::map<std::string, bool> groups_;
  std::map<const CLI::Option*, std::string> seen_;
  std::vector<Setting> settings_;
};

std::string toml_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\u{:04X}", static_cast<int>(c));
    else
      out += c;
  }
  return out + '"';
}

std::string toml_value(const CLI::Option& option, const std::string& text) {
  if (is_flag(option)) return text == "true" || text == "1" ? "true" : "false";
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool numeric =
      error == std::errc() && end == text.data() + text.size() && !text.starts_with('.') && !text.ends_with('.');
  return (is_integer(option) || is_real(option)) && numeric ? text : toml_string(text);
}

// The default of a list, which CLI11 writes as "[a,b]".
std::vector<std::string> default_values(const CLI::Option& option) {
  std::string text = option.get_default_str();
  if (text.empty()) return {};
  if (!is_list(option)) return {text};
  if (text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  return text.empty() ? std::vector<std::string>{} : CLI::detail::split(text, ',');
}

std::string format_option(const CLI::Option& option) {
  std::vector<std::string> values = option.count() > 0 ? option.reduced_results() : default_values(option);
  if (values.empty() && is_flag(option)) values = {"false"};
  std::string out;
  for (const std::string& line : CLI::detail::split(option.get_description(), '\n')) out += fmt::format("# {}\n", line);
  if (values.empty())
    return out + fmt::format("# {} = {}\n\n", config_key(option), is_list(option) ? "[]" : toml_string(""));
  for (std::string& value : values) value = toml_value(option, value);
  const std::string value = is_list(option) ? fmt::format("[{}]", fmt::join(values, ", ")) : values.back();
  return out + fmt::format("{} = {}\n\n", config_key(option), value);
}

}  // namespace

std::string config_key(const CLI::Option& option) {
  return option.get_lnames().empty() ? normalized(option.get_name(true)) : option.get_lnames().front();
}

Result<std::vector<Setting>> read_config_file(const std::string& file, const CLI::App& command) {
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(file, kMaxFile));
  try {
    Reader reader(file, command);
    LK_RETURN_IF_ERROR(reader.read(toml::parse(text, file), true));
    return reader.take();
  } catch (const toml::parse_error& error) {
    return invalid_argument("{}:{}: {}", file, error.source().begin.line, error.description());
  }
}

std::string format_config(const CLI::App& command) {
  std::string out = fmt::format("# Effective configuration of {}.\n\n", command.get_display_name());
  std::vector<std::string> groups;  // in order of appearance
  const auto options =
      command.get_options([&](const CLI::Option* o) { return o != command.get_help_ptr() && o->get_configurable(); });
  for (const CLI::Option* option : options)
    if (std::find(groups.begin(), groups.end(), option->get_group()) == groups.end())
      groups.push_back(option->get_group());
  for (const std::string& group : groups) {
    if (!group.empty()) out += fmt::format("# ---- {} ----\n\n", group);
    for (const CLI::Option* option : options)
      if (option->get_group() == group) out += format_option(*option);
  }
  return out;
}

}  // namespace lk::apps
