// SPDX-License-Identifier: Apache-2.0
// lorikeet pull: models and adapters from the hub into the cache, and what is in it.
#include "commands.h"
#include "hub_names.h"

namespace lk::apps {
namespace {

int pull(const std::vector<std::string>& names) {
  const Result<HubSettings> settings = read_hub_settings();
  if (!settings.ok()) return fail(settings.status());
  std::vector<HubName> parsed;
  for (const std::string& name : names) {
    Result<HubName> one = parse_hub_name(name);
    if (!one.ok()) return fail(one.status());
    parsed.push_back(*std::move(one));
  }
  for (const HubName& name : parsed) {
    const Result<Pulled> pulled = pull_shown(*settings, name, model_or_adapter_files());
    if (!pulled.ok()) return fail(pulled.status());
    if (pulled->num_fetched == 0) fmt::print(stderr, "{}: everything is there\n", name.text());
    fmt::print("{}\n", pulled->directory);
  }
  return 0;
}

int list() {
  const Result<HubSettings> settings = read_hub_settings();
  if (!settings.ok()) return fail(settings.status());
  const Result<std::vector<CachedRepo>> repos = list_cache(settings->cache);
  if (!repos.ok()) return fail(repos.status());
  fmt::print("{}\n", settings->cache);
  int64_t total = 0;
  for (const CachedRepo& repo : *repos) {
    std::vector<std::string> revisions;
    for (const CachedRepo::Revision& revision : repo.revisions)
      revisions.push_back(fmt::format("{}{}", revision.name.empty() ? "" : revision.name + " ",
                                      std::string_view(revision.commit).substr(0, 12)));
    fmt::print("  {:<48} {:>10}  {}{}\n", repo.repo, format_bytes(repo.bytes), fmt::join(revisions, ", "),
               repo.incomplete_bytes > 0
                   ? fmt::format("; {} of an unfinished download", format_bytes(repo.incomplete_bytes))
                   : "");
    total += repo.bytes + repo.incomplete_bytes;
  }
  fmt::print("  {} in all\n", format_bytes(total));
  return 0;
}

}  // namespace

void add_pull(CLI::App& app, int& exit_code) {
  auto names = std::make_shared<std::vector<std::string>>();
  auto listing = std::make_shared<bool>(false);
  CLI::App* command =
      app.add_subcommand("pull", "Download models and adapters from the Hugging Face hub, and print where they are");
  CLI::Option* name = command->add_option("NAME", *names, "ORG/NAME[/SUBFOLDER][@REVISION]; repeatable");
  command->add_flag("--list", *listing, "show what the cache holds instead")->excludes(name);
  command->callback([names, listing, &exit_code] {
    if (*listing) {
      exit_code = list();
    } else if (names->empty()) {
      exit_code = fail(invalid_argument("give ORG/NAME of a model or an adapter, or --list"));
      exit_code = 2;
    } else {
      exit_code = pull(*names);
    }
  });
}

}  // namespace lk::apps
