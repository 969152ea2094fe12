// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/directory_watcher.h"

#include <fstream>
#include <sstream>

#include "serve/service_testing.h"

namespace lk {
namespace {

namespace fs = std::filesystem;
using testing::copy_adapter;
using testing::Service;
using testing::TempDir;

class DirectoryWatcherTest : public ::testing::Test {
 protected:
  DirectoryWatcherTest() {
    log_ = Log::create({.stream = &lines_}).value();
    open({});
  }
  void open(AdapterRegistryOptions options) {
    watcher_.reset();
    options.base_name = "demo";
    options.log = log_.get();
    registry_ = std::make_unique<AdapterRegistry>(*service_.engine, options, nullptr, nullptr);
  }
  ~DirectoryWatcherTest() override {
    watcher_.reset();
    registry_.reset();
  }
  // Its own thread does not look: the tests call scan().
  void start(std::vector<std::string> directories, int64_t max_eager = 256) {
    auto watcher = DirectoryWatcher::start(
        *registry_, *log_,
        {.directories = std::move(directories), .interval = std::chrono::hours(1), .max_eager = max_eager});
    ASSERT_TRUE(watcher.ok()) << watcher.status().message();
    watcher_ = std::move(*watcher);
  }
  void scan(int times) {
    for (int i = 0; i < times; ++i) watcher_->scan();
  }
  int64_t version_of(const std::string& name) {
    const auto resolved = registry_->resolve(name, Tenant{});
    return resolved.ok() && resolved->adapter ? resolved->adapter->version : 0;
  }
  // The version after what is cold was loaded, as for a request; 0 when that fails.
  int64_t ask_for(const std::string& name) {
    std::string cold;
    if (registry_->resolve(name, Tenant{}, &cold).ok()) return version_of(name);
    if (cold.empty()) return 0;
    std::promise<bool> loaded;
    registry_->load_cold(cold, "", Clock::now() + testing::kPatience,
                         [&](const Result<AdapterLease>& lease) { loaded.set_value(lease.ok()); });
    return loaded.get_future().get() ? version_of(name) : 0;
  }
  std::string state_of(const std::string& name) {
    const auto found = registry_->find(name, {});
    return found ? found->state : "";
  }
  // Out of its pages, and the snapshots know it.
  void push_out(AdapterId id) {
    EXPECT_TRUE(service_.engine->call([id](TextEngine& engine) { (void)engine.scheduler().drop_adapter(id); }));
    EXPECT_TRUE(service_.wait_on_engine(
        [&](TextEngine& engine) { return engine.pool().adapter_state(id) == AdapterState::kAbsent; }));
    (void)service_.engine->fresh_snapshot();
  }
  // What waits for its next try has it now.
  void retry() { registry_->tick(Clock::now() + std::chrono::hours(1)); }
  // At the end of a test: the log is complete once it is closed.
  size_t count_in_log(const std::string& text) {
    watcher_.reset();
    registry_.reset();
    log_.reset();
    const std::string lines = lines_.str();
    size_t found = 0;
    for (size_t at = lines.find(text); at != std::string::npos; at = lines.find(text, at + 1)) ++found;
    return found;
  }
  std::string digest_of(const std::string& name) {
    const auto resolved = registry_->resolve(name, Tenant{});
    return resolved.ok() && resolved->adapter ? resolved->adapter->digest : "";
  }

