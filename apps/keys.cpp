// SPDX-License-Identifier: Apache-2.0
// lorikeet keys create|list|revoke and keys tenant set|list|remove: who may use the server, in its state file or in the
// registry of its fleet.
#include <boost/json.hpp>

#include <cstdio>
#include <ctime>
#include <optional>

#include "commands.h"
#include "fleet_flags.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/base/plain_text.h"
#include "lk/serve/access/access_json.h"
#include "lk/serve/access/state_store.h"

namespace lk::apps {
namespace {

struct Flags {
  std::string state, tenant, scopes, note, expires, id;
  bool json = false;
  // Of `tenant set`: what is absent stays as it is.
  std::optional<double> weight;
  std::optional<int64_t> max_in_flight, tokens_per_minute, max_adapters, max_versions, max_sums;
  std::optional<std::string> adapters;

  RegistryFlags registry;

  Result<std::unique_ptr<AccountStore>> open() const {
    if (!registry.given()) {
      LK_ASSIGN_OR_RETURN(std::unique_ptr<StateStore> file,
                          StateStore::open(state.empty() ? default_state_path() : state));
      return std::unique_ptr<AccountStore>(std::move(file));
    }
    if (!state.empty()) return invalid_argument("--state and --fleet: keys are in one place");
    LK_ASSIGN_OR_RETURN(std::unique_ptr<AccountStore> fleet, registry.open_accounts());
    Status away;
    fleet->set_log([&away](std::string_view, std::string_view reason) { away = unavailable("{}", reason); });
    fleet->set_log({});
    if (!away.ok()) return away;
    return fleet;
  }
};

std::string format_time(int64_t seconds) {
  if (seconds == 0) return "never";
  const std::time_t time = seconds;
  std::tm parts{};
  char text[32];
  if (::gmtime_r(&time, &parts) == nullptr || std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
    return "?";
  return text;
}

std::string limit(int64_t value) { return value == 0 ? "-" : fmt::format("{}", value); }

Status create(const Flags& flags) {
  LK_RETURN_IF_ERROR(check_name("tenant", flags.tenant));
  LK_ASSIGN_OR_RETURN(const uint8_t scopes, parse_scopes(flags.scopes));
  const Result<int64_t> parsed = parse_expiry(flags.expires, std::time(nullptr));
  if (!parsed.ok()) return parsed.status().with_context("--expires");
  const int64_t expires = *parsed;
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccountStore> store, flags.open());
  Result<AccountStore::NewKey> made = store->create_key(flags.tenant, scopes, flags.note, expires);
  if (made.status().code() == StatusCode::kNotFound) {
    LK_RETURN_IF_ERROR(store
                           ->change_tenant(
                               flags.tenant, [](Tenant&) { return Status(); }, true)
                           .status());
    fmt::print(stderr, "new tenant {}, without limits (see lorikeet keys tenant set)\n", flags.tenant);
    made = store->create_key(flags.tenant, scopes, flags.note, expires);
  }
  if (!made.ok()) return made.status();
  std::string text = made->text + "\n";
  if (flags.json)
    text = json_text(boost::json::object{{"id", made->key.id},
                                         {"key", made->text},
                                         {"tenant", flags.tenant},
                                         {"scopes", format_scopes(scopes)},
                                         {"expires", expires}}) +
           "\n";
  // Nobody would know a key that could not be printed: it must not stay usable.
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    LK_RETURN_IF_ERROR(store->revoke_key(made->key.id));
    return io_error("the key could not be printed; it was revoked");
  }
  fmt::print(
      stderr,
      "key {} of tenant {}: scopes {}, expires {}. It is shown only now; a running server knows it in a second.\n",
      made->key.id, flags.tenant, format_scopes(scopes), format_time(expires));
  return Status();
}

Status list(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccountStore> store, flags.open());
  LK_ASSIGN_OR_RETURN(const std::vector<ApiKey> keys, store->keys());
  const int64_t now = std::time(nullptr);
  if (flags.json) {
    boost::json::array rows;
    for (const ApiKey& key : keys) rows.push_back(key_json(key, now));
    fmt::print("{}\n", json_text(rows));
    return Status();
  }
  if (keys.empty())
    fmt::print(stderr, "no keys: the server answers everybody, on the loopback interface only\n");
  else
    fmt::print("{:12}  {:16}  {:20}  {:7}  {:20}  {:20}  {}\n", "ID", "TENANT", "SCOPES", "STATE", "CREATED", "EXPIRES",
               "NOTE");
  for (const ApiKey& key : keys)
    fmt::print("{:12}  {:16}  {:20}  {:7}  {:20}  {:20}  {}\n", key.id, key.tenant, format_scopes(key.scopes),
               key.state(now), format_time(key.created), format_time(key.expires), key.note);
  return Status();
}

Status revoke(const Flags& flags) {
  // The whole key works too: that is what one has at hand when it leaked.
  std::string id = flags.id;
  if (id.starts_with("lk-")) id = id.substr(3, id.find('-', 3) - 3);
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccountStore> store, flags.open());
  LK_RETURN_IF_ERROR(store->revoke_key(id));
  fmt::print(stderr, "key {} is revoked; a running server refuses it within two seconds\n", id);
  return Status();
}

