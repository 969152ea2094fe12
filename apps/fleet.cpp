// SPDX-License-Identifier: Apache-2.0
// lorikeet fleet: what a fleet's registry says, and changes of it.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <thread>

#include <boost/json.hpp>

#include "commands.h"
#include "fleet_flags.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/cluster/fleet_plan.h"
#include "lk/net/pending_answer.h"
#include "lk/registry/adapter_record.h"
#include "lk/registry/drain.h"

namespace lk::apps {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

struct Flags {
  RegistryFlags registry;
  std::string replica, replica_ca, key_file, name, directory, target, id;
  bool as_json = false, keep = false;
  double patience = 300;

  Result<std::unique_ptr<Registry>> open() const { return registry.open({}); }
};

constexpr size_t kMostAnswerBytes = 1 << 20;

Result<ClientAnswer> ask(const Flags& flags, ClientRequest request) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<HttpClient> client,
                      HttpClient::create({.tls_ca = flags.replica_ca, .connect_timeout = 2s}));
  return PendingAnswer(*client, std::move(request), kMostAnswerBytes).wait();
}

Result<std::vector<Member>> members_of(Registry& registry) {
  LK_ASSIGN_OR_RETURN(const Registry::Entries entries, registry.list(std::string(kMembers)));
  MemberReader reader(
      [](std::string_view what, std::string_view why) { fmt::print(stderr, "lorikeet fleet: {}: {}\n", what, why); });
  return reader.read(entries);
}

std::string state_of(const Flags& flags, const Member& member) {
  const Result<ClientAnswer> answer = ask(flags, {.method = "GET", .url = member.url + "/ready", .timeout = 2s});
  if (!answer.ok()) return "unreachable";
  return answer->status == 200 ? "ready" : "not ready";
}

Status show_status(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Registry> registry, flags.open());
  LK_ASSIGN_OR_RETURN(const std::vector<Member> members, members_of(*registry));
  LK_ASSIGN_OR_RETURN(const Registry::Entries adapters, registry->list(std::string(kAdapters)));
  int64_t ready = 0;
  for (const auto& [key, entry] : adapters)
    if (const auto record = parse_adapter(key, entry.value);
        record.ok() && record->state == AdapterRecord::State::kReady)
      ++ready;
  json::array rows;
  for (const Member& member : members)
    rows.push_back({{"id", member.id},
                    {"url", member.url},
                    {"state", state_of(flags, member)},
                    {"model", member.model},
                    {"base", member.base},
                    {"version", member.version}});
  if (flags.as_json) {
    fmt::print("{}\n", json_text(json::object{{"members", std::move(rows)}, {"adapter_versions", ready}}));
    return Status();
  }
  fmt::print("{:24}  {:11}  {:32}  {:12}  {:10}  {}\n", "ID", "STATE", "URL", "BASE", "VERSION", "MODEL");
  const auto text = [](const json::value& row, const char* name) { return std::string(row.at(name).get_string()); };
  for (const json::value& row : rows)
    fmt::print("{:24}  {:11}  {:32}  {:12}  {:10}  {}\n", text(row, "id"), text(row, "state"), text(row, "url"),
               text(row, "base").substr(0, 12), text(row, "version"), text(row, "model"));
  fmt::print("{} members, {} versions of adapters\n", members.size(), ready);
  return Status();
}

// The replica is asked through the registry, and this waits until it has left.
Status drain(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Registry> registry, flags.open());
  LK_ASSIGN_OR_RETURN(const std::vector<Member> members, members_of(*registry));
  const auto member = std::ranges::find(members, flags.id, &Member::id);
  if (member == members.end()) return not_found("\"{}\" is no member of this fleet", flags.id);
  const std::string name = std::string(kDrains) + flags.id;
  const std::string value = format_drain(member->incarnation);
  LK_RETURN_IF_ERROR(registry->commit({.puts = {{name, value}}}).status());
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(flags.patience);
  for (;;) {
    std::this_thread::sleep_for(200ms);
    const Result<std::vector<Member>> now = members_of(*registry);
    if (now.ok() && std::ranges::find(*now, member->incarnation, &Member::incarnation) == now->end()) break;
    if (std::chrono::steady_clock::now() > end)
      return deadline_exceeded("{} was asked to, and is still a member after {} s", flags.id, flags.patience);
  }
  // Somebody may have asked the next one under this name to end by now: that is theirs.
  LK_ASSIGN_OR_RETURN(const Registry::Entries drains, registry->list(name));
  if (const auto own = drains.find(name); own != drains.end() && own->second.value == value)
    LK_RETURN_IF_ERROR(registry->commit({.unchanged = {{name, own->second.revision}}, .removals = {name}}).status());
  fmt::print(stderr, "{} takes nothing new, finishes what it has and ends\n", flags.id);
  return Status();
}

