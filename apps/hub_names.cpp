// SPDX-License-Identifier: Apache-2.0
#include "hub_names.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <vector>

#include "commands.h"
#include "lk/base/file.h"
#include "lk/base/sd_notify.h"
#include "lk/infer/text_side.h"
#include "lk/lora/adapter_files.h"
#include "progress_line.h"

namespace lk::apps {
namespace {

using Clock = std::chrono::steady_clock;

// Of both: what io/, text/, infer/ and lora/ open in such a directory.
std::vector<std::string> text_files() {
  std::vector<std::string> files(std::begin(kTextFiles), std::end(kTextFiles));
  files.push_back(fmt::format("{}/*.jinja", kChatTemplateDirectory));
  return files;
}

const std::array<HubKind, 2>& all_kinds() {
  static const std::array<HubKind, 2> kinds = [] {
    HubKind model{.noun = "a model",
                  .marks = {"config.json"},
                  .weights = {"model.safetensors", "model.safetensors.index.json"},
                  .others = text_files()};
    for (const char* file : {"modules.json", "*_Pooling/config.json"}) model.others.emplace_back(file);
    HubKind adapter{.noun = "an adapter",
                    .marks = {kAdapterConfigFile, "params.json"},  // the second is mistral-finetune's
                    .weights = {kAdapterWeightsFile, "adapters.safetensors", "lora.safetensors"},
                    .others = text_files()};
    return std::array<HubKind, 2>{std::move(model), std::move(adapter)};
  }();
  return kinds;
}

// "1.20 of 2.40 GiB, 35.1 MiB/s, 34 s left"
class PullProgress : public PullWatcher {
 public:
  explicit PullProgress(bool bar) : line_(bar) {}

  void on_start(const HubName& name, int64_t num_files, int64_t total_bytes) override {
    name_ = name.text();
    total_ = total_bytes;
    start_ = Clock::now();
    fmt::print(stderr, "{}: {} file{}, {}\n", name_, num_files, num_files == 1 ? "" : "s", format_bytes(total_bytes));
  }
  void on_bytes(int64_t bytes) override {
    done_ += bytes;
    if (!come_) come_ = done_;  // of an earlier try: they say nothing about the line
    if (!line_.due()) return;
    // Somebody who waits for this server waits for the files, too.
    (void)notify_service_manager("EXTEND_TIMEOUT_USEC=120000000");
    show();
  }
  void on_file(const std::string& path, int64_t bytes) override {
    if (!line_.redrawn()) fmt::print(stderr, "{}: {}{}\n", name_, path, bytes < 0 ? "" : ", " + format_bytes(bytes));
  }
  void on_end() override { line_.clear(); }
  void on_note(const std::string& text) override {
    line_.clear();
    fmt::print(stderr, "lorikeet: {}\n", text);
  }
  bool stopped() const override { return interrupted != 0; }

 private:
  void show() {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const double rate = static_cast<double>(done_ - come_.value_or(0)) / std::max(seconds, 1e-3);
    const std::string left =
        rate > 0 ? fmt::format(", {:.0f} s left", static_cast<double>(total_ - done_) / rate) : std::string();
    const std::string text = fmt::format("{} of {}, {}/s{}", format_bytes(done_), format_bytes(total_),
                                         format_bytes(static_cast<int64_t>(rate)), left);
    line_.show(total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1.0,
               line_.redrawn() ? text : name_ + ": " + text);
  }

  ProgressLine line_;
  std::string name_;
  int64_t total_ = 0, done_ = 0;
  std::optional<int64_t> come_;
  Clock::time_point start_;
};

}  // namespace

std::span<const HubKind> model_files() { return std::span(all_kinds()).first(1); }
std::span<const HubKind> adapter_files() { return std::span(all_kinds()).last(1); }
std::span<const HubKind> model_or_adapter_files() { return all_kinds(); }

Result<Pulled> pull_shown(const HubSettings& settings, const HubName& name, std::span<const HubKind> kinds) {
  PullProgress progress(stderr_is_terminal() && settings.progress);
  return pull_from_hub(settings, name, kinds, progress);
}

bool names_hub(const std::string& written) {
  return !is_directory(written) && !file_exists(written) && looks_like_hub_name(written);
}

Result<std::string> find_directory(const std::string& written, std::span<const HubKind> kinds, Fetch fetch) {
  if (!names_hub(written)) return written;
  LK_ASSIGN_OR_RETURN(const HubName name, parse_hub_name(written));
  LK_ASSIGN_OR_RETURN(HubSettings settings, read_hub_settings());
  if (fetch == Fetch::kCachedOnly) settings.cached_only = true;
  const Result<Pulled> pulled = pull_shown(settings, name, kinds);
  if (pulled.ok()) return pulled->directory;
  if (written.starts_with("hf://")) return pulled.status();
  return pulled.status().with_context(fmt::format("{} is no directory here; on the hub", written));
}

Status find_model(std::string& written, Fetch fetch) {
  LK_ASSIGN_OR_RETURN(written, find_directory(written, model_files(), fetch));
  return Status();
}
Status find_adapter(std::string& written, Fetch fetch) {
  LK_ASSIGN_OR_RETURN(written, find_directory(written, adapter_files(), fetch));
  return Status();
}

}  // namespace lk::apps
