// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/path_guard.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <thread>

namespace lk {
namespace {

namespace fs = std::filesystem;

class PathGuardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = fs::temp_directory_path() / "lorikeet-paths-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = fs::canonical(pattern);
    root_ = dir_ + "/root";
    for (const char* sub : {"/root/sql", "/root/deep/er", "/other/x", "/outside/secret", "/root-evil/sql"})
      fs::create_directories(dir_ + sub);
    touch("/root/sql/adapter_config.json");
    touch("/root/sql/adapter_model.safetensors");
    touch("/outside/secret/adapter_config.json");
    touch("/root/file");
  }
  void TearDown() override { fs::remove_all(dir_); }
  void touch(const std::string& path) { std::ofstream(dir_ + path) << "{}"; }

  StatusCode code(const std::string& path) {
    const auto found = resolve_beneath({root_, dir_ + "/other"}, path);
    const bool given = path.find("outside/secret") != std::string::npos;
    EXPECT_EQ(found.status().message().find("outside/secret") != std::string::npos, given)
        << path;  // names no other path
    return found.status().code();
  }
  std::string dir_, root_;
};

TEST_F(PathGuardTest, FindsWhatIsBeneath) {
  const std::vector<std::string> roots = {root_ + "/", dir_ + "/other"};
  for (const std::string& path : {std::string("sql"), std::string("./sql/"), std::string("deep/../sql"), root_ + "/sql",
                                  root_ + "//sql/.", root_ + "/deep/er/../../sql"}) {
    const auto found = resolve_beneath(roots, path);
    ASSERT_TRUE(found.ok()) << path << ": " << found.status().message();
    EXPECT_EQ(*found, root_ + "/sql");
  }
  EXPECT_EQ(*resolve_beneath(roots, "x"), dir_ + "/other/x");
  EXPECT_EQ(*resolve_beneath(roots, root_), root_);
  EXPECT_EQ(*resolve_beneath({"/"}, root_ + "/sql"), root_ + "/sql");
}

TEST_F(PathGuardTest, RootsMayBeLinksAndLinksMayStayInside) {
  fs::create_directory_symlink(root_, dir_ + "/link");
  fs::create_directory_symlink("sql", root_ + "/latest");
  fs::create_directory_symlink("../sql", root_ + "/deep/up");
  for (const std::string& path : {std::string("latest"), std::string("deep/up"), dir_ + "/link/sql", root_ + "/sql"}) {
    const auto found = resolve_beneath({dir_ + "/link"}, path);
    ASSERT_TRUE(found.ok()) << path << ": " << found.status().message();
    EXPECT_EQ(*found, root_ + "/sql");
  }
}