// What the router that leads has planned, and why: how much each adapter is asked for, and what each member has of it.
Status show_plan(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Registry> registry, flags.open());
  LK_ASSIGN_OR_RETURN(const Registry::Entries entries, registry->list(std::string(kPlan)));
  const auto current = entries.find(std::string(kPlan));
  if (current == entries.end())
    return not_found("no router of this fleet has planned anything yet; is one of `lorikeet route --fleet` running?");
  LK_ASSIGN_OR_RETURN(const FleetPlan plan, parse_plan(current->second.value));
  if (flags.as_json) {
    fmt::print("{}\n", current->second.value);
    return Status();
  }
  double total = 0;
  for (const auto& [adapter, work] : plan.work) total += work;
  std::map<std::string, double> parts;
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [adapter, homes] : plan.placement.homes) {
    const auto found = plan.work.find(adapter);
    const double work = found == plan.work.end() ? 0 : found->second;
    order.emplace_back(-work, adapter);
    for (const std::string& url : homes) parts[url] += work / static_cast<double>(homes.size());
  }
  std::ranges::sort(order);
  fmt::print("{:32}  {:>9}  {:>6}  {}\n", "ADAPTER", "IN FLIGHT", "PART", "AT HOME ON");
  for (const auto& [negative_work, adapter] : order)
    fmt::print("{:32}  {:>9.2f}  {:>5.1f}%  {}\n", adapter, -negative_work,
               total > 0 ? -100 * negative_work / total : 0,
               fmt::join(plan.placement.homes.find(adapter)->second, ", "));
  for (const auto& [url, part] : parts)
    fmt::print("{}: {:.1f} % of the work\n", url, total > 0 ? 100 * part / total : 0);
  const auto age =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  fmt::print(
      "by router {}, {} s ago; in flight = requests, averaged over minutes. More than a replica's part has several "
      "homes; an old home stays while its replica has at most 15 % above its part.\n",
      plan.leader, std::max<int64_t>(0, age.count() - plan.made_at));
  return Status();
}

Status list_adapters(const Flags& flags) {
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Registry> registry, flags.open());
  LK_ASSIGN_OR_RETURN(const Registry::Entries entries, registry->list(std::string(kAdapters)));
  LK_ASSIGN_OR_RETURN(const Registry::Entries aliases, registry->list(std::string(kAliases)));
  json::array rows;
  if (!flags.as_json)
    fmt::print("{:32}  {:>12}  {:16}  {:24}  {}\n", "ADAPTER", "BYTES", "DIGEST", "PUBLISHED BY", "TENANT");
  for (const auto& [key, entry] : entries) {
    const Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (!record.ok()) fmt::print(stderr, "lorikeet fleet: {}: {}\n", key, record.status().message());
    if (!record.ok() || record->state != AdapterRecord::State::kReady) continue;
    const std::string exact = fmt::format("{}@{}", record->name, record->version);
    if (flags.as_json)
      rows.push_back({{"id", exact},
                      {"bytes", record->bytes()},
                      {"digest", record->digest},
                      {"publisher", record->publisher},
                      {"tenant", record->tenant}});
    else
      fmt::print("{:32}  {:>12}  {:16}  {:24}  {}\n", exact, record->bytes(), record->digest.substr(0, 16),
                 record->publisher, record->tenant);
  }
  for (const auto& [key, entry] : aliases) {
    const Result<std::string> target = parse_alias(key, entry.value);
    if (!target.ok() || target->empty()) continue;
    if (flags.as_json)
      rows.push_back({{"id", alias_in(key)}, {"alias_of", *target}});
    else
      fmt::print("{:32}  alias of {}\n", alias_in(key), *target);
  }
  if (flags.as_json) fmt::print("{}\n", json_text(rows));
  return Status();
}

