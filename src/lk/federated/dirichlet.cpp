// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/dirichlet.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/variates.h"

namespace lk {
namespace {

constexpr int kMaxDraws = 1000;

Result<std::vector<std::string>> read_lines(const std::string& path) {
  LK_ASSIGN_OR_RETURN(const std::string text, read_file(path, size_t{4} << 30));
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(std::move(line));
    begin = end + 1;
  }
  if (lines.empty()) return invalid_argument("{} has no records", path);
  return lines;
}

template <class T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (size_t n = items.size(); n > 1; --n) std::swap(items[n - 1], items[rng.below(n)]);
}

// How many of `total` each client gets: shares of Dirichlet(alpha), rounded so that they add up.
std::vector<int64_t> deal(int64_t total, const DirichletOptions& options, Rng& rng) {
  std::vector<double> shares(static_cast<size_t>(options.num_clients), 1.0);
  if (std::isfinite(options.alpha))
    for (double& share : shares) share = sample_gamma(rng, options.alpha);
  double sum = 0;
  for (const double share : shares) sum += share;
  std::vector<int64_t> counts;
  double reached = 0;
  int64_t given = 0;
  for (const double share : shares) {
    reached += sum > 0 ? share / sum : 1.0 / static_cast<double>(shares.size());
    const int64_t until = std::min<int64_t>(total, std::llround(reached * static_cast<double>(total)));
    counts.push_back(until - given);
    given = until;
  }
  counts.back() += total - given;
  return counts;
}

}  // namespace

std::string client_file(size_t client, size_t num_clients) {
  const size_t digits = std::max<size_t>(2, std::to_string(num_clients - 1).size());
  return fmt::format("client-{:0{}}.jsonl", client, digits);
}

Result<DirichletSplit> split_by_dirichlet(const std::vector<std::string>& files, const DirichletOptions& options) {
  if (!(options.alpha > 0)) return invalid_argument("--alpha is {}; it must be above 0", options.alpha);
  if (options.min_examples < 0) return invalid_argument("--min-examples is {}", options.min_examples);
  std::vector<std::vector<std::string>> classes;
  int64_t total = 0;
  for (const std::string& file : files) {
    LK_ASSIGN_OR_RETURN(classes.emplace_back(), read_lines(file));
    total += std::ssize(classes.back());
  }
  if (total / options.num_clients < options.min_examples)
    return invalid_argument("{} records are too few for {} clients of {} each", total, options.num_clients,
                            options.min_examples);
  Rng rng(options.seed);
  for (auto& lines : classes) shuffle(lines, rng);
  const auto num_clients = static_cast<size_t>(options.num_clients);
  for (int draw = 0; draw < kMaxDraws; ++draw) {
    DirichletSplit split;
    split.counts.resize(num_clients);
    std::vector<int64_t> sizes(num_clients);
    for (const auto& lines : classes) {
      const std::vector<int64_t> counts = deal(std::ssize(lines), options, rng);
      for (size_t client = 0; client < num_clients; ++client) {
        split.counts[client].push_back(counts[client]);
        sizes[client] += counts[client];
      }
    }
    if (std::ranges::any_of(sizes, [&](int64_t size) { return size < options.min_examples; })) continue;
    split.clients.resize(num_clients);
    for (size_t c = 0; c < classes.size(); ++c) {
      size_t next = 0;
      for (size_t client = 0; client < num_clients; ++client)
        for (int64_t n = 0; n < split.counts[client][c]; ++n)
          split.clients[client].push_back(std::move(classes[c][next++]));
    }
    for (auto& lines : split.clients) shuffle(lines, rng);
    return split;
  }
  return invalid_argument(
      "no draw of {} gave every one of {} clients {} records: raise --alpha or lower --min-examples", kMaxDraws,
      options.num_clients, options.min_examples);
}

Status write_split(const DirichletSplit& split, const std::string& directory) {
  LK_RETURN_IF_ERROR(make_directories(directory));
  if (file_exists(join_path(directory, client_file(0, split.clients.size()))))
    return already_exists("{} holds clients already; name another directory", directory);
  for (size_t client = 0; client < split.clients.size(); ++client) {
    std::string text;
    for (const std::string& line : split.clients[client]) text += line + "\n";
    LK_RETURN_IF_ERROR(write_file_atomic(join_path(directory, client_file(client, split.clients.size())), text));
  }
  return Status();
}

}  // namespace lk