Status set_tenant(const Flags& flags) {
  LK_RETURN_IF_ERROR(check_name("tenant", flags.tenant));
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccountStore> store, flags.open());
  const auto change = [&](Tenant& tenant) {
    if (flags.weight) tenant.weight = *flags.weight;
    if (flags.max_in_flight) tenant.max_in_flight = *flags.max_in_flight;
    if (flags.tokens_per_minute) tenant.tokens_per_minute = *flags.tokens_per_minute;
    if (flags.max_adapters) tenant.max_adapters = *flags.max_adapters;
    if (flags.max_versions) tenant.max_versions = *flags.max_versions;
    if (flags.max_sums) tenant.max_sums = *flags.max_sums;
    if (flags.adapters)
      tenant.adapters = flags.adapters->empty() ? std::vector<std::string>{} : CLI::detail::split(*flags.adapters, ',');
    return Status();
  };
  return store->change_tenant(flags.tenant, change, true).status();
}

Status list_tenants(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccountStore> store, flags.open());
  LK_ASSIGN_OR_RETURN(const std::vector<Tenant> tenants, store->tenants());
  if (flags.json) {
    boost::json::array rows;
    for (const Tenant& tenant : tenants) rows.push_back(tenant_json(tenant));
    fmt::print("{}\n", json_text(rows));
    return Status();
  }
  if (tenants.empty())
    fmt::print(stderr, "no tenants\n");
  else
    fmt::print("{:16}  {:>8}  {:>13}  {:>17}  {:>12}  {:>12}  {:>8}  {}\n", "TENANT", "WEIGHT", "MAX IN FLIGHT",
               "TOKENS PER MINUTE", "MAX ADAPTERS", "MAX VERSIONS", "MAX SUMS", "ADAPTERS");
  for (const Tenant& tenant : tenants)
    fmt::print("{:16}  {:8}  {:>13}  {:>17}  {:>12}  {:>12}  {:>8}  {}\n", tenant.name, tenant.weight,
               limit(tenant.max_in_flight), limit(tenant.tokens_per_minute), limit(tenant.max_adapters),
               limit(tenant.max_versions), limit(tenant.max_sums),
               tenant.adapters.empty() ? "all" : fmt::format("{}", fmt::join(tenant.adapters, ",")));
  return Status();
}

Status remove_tenant(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<AccountStore> store, flags.open());
  return store->remove_tenant(flags.tenant);
}

}  // namespace

void add_keys(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* keys = app.add_subcommand("keys", "Make, list and revoke API keys; set limits of tenants");
  keys->require_subcommand(1);
  const auto add = [&exit_code, flags](CLI::App& parent, const char* name, const char* help,
                                       Status (*work)(const Flags&)) {
    CLI::App* command = parent.add_subcommand(name, help);
    command
        ->add_option("--state", flags->state,
                     "state file; default: $LORIKEET_STATE, or state.db in $STATE_DIRECTORY, $XDG_STATE_HOME/lorikeet "
                     "or ~/.local/state/lorikeet")
        ->type_name("FILE");
    flags->registry.add_to(*command, "keys of this fleet, in its registry, instead of a state file");
    command->callback([flags, work, &exit_code] {
      const Status status = work(*flags);
      exit_code = status.ok() ? 0 : fail(status);
    });
    return command;
  };
  CLI::App* command = add(*keys, "create", "Make a key; it is printed once on standard output", create);
  command->add_option("--tenant", flags->tenant, "whose requests carry it; made without limits if it is new")
      ->required();
  command
      ->add_option(
          "--scope", flags->scopes,
          "infer, adapters (load and unload), metrics, fleet (routers), federate (clients of federated runs), admin "
          "(everything), separated by commas")
      ->required();
  command->add_option("--note", flags->note, "a line for you");
  command->add_option("--expires", flags->expires, "30d, 12h, 2w, a date such as 2027-01-31 (UTC), never")
      ->default_str("never");
  command->add_flag("--json", flags->json, "print JSON");
  add(*keys, "list", "List keys, without their secrets", list)->add_flag("--json", flags->json, "print JSON");
  add(*keys, "revoke", "Make a key useless for good", revoke)
      ->add_option("ID", flags->id, "its id, or the whole key")
      ->required();

  CLI::App* tenant = keys->add_subcommand("tenant", "Limits and rights of tenants");
  tenant->require_subcommand(1);
  command = add(*tenant, "set", "Make a tenant or change what is given", set_tenant);
  command->add_option("TENANT", flags->tenant)->required();
  command->add_option("--weight", flags->weight,
                      "share of service among the tenants that want some (docs/guide/scheduling.md); 1 for a new one");
  command->add_option("--max-in-flight", flags->max_in_flight, "requests at a time; 0 = no limit");
  command->add_option("--tokens-per-minute", flags->tokens_per_minute, "prompt and output tokens; 0 = no limit");
  command->add_option("--max-adapters", flags->max_adapters, "adapters that its keys loaded; 0 = no limit");
  command->add_option("--max-versions", flags->max_versions, "versions of them that are kept; 0 = no limit");
  command->add_option("--max-sums", flags->max_sums, "weighted sums that are cached for it; 0 = no limit");
  command->add_option("--adapters", flags->adapters,
                      "names it may use, with * and ?, separated by commas, \"base\" for the base model; '' = all");
  add(*tenant, "list", "List tenants", list_tenants)->add_flag("--json", flags->json, "print JSON");
  add(*tenant, "remove", "Remove a tenant without usable keys", remove_tenant)
      ->add_option("TENANT", flags->tenant)
      ->required();
}

}  // namespace lk::apps
