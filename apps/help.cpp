// SPDX-License-Identifier: Apache-2.0
#include "help.h"

#include <fmt/format.h>

#include <sstream>
#include <vector>

#include "lk/base/check.h"

namespace lk::apps {
namespace {

constexpr size_t kColumn = 34;  // where descriptions begin

class HelpFormatter : public CLI::Formatter {
 public:
  void show(const CLI::App* command, const CLI::Option* option) { shown_[command].insert(option); }

  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    if (mode == CLI::AppFormatMode::Sub) return make_expanded(app);
    return make_description(app) + make_usage(app, name) + make_positionals(app) + groups(app, mode) +
           make_subcommands(app, mode) + "\n" + make_footer(app);
  }

  // Type and default. Not the variable, whose name follows from the option's.
  std::string make_option_opts(const CLI::Option* option) const override {
    std::string out;
    if (option->get_type_size() == 0) return out;
    std::string type = option->get_type_name();
    if (const size_t check = type.find(':'); check != std::string::npos && type.find('{') == std::string::npos)
      type.resize(check);  // a range: the error message says it
    if (const size_t set = type.find('{'); set != std::string::npos) type.erase(0, set);
    if (!type.empty()) out += " " + type;
    if (!option->get_default_str().empty()) out += "=" + option->get_default_str();
    if (option->get_expected_max() == CLI::detail::expected_max_vector_size) out += " ...";
    if (option->get_required()) out += " REQUIRED";
    return out;
  }

 private:
  std::string groups(const CLI::App* app, CLI::AppFormatMode mode) const {
    const auto chosen = shown_.find(app);
    const bool all = mode == CLI::AppFormatMode::All || chosen == shown_.end();
    size_t left_out = 0;
    std::string out;
    for (const std::string& group : app->get_groups()) {
      std::vector<const CLI::Option*> options = app->get_options(
          [&](const CLI::Option* option) { return option->get_group() == group && option->nonpositional(); });
      const size_t count = options.size();
      if (!all)
        std::erase_if(options, [&](const CLI::Option* option) {
          return !is_help(app, option) && !chosen->second.contains(option);
        });
      if (!group.empty() && !options.empty()) out += make_group(group, false, options);
      if (!group.empty()) left_out += count - options.size();
    }
    const CLI::Option* config = app->get_option_no_throw("--config");
    if (config != nullptr)
      out += fmt::format("\nEach option is also a variable, as {} is for --config, and a key of that file.\n",
                         config->get_envname());
    if (left_out > 0) out += fmt::format("\n{} more options: {} --help-all\n", left_out, full_name(app));
    return out;
  }
  static bool is_help(const CLI::App* app, const CLI::Option* option) {
    return option == app->get_help_ptr() || option == app->get_help_all_ptr();
  }
  static std::string full_name(const CLI::App* app) {
    return app->get_parent() == nullptr ? app->get_name() : full_name(app->get_parent()) + " " + app->get_name();
  }

  std::map<const CLI::App*, std::set<const CLI::Option*>> shown_;
};

}  // namespace

void install_help(CLI::App& program) {
  auto formatter = std::make_shared<HelpFormatter>();
  formatter->column_width(kColumn);
  program.formatter(formatter);
  program.set_help_all_flag("--help-all", "every option");
}

std::set<std::string> options_named(const std::string& words) {
  std::istringstream in(words);
  std::set<std::string> names;
  for (std::string word; in >> word;) names.insert("--" + word);
  return names;
}

void show_in_help(CLI::App& command, const std::set<std::string>& names) {
  auto formatter = std::dynamic_pointer_cast<HelpFormatter>(command.get_formatter());
  if (!formatter) return;  // a program of its own, as in tests
  for (const std::string& name : names) {
    const CLI::Option* option = command.get_option_no_throw(name);
    LK_CHECK(option != nullptr, "{} has no option {}", command.get_name(), name);
    formatter->show(&command, option);
  }
}

}  // namespace lk::apps