  TempDir one_, two_;
  Service service_;
  std::ostringstream lines_;
  std::unique_ptr<Log> log_;
  std::unique_ptr<AdapterRegistry> registry_;
  std::unique_ptr<DirectoryWatcher> watcher_;
};

TEST_F(DirectoryWatcherTest, AppearsChangesVanishes) {
  copy_adapter("sql", one_.file("x"));
  fs::create_directories(one_.file("not an adapter's name"));
  one_.write("file", "not a directory");
  start({one_.path()});
  EXPECT_EQ(version_of("x"), 1) << "start waits for what is there";
  scan(3);
  EXPECT_EQ(version_of("x"), 1) << "nothing changed";

  copy_adapter("math", one_.file("y"));
  scan(1);
  EXPECT_EQ(version_of("y"), 0) << "somebody may still be copying";
  scan(1);
  EXPECT_EQ(version_of("y"), 1);

  const std::string digest = digest_of("x");
  fs::remove_all(one_.file("x"));
  copy_adapter("tag", one_.file("x"));
  scan(2);
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_NE(digest_of("x"), digest);

  fs::remove_all(one_.file("x"));
  scan(1);
  EXPECT_EQ(version_of("x"), 2) << "a rename takes a moment";
  scan(1);
  EXPECT_EQ(version_of("x"), 0);
  EXPECT_EQ(version_of("y"), 1);
  copy_adapter("sql", one_.file("x"));
  scan(2);
  EXPECT_EQ(version_of("x"), 3);
}

TEST_F(DirectoryWatcherTest, HalfCopiedAndBrokenAdaptersAreTriedAgainWhenTheyChange) {
  start({one_.path()});
  copy_adapter("sql", two_.file("whole"));
  const std::string bytes = two_.read("whole/adapter_model.safetensors");
  fs::create_directories(one_.file("x"));
  fs::copy_file(two_.file("whole/adapter_config.json"), one_.file("x/adapter_config.json"));
  scan(3);
  EXPECT_EQ(version_of("x"), 0);
  for (size_t part : {size_t{100}, bytes.size() / 2}) {  // growing: not the same twice
    one_.write("x/adapter_model.safetensors", bytes.substr(0, part));
    scan(1);
  }
  EXPECT_EQ(version_of("x"), 0);
  log_->flush();
  scan(2);  // the copy stalls: loaded too early, which fails
  EXPECT_EQ(version_of("x"), 0);
  one_.write("x/adapter_model.safetensors", bytes);
  scan(2);
  EXPECT_EQ(version_of("x"), 1);
  // A broken replacement leaves the old version in place.
  one_.write("x/adapter_config.json", "{");
  scan(3);
  EXPECT_EQ(version_of("x"), 1);
  fs::copy_file(two_.file("whole/adapter_config.json"), one_.file("x/adapter_config.json"),
                fs::copy_options::overwrite_existing);
  scan(2);
  EXPECT_EQ(version_of("x"), 1) << "the content that it is";
  copy_adapter("math", one_.file("x"));
  scan(2);
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_GE(count_in_log("adapter_failed"), 2u);
}

TEST_F(DirectoryWatcherTest, WhatFoundNoMemoryIsTriedAgain) {
  copy_adapter("sql", one_.file("a"));
  start({one_.path()});
  const int64_t bytes = registry_->host_stats().bytes;
  open({.max_host_bytes = bytes + bytes / 2});
  start({one_.path()});
  ASSERT_EQ(version_of("a"), 1);
  auto in_use = registry_->resolve("a", Tenant{})->adapter->host()->get();  // so that it cannot be dropped
  copy_adapter("sql", one_.file("b"));
  copy_adapter("sql", one_.file("broken"));
  one_.write("broken/adapter_config.json", "{");
  one_.write("broken/adapter_model.safetensors", "x");
  scan(8);
  EXPECT_EQ(version_of("b"), 0) << "no room yet";
  EXPECT_EQ(state_of("b"), "unavailable");
  EXPECT_EQ(registry_->counts().no_memory, 1);
  EXPECT_EQ(registry_->counts().refused, 1);
  in_use = unavailable("let go");
  EXPECT_TRUE(service_.wait_on_engine([&](TextEngine&) {
    retry();
    return version_of("b") == 1;
  })) << "nothing changed in its directory, but now there is room";
  EXPECT_EQ(version_of("a"), 1);
  EXPECT_EQ(state_of("broken"), "unavailable");
  EXPECT_EQ(count_in_log(R"("adapter":"b","version":0,"retried":true)"), 1u) << "one line, however often it was tried";
  EXPECT_EQ(count_in_log(R"("adapter":"broken","version":0,"retried":false)"), 1u);
}

TEST_F(DirectoryWatcherTest, FailuresAtTheStartAreTriedAgainToo) {
  open({.max_host_bytes = 700'000});
  const AdapterLease other =
      registry_->load_and_wait({.name = "other", .path = testing::kDemoAdapters + "sql", .trusted_path = true}).value();
  auto in_use = other->host()->get();  // so that it cannot be dropped, and there is no room for a second one
  copy_adapter("sql", one_.file("a"));
  start({one_.path()});
  ASSERT_EQ(version_of("a"), 0);
  in_use = unavailable("let go");
  EXPECT_TRUE(service_.wait_on_engine([&](TextEngine&) {
    retry();
    return version_of("a") == 1;
  }));
}

TEST_F(DirectoryWatcherTest, ChangedTemplateIsAChange) {
  copy_adapter("sql", one_.file("x"));
  start({one_.path()});
  EXPECT_FALSE(registry_->resolve("x", Tenant{})->adapter->text->own_templates);
  one_.write("x/chat_template.jinja", "{{ messages[0].content }}");
  scan(2);
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_TRUE(registry_->resolve("x", Tenant{})->adapter->text->own_templates);
  one_.write("x/generation_config.json", R"({"temperature": 0.5})");
  scan(2);
  EXPECT_EQ(registry_->resolve("x", Tenant{})->adapter->text->generation.temperature, 0.5);
  fs::create_directories(one_.file("x/additional_chat_templates"));
  one_.write("x/additional_chat_templates/rag.jinja", "r");
  scan(2);
  EXPECT_EQ(registry_->resolve("x", Tenant{})->adapter->text->templates->entries().size(), 2U);
}

TEST_F(DirectoryWatcherTest, FirstDirectoryWinsAndTheSecondTakesOver) {
  copy_adapter("sql", one_.file("x"));
  copy_adapter("math", two_.file("x"));
  copy_adapter("tag", two_.file("y"));
  copy_adapter("tag", one_.file("z"));
  start({one_.path(), two_.path()});
  const std::string first = digest_of("x");
  scan(3);
  EXPECT_EQ(version_of("x"), 1);
  EXPECT_EQ(version_of("y"), 1);
  fs::remove_all(one_.file("x"));
  scan(2);
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_NE(digest_of("x"), first);
}

TEST_F(DirectoryWatcherTest, DirectoryThatCannotBeReadUnloadsNothing) {
  const std::string directory = one_.file("adapters");
  copy_adapter("sql", directory + "/x");
  start({directory});
  fs::rename(directory, one_.file("away"));
  scan(4);
  EXPECT_EQ(version_of("x"), 1);
  fs::rename(one_.file("away"), directory);
  scan(3);
  EXPECT_EQ(version_of("x"), 1);
  EXPECT_FALSE(DirectoryWatcher::start(*registry_, *log_, {.directories = {one_.file("nowhere")}}).ok());
}

// As the Hub and its tools lay them out: ORG/NAME.
TEST_F(DirectoryWatcherTest, OrganizationsHoldAdaptersToo) {
  const std::string directory = one_.file("adapters");
  copy_adapter("sql", directory + "/acme/sql");
  copy_adapter("dates", directory + "/acme/_dates+time");
  copy_adapter("sql", directory + "/plain");
  copy_adapter("sql", directory + "/plain/acme/inner");   // an adapter is no organization
  copy_adapter("sql", directory + "/acme/deep/er");       // nor are there organizations in one
  copy_adapter("sql", directory + "/run/checkpoint-10");  // nor is what a trainer made
  std::ofstream(directory + "/run/trainer_state.json") << "{}";
  copy_adapter("sql", two_.file("elsewhere/sql"));
  fs::create_directory_symlink(two_.file("elsewhere"), directory + "/linked");
  start({directory});
  for (const char* name : {"acme/sql", "acme/_dates+time", "plain"}) EXPECT_EQ(version_of(name), 1) << name;
  for (const char* name :
       {"acme", "acme/deep", "acme/deep/er", "plain/acme/inner", "run/checkpoint-10", "acme/../plain", "linked/sql"})
    EXPECT_EQ(version_of(name), 0) << name;
  EXPECT_EQ(state_of("linked/sql"), "") << "what lies behind a link is not even listed";
  // One that becomes a link between the look and the load leads nowhere else either.
  EXPECT_EQ(registry_
                ->load_and_wait({.name = "linked/sql",
                                 .path = directory + "/linked/sql",
                                 .root = std::make_shared<const std::string>(directory)})
                .status()
                .code(),
            StatusCode::kPermissionDenied);
  copy_adapter("dates", directory + "/acme/late");
  scan(2);
  EXPECT_EQ(version_of("acme/late"), 1);
  fs::remove_all(directory + "/acme/late");
  scan(3);
  EXPECT_EQ(version_of("acme/late"), 0);
  EXPECT_EQ(version_of("acme/sql"), 1);
  fs::remove_all(directory + "/acme");
  scan(3);
  EXPECT_EQ(version_of("acme/sql"), 0);
  EXPECT_EQ(version_of("plain"), 1);
}

TEST_F(DirectoryWatcherTest, AnAdapterWhoseNameCannotBeAskedForIsLoggedOnce) {
  const std::string directory = one_.file("adapters");
  copy_adapter("sql", directory + "/has space");
  copy_adapter("sql", directory + "/.hidden");
  fs::create_directories(directory + "/no adapter");
  start({directory});
  scan(3);
  EXPECT_EQ(count_in_log("is not a name"), 1u);
}

// As when a volume is unmounted: the mount point is there, and empty.
TEST_F(DirectoryWatcherTest, DirectoryThatIsEmptyAllAtOnceKeepsWhatItHeld) {
  const std::string volume = one_.file("volume");
  for (const char* name : {"x", "y"}) copy_adapter("sql", volume + "/" + name);
  copy_adapter("math", two_.file("x"));
  start({volume, two_.path()});
  const std::string digest = digest_of("x");
  fs::rename(volume, one_.file("away"));
  fs::create_directory(volume);
  fs::create_directory(volume + "/lost+found");
  scan(5);
  EXPECT_EQ(version_of("x"), 1);
  EXPECT_EQ(digest_of("x"), digest) << "nobody else takes its names";
  EXPECT_EQ(version_of("y"), 1);
  EXPECT_EQ(registry_->directories()[0].state, WatchedDirectory::State::kEmpty);
  EXPECT_EQ(registry_->directories()[0].num_adapters, 2);
  EXPECT_EQ(registry_->directories()[1].state, WatchedDirectory::State::kOk);
  fs::remove_all(volume);
  fs::rename(one_.file("away"), volume);
  scan(3);
  EXPECT_EQ(registry_->directories()[0].state, WatchedDirectory::State::kOk);
  EXPECT_EQ(version_of("x"), 1) << "the same files: the same version";
  // With content in it again, what is missing is gone.
  fs::rename(volume, one_.file("away"));
  fs::create_directory(volume);
  scan(3);
  copy_adapter("tag", volume + "/new");
  scan(3);
  EXPECT_EQ(version_of("y"), 0);
  const std::string second = digest_of("x");
  EXPECT_NE(second, digest) << "the second directory's";
  EXPECT_EQ(version_of("new"), 1);
  // Or told so.
  fs::remove_all(volume + "/new");
  scan(3);
  EXPECT_EQ(version_of("new"), 1);
  watcher_->accept_empty();
  scan(1);
  EXPECT_EQ(version_of("new"), 0) << "saying it once is enough";
  EXPECT_EQ(registry_->directories()[0].state, WatchedDirectory::State::kOk);
  EXPECT_EQ(digest_of("x"), second) << "the second directory's is still there";
  EXPECT_EQ(count_in_log(R"("state":"empty")"), 3u);
}

TEST_F(DirectoryWatcherTest, WhatCannotBeReadIsNotGone) {
  const std::string first = one_.file("first"), loop = one_.file("loop");
  for (const char* name : {"a", "b", "c"}) copy_adapter("sql", first + "/" + name);
  copy_adapter("sql", two_.file("other"));
  start({first, two_.path()});
  fs::create_symlink("loop", loop);  // fails with ELOOP, whoever looks: as EIO, ESTALE and EACCES do
  // One adapter's directory; one file of another; half of a third one, which is being written in place.
  fs::rename(first + "/a", one_.file("a"));
  fs::create_symlink(loop, first + "/a");
  fs::remove(first + "/b/adapter_config.json");
  fs::create_symlink(loop, first + "/b/adapter_config.json");
  fs::remove(first + "/c/adapter_model.safetensors");
  scan(4);
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(version_of(name), 1) << name;
  // The whole directory; those behind it in the list are followed.
  fs::rename(first, one_.file("away"));
  fs::create_symlink(loop, first);
  copy_adapter("math", two_.file("new"));
  fs::remove_all(two_.file("other"));
  scan(4);
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(version_of(name), 1) << name;
  EXPECT_EQ(version_of("new"), 1);
  EXPECT_EQ(version_of("other"), 0);
  EXPECT_EQ(registry_->directories()[0].state, WatchedDirectory::State::kUnreadable);
  fs::remove(first);
  fs::rename(one_.file("away"), first);
  fs::remove_all(first + "/c");
  scan(3);
  EXPECT_EQ(version_of("a"), 1);
  EXPECT_EQ(version_of("c"), 0) << "this one is gone";
  EXPECT_EQ(count_in_log(R"("state":"unreadable")"), 1u) << "one line, however often it is looked at";
}

TEST_F(DirectoryWatcherTest, LinkThatIsTurnedReplacesWhatDiffersAndKeepsWhatDoesNot) {
  copy_adapter("sql", one_.file("v1/x"));
  copy_adapter("sql", one_.file("v1/y"));
  copy_adapter("sql", one_.file("v2/x"));
  copy_adapter("math", one_.file("v2/y"));
  fs::create_symlink("v1", one_.file("current"));
  start({one_.file("current")});
  fs::create_symlink("v2", one_.file("next"));
  fs::rename(one_.file("next"), one_.file("current"));
  scan(3);
  EXPECT_EQ(version_of("x"), 1) << "the same content under the same number";
  EXPECT_EQ(version_of("y"), 2);
}

// The operator lists a directory; whoever can put a link into it does not choose what the server reads.
TEST_F(DirectoryWatcherTest, LinksLeadNowhereButBeneathRoots) {
  TempDir outside;
  copy_adapter("sql", outside.file("x"));
  copy_adapter("sql", two_.file("x"));
  copy_adapter("sql", one_.file("own"));
  fs::create_directory_symlink(outside.file("x"), one_.file("out"));
  fs::create_directory_symlink(two_.file("x"), one_.file("root"));
  fs::create_directory_symlink("own", one_.file("in"));
  copy_adapter("sql", one_.file("file"));
  outside.write("secret", "the server's own");
  fs::create_symlink(outside.file("secret"), one_.file("file/chat_template.jinja"));
  for (const int64_t eager : {100, 0}) {
    open({.roots = {two_.path()}});
    start({one_.path()}, eager);
    for (const char* name : {"own", "in", "root"}) EXPECT_EQ(ask_for(name), 1) << name;
    for (const char* name : {"out", "file"}) {
      EXPECT_EQ(ask_for(name), 0) << name;
      EXPECT_EQ(registry_->find(name, {})->state, "unavailable") << name;
      const Status status = registry_->resolve(name, Tenant{}).status();
      EXPECT_EQ(status.message().find(outside.path()), std::string::npos) << status.message();
    }
  }
}

// What a request calls a model is compared with what was listed, and never given to the file system: a name that
// nobody listed costs no look at a directory.
TEST_F(DirectoryWatcherTest, NamesOfRequestsReachNoFile) {
  for (const char* name : {"a", "b"}) copy_adapter("sql", one_.file("dir/" + std::string(name)));
  copy_adapter("sql", one_.file("beside"));
  start({one_.file("dir")}, 1);
  copy_adapter("sql", one_.file("dir/late"));
  using namespace std::string_literals;
  for (const std::string& name :
       {"late"s, "../beside"s, one_.file("beside"), one_.file("dir/a"), "a/../b"s, "./a"s, "a/"s, "a\0"s, "a\0b"s, "."s,
        ".."s, "base:../beside"s, "a@1@2"s, "a@-1"s, std::string(5000, 'a')}) {
    std::string cold;
    const Status status = registry_->resolve(name, Tenant{}, &cold).status();
    EXPECT_EQ(status.code(), StatusCode::kNotFound) << name;
    EXPECT_TRUE(cold.empty()) << name;
    std::promise<StatusCode> answer;
    registry_->load_cold(name, "", Clock::now() + testing::kPatience,
                         [&](const Result<AdapterLease>& lease) { answer.set_value(lease.status().code()); });
    EXPECT_EQ(answer.get_future().get(), StatusCode::kNotFound) << name;
  }
  EXPECT_EQ(registry_->num_loading(), 0);
  scan(2);
  EXPECT_EQ(ask_for("late"), 1) << "once it was listed";
}

TEST_F(DirectoryWatcherTest, ManyAreLoadedWhenSomebodyAsks) {
  for (const char* name : {"a", "b", "c"}) copy_adapter("sql", one_.file(name));
  start({one_.path()}, 2);
  EXPECT_TRUE(registry_->versions().empty());
  EXPECT_EQ(registry_->list_names("", 100).entries.size(), 3u);
  EXPECT_EQ(state_of("a"), "known");
  EXPECT_EQ(registry_->resolve("a", Tenant{}).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(ask_for("nobody"), 0);
  EXPECT_EQ(ask_for("a@2"), 0) << "its content is its first version";
  EXPECT_EQ(version_of("a"), 1) << "which had to be read to know that";
  EXPECT_EQ(ask_for("b@1"), 1);
  const Tenant other{.name = "t", .adapters = {"x*"}};
  std::string cold;
  const Status forbidden = registry_->resolve("c", other, &cold).status();
  EXPECT_EQ(forbidden.code(), StatusCode::kNotFound);
  EXPECT_TRUE(cold.empty()) << "who may not use it does not have it loaded";
  // What is loaded follows its files, what is not is read as it is then.
  fs::remove_all(one_.file("a"));
  copy_adapter("math", one_.file("a"));
  fs::remove_all(one_.file("c"));
  copy_adapter("tag", one_.file("c"));
  copy_adapter("tag", one_.file("d"));
  scan(3);
  EXPECT_EQ(version_of("a"), 2);
  EXPECT_EQ(state_of("c"), "known");
  EXPECT_EQ(ask_for("c"), 1);
  EXPECT_EQ(ask_for("d"), 1);
  EXPECT_EQ(digest_of("d"), digest_of("c"));
  // What a client unloaded comes back when its directory changes; what is gone from the directory goes.
  ASSERT_TRUE(registry_->unload("d", nullptr).ok());
  scan(3);
  EXPECT_EQ(ask_for("d"), 0);
  one_.write("d/chat_template.jinja", "x");
  scan(3);
  EXPECT_EQ(ask_for("d"), 2);
  fs::remove_all(one_.file("b"));
  scan(2);
  EXPECT_EQ(ask_for("b"), 0);
  EXPECT_EQ(registry_->list_names("", 100).entries.size(), 3u);
}

TEST_F(DirectoryWatcherTest, WhatIsNotUsedIsKnownByNameAgainAndStaysTheVersionItWas) {
  for (const char* name : {"a", "b", "c", "d"}) copy_adapter("sql", one_.file(name));
  open({.max_idle = 2});
  start({one_.path()}, 2);
  for (const char* name : {"a", "b"}) EXPECT_EQ(ask_for(name), 1);
  fs::remove_all(one_.file("a"));
  copy_adapter("math", one_.file("a"));
  scan(3);
  ASSERT_EQ(version_of("a"), 2);
  ASSERT_TRUE(registry_->set_alias("prod", "a@2").ok());
  const std::string digest = digest_of("a");
  const AdapterId id = registry_->resolve("a", Tenant{})->adapter->id();
  registry_->host_tier().drop_all();
  EXPECT_EQ(ask_for("b"), 1);
  EXPECT_EQ(ask_for("c"), 1);
  EXPECT_EQ(state_of("a"), "loaded") << "in pages: the probe left it there";
  push_out(id);
  EXPECT_EQ(ask_for("d"), 1);
  EXPECT_EQ(state_of("a"), "known");
  EXPECT_TRUE(service_.wait_on_engine(
      [&](TextEngine& engine) { return engine.pool().adapter_state(id) == AdapterState::kAbsent; }));
  EXPECT_EQ(registry_->find("a", {})->version, 2);
  EXPECT_EQ(registry_->find("a", {})->digest, digest);
  EXPECT_EQ(ask_for("prod"), 2);
  EXPECT_EQ(digest_of("prod"), digest);
  EXPECT_EQ(ask_for("a@1"), 0);
  // Its files changed while it was not loaded: another version, and the old one is nobody's name for it.
  registry_->host_tier().drop_all();
  push_out(registry_->resolve("a", Tenant{})->adapter->id());
  for (const char* name : {"b", "c", "d"}) EXPECT_EQ(ask_for(name), 1);
  fs::remove_all(one_.file("b"));
  copy_adapter("tag", one_.file("b"));
  scan(3);  // a version of b is published, and room is made
  ASSERT_EQ(state_of("a"), "known");
  fs::remove_all(one_.file("a"));
  copy_adapter("tag", one_.file("a"));
  EXPECT_EQ(ask_for("a"), 3);
  EXPECT_NE(digest_of("a"), digest);
  EXPECT_EQ(ask_for("prod"), 0) << "it pointed at version 2";
}

TEST_F(DirectoryWatcherTest, OneThatCannotBeLoadedSaysSoAndIsTriedWhenItsFilesChange) {
  for (const char* name : {"a", "b", "broken"}) copy_adapter("sql", one_.file(name));
  const std::string whole = one_.read("broken/adapter_model.safetensors");
  one_.write("broken/adapter_model.safetensors", whole.substr(0, whole.size() / 2));
  start({one_.path()}, 1);
  EXPECT_EQ(ask_for("broken"), 0);
  const Status status = registry_->resolve("broken", Tenant{}).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("its files are no adapter"), std::string::npos) << status.message();
  EXPECT_EQ(status.message().find(one_.path()), std::string::npos) << "clients learn no paths";
  EXPECT_NE(registry_->find("broken", {})->reason.find("refused: "), std::string::npos);
  EXPECT_EQ(registry_->list_names("", 100).entries.size(), 2u) << "it cannot be asked for";
  one_.write("broken/adapter_model.safetensors", whole);
  const auto end = Clock::now() + testing::kPatience;
  while (ask_for("broken") == 0 && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(version_of("broken"), 1) << "after a second";
}

TEST_F(DirectoryWatcherTest, WhatOthersLoadedStays) {
  start({one_.path()});
  const std::string sql = fs::absolute(testing::kDemoAdapters + "sql");
  ASSERT_TRUE(registry_->load_and_wait({.name = "x", .path = sql, .trusted_path = true}).ok());
  // A directory of that name that never becomes an adapter comes and goes.
  one_.write("empty", "");
  fs::create_directories(one_.file("x"));
  one_.write("x/adapter_config.json", "{}");
  one_.write("x/adapter_model.safetensors", "");
  scan(3);
  EXPECT_EQ(version_of("x"), 1);
  fs::remove_all(one_.file("x"));
  scan(3);
  EXPECT_EQ(version_of("x"), 1);
  // One that replaces it goes with its directory; one that replaced that stays.
  copy_adapter("math", one_.file("x"));
  scan(2);
  EXPECT_EQ(version_of("x"), 2);
  ASSERT_TRUE(registry_->load_and_wait({.name = "x", .path = sql, .trusted_path = true, .replace = true}).ok());
  fs::remove_all(one_.file("x"));
  scan(3);
  EXPECT_EQ(version_of("x"), 3);
}

}  // namespace
}  // namespace lk
