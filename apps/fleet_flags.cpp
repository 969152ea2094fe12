// SPDX-License-Identifier: Apache-2.0
#include "fleet_flags.h"

#include <signal.h>
#include <sys/random.h>
#include <unistd.h>

#include <boost/json/object.hpp>
#include <cstdlib>

#include "lk/base/bytes.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/base/sha256.h"
#include "lk/serve/fleet/fleet_accounts.h"

namespace lk::apps {
namespace {

// "http://10.0.0.5:8000" -> "10.0.0.5-8000".
std::string id_of(std::string_view url) {
  std::string id(url.substr(url.find("://") + 3));
  for (char& c : id)
    if (!is_valid_name(std::string("a") + c)) c = '-';
  id.erase(0, std::min(id.find_first_not_of("-._"), id.size()));
  return id;
}

std::string random_hex() {
  uint8_t bytes[16] = {};
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) std::abort();
  return to_hex(bytes);
}

}  // namespace

void RegistryFlags::add_to(CLI::App& command, const char* help) {
  command.add_option("--fleet", url, help)->type_name("etcd://HOST:PORT[,HOST:PORT...]/NAME")->group("Fleet");
  command.add_option("--fleet-ca", tls_ca, "authorities (PEM) of an etcds:// registry instead of the system's")
      ->group("Fleet");
}

Result<std::unique_ptr<Registry>> RegistryFlags::open(OperatorLog log) const {
  Result<std::unique_ptr<Registry>> registry = open_registry({.url = url, .tls_ca = tls_ca, .log = std::move(log)});
  return registry.ok() ? std::move(registry) : registry.status().with_context("--fleet");
}

void RegistryFlags::add_keys_to(CLI::App& command, const char* group) {
  command
      .add_option(
          "--fleet-keys", keys_file,
          "keys and tenants are those of the fleet's registry (lorikeet keys --fleet), and of no state file; in "
          "this file they are remembered for a start while the registry is away")
      ->type_name("FILE")
      ->group(group);
}

Result<std::unique_ptr<AccountStore>> RegistryFlags::open_accounts() const {
  if (!given()) return invalid_argument("--fleet-keys needs --fleet");
  // A connection of its own, and silent: the other one says when the registry is away.
  LK_ASSIGN_OR_RETURN(std::unique_ptr<Registry> registry, open({}));
  Result<std::unique_ptr<FleetAccounts>> accounts = FleetAccounts::open(std::move(registry), keys_file);
  if (!accounts.ok()) return accounts.status().with_context("--fleet-keys");
  return std::unique_ptr<AccountStore>(std::move(*accounts));
}

void MemberFlags::add_to(CLI::App& command) {
  registry.add_to(command,
                  "be a replica of this fleet: routers find it there, and adapters that one has all can serve");
  command
      .add_option("--advertise", advertise, "http(s)://HOST:PORT where routers and other replicas reach this server")
      ->group("Fleet");
  command.add_option("--fleet-id", id, "name of this replica in the fleet; default: from --advertise")->group("Fleet");
  command
      .add_option("--fleet-key-file", key_file,
                  "file with a key of scope fleet that every replica knows, to fetch adapters from them; also as "
                  "$LORIKEET_FLEET_KEY")
      ->group("Fleet");
  command.add_option("--replica-ca", replica_ca, "authorities (PEM) of https replicas instead of the system's")
      ->group("Fleet");
  command.add_option("--fleet-dir", directory, "directory for adapters of the fleet; default: beside --state")
      ->group("Fleet");
  command.add_option("--fleet-disk", disk, "most that is kept there")->capture_default_str()->group("Fleet");
}