// A request about adapters, to the replica that was named or to one that is ready.
Status change_adapters(const Flags& flags, const char* method, const std::string& path, const json::value& body) {
  std::string url = flags.replica;
  if (url.empty()) {
    LK_ASSIGN_OR_RETURN(const std::unique_ptr<Registry> registry, flags.open());
    LK_ASSIGN_OR_RETURN(const std::vector<Member> members, members_of(*registry));
    for (const Member& member : members)
      if (url.empty() && state_of(flags, member) == "ready") url = member.url;
    if (url.empty()) return unavailable("no member of the fleet is ready");
  }
  ClientRequest request{.method = method, .url = url + path};
  LK_ASSIGN_OR_RETURN(const std::string key, read_key(flags.key_file, "LORIKEET_API_KEY"));
  if (!key.empty()) request.headers.emplace_back("authorization", "Bearer " + key);
  if (!body.is_null()) {
    request.headers.emplace_back("content-type", "application/json");
    request.body = json_text(body);
  }
  LK_ASSIGN_OR_RETURN(const ClientAnswer answer, ask(flags, std::move(request)));
  if (answer.status >= 300) return failed_precondition("{} answered {}: {}", url, answer.status, answer.body);
  fmt::print("{}\n", answer.body);
  return Status();
}

Status publish(const Flags& flags) {
  const std::filesystem::path directory = std::filesystem::absolute(flags.directory).lexically_normal();
  const std::string name = flags.name.empty()
                               ? (directory.has_filename() ? directory : directory.parent_path()).filename().string()
                               : flags.name;
  LK_RETURN_IF_ERROR(check_adapter_name("adapter name", name));
  return change_adapters(flags, "POST", "/v1/adapters", json::object{{"name", name}, {"path", directory.string()}});
}

Status remove_adapter(const Flags& flags) {
  LK_RETURN_IF_ERROR(check_adapter_name("adapter", flags.target.substr(0, flags.target.find('@'))));
  return change_adapters(flags, "DELETE", "/v1/adapters/" + flags.target + "?wait=0", nullptr);
}

Status set_alias(const Flags& flags) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", flags.name));
  LK_RETURN_IF_ERROR(check_adapter_name("adapter", flags.target.substr(0, flags.target.find('@'))));
  return change_adapters(flags, "PATCH", "/v1/adapters/" + flags.target, json::object{{"alias", flags.name}});
}

}  // namespace

void add_fleet(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* fleet = app.add_subcommand("fleet", "Members and adapters of a fleet, as its registry has them");
  fleet->require_subcommand(1);
  const auto add = [&exit_code, flags](CLI::App& parent, const char* name, const char* help,
                                       Status (*work)(const Flags&)) {
    CLI::App* command = parent.add_subcommand(name, help);
    flags->registry.add_to(*command, "the fleet's registry");
    command->get_option("--fleet")->required()->envname("LORIKEET_FLEET");
    command->add_option("--replica-ca", flags->replica_ca,
                        "authorities (PEM) of https replicas instead of the system's");
    command->callback([flags, work, &exit_code] {
      const Status status = work(*flags);
      exit_code = status.ok() ? 0 : fail(status);
    });
    return command;
  };
  add(*fleet, "status", "Who is a member, and whether it is ready", show_status)
      ->add_flag("--json", flags->as_json, "print JSON");
  add(*fleet, "plan", "Where adapters are at home, and how much each is asked for", show_plan)
      ->add_flag("--json", flags->as_json, "print JSON");
  CLI::App* command = add(*fleet, "drain", "Let a replica finish what it has and end; waits until it has left", drain);
  command->add_option("ID", flags->id, "of the member")->required();
  command->add_option("--patience", flags->patience, "seconds to wait for it")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  CLI::App* adapters = fleet->add_subcommand("adapters", "Adapters that every member can serve");
  adapters->require_subcommand(1);
  add(*adapters, "list", "Versions and aliases", list_adapters)->add_flag("--json", flags->as_json, "print JSON");
  const auto add_change = [&](const char* name, const char* help, Status (*work)(const Flags&)) {
    CLI::App* change = add(*adapters, name, help, work);
    change->add_option("--replica", flags->replica,
                       "http(s)://HOST:PORT of the member to ask; default: one that is ready");
    change->add_option("--api-key-file", flags->key_file,
                       "file with a key of scope adapters; also as $LORIKEET_API_KEY");
    return change;
  };
  command = add_change("publish", "Make a new version of an adapter, of a directory beneath the member's --lora-root",
                       publish);
  command->add_option("DIR", flags->directory, "as that member sees it")->required();
  command->add_option("--name", flags->name, "default: the directory's name");
  add_change("remove", "Take an adapter, a version of it (NAME@N) or an alias away from all members", remove_adapter)
      ->add_option("NAME", flags->target)
      ->required();
  command = add_change("alias", "Let a name mean an adapter or a version of it from now on", set_alias);
  command->add_option("ALIAS", flags->name)->required();
  command->add_option("NAME", flags->target)->required();
}

}  // namespace lk::apps
