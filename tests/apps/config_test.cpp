// SPDX-License-Identifier: Apache-2.0
#include "config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

namespace lk::apps {
namespace {

// A program with a command that has one option of each kind, and one without configuration.
struct Program {
  CLI::App app{"toy"};
  std::string model = "none", host = "127.0.0.1";
  int port = 8000;
  int64_t step_tokens = 512;
  double weight = 1.5;
  bool no_cache = false, verbose = false, ran = false;
  std::vector<std::string> loras;
  std::string target;
  Status checked;

  explicit Program(bool target_required = false) {
    CLI::App* serve = app.add_subcommand("serve", "toy server");
    serve->add_option("TARGET", target, "what to serve")->required(target_required)->group("Model");
    serve->add_option("--model", model, "model directory\nof any kind")->capture_default_str()->group("Model");
    serve->add_option("--host", host, "address")->capture_default_str()->group("Server");
    serve->add_option("--port", port, "TCP port")->check(CLI::Range(1, 65535))->capture_default_str()->group("Server");
    serve->add_option("--step-tokens", step_tokens, "tokens")->capture_default_str()->group("Scheduling");
    serve->add_option("--weight", weight, "a share")->capture_default_str()->group("Scheduling");
    serve->add_option("--lora", loras, "adapters")->type_name("NAME=DIR")->group("Model");
    serve->add_flag("--no-cache", no_cache, "compute anew")->group("Scheduling");
    serve->add_flag("--verbose,!--quiet", verbose, "more words")->group("Server");
    serve->callback([this] { ran = true; });
    add_config_options(*serve, [this] { return checked; });
    app.add_subcommand("other", "toy")->callback([this] { ran = true; });
    app.require_subcommand(1);
  }
};

class ConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "lorikeet-config-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = dir_ + "/c.toml";
  }
  void TearDown() override {
    std::filesystem::remove_all(dir_);
    for (const std::string& name : variables_) ::unsetenv(name.c_str());
  }
  void file(const std::string& text) { std::ofstream(path_) << text; }
  void variable(const std::string& name, const std::string& value) {
    ::setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }
  struct Outcome {
    int code = 0;
    std::string out, err;
  };
  static Outcome run(Program& program, std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());
    Outcome outcome;
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    try {
      program.app.parse(arguments);
    } catch (const CLI::ParseError& error) {
      outcome.code = exit_code_of(program.app, error);
    }
    std::fflush(stdout);
    outcome.out = ::testing::internal::GetCapturedStdout();
    outcome.err = ::testing::internal::GetCapturedStderr();
    return outcome;
  }
  Outcome with_file(const std::string& text) {
    file(text);
    Program program;
    return run(program, {"serve", "--config", path_});
  }
  void refused(const std::string& text, const std::string& message) {
    const Outcome outcome = with_file(text);
    EXPECT_EQ(outcome.code, 1) << text;
    EXPECT_EQ(outcome.err, "lorikeet: " + path_ + message + "\n");
  }
  std::string dir_, path_;
  std::vector<std::string> variables_;
};

TEST_F(ConfigTest, ReadsEveryKind) {
  file(R"(target = "x"
port = 9000
step_tokens = 64     # underscores
no-cache = true
weight = 2
[model]
model = "/m \"q\""
lora = ["a=b", "c=d"]
[server]
quiet = true
)");
  Program program;
  const Outcome outcome = run(program, {"serve", "--config", path_});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(program.ran && program.no_cache && !program.verbose);
  EXPECT_EQ(program.target, "x");
  EXPECT_EQ(program.port, 9000);
  EXPECT_EQ(program.step_tokens, 64);
  EXPECT_EQ(program.weight, 2);
  EXPECT_EQ(program.model, "/m \"q\"");
  EXPECT_EQ(program.loras, (std::vector<std::string>{"a=b", "c=d"}));
  EXPECT_EQ(program.host, "127.0.0.1");
}