TEST_F(PathGuardTest, NothingOutside) {
  fs::create_directory_symlink(dir_ + "/outside/secret", root_ + "/absolute");
  fs::create_directory_symlink("../outside/secret", root_ + "/relative");
  fs::create_directory_symlink("relative", root_ + "/twice");
  fs::create_directory_symlink("/nonexistent/target", root_ + "/dangling");
  fs::create_directory_symlink("loop", root_ + "/loop");
  fs::create_directory_symlink("/proc/self/cwd", root_ + "/magic");
  for (const std::string& path :
       {std::string("absolute"), std::string("relative"), std::string("twice"), std::string("dangling"),
        std::string("loop"), std::string("magic"), std::string(".."), std::string("../outside/secret"),
        std::string("sql/../../outside/secret"), std::string("/"), std::string("/etc"), std::string("/nonexistent"),
        dir_, dir_ + "/outside/secret", dir_ + "/root-evil/sql", dir_ + "/root/../outside/secret", root_ + "/..",
        std::string("file"), root_ + "/file"})
    EXPECT_EQ(code(path), StatusCode::kPermissionDenied) << path;
  EXPECT_EQ(code("missing"), StatusCode::kNotFound);
  EXPECT_EQ(code(root_ + "/missing/deeper"), StatusCode::kNotFound);
  EXPECT_EQ(code(""), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(std::string("sql\0/../..", 10)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(std::string(100'000, 'a')), StatusCode::kInvalidArgument);
  EXPECT_EQ(code("\x1b[2J"), StatusCode::kNotFound);
  EXPECT_EQ(resolve_beneath({}, "sql").status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(resolve_beneath({dir_ + "/no-such-root"}, "sql").status().code(), StatusCode::kPermissionDenied);
}

TEST_F(PathGuardTest, FilesOfAnAdapterAreBeneathToo) {
  const std::vector<std::string> roots = {root_};
  EXPECT_TRUE(resolve_adapter_directory(roots, "sql").ok());
  EXPECT_TRUE(resolve_adapter_directory(roots, "deep").ok());  // empty: the loader's business
  const std::string model = root_ + "/sql/adapter_model.safetensors";
  fs::remove(model);
  fs::create_symlink("../file", model);  // a cache of blobs in the same root
  EXPECT_TRUE(resolve_adapter_directory(roots, "sql").ok());
  fs::remove(model);
  fs::create_symlink(dir_ + "/outside/secret/adapter_config.json", model);
  EXPECT_EQ(resolve_adapter_directory(roots, "sql").status().code(), StatusCode::kPermissionDenied);
  fs::remove(model);
  // Rendered into every prompt, or parsed, were they read.
  fs::create_directories(root_ + "/sql/additional_chat_templates");
  for (const char* name : {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "generation_config.json", "additional_chat_templates/rag.jinja"}) {
    fs::create_symlink("/etc/passwd", root_ + "/sql/" + name);
    EXPECT_EQ(resolve_adapter_directory(roots, "sql").status().code(), StatusCode::kPermissionDenied) << name;
    fs::remove(root_ + "/sql/" + name);
  }
  fs::remove(root_ + "/sql/additional_chat_templates");
  fs::create_directories(dir_ + "/outside/templates");
  std::ofstream(dir_ + "/outside/templates/rag.jinja") << "x";
  fs::create_symlink(dir_ + "/outside/templates", root_ + "/sql/additional_chat_templates");
  EXPECT_EQ(resolve_adapter_directory(roots, "sql").status().code(), StatusCode::kPermissionDenied);
  fs::remove(root_ + "/sql/additional_chat_templates");
  ASSERT_EQ(::mkfifo(model.c_str(), 0600), 0);
  EXPECT_EQ(resolve_adapter_directory(roots, root_ + "/sql").status().code(), StatusCode::kInvalidArgument);
}

// From here on this process has a kernel without openat2.
bool forbid_openat2() {
  sock_filter filter[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{.len = sizeof filter / sizeof filter[0], .filter = filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_F(PathGuardTest, OldKernelsFollowNoLinks) {
  fs::create_directory_symlink(dir_ + "/outside/secret", root_ + "/absolute");
  fs::create_directory_symlink("sql", root_ + "/latest");
  fs::create_directories(root_ + "/leaky");
  fs::create_symlink(dir_ + "/outside/secret/adapter_config.json", root_ + "/leaky/adapter_config.json");
  const pid_t pid = ::fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    if (!forbid_openat2()) ::_exit(77);
    int failures = 0;
    const auto expect = [&](const std::string& path, StatusCode code) {
      failures += resolve_adapter_directory({root_}, path).status().code() != code;
    };
    for (const std::string& good : {std::string("sql"), root_ + "/sql", std::string("./deep/er/"), root_})
      expect(good, StatusCode::kOk);
    for (const std::string& bad :
         {std::string("latest"), std::string("absolute"), std::string("absolute/x"), std::string(".."),
          std::string("sql/../../outside/secret"), std::string("file"), std::string("leaky")})
      expect(bad, StatusCode::kPermissionDenied);
    expect("missing", StatusCode::kNotFound);
    ::_exit(failures);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no seccomp here";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "wrong answers";
}

TEST_F(PathGuardTest, NeverAnOutsidePathWhileALinkIsSwapped) {
  const std::string spot = root_ + "/spot", next = dir_ + "/next";
  std::atomic<bool> stop{false};
  std::thread attacker([&] {
    for (int i = 0; !stop; ++i) {
      std::error_code ignored;
      fs::create_directory_symlink(i % 2 == 0 ? "sql" : dir_ + "/outside/secret", next, ignored);
      fs::rename(next, spot, ignored);
    }
  });
  int found = 0, refused = 0;
  for (int i = 0; i < 200'000 && (i < 2000 || found == 0 || refused == 0); ++i) {
    const auto path = resolve_adapter_directory({root_}, "spot");
    EXPECT_TRUE(!path.ok() || *path == root_ + "/sql");
    (path.ok() ? found : refused)++;
  }
  stop = true;
  attacker.join();
  EXPECT_GT(found, 0);
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace lk
