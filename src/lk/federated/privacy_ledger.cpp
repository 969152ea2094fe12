// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/privacy_ledger.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/sha256.h"
#include "lk/federated/ledger_file.h"
#include "lk/federated/privacy_accounting.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kRelease = "release";
constexpr const char* kNoiseKey = "noise.key";
constexpr const char* kSamplingKey = "sampling.key";

template <class... Parts>
SecretKey hash_of(const Parts&... parts) {
  Sha256 sha;
  (sha.update(parts.data(), parts.size() + 1), ...);  // with the zero that ends each
  return sha.finish();
}

bool parse_key(const std::string& hex, SecretKey& key) {
  if (hex.size() != 2 * key.size()) return false;
  for (size_t i = 0; i < key.size(); ++i) {
    const char* const at = hex.data() + 2 * i;
    const auto parsed = std::from_chars(at, at + 2, key[i], 16);
    if (parsed.ec != std::errc() || parsed.ptr != at + 2) return false;
  }
  return true;
}

double rate_of(const FederatedConfig& config) {
  return static_cast<double>(config.per_round) / static_cast<double>(config.clients.size());
}

}  // namespace

// --- What was spent

int64_t PrivacySpent::most() const {
  int64_t most = 0;
  for (const auto& [client, count] : of_client) most = std::max(most, count);
  return most;
}

Result<PrivacySpent> read_privacy_spent(const std::string& directory) {
  PrivacySpent spent;
  LK_RETURN_IF_ERROR(read_ledger(join_path(directory, kLedgerFile), [&](const json::object& line) {
    const json::value* event = line.if_contains("event");
    if (event == nullptr || !event->is_string() || event->get_string() != kRelease) return;
    ++spent.releases;
    if (const json::value* round = line.if_contains("round"); round && round->is_int64())
      spent.rounds.insert(round->get_int64());
    if (const json::value* key = line.if_contains("key"); key && key->is_string())
      spent.keys.emplace(key->get_string());
    if (line.contains("simulated")) spent.simulated = true;
    if (const json::value* clients = line.if_contains("clients"); clients && clients->is_array())
      for (const json::value& client : clients->get_array())
        if (client.is_string()) ++spent.of_client[std::string(client.get_string())];
  }));
  return spent;
}

double epsilon_of(const FederatedConfig& config, const PrivacySpent& spent, int64_t more) {
  const PrivacySpec& privacy = config.privacy;
  return privacy.sampling == PrivacySampling::kPoisson
             ? epsilon_of_sampled_gaussians(privacy.noise, rate_of(config), spent.releases + more, privacy.delta)
             : epsilon_of_gaussians(privacy.noise, spent.most() + more, privacy.delta);
}

std::string privacy_text(const FederatedConfig& config, const PrivacySpent& spent) {
  const bool poisson = config.privacy.sampling == PrivacySampling::kPoisson;
  return fmt::format("epsilon {:.3g} at delta {:.3g} for one client's records, after {} releases ({}){}",
                     epsilon_of(config, spent), config.privacy.delta, spent.releases,
                     poisson ? fmt::format("each client in each with probability {:.3g}, unseen", rate_of(config))
                             : fmt::format("no client in more than {}", spent.most()),
                     spent.simulated ? "; the noise was simulated from the run's seed and protects nobody" : "");
}

// --- Secrets

Result<std::shared_ptr<PrivacyLedger>> PrivacyLedger::open(const FederatedConfig& config, const std::string& directory,
                                                           NoiseSource source, int64_t rounds_over, Fault fault) {
  std::shared_ptr<PrivacyLedger> ledger(new PrivacyLedger(config, directory, source, std::move(fault)));
  LK_ASSIGN_OR_RETURN(ledger->spent_, read_privacy_spent(directory));
  if (std::ssize(ledger->spent_.rounds) < rounds_over)
    return data_loss("{}: {} rounds are over, and {} has releases of {}: what was spent is not known", directory,
                     rounds_over, kLedgerFile, ledger->spent_.rounds.size());
  LK_RETURN_IF_ERROR(ledger->load_secrets());
  LK_RETURN_IF_ERROR(ledger->forget(rounds_over));  // where a crash came between
  return ledger;
}

