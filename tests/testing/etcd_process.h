// SPDX-License-Identifier: Apache-2.0
// Etcd: members of a real etcd on this machine, to be stopped, killed and started again. Tests that need it skip where
// it is not installed: if (!Etcd::is_installed()) GTEST_SKIP().
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "lk/registry/etcd_client.h"
#include "testing/held_port.h"
#include "testing/temp_dir.h"

namespace lk::testing {

class Etcd {
 public:
  static std::string program() {
    for (const char* path : {"/usr/bin/etcd", "/usr/local/bin/etcd"})
      if (std::filesystem::exists(path)) return path;
    return "";
  }
  static bool is_installed() { return !program().empty(); }

  explicit Etcd(int members = 1) {
    for (int i = 0; i < 2 * members; ++i) {
      ports_.emplace_back();
      (i < members ? clients_ : peers_).push_back(ports_.back().number());
    }
    processes_.resize(static_cast<size_t>(members), -1);
    for (int i = 0; i < members; ++i) start(i);
  }
  ~Etcd() {
    for (int i = 0; i < static_cast<int>(processes_.size()); ++i) kill(i);
  }

  void start(int member) {
    const auto at = static_cast<size_t>(member);
    std::string cluster;
    for (size_t i = 0; i < peers_.size(); ++i)
      cluster += fmt::format("{}m{}=http://127.0.0.1:{}", i ? "," : "", i, peers_[i]);
    const std::string client = url(member), peer = fmt::format("http://127.0.0.1:{}", peers_[at]);
    const std::vector<std::string> words{program(),
                                         "--name",
                                         fmt::format("m{}", member),
                                         "--data-dir",
                                         data(member),
                                         "--listen-client-urls",
                                         client,
                                         "--advertise-client-urls",
                                         client,
                                         "--listen-peer-urls",
                                         peer,
                                         "--initial-advertise-peer-urls",
                                         peer,
                                         "--initial-cluster",
                                         cluster,
                                         "--log-level",
                                         "error"};
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    const std::string log = directory_.file(fmt::format("m{}.log", member));
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(out, 1);
      ::dup2(out, 2);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    processes_[at] = child;
  }
  void kill(int member) {
    pid_t& process = processes_[static_cast<size_t>(member)];
    if (process <= 0) return;
    ::kill(process, SIGKILL);
    ::waitpid(process, nullptr, 0);
    process = -1;
  }
  void signal(int member, int number) { ::kill(processes_[static_cast<size_t>(member)], number); }
  void forget(int member) { std::filesystem::remove_all(data(member)); }  // of one that is killed: its data

  std::string url(int member) const {
    return fmt::format("http://127.0.0.1:{}", clients_[static_cast<size_t>(member)]);
  }
  std::string registry(const std::string& fleet) const {
    std::string hosts;
    for (const int port : clients_) hosts += fmt::format("{}127.0.0.1:{}", hosts.empty() ? "" : ",", port);
    return fmt::format("etcd://{}/{}", hosts, fleet);
  }
  std::unique_ptr<EtcdClient> client() const {
    EtcdClient::Options options;
    for (int i = 0; i < static_cast<int>(clients_.size()); ++i) options.endpoints.push_back(url(i));
    return EtcdClient::create(options).value();
  }

 private:
  std::string data(int member) const { return directory_.file(fmt::format("m{}", member)); }
  TempDir directory_;
  std::vector<HeldPort> ports_;
  std::vector<int> clients_, peers_;
  std::vector<pid_t> processes_;
};

}  // namespace lk::testing
