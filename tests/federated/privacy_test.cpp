// SPDX-License-Identifier: Apache-2.0
// Differential privacy: what it costs, against a published accountant; noise against its distribution; that no update
// moves a sum by more than the bound; and that what was released is known whatever happens.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "federated/demo_federation.h"
#include "lk/base/file.h"
#include "lk/base/rng.h"
#include "lk/federated/discrete_gaussian.h"
#include "lk/federated/ledger_file.h"
#include "lk/federated/privacy_accounting.h"
#include "lk/federated/private_sum.h"
#include "lk/federated/run_directory.h"
#include "lk/lora/adapter_files.h"

namespace lk {
namespace {
namespace json = boost::json;
using ::testing::HasSubstr;
using R = FederatedRule;
using testing::demo_base;

// --- What it costs

TEST(PrivacyAccounting, AgreesWithAPublishedAccountant) {
  const json::value cases = json::parse(read_file("tests/federated/fixtures/privacy.json").value());
  ASSERT_EQ(cases.as_array().size(), 20u);
  for (const json::value& value : cases.as_array()) {
    const json::object& each = value.as_object();
    const auto number = [&](const char* key) { return each.at(key).to_number<double>(); };
    const double noise = number("noise"), rate = number("rate"), delta = number("delta");
    const int64_t releases = each.at("releases").as_int64();
    const std::string what = json::serialize(each);
    if (rate == 1) {
      // The same bound at the best of all orders instead of the best of a list.
      const double ours = epsilon_of_gaussians(noise, releases, delta);
      EXPECT_LE(ours, number("rdp") * (1 + 1e-9)) << what;
      EXPECT_GE(ours, number("rdp") * 0.99) << what;
      EXPECT_GE(ours, number("pld")) << what;
      EXPECT_EQ(epsilon_of_sampled_gaussians(noise, 1, releases, delta), ours);
    } else {
      const double ours = epsilon_of_sampled_gaussians(noise, rate, releases, delta);
      EXPECT_NEAR(ours, number("rdp"), 1e-9 * number("rdp")) << what;
      EXPECT_GE(ours, number("pld")) << what;
      EXPECT_LE(ours, epsilon_of_gaussians(noise, releases, delta)) << what;
    }
  }
}

TEST(PrivacyAccounting, GrowsWithReleasesAndFallsWithNoise) {
  EXPECT_EQ(epsilon_of_gaussians(1, 0, 1e-5), 0);
  EXPECT_EQ(epsilon_of_sampled_gaussians(1, 0.1, 0, 1e-5), 0);
  double last = 0;
  for (const int64_t releases : {1, 2, 10, 1000}) {
    const double epsilon = epsilon_of_sampled_gaussians(1, 0.1, releases, 1e-5);
    EXPECT_GT(epsilon, last);
    EXPECT_GT(epsilon, epsilon_of_sampled_gaussians(1.1, 0.1, releases, 1e-5));
    EXPECT_LT(epsilon, epsilon_of_sampled_gaussians(1, 0.11, releases, 1e-5));
    last = epsilon;
  }
}

// --- Noise

// Pearson's statistic of many draws of one key: always the same number.
TEST(DiscreteGaussian, HasItsDistribution) {
  for (const int64_t sigma : {1, 2, 5}) {
    KeyStream random({static_cast<uint8_t>(sigma)});
    std::map<int64_t, int64_t> counts;
    constexpr int64_t kDraws = 200'000;
    for (int64_t draw = 0; draw < kDraws; ++draw) ++counts[draw_discrete_gaussian(random, sigma)];
    const auto weight = [&](int64_t x) {
      return std::exp(-static_cast<double>(x * x) / (2.0 * static_cast<double>(sigma * sigma)));
    };
    double all = 0, statistic = 0;
    int cells = 0;
    for (int64_t x = -20 * sigma; x <= 20 * sigma; ++x) all += weight(x);
    for (int64_t x = -3 * sigma; x <= 3 * sigma; ++x, ++cells) {
      const double expected = kDraws * weight(x) / all;
      statistic += std::pow(static_cast<double>(counts[x]) - expected, 2) / expected;
    }
    EXPECT_LT(statistic, cells + 4 * std::sqrt(2.0 * cells)) << sigma;
  }
}

TEST(DiscreteGaussian, IsAsWideAsItSays) {
  constexpr int64_t kSigma = int64_t{1} << 26;
  KeyStream random({7});
  double sum = 0, squares = 0, fourth = 0;
  constexpr int kDraws = 50'000;
  for (int draw = 0; draw < kDraws; ++draw) {
    const double x = static_cast<double>(draw_discrete_gaussian(random, kSigma)) / static_cast<double>(kSigma);
    sum += x, squares += x * x, fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.02);
  EXPECT_NEAR(squares / kDraws, 1, 0.03);
  EXPECT_NEAR(fourth / kDraws, 3, 0.2);
}

// --- Sums

const std::map<std::string, int64_t> kSizes{{"a", 300}, {"b", 500}};
NamedValues values_of_length(double length, uint64_t seed) {
  Rng rng(seed);
  NamedValues values;
  double squares = 0;
  for (const auto& [name, size] : kSizes)
    for (int64_t i = 0; i < size; ++i) {
      values[name].push_back(static_cast<float>(rng.normal()));
      squares += std::pow(static_cast<double>(values[name].back()), 2);
    }
  for (auto& [name, each] : values)
    for (float& v : each) v = static_cast<float>(v * length / std::sqrt(squares));
  return values;
}
double distance(const NamedValues& x, const NamedValues& y) {
  double squares = 0;
  for (const auto& [name, values] : x)
    for (size_t i = 0; i < values.size(); ++i)
      squares += std::pow(static_cast<double>(values[i]) - static_cast<double>(y.at(name)[i]), 2);
  return std::sqrt(squares);
}

TEST(PrivateSum, NobodyMovesItByMoreThanTheBound) {
  const SecretKey key{3};
  for (const double noise : {0.05, 1.0, 30.0, 1000.0})
    for (const double length : {1e-6, 0.4, 0.5, 0.5000001, 3.0, 1e6, 1e30}) {
      PrivateSum without(0.5, noise, kSizes), with(0.5, noise, kSizes);
      for (PrivateSum* sum : {&without, &with}) sum->add(values_of_length(0.2, 1));
      with.add(values_of_length(length, 2));
      // The same key, so that the noise falls out. Divided by 1: f32 values near the noise's size have that many
      // digits.
      const double moved = distance(with.release(key, 1), without.release(key, 1));
      EXPECT_LE(moved, std::min(length, 0.5) * (1 + 1e-5) + 1e-5 * noise) << length << " " << noise;
      if (length > 0.1 && noise < 100) {
        EXPECT_GE(moved, std::min(length, 0.5) * 0.99 - 1e-4 * noise) << length << " " << noise;
      }
    }
}

TEST(PrivateSum, TheMeanIsOverAFixedNumberAndTheNoiseIsAsWideAsItSays) {
  PrivateSum sum(2, 0.5, kSizes), nobody(2, 0.5, kSizes);
  sum.add(values_of_length(1, 1));
  sum.add(values_of_length(1.5, 2));
  const NamedValues noise = nobody.release({9}, 4), mean = sum.release({9}, 4);
  NamedValues zero;
  for (const auto& [name, size] : kSizes) zero[name].resize(static_cast<size_t>(size));
  const double width = 2 * 0.5 / 4 * std::sqrt(800.0);
  EXPECT_NEAR(distance(noise, zero), width, 0.1 * width);  // four times what the length of 800 values varies by
  NamedValues want = values_of_length(1, 1);
  for (auto& [name, values] : want)
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = (values[i] + values_of_length(1.5, 2).at(name)[i]) / 4 + noise.at(name)[i];
  EXPECT_LT(distance(mean, want), 1e-5);
}

TEST(PrivateSum, TheOrderOfClientsIsNotInItsBits) {
  PrivateSum one(0.5, 1, kSizes), other(0.5, 1, kSizes);
  for (const uint64_t seed : {1, 2, 3}) one.add(values_of_length(2, seed));
  for (const uint64_t seed : {3, 1, 2}) other.add(values_of_length(2, seed));
  EXPECT_EQ(one.digest(), other.digest());
  other.add(values_of_length(1e-3, 4));
  EXPECT_NE(one.digest(), other.digest());
}

// --- Runs

class PrivateRun : public ::testing::Test {
 protected:
  FederatedConfig config(R rule = R::kFedAvg) {
    FederatedConfig run;
    run.base = testing::kDemoModel;
    run.dtype = TrainDtype::kF32;
    run.seed = 3;
    run.rounds = 3;
    run.adapter.rank = 2;
    run.adapter.alpha = 4;
    run.adapter.target_modules = {"q_proj"};
    run.adapter.layers_to_transform = {0};
    for (int client = 0; client < 6; ++client) run.clients.push_back({fmt::format("c{}", client), ""});
    run.per_round = 3;
    run.train.steps = 2;
    run.rule.name = rule;
    run.rule.density = 0.05;
    run.privacy = {.clip = 0.5, .noise = 1};
    return run;
  }
  const ModelConfig& model() { return demo_base().weights->config; }

