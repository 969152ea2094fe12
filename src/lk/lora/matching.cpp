// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/matching.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace lk {
namespace {

bool is_name_or_suffix(const std::string& module, const std::vector<std::string>& names) {
  return std::ranges::any_of(names, [&](const std::string& name) {
    return module == name ||
           (module.size() > name.size() && module.ends_with(name) && module[module.size() - name.size() - 1] == '.');
  });
}

// Letters, digits, '_' and '.' only: of fixed length, so no regular expression engine is needed.
// Adapters with a rank for every module have hundreds of such keys.
bool is_plain(const std::string& key) {
  return !key.empty() &&
         std::ranges::all_of(key, [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; });
}

// '.' in the key stands for any character, as in the regular expression it is.
bool plain_match(std::string_view key, std::string_view module) {
  if (module.size() < key.size()) return false;
  const size_t begin = module.size() - key.size();
  if (begin > 0 && module[begin - 1] != '.') return false;
  for (size_t at = 0; at < key.size(); ++at) {
    if (key[at] != '.' && key[at] != module[begin + at]) return false;
  }
  return true;
}

// One pattern is bounded by its match limit; many patterns on many modules are bounded by this.
constexpr std::chrono::seconds kMatchingBudget{10};

// Adds the time of its scope to `spent`.
class Stopwatch {
 public:
  explicit Stopwatch(std::chrono::steady_clock::duration& spent)
      : spent_(spent), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() { spent_ += std::chrono::steady_clock::now() - start_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::chrono::steady_clock::duration& spent_;
  std::chrono::steady_clock::time_point start_;
};

Status check_budget(std::chrono::steady_clock::duration spent) {
  if (spent <= kMatchingBudget) return Status();
  return invalid_argument("the regular expressions of adapter_config.json take more than {} s to match; simplify them",
                          kMatchingBudget.count());
}

}  // namespace

Result<PatternKey> PatternKey::compile(const std::string& key) {
  PatternKey pattern;
  pattern.text_ = key;
  if (!is_plain(key)) {
    LK_ASSIGN_OR_RETURN(pattern.regex_, PythonRegex::compile(fmt::format(R"((.*\.)?({})$)", key)));
  }
  return pattern;
}

Result<bool> PatternKey::matches(std::string_view module) const {
  return regex_ ? regex_->match(module) : Result<bool>(plain_match(text_, module));
}

Result<ModuleMatcher> ModuleMatcher::create(const AdapterConfig& config) {
  constexpr size_t kMaxRegexes = 256;
  ModuleMatcher matcher;
  matcher.config_ = config;
  matcher.targets_ = config.target_modules;
  using Kind = ModuleSelector::Kind;
  if (config.target_modules.kind == Kind::kNone) {
    // PEFT's default for llama, mistral, qwen2 and qwen3 alike.
    matcher.targets_ = {Kind::kList, {"q_proj", "v_proj"}, ""};
  } else if (config.target_modules.kind == Kind::kAllLinear) {
    matcher.targets_ = {Kind::kList, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, ""};
  } else if (config.target_modules.kind == Kind::kRegex) {
    LK_ASSIGN_OR_RETURN(matcher.target_regex_, PythonRegex::compile(config.target_modules.pattern));
  }
  if (config.exclude_modules.kind == Kind::kRegex && !config.exclude_modules.pattern.empty()) {
    LK_ASSIGN_OR_RETURN(matcher.exclude_regex_, PythonRegex::compile(config.exclude_modules.pattern));
  }
  const auto num_regexes = static_cast<size_t>(
      std::ranges::count_if(config.rank_pattern, [](const auto& entry) { return !is_plain(entry.first); }) +
      std::ranges::count_if(config.alpha_pattern, [](const auto& entry) { return !is_plain(entry.first); }));
  if (num_regexes + config.modules_to_save.size() + config.layers_pattern.size() > kMaxRegexes) {
    return invalid_argument("more than {} regular expressions in one adapter config", kMaxRegexes);
  }
  for (const auto& [key, rank] : config.rank_pattern) {
    LK_ASSIGN_OR_RETURN(PatternKey pattern, PatternKey::compile(key));
    matcher.rank_keys_.push_back(std::move(pattern));
  }
  for (const auto& [key, alpha] : config.alpha_pattern) {
    LK_ASSIGN_OR_RETURN(PatternKey pattern, PatternKey::compile(key));
    matcher.alpha_keys_.push_back(std::move(pattern));
  }
  for (const std::string& module : config.modules_to_save) {
    LK_ASSIGN_OR_RETURN(PythonRegex regex, PythonRegex::compile(fmt::format(R"((^|.*\.){}($|\..*))", module)));
    matcher.saved_.push_back(std::move(regex));
  }
  for (const std::string& layer : config.layers_pattern) {
    LK_ASSIGN_OR_RETURN(PythonRegex regex,
                        PythonRegex::compile(fmt::format(R"((?:^|.*?\.){}\.(?P<idx>\d+)\.)", layer)));
    matcher.layer_patterns_.push_back(std::move(regex));
  }
  if (matcher.layer_patterns_.empty()) {
    LK_ASSIGN_OR_RETURN(PythonRegex regex, PythonRegex::compile(R"(.*?\.[^.]*\.(?P<idx>\d+)\.)"));
    matcher.layer_patterns_.push_back(std::move(regex));
  }
  return matcher;
}

Result<bool> ModuleMatcher::in_layers(const std::string& module) const {
  if (config_.layers_to_transform.empty()) return true;
  for (const PythonRegex& pattern : layer_patterns_) {
    LK_ASSIGN_OR_RETURN(const std::optional<std::string> digits, pattern.match_group(module, "idx"));
    if (!digits) continue;
    int64_t layer = -1;
    std::from_chars(digits->data(), digits->data() + digits->size(), layer);
    return std::ranges::find(config_.layers_to_transform, layer) != config_.layers_to_transform.end();
  }
  return false;
}

bool ModuleMatcher::is_saved(std::string_view module) const {
  for (;;) {
    if (std::ranges::any_of(config_.modules_to_save, [&](const std::string& name) { return module.ends_with(name); }))
      return true;
    const size_t dot = module.rfind('.');
    if (dot == std::string_view::npos) return false;
    module = module.substr(0, dot);
  }
}

Result<bool> ModuleMatcher::is_saved_segment(const std::string& module) const {
  for (const PythonRegex& regex : saved_) {
    LK_ASSIGN_OR_RETURN(const bool found, regex.match(module));
    if (found) return true;
  }
  return false;
}

Result<bool> ModuleMatcher::is_targeted(const std::string& module) const {
  LK_RETURN_IF_ERROR(check_budget(spent_));
  const Stopwatch stopwatch(spent_);
  return target_matches(module);
}

Result<bool> ModuleMatcher::target_matches(const std::string& module) const {
  if (exclude_regex_) {
    LK_ASSIGN_OR_RETURN(const bool excluded, exclude_regex_->full_match(module));
    if (excluded) return false;
  }
  if (is_name_or_suffix(module, config_.exclude_modules.names)) return false;
  LK_ASSIGN_OR_RETURN(const bool saved, is_saved_segment(module));
  if (saved) return false;
  if (target_regex_) return target_regex_->full_match(module);
  // PEFT: a module named in full is targeted whatever its layer.
  if (std::ranges::find(targets_.names, module) != targets_.names.end()) return true;
  if (!is_name_or_suffix(module, targets_.names)) return false;
  return in_layers(module);
}

Result<std::optional<size_t>> ModuleMatcher::first(const std::vector<PatternKey>& keys,
                                                   const std::string& module) const {
  LK_RETURN_IF_ERROR(check_budget(spent_));
  const Stopwatch stopwatch(spent_);
  for (size_t index = 0; index < keys.size(); ++index) {
    LK_ASSIGN_OR_RETURN(const bool found, keys[index].matches(module));
    if (found) return std::optional<size_t>(index);
  }
  return std::optional<size_t>();
}

}  // namespace lk
