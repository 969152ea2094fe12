// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/version_loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <optional>

#include "lk/base/file.h"
#include "lk/base/sha256.h"
#include "lk/lora/adapter_files.h"
#include "lk/serve/adapters/adapter_stat.h"
#include "lk/serve/adapters/path_guard.h"
#include "lk/serve/http/engine_probe.h"

namespace lk {
namespace {

// As much as a short request: the steps that it shares with others are not longer for it.
constexpr int64_t kProbeTokens = 4;
constexpr double kMaxConversionSeconds = 600;  // one of few readers is busy with it meanwhile

std::string with_text(const std::string& digest, const std::string& text) {
  Sha256 sha;
  sha.update(digest.data(), digest.size());
  sha.update(text.data(), text.size());
  return to_hex(sha.finish());
}

}  // namespace

VersionLoader::VersionLoader(EngineService& service, Options options, std::shared_ptr<const TensorStore> checkpoint,
                             std::shared_ptr<HostTier> host)
    : service_(service),
      options_(std::move(options)),
      checkpoint_(std::move(checkpoint)),
      host_(std::move(host)),
      readers_(options_.num_readers) {}

Result<std::string> VersionLoader::find(const Place& place) const {
  if (place.kind == Place::kRoots) return resolve_adapter_directory(roots_of(options_.roots, place.tenant), place.path);
  if (place.kind == Place::kListed) {
    // All of the name: a link that is its first part may lead nowhere else either.
    const std::string relative = "/" + place.name;
    if (!place.path.ends_with(relative)) return permission_denied("{} was not listed as {}", place.path, place.name);
    const std::string directory = place.path.substr(0, place.path.size() - relative.size());
    return resolve_listed_directory(directory.empty() ? "/" : directory, place.name, options_.roots);
  }
  // Through no link: one that is turned while the files are read would mix two adapters.
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::canonical(place.path, error);
  return error ? place.path : canonical.string();
}

Result<AdapterLease> VersionLoader::read(const Place& place) {
  std::optional<Engine::PreparedAdapter> prepared;
  std::shared_ptr<const Adapter> content;
  std::shared_ptr<const TextSide> text;
  uint64_t stamp = 0;
  {
    readers_.acquire();
    const std::shared_ptr<void> turn(nullptr, [this](void*) { readers_.release(); });
    LK_ASSIGN_OR_RETURN(const std::string path, find(place));
    const AdapterStat files = stat_adapter(path);
    if (files.state == AdapterStat::State::kGone)
      return not_found("No adapter found for {}: {} is not a directory", place.name, place.path);
    if (files.state == AdapterStat::State::kUnreadable)
      return io_error("cannot read {}: {}", path, std::strerror(files.error));
    stamp = files.stamp;
    AdapterLoadOptions load_options{.copy_file = true};
    load_options.max_bytes = std::min(load_options.max_bytes, options_.max_host_bytes);
    load_options.max_conversion_seconds = kMaxConversionSeconds;
    load_options.conversion_cache = options_.conversion_cache;
    std::error_code error;  // of a file that is not there, which reading it will report
    const auto file_bytes = std::filesystem::file_size(join_path(path, kAdapterWeightsFile), error);
    auto source =
        std::make_shared<AdapterDirectory>(place.name, path, service_.text().config(), checkpoint_, load_options);
    LK_ASSIGN_OR_RETURN(const std::shared_ptr<HostAdapter> host,
                        host_->add(std::move(source), error ? 0 : static_cast<int64_t>(file_bytes)));
    LK_ASSIGN_OR_RETURN(content, host->get());
    LK_ASSIGN_OR_RETURN(text, service_.text().load_side(path, content->own_vocab_size));
    LK_ASSIGN_OR_RETURN(prepared, service_.prepare_adapter(host));
  }
  auto adapter = std::make_shared<AdapterVersion>(service_, *content, std::move(*prepared));
  if (text != service_.text().shared_base()) {
    adapter->digest = with_text(adapter->digest, text->digest);
    adapter->warnings.insert(adapter->warnings.end(), text->warnings.begin(), text->warnings.end());
  }
  adapter->text = std::move(text);
  adapter->stamp = stamp;
  return adapter;
}

Result<std::vector<TokenLogprob>> VersionLoader::run_probe(AdapterId adapter, std::span<const int32_t> beginning,
                                                           const TextSide* side) {
  Result<std::vector<TokenLogprob>> probe = probe_engine(service_, adapter, kProbeTokens, beginning, side);
  // A probe that does not fit beside what is pinned is the adapter's want of room, not the caller's mistake.
  const StatusCode code = probe.status().code();
  if (code == StatusCode::kFailedPrecondition || code == StatusCode::kDeadlineExceeded)
    return resource_exhausted("{}", probe.status().message());
  return probe;
}

// The whole path, pages and kernels included, must give finite log-probabilities; how far they moved from the base's is
// reported, so that an adapter without effect is seen before its users see it.
Status VersionLoader::prove(AdapterVersion& version) {
  // What its tokens do not activate is the base. With tokens that no prompt can have nothing of it is ever used.
  std::vector<int32_t> beginning = version.invocation_tokens;
  const int64_t vocabulary = service_.text().config().vocab_size;
  const auto stranger = [&](int32_t token) { return token >= vocabulary; };
  if (std::ranges::any_of(beginning, stranger) || std::ssize(beginning) + kProbeTokens > service_.text().context())
    beginning.clear();
  std::vector<TokenLogprob> own_base_probe;
  if (!beginning.empty()) {
    LK_ASSIGN_OR_RETURN(own_base_probe, run_probe(kBaseModel, beginning));
  } else {
    std::lock_guard lock(probe_mutex_);
    if (base_probe_.empty()) {
      LK_ASSIGN_OR_RETURN(base_probe_, run_probe(kBaseModel));
    }
  }
  Result<std::vector<TokenLogprob>> result = run_probe(version.id(), beginning, version.text.get());
  if (result.status().code() == StatusCode::kInternal)
    return data_loss("on a probe prompt {}", result.status().message());
  LK_ASSIGN_OR_RETURN(const std::vector<TokenLogprob> probe, std::move(result));
  const std::vector<TokenLogprob>& base_probe = beginning.empty() ? base_probe_ : own_base_probe;
  for (size_t i = 0; i < std::min(probe.size(), base_probe.size()); ++i) {
    if (!std::isfinite(probe[i].logprob))
      return data_loss("on a probe prompt the adapter makes a token's log-probability {}: its weights are damaged",
                       probe[i].logprob);
    version.probe_shift = std::max(version.probe_shift, std::abs(probe[i].logprob - base_probe[i].logprob));
  }
  return Status();
}

}  // namespace lk