  struct Opened {
    std::unique_ptr<FederatedServer> server;
    std::unique_ptr<RunDirectory> files;
    std::vector<std::string> notes;
    Status status;
  };
  Opened open(const FederatedConfig& config, const std::string& name, NoiseSource source = NoiseSource::kSecret,
              RunDirectory::Fault fault = {}) {
    Opened run;
    run.server = FederatedServer::create(config, model(), *demo_base().weights->checkpoint).value();
    run.files = std::make_unique<RunDirectory>(config, dir_.file(name), std::move(fault), source);
    auto notes = run.files->open(*run.server, model(), testing::kDemoModel, {});
    run.status = notes.status();
    if (notes.ok()) run.notes = *notes;
    return run;
  }
  std::vector<ClientUpdate> updates_of(FederatedServer& server, double size = 0.1) {
    return testing::made_up_updates(server, size);
  }
  // Until the run is over, or a failure.
  Status go_on(Opened& run) {
    LK_RETURN_IF_ERROR(run.status);
    while (!run.server->done()) {
      LK_ASSIGN_OR_RETURN(const RoundReport report, run.server->close(updates_of(*run.server)));
      run.server->add_history(fmt::format("{{\"round\":{},\"epsilon\":{}}}", report.round, *report.epsilon));
      LK_ASSIGN_OR_RETURN(run.notes, run.files->save(*run.server, model()));
    }
    return Status();
  }
  std::string newest(const std::string& name, const char* file) {
    return read_file(join_path(join_path(dir_.file(name), "latest"), file)).value();
  }
  testing::TempDir dir_;
};

TEST_F(PrivateRun, ReleasesAreInTheLedgerWithWhatTheyCost) {
  for (const R rule : {R::kFedAvg, R::kFfa, R::kRoLora, R::kSlora}) {
    const std::string name = to_string(rule);
    Opened run = open(config(rule), name);
    ASSERT_TRUE(run.status.ok()) << run.status.message();
    EXPECT_THAT(run.notes, ::testing::Contains(HasSubstr("3 rounds will come to epsilon")));
    ASSERT_TRUE(go_on(run).ok());
    const PrivacySpent spent = read_privacy_spent(dir_.file(name)).value();
    EXPECT_EQ(spent.releases, 3);
    EXPECT_FALSE(spent.simulated);
    int64_t all = 0;
    for (const auto& [client, count] : spent.of_client) all += count;
    EXPECT_EQ(all, 9);
    EXPECT_EQ(epsilon_of(config(rule), spent), epsilon_of_gaussians(1, spent.most(), 1e-5));
    EXPECT_THAT(privacy_text(config(rule), spent), HasSubstr("after 3 releases"));
    EXPECT_FALSE(file_exists(join_path(dir_.file(name), "noise.key"))) << "erased with its round";
    // What was published is what the state says: nothing but noise and the bounded updates was added to the start.
    EXPECT_TRUE(load_adapter("a", join_path(dir_.file(name), "latest"), model(), nullptr).ok());
  }
}

// Noise of two equal runs differs; that of a simulation does not, and says so.
TEST_F(PrivateRun, NoiseIsSecretUnlessItIsSimulated) {
  for (const char* name : {"one", "other"}) {
    Opened run = open(config(), name);
    ASSERT_TRUE(go_on(run).ok());
  }
  EXPECT_NE(newest("one", kAdapterWeightsFile), newest("other", kAdapterWeightsFile));
  for (const char* name : {"sim1", "sim2"}) {
    Opened run = open(config(), name, NoiseSource::kSimulated);
    EXPECT_THAT(run.notes, ::testing::Contains(HasSubstr("protects nobody")));
    ASSERT_TRUE(go_on(run).ok());
  }
  EXPECT_EQ(newest("sim1", kAdapterWeightsFile), newest("sim2", kAdapterWeightsFile));
  EXPECT_TRUE(read_privacy_spent(dir_.file("sim1"))->simulated);
  EXPECT_THAT(privacy_text(config(), *read_privacy_spent(dir_.file("sim1"))), HasSubstr("protects nobody"));
}

TEST_F(PrivateRun, WithoutALedgerNothingIsReleased) {
  const auto server = FederatedServer::create(config(), model(), *demo_base().weights->checkpoint).value();
  EXPECT_EQ(server->close(updates_of(*server)).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(server->round(), 1);
}

// Wherever it fails, the round is done again with the same noise, and counted once.
TEST_F(PrivateRun, ARoundThatIsDoneAgainHasTheSameNoiseAndIsOneRelease) {
  std::vector<std::string> operations;
  {
    Opened whole = open(config(), "names", NoiseSource::kSecret, [&](std::string_view operation) {
      operations.emplace_back(operation);
      return Status();
    });
    ASSERT_TRUE(go_on(whole).ok());
  }
  for (const char* name :
       {"write noise key", "ledger release", "write state.safetensors", "rename", "link latest", "erase noise key"})
    EXPECT_THAT(operations, ::testing::Contains(name));
  for (size_t at = 0; at < operations.size(); ++at) {
    size_t count = 0;
    {
      Opened run = open(config(), "cut", NoiseSource::kSecret, [&](std::string_view) {
        return count++ == at ? io_error("No space left on device") : Status();
      });
      // Removing an old checkpoint may fail.
      if (go_on(run).ok()) {
        EXPECT_EQ(operations[at], "remove");
      }
    }
    // Twice from where it stopped: with the key of the round in work, if there is one.
    const std::string key = join_path(dir_.file("cut"), "noise.key");
    int64_t keyed = 0;
    if (file_exists(key)) {
      keyed = json::parse(read_file(key).value()).at("round").as_int64();
      struct stat info {};
      ASSERT_EQ(::stat(key.c_str(), &info), 0);
      EXPECT_EQ(info.st_mode & 0777, 0600u);
    }
    int64_t in_work = 0;
    std::filesystem::copy(dir_.file("cut"), dir_.file("again"),
                          std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
    for (const char* name : {"cut", "again"}) {
      FederatedConfig run_config = config();
      Opened run = open(run_config, name);
      ASSERT_TRUE(run.status.ok()) << operations[at] << ": " << run.status.message();
      in_work = run.server->round();
      if (!run.server->done()) {
        ASSERT_TRUE(run.server->close(updates_of(*run.server)).ok());
        ASSERT_TRUE(run.files->save(*run.server, model()).ok());
      }
      if (in_work <= 3) {
        EXPECT_EQ(run.server->round(), in_work + 1);
      }
    }
    if (keyed == in_work) {
      EXPECT_EQ(newest("cut", kAdapterWeightsFile), newest("again", kAdapterWeightsFile)) << operations[at];
    }
    Opened rest = open(config(), "cut");
    ASSERT_TRUE(go_on(rest).ok());
    EXPECT_EQ(read_privacy_spent(dir_.file("cut"))->releases, 3) << operations[at];
    for (const char* name : {"cut", "again"}) std::filesystem::remove_all(dir_.file(name));
  }
}

// Other updates in the round that is done again: their sum gets noise of its own, and both count.
TEST_F(PrivateRun, OtherUpdatesAreAnotherRelease) {
  Opened run = open(config(), "run");
  ASSERT_TRUE(run.server->close(updates_of(*run.server)).ok());  // and then it is killed
  run = {};
  run = open(config(), "run");
  ASSERT_EQ(run.server->round(), 1);
  std::vector<ClientUpdate> others = updates_of(*run.server);
  others[0].tensors.begin()->second[0] += 0.1f;
  ASSERT_TRUE(run.server->close(others).ok());
  ASSERT_TRUE(run.files->save(*run.server, model()).ok());
  const PrivacySpent spent = read_privacy_spent(dir_.file("run")).value();
  EXPECT_EQ(spent.releases, 2);
  EXPECT_EQ(spent.most(), 2);
}

TEST_F(PrivateRun, ARunEndsBeforeItsBudgetIsPassed) {
  FederatedConfig run_config = config();
  run_config.rounds = 50;
  run_config.per_round = 6;
  run_config.privacy.max_epsilon = epsilon_of_gaussians(1, 4, 1e-5) + 0.01;
  Opened run = open(run_config, "run");
  ASSERT_TRUE(go_on(run).ok());
  EXPECT_EQ(run.server->state().round, 4);
  EXPECT_TRUE(run.server->exhausted());
  EXPECT_THAT(run.notes, ::testing::Contains(HasSubstr("ends after round 4 of 50")));
  EXPECT_LE(epsilon_of(run_config, read_privacy_spent(dir_.file("run")).value()), run_config.privacy.max_epsilon);
  run = {};
  run = open(run_config, "run");
  EXPECT_TRUE(run.server->done());
  run_config.privacy.max_epsilon = 1;
  EXPECT_THAT(open(run_config, "none").status.message(), HasSubstr("one round costs"));
}

// Killed with the last release in the ledger: that one is paid, and is published.
TEST_F(PrivateRun, TheLastReleaseOfTheBudgetIsNotLostToAKill) {
  FederatedConfig run_config = config();
  run_config.per_round = 6;
  run_config.privacy.max_epsilon = epsilon_of_gaussians(1, 1, 1e-5) + 0.01;
  {
    Opened run = open(run_config, "run");
    ASSERT_TRUE(run.server->close(updates_of(*run.server)).ok());
  }
  Opened run = open(run_config, "run");
  ASSERT_TRUE(go_on(run).ok());
  EXPECT_EQ(run.server->state().round, 1);
  EXPECT_EQ(read_privacy_spent(dir_.file("run"))->releases, 1);
}

TEST_F(PrivateRun, ALedgerThatLacksRoundsIsRefused) {
  {
    Opened run = open(config(), "run");
    ASSERT_TRUE(go_on(run).ok());
  }
  const std::string ledger = join_path(dir_.file("run"), kLedgerFile);
  const std::string text = read_file(ledger).value();
  // A line that a crash cut off is no release, and the next one is not lost to it.
  dir_.write("run/ledger.jsonl", text + "{\"event\":\"rel");
  ASSERT_TRUE(append_to_ledger(ledger, {{"event", "x"}}).ok());
  EXPECT_THAT(read_file(ledger).value(), HasSubstr("rel\n{\"event\":\"x\"}\n"));
  EXPECT_EQ(read_privacy_spent(dir_.file("run"))->releases, 3);
  std::filesystem::remove(ledger);
  const Opened run = open(config(), "run");
  EXPECT_EQ(run.status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(run.status.message(), HasSubstr("what was spent is not known"));
}

// --- Poisson sampling

TEST_F(PrivateRun, PoissonSamplesAreSecretTheSameAgainAndMayBeEmpty) {
  FederatedConfig run_config = config();
  run_config.rounds = 400;
  run_config.per_round = 1;
  run_config.quorum = run_config.retries = 0;
  run_config.privacy.sampling = PrivacySampling::kPoisson;
  const std::vector<std::string> all = testing::names_of(run_config);
  const auto samples = [&](const std::string& name, NoiseSource source) {
    const Opened run = open(run_config, name, source);
    EXPECT_TRUE(run.status.ok()) << run.status.message();
    std::vector<std::vector<std::string>> drawn;
    for (int64_t round = 1; round <= 400; ++round) drawn.push_back(run.server->sample_of(round, all, 0));
    return drawn;
  };
  const auto one = samples("one", NoiseSource::kSecret);
  EXPECT_EQ(samples("one", NoiseSource::kSecret), one) << "after a restart, the same clients";
  EXPECT_NE(samples("other", NoiseSource::kSecret), one);
  const auto simulated = samples("sim", NoiseSource::kSimulated);
  EXPECT_EQ(samples("sim2", NoiseSource::kSimulated), simulated);
  std::map<std::string, int> counts;
  int empty = 0, more = 0;
  for (const auto& sample : simulated) {
    for (const std::string& client : sample) ++counts[client];
    empty += sample.empty(), more += sample.size() > 1;
  }
  for (const std::string& client : all) EXPECT_NEAR(counts[client], 400.0 / 6, 30) << client;
  EXPECT_NEAR(empty, 400 * std::pow(5.0 / 6, 6), 45);
  EXPECT_GT(more, 50);

  // A round of nobody is a release like any other: who sees it must not know.
  Opened run = open(run_config, "one");
  const auto report = run.server->close({});
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_NEAR(*report->epsilon, epsilon_of_sampled_gaussians(1, 1.0 / 6, 1, 1e-5), 1e-12);
  ASSERT_TRUE(run.files->save(*run.server, model()).ok());
  // Without the draw's key the run cannot go on as it was.
  run = {};
  std::filesystem::remove(join_path(dir_.file("one"), "sampling.key"));
  EXPECT_THAT(open(run_config, "one").status.message(), HasSubstr("sampling.key"));
}

}  // namespace
}  // namespace lk
