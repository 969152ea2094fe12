// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/directory_watcher.h"

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
    registry_ = std::make_unique<AdapterRegistry>(*service_.engine, AdapterRegistryOptions{.base_name = "demo"},
                                                  nullptr, nullptr);
    log_ = Log::create({.stream = &lines_}).value();
  }
  ~DirectoryWatcherTest() override {
    watcher_.reset();
    registry_.reset();
  }
  // Its own thread does not look: the tests call scan().
  void start(std::vector<std::string> directories) {
    auto watcher = DirectoryWatcher::start(*registry_, *log_, std::move(directories), std::chrono::hours(1));
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
  std::string digest_of(const std::string& name) {
    const auto resolved = registry_->resolve(name, Tenant{});
    return resolved.ok() && resolved->adapter ? resolved->adapter->digest : "";
  }

  TempDir one_, two_;
  Service service_;
  std::unique_ptr<AdapterRegistry> registry_;
  std::ostringstream lines_;
  std::unique_ptr<Log> log_;
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
  EXPECT_EQ(version_of("x"), 2);
  log_.reset();
  EXPECT_NE(lines_.str().find("adapter_failed"), std::string::npos);
  log_ = Log::create({.stream = &lines_}).value();
  watcher_.reset();
}

TEST_F(DirectoryWatcherTest, WhatFoundNoMemoryIsTriedAgain) {
  copy_adapter("sql", one_.file("a"));
  start({one_.path()});
  const int64_t bytes = registry_->host_stats().bytes;
  watcher_.reset();
  registry_ = std::make_unique<AdapterRegistry>(
      *service_.engine, AdapterRegistryOptions{.base_name = "demo", .max_host_bytes = bytes + bytes / 2}, nullptr,
      nullptr);
  start({one_.path()});
  ASSERT_EQ(version_of("a"), 1);
  auto in_use = registry_->resolve("a", Tenant{})->adapter->host()->get();  // so that it cannot be dropped
  copy_adapter("sql", one_.file("b"));
  copy_adapter("sql", one_.file("broken"));
  one_.write("broken/adapter_config.json", "{");
  one_.write("broken/adapter_model.safetensors", "x");
  scan(8);
  EXPECT_EQ(version_of("b"), 0) << "no room yet";
  in_use = unavailable("let go");
  scan(2 + 32);
  EXPECT_EQ(version_of("a"), 1);
  EXPECT_EQ(version_of("b"), 1) << "nothing changed in its directory, but now there is room";
  log_->flush();
  watcher_.reset();
  log_.reset();
  const auto count = [lines = lines_.str()](const std::string& text) {
    size_t found = 0;
    for (size_t at = lines.find(text); at != std::string::npos; at = lines.find(text, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count(R"("adapter":"b","retried":true)"), 1u) << "one line, however often it was tried";
  EXPECT_EQ(count(R"("adapter":"broken","retried":false)"), 1u);
  log_ = Log::create({.stream = &lines_}).value();
}

TEST_F(DirectoryWatcherTest, FailuresAtTheStartAreTriedAgainToo) {
  registry_ = std::make_unique<AdapterRegistry>(
      *service_.engine, AdapterRegistryOptions{.base_name = "demo", .max_host_bytes = 700'000}, nullptr, nullptr);
  const AdapterLease other =
      registry_->load_and_wait({.name = "other", .path = testing::kDemoAdapters + "sql", .trusted_path = true}).value();
  auto in_use = other->host()->get();  // so that it cannot be dropped, and there is no room for a second one
  copy_adapter("sql", one_.file("a"));
  start({one_.path()});
  ASSERT_EQ(version_of("a"), 0);
  in_use = unavailable("let go");
  scan(2 + 32);
  EXPECT_EQ(version_of("a"), 1);
}

TEST_F(DirectoryWatcherTest, ChangedTemplateIsAChange) {
  copy_adapter("sql", one_.file("x"));
  start({one_.path()});
  EXPECT_EQ(registry_->resolve("x", Tenant{})->adapter->chat_template, nullptr);
  one_.write("x/chat_template.jinja", "{{ messages[0].content }}");
  scan(2);
  EXPECT_EQ(version_of("x"), 2);
  EXPECT_NE(registry_->resolve("x", Tenant{})->adapter->chat_template, nullptr);
}

TEST_F(DirectoryWatcherTest, FirstDirectoryWinsAndTheSecondTakesOver) {
  copy_adapter("sql", one_.file("x"));
  copy_adapter("math", two_.file("x"));
  copy_adapter("tag", two_.file("y"));
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
  EXPECT_FALSE(DirectoryWatcher::start(*registry_, *log_, {one_.file("nowhere")}, std::chrono::hours(1)).ok());
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