Result<std::optional<FleetAdaptersOptions>> MemberFlags::options(const std::string& host,
                                                                 const std::string& state) const {
  if (!registry.given()) {
    for (const auto& [flag, value] :
         {std::pair("--advertise", &advertise), std::pair("--fleet-id", &id), std::pair("--fleet-key-file", &key_file),
          std::pair("--fleet-dir", &directory), std::pair("--fleet-keys", &registry.keys_file)})
      if (!value->empty()) return invalid_argument("{} needs --fleet", flag);
    return std::optional<FleetAdaptersOptions>();
  }
  LK_RETURN_IF_ERROR(open_registry({.url = registry.url}).status().with_context("--fleet"));
  if (!id.empty()) LK_RETURN_IF_ERROR(check_name("--fleet-id", id));
  if (!advertise.empty()) {
    LK_RETURN_IF_ERROR(check_member_url(advertise).with_context("--advertise"));
  } else if (host == "0.0.0.0" || host == "::" || host == "[::]") {
    return invalid_argument("--fleet with --host {}: say with --advertise http://HOST:PORT where others reach it",
                            host);
  }
  FleetAdaptersOptions filled{.registry = registry.url, .registry_ca = registry.tls_ca, .replica_ca = replica_ca};
  LK_ASSIGN_OR_RETURN(filled.key, read_key(key_file, "LORIKEET_FLEET_KEY"));
  if (directory.empty() && state.empty())
    return invalid_argument("--fleet with --no-state: say with --fleet-dir where adapters of others may be kept");
  filled.directory = directory.empty() ? state + "-fleet" : directory;
  const Result<int64_t> bytes = parse_bytes(disk);
  if (!bytes.ok()) return bytes.status().with_context("--fleet-disk");
  filled.max_bytes = *bytes;
  filled.on_drain = [] { ::kill(::getpid(), SIGTERM); };
  return std::optional<FleetAdaptersOptions>(std::move(filled));
}

Result<Member> MemberFlags::member(const std::string& listening, bool tls) const {
  Member member{.url = advertise.empty() ? fmt::format("{}://{}", tls ? "https" : "http", listening) : advertise,
                .incarnation = random_hex()};
  LK_RETURN_IF_ERROR(check_member_url(member.url).with_context("--advertise"));
  member.id = id.empty() ? id_of(member.url) : id;
  LK_RETURN_IF_ERROR(check_name("--fleet-id", member.id));
  return member;
}

void follow_members(Registry& registry, Router& router, OperatorLog log) {
  registry.watch(std::string(kMembers),
                 [&router, reader = std::make_shared<MemberReader>(std::move(log))](const Registry::Entries& entries) {
                   std::vector<std::string> urls;
                   for (const Member& member : reader->read(entries)) urls.push_back(member.url);
                   router.set_members(urls);
                 });
}

void PlanBoard::follow(Router& router, bool may_lead) {
  const std::string value = json_text(boost::json::object{{"form", 1}, {"router", router.name()}});
  router.set_leads(false);
  registry_.watch(std::string(kPlanLeader.substr(0, kPlanLeader.find('/') + 1)),
                  [this, &router, value](const Registry::Entries& entries) {
                    const auto place = entries.find(std::string(kPlanLeader));
                    const bool leads = place != entries.end() && place->second.value == value;
                    {
                      std::lock_guard lock(mutex_);
                      place_ = leads ? place->second.revision : 0;
                    }
                    router.set_leads(leads);
                  });
  registry_.watch(std::string(kPlan), [this, &router](const Registry::Entries& entries) {
    const auto current = entries.find(std::string(kPlan));
    if (current == entries.end()) return router.follow_plan({});
    const Result<FleetPlan> plan = parse_plan(current->second.value);
    if (plan.ok()) return router.follow_plan(*plan);
    if (log_) log_("plan_ignored", plan.status().message());
  });
  if (!may_lead) return;  // the place is for one that does something with it
  registry_.announce({.name = std::string(kPlanLeader),
                      .value = value,
                      .may_replace = [value](const std::string& found) { return found == value; },
                      .agreed = {}});
}

void PlanBoard::publish(const FleetPlan& plan) {
  writer_.submit(0, [this, value = format_plan(plan)](const std::stop_token&) {
    write(value);
    return Workshop::Finish();
  });
}

void PlanBoard::write(const std::string& value) {
  int64_t place = 0;
  {
    std::lock_guard lock(mutex_);
    place = place_;
  }
  if (place == 0) return;
  const Result<bool> written = registry_.commit(
      {.unchanged = {{std::string(kPlanLeader), place}}, .puts = {{std::string(kPlan), value}}, .removals = {}});
  if (!written.ok() && log_) log_("plan_not_published", written.status().message());
  if (written.ok() && !*written && log_) log_("plan_not_published", "another router leads by now");
}

Result<std::string> read_key(const std::string& file, const char* variable) {
  std::string key;
  if (!file.empty()) {
    LK_ASSIGN_OR_RETURN(key, read_file(file));
  } else if (const char* text = std::getenv(variable)) {
    key = text;
  }
  while (!key.empty() && std::string_view(" \t\r\n").find(key.back()) != std::string_view::npos) key.pop_back();
  if (key.find_first_of(" \t\r\n") != std::string::npos)
    return invalid_argument("{}: a key is one line", file.empty() ? std::string("$") + variable : file);
  return key;
}

}  // namespace lk::apps