Status PrivacyLedger::load_secrets() {
  if (config_.privacy.sampling == PrivacySampling::kPoisson) {
    if (source_ == NoiseSource::kSimulated) {
      LK_ASSIGN_OR_RETURN(const Pending drawn, draw(0, kSamplingKey));
      sampling_ = drawn.key;
    } else {
      if (!file_exists(join_path(directory_, kSamplingKey))) {
        if (!spent_.rounds.empty())
          return data_loss("{}: {} is gone, and with it whom the run asks", directory_, kSamplingKey);
        LK_ASSIGN_OR_RETURN(const Pending drawn, draw(0, ""));
        LK_RETURN_IF_ERROR(write_secret(kSamplingKey, drawn));
      }
      LK_ASSIGN_OR_RETURN(const Pending kept, read_secret(kSamplingKey));
      sampling_ = kept.key;
    }
  }
  if (!file_exists(join_path(directory_, kNoiseKey))) return Status();
  // A damaged one is drawn anew: the round becomes one more release.
  if (Result<Pending> kept = read_secret(kNoiseKey); kept.ok()) pending_ = std::move(*kept);
  return Status();
}

Result<PrivacyLedger::Pending> PrivacyLedger::draw(int64_t round, const std::string& digest) const {
  Pending drawn{.round = round, .digest = digest};
  if (source_ == NoiseSource::kSimulated) {
    drawn.key = hash_of(std::string("simulated"), std::to_string(config_.seed), std::to_string(round), digest);
    return drawn;
  }
  LK_ASSIGN_OR_RETURN(drawn.key, draw_secret_key());
  return drawn;
}

Status PrivacyLedger::write_secret(const char* name, const Pending& secret) const {
  const json::object object{{"round", secret.round}, {"sum", secret.digest}, {"key", to_hex(secret.key)}};
  return write_file_atomic(join_path(directory_, name), json_text(object) + "\n", FileAccess::kPrivate);
}

Result<PrivacyLedger::Pending> PrivacyLedger::read_secret(const char* name) const {
  const std::string path = join_path(directory_, name);
  LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(path));
  JsonFields fields(object, path);
  Pending kept;
  std::string key;
  fields.read_int("round", kept.round, 0, INT64_MAX);
  fields.read_string("sum", kept.digest);
  fields.read_string("key", key);
  LK_RETURN_IF_ERROR(fields.status());
  if (!parse_key(key, kept.key)) return data_loss("{}: no key; the file is damaged", path);
  return kept;
}

// --- Releases

bool PrivacyLedger::sampled(int64_t round, const std::string& client) const {
  const SecretKey hash = hash_of(to_hex(sampling_), std::to_string(round), client);
  uint64_t number = 0;
  for (size_t i = 0; i < 8; ++i) number = number << 8 | hash[i];
  return std::ldexp(static_cast<double>(number >> 11), -53) < rate_of(config_);
}

Result<SecretKey> PrivacyLedger::record(int64_t round, std::span<const std::string> clients,
                                        const std::string& digest) {
  if (pending_.round != round || pending_.digest != digest) {
    LK_ASSIGN_OR_RETURN(pending_, draw(round, digest));
    if (fault_) LK_RETURN_IF_ERROR(fault_("write noise key"));
    LK_RETURN_IF_ERROR(write_secret(kNoiseKey, pending_));
  }
  const std::string key = to_hex(hash_of(to_hex(pending_.key)));
  if (spent_.keys.contains(key)) return pending_.key;
  PrivacySpent after = spent_;
  ++after.releases;
  after.rounds.insert(round);
  after.keys.insert(key);
  after.simulated = source_ == NoiseSource::kSimulated;
  json::array names;
  for (const std::string& client : clients) {
    ++after.of_client[client];
    names.emplace_back(client);
  }
  const double limit = config_.privacy.max_epsilon;
  if (limit > 0 && epsilon_of(config_, after) > limit)
    return failed_precondition(
        "round {}: another release would come to epsilon {:.4g}, above privacy.max_epsilon = {:.4g}", round,
        epsilon_of(config_, after), limit);
  json::object line{
      {"time", std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count()},
      {"round", round},
      {"event", kRelease},
      {"clients", std::move(names)},
      {"key", key}};  // its digest: of 256 random bits, it tells nothing
  if (after.simulated) line["simulated"] = true;
  if (fault_) LK_RETURN_IF_ERROR(fault_("ledger release"));
  LK_RETURN_IF_ERROR(append_to_ledger(join_path(directory_, kLedgerFile), line));
  spent_ = std::move(after);
  return pending_.key;
}

Status PrivacyLedger::forget(int64_t round) {
  if (pending_.round == 0 || pending_.round > round) return Status();
  pending_ = {};
  if (fault_) LK_RETURN_IF_ERROR(fault_("erase noise key"));
  std::error_code error;
  std::filesystem::remove(join_path(directory_, kNoiseKey), error);
  return error ? io_error("cannot erase {}: {}", join_path(directory_, kNoiseKey), error.message()) : Status();
}

bool PrivacyLedger::exhausted(int64_t round) const {
  const double limit = config_.privacy.max_epsilon;
  return limit > 0 && epsilon_of(config_, spent_, spent_.rounds.contains(round) ? 0 : 1) > limit;
}

}  // namespace lk