TEST_F(ConfigTest, FlagBeforeEnvironmentBeforeFile) {
  file("port = 1\nhost = \"file\"\nmodel = \"file\"\nlora = [\"file=1\"]\nno_cache = true\n");
  variable("LORIKEET_PORT", "2");
  variable("LORIKEET_HOST", "environment");
  variable("LORIKEET_LORA", "environment=1");
  variable("LORIKEET_NO_CACHE", "false");
  Program program;
  const Outcome outcome = run(program, {"serve", "--port", "3", "--config", path_});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(program.port, 3);
  EXPECT_EQ(program.host, "environment");
  EXPECT_EQ(program.model, "file");
  EXPECT_EQ(program.loras, std::vector<std::string>{"environment=1"});
  EXPECT_FALSE(program.no_cache);
}

TEST_F(ConfigTest, EnvironmentNamesTheFileAndErrorsNameTheVariable) {
  file("port = 77\n");
  variable("LORIKEET_CONFIG", path_);
  Program program;
  ASSERT_EQ(run(program, {"serve"}).code, 0);
  EXPECT_EQ(program.port, 77);
  variable("LORIKEET_PORT", "many");
  Program wrong;
  const Outcome outcome = run(wrong, {"serve"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_TRUE(outcome.err.starts_with("lorikeet: LORIKEET_PORT: ")) << outcome.err;
  Program other;  // a command that has nothing to do with it
  EXPECT_EQ(run(other, {"other"}).code, 0);
  EXPECT_TRUE(other.ran);
  Program help;
  EXPECT_EQ(run(help, {"serve", "--help"}).code, 0);
}

TEST_F(ConfigTest, UnknownKeysGetASuggestion) {
  refused("\nprot = 1\n", ":2: unknown key \"prot\"; did you mean \"port\"?");
  refused("step_token = 1\n", ":1: unknown key \"step_token\"; did you mean \"step-tokens\"?");
  refused("zzzzzzzzzz = 1\n", ":1: unknown key \"zzzzzzzzzz\"");
  refused("[sever]\nport = 1\n", ":1: unknown table \"sever\"; did you mean \"server\"?");
  refused("[server.deep]\nport = 1\n", ":1: unknown key \"deep\"");
  refused("config = \"x\"\n", ":1: unknown key \"config\"");
  refused("help = true\n", ":1: unknown key \"help\"");
}

TEST_F(ConfigTest, WrongTypesAndValuesGetTheirLine) {
  refused("\n\nport = \"8000\"\n", ":3: \"port\" must be an integer, not a string");
  refused("port = 1.5\n", ":1: \"port\" must be an integer, not a number with a fraction");
  refused("host = 5\n", ":1: \"host\" must be a string, not an integer");
  refused("no_cache = 1\n", ":1: \"no_cache\" must be true or false, not an integer");
  refused("host = true\n", ":1: \"host\" must be a string, not true or false");
  refused("weight = nan\n", ":1: \"weight\" must be a number, not a number with a fraction");
  refused("port = [1, 2]\n", ":1: \"port\" must be an integer, not a list");
  refused("lora = [\"a=b\",\n 7]\n", ":2: \"lora\" must be a string or a list of strings, not an integer");
  refused("host = 2026-01-01\n", ":1: \"host\" must be a string, not a date or time");
  refused("[host]\n", ":1: \"host\" must be a string, not a table");
  const Outcome range = with_file("host = \"h\"\nport = 70000\n");
  EXPECT_EQ(range.code, 1);
  EXPECT_TRUE(range.err.starts_with("lorikeet: " + path_ + ":2: port: ") &&
              range.err.find("70000") != std::string::npos)
      << range.err;
  EXPECT_EQ(with_file("port = 99999999999999999999\n").code, 1);
  EXPECT_EQ(with_file("step_tokens = 9223372036854775807\n").code, 0);
}

TEST_F(ConfigTest, OneKeyOnce) {
  refused("step_tokens = 1\nstep-tokens = 2\n", ":2: \"step-tokens\" was already given at " + path_ + ":1");
  EXPECT_EQ(with_file("port = 1\n[server]\nport = 2\n").code, 1);
  EXPECT_EQ(with_file("port = 1\nport = 2\n").code, 1);
}

TEST_F(ConfigTest, BrokenFiles) {
  const Outcome syntax = with_file("port = 1\nhost = \"open\n");
  EXPECT_EQ(syntax.code, 1);
  EXPECT_TRUE(syntax.err.starts_with("lorikeet: " + path_ + ":2: ")) << syntax.err;
  EXPECT_EQ(std::count(syntax.err.begin(), syntax.err.end(), '\n'), 1) << syntax.err;
  EXPECT_EQ(with_file(std::string("port = \0", 8)).code, 1);
  EXPECT_EQ(with_file("host = " + std::string(100'000, '[')).code, 1);
  EXPECT_EQ(with_file("# " + std::string(2 << 20, 'x')).code, 1);
  EXPECT_EQ(with_file("").code, 0);
  for (const std::string& path : {dir_ + "/missing.toml", dir_, std::string("/dev/zero")}) {
    Program program;
    const Outcome outcome = run(program, {"serve", "--config", path});
    EXPECT_EQ(outcome.code, 1);
    EXPECT_NE(outcome.err.find(path), std::string::npos);
  }
}

TEST_F(ConfigTest, PrintedConfigurationReadsBackTheSame) {
  file("lora = [\"a=b\", \"c=\\\"d\\\\\"]\nno_cache = true\nweight = 0.25\nhost = \"\\u0001\"\n");
  Program first;
  const Outcome printed = run(first, {"serve", "--config", path_, "--port", "5", "--print-config"});
  EXPECT_EQ(printed.code, 0);
  EXPECT_FALSE(first.ran);
  for (const char* line :
       {"\nport = 5\n", "\nno-cache = true\n", "\nverbose = false\n", "\nweight = 0.25\n",
        "\nlora = [\"a=b\", \"c=\\\"d\\\\\"]\n", "\nstep-tokens = 512\n",
        "# model directory\n# of any kind\nmodel = \"none\"\n", "\n# target = \"\"\n", "# ---- Server ----"})
    EXPECT_NE(printed.out.find(line), std::string::npos) << line << "\n" << printed.out;
  file(printed.out);
  Program second;
  const Outcome again = run(second, {"serve", "--config", path_, "--print-config"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.out, printed.out);
}

TEST_F(ConfigTest, CheckConfigChecksEverythingAndRunsNothing) {
  Program good;
  const Outcome fine = run(good, {"serve", "--check-config"});
  EXPECT_EQ(fine.code, 0);
  EXPECT_EQ(fine.out, "configuration OK\n");
  EXPECT_FALSE(good.ran);
  Program bad;
  bad.checked = invalid_argument("the port is taken");
  const Outcome wrong = run(bad, {"serve", "--check-config"});
  EXPECT_EQ(wrong.code, 1);
  EXPECT_EQ(wrong.err, "lorikeet: the port is taken\n");
  Program missing(true);
  const Outcome required = run(missing, {"serve", "--check-config"});
  EXPECT_EQ(required.code, 1);
  EXPECT_EQ(required.err, "lorikeet: TARGET is required\n");
  file("target = \"t\"\n");
  Program given(true);
  EXPECT_EQ(run(given, {"serve", "--config", path_}).code, 0);
  EXPECT_TRUE(given.ran);
  Program unknown;
  EXPECT_EQ(run(unknown, {"serve", "--nonsense"}).code, 2);
}

TEST_F(ConfigTest, HelpShowsTheVariablesAndHidesTheHook) {
  Program program;
  const Outcome outcome = run(program, {"serve", "--help"});
  EXPECT_NE(outcome.out.find("LORIKEET_STEP_TOKENS"), std::string::npos);
  Program root;
  EXPECT_EQ(run(root, {"--help"}).out.find("hook"), std::string::npos);
}

TEST_F(ConfigTest, WorksOnAProgramWithoutCommands) {
  CLI::App app{"single"};
  int port = 1;
  app.add_option("--port", port);
  add_config_options(app);
  file("port = 8\n");
  app.parse("--config " + path_);
  EXPECT_EQ(port, 8);
}

}  // namespace
}  // namespace lk::apps
