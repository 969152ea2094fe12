// SPDX-License-Identifier: Apache-2.0
// The experiments of VTC (arXiv:2401.00588 §5 and its artifact), S-LoRA (arXiv:2311.03285 §7) and dLoRA (OSDI'24,
// figure 10) by name.
#include <array>

#include "lk/sim/spec.h"

namespace lk::sim {
namespace {

using Kind = Phase::Kind;

Phase constant(double rate, double end_s, double begin_s = 0) {
  return {.kind = Kind::kConstant, .begin_s = begin_s, .end_s = end_s, .rate = rate};
}
Phase poisson(double rate, double end_s) { return {.kind = Kind::kGamma, .end_s = end_s, .rate = rate, .cv = 1}; }
Phase on_off(double rate, double end_s) {
  return {.kind = Kind::kOnOff, .end_s = end_s, .rate = rate, .on_s = 60, .off_s = 60};
}
Phase ramp(double from, double to, double end_s) {
  return {.kind = Kind::kRamp, .end_s = end_s, .rate = from, .end_rate = to};
}

struct Client {
  std::vector<Phase> phases;
  int32_t input = 256, output = 256;
  double weight = 1;
};

// Clients c0, c1, ... on the machine of VTC's synthetic runs: Llama-2-7B, A10G, a pool of 10,000 tokens.
std::function<void(SimSpec&)> clients(std::vector<Client> all, const char* model = "a10g-7b",
                                      double pool_tokens = 10'000) {
  return [all = std::move(all), model, pool_tokens](SimSpec& spec) {
    spec.model = model;
    spec.pool_tokens = pool_tokens;
    spec.adapters = static_cast<int64_t>(all.size());
    spec.streams.clear();
    spec.stream_tenants.clear();
    for (size_t i = 0; i < all.size(); ++i) {
      spec.stream_tenants.push_back({fmt::format("c{}", i), all[i].weight});
      spec.streams.push_back({.tenant = static_cast<int32_t>(i),
                              .phases = all[i].phases,
                              .input = LengthDist::fixed(all[i].input),
                              .output = LengthDist::fixed(all[i].output)});
    }
  };
}

std::function<void(SimSpec&)> constant_clients(const std::vector<double>& rates, double end_s) {
  std::vector<Client> all;
  for (const double rate : rates) all.push_back({{constant(rate, end_s)}});
  return clients(std::move(all));
}

// Two overloaded clients on the 13B machine, input + output of `length` each.
std::function<void(SimSpec&)> ablation(double rate, int32_t length, double pool_tokens) {
  return clients({{{constant(rate, 600)}, length, length}, {{constant(2 * rate, 600)}, length, length}}, "a100-80-13b",
                 pool_tokens);
}

std::vector<Client> shifting_clients() {
  Phase first = on_off(0.5, 300);
  return {{{first, constant(1, 600, 300), constant(0.5, 900, 600)}},
          {{constant(2, 300), constant(1, 600, 300), constant(1.5, 900, 600)}}};
}

std::vector<Client> weighted_clients() {
  std::vector<Client> all;
  constexpr std::array kRates{0.4, 0.8, 1.2, 1.6};
  for (size_t i = 0; i < kRates.size(); ++i)
    all.push_back({.phases = {constant(kRates[i], 600)}, .weight = static_cast<double>(i + 1)});
  return all;
}

// The shape of VTC's Chatbot Arena run: 27 clients, 1,500 requests in 10 min; request counts with the published head
// (296, 262, 199, 120), median (26) and total; log-normal lengths with the published means and limits. The trace itself
// is not public.
void arena_like(SimSpec& spec) {
  constexpr std::array kCounts{296, 262, 199, 120, 100, 80, 65, 55, 47, 40, 35, 31, 28, 26,
                               22,  19,  16,  14,  12,  10, 8,  6,  4,  2,  1,  1,  1};
  clients({})(spec);
  spec.adapters = static_cast<int64_t>(kCounts.size());
  for (size_t i = 0; i < kCounts.size(); ++i) {
    spec.stream_tenants.push_back({fmt::format("c{}", i)});
    spec.streams.push_back({.tenant = static_cast<int32_t>(i),
                            .phases = {poisson(kCounts[i] / 600.0, 600)},
                            .input = LengthDist::lognormal(66, 1.2, 1021),
                            .output = LengthDist::lognormal(178, 0.9, 977)});
  }
}

// One Gamma process over many adapters, 8 to 511 tokens in and out.
std::function<void(SimSpec&)> slora(const char* model, std::vector<int64_t> ranks, int64_t adapters, double rate,
                                    double duration_s) {
  return [=, ranks = std::move(ranks)](SimSpec& spec) {
    spec.model = model;
    spec.ranks = ranks;
    spec.adapters = adapters;
    spec.rate = rate;
    spec.duration_s = duration_s;
  };
}

// The shape of dLoRA's ablation of its modes: one machine, 8 adapters, more than it serves. The share of the hottest
// adapter is swept by the exponent of --popularity zipf:S (0.13, 0.37, 0.65, 0.83 for S = 0, 1, 2, 3).
std::function<void(SimSpec&)> merge_modes(int64_t rank, int32_t input, int32_t output, double rate) {
  return [=](SimSpec& spec) {
    spec.model = "a100-80-7b";
    spec.ranks = {rank};
    spec.adapters = 8;
    spec.popularity = Popularity::zipf(2);
    spec.rate = rate;
    spec.duration_s = 120;
    spec.input = LengthDist::uniform(input / 2, input + input / 2);
    spec.output = LengthDist::uniform(std::max(1, output / 2), output + output / 2);
    spec.merging = Merging::kCost;
  };
}

std::vector<Suite> make_suites() {
  const std::vector<int64_t> s1{8}, s2{64, 32, 16, 8}, s4{64, 32, 16};
  return {
      {"vtc-overload", "two clients, 1.5 and 3 requests/s, both above their share (VTC fig. 3)",
       constant_clients({1.5, 3}, 360)},
      {"vtc-proportional", "0.25, 0.5 and 1.5 requests/s: two below their share (VTC fig. 4)",
       constant_clients({0.25, 0.5, 1.5}, 600)},
      {"vtc-on-off-less", "0.5 requests/s on and off below its share, 2 steadily (VTC fig. 5)",
       clients({{{on_off(0.5, 600)}}, {{constant(2, 600)}}})},
      {"vtc-on-off-overload", "2 requests/s on and off, 3 steadily (VTC fig. 6)",
       clients({{{on_off(2, 600)}}, {{constant(3, 600)}}})},
      {"vtc-short-long", "Poisson, 8/s of 64 + 64 tokens and 1.5/s of 256 + 256 (VTC fig. 7)",
       clients({{{poisson(8, 600)}, 64, 64}, {{poisson(1.5, 600)}, 256, 256}})},
      {"vtc-prefill-decode", "Poisson, 8/s of 512 + 32 tokens and 1.5/s of 32 + 512 (VTC fig. 8)",
       clients({{{poisson(8, 600)}, 512, 32}, {{poisson(1.5, 600)}, 32, 512}})},
      {"vtc-increase", "0.5 requests/s steadily, a second client from 0.2 to 2 (VTC fig. 9)",
       clients({{{constant(0.5, 600)}}, {{ramp(0.2, 2, 600)}}})},
      {"vtc-shift", "three loads of 300 s: 0.5 on/off and 2; 1 and 1; 0.5 and 1.5 (VTC fig. 10)",
       clients(shifting_clients())},
      {"vtc-overload-multi", "eight clients, 3 at 0.4 and 5 at 0.6 requests/s",
       constant_clients({0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6}, 600)},
      {"vtc-overload-weighted", "four clients at 0.4 to 1.6 requests/s, weights 1:2:3:4", clients(weighted_clients())},
      {"vtc-13b-256", "two overloaded clients of 256 + 256 tokens, 13B, pool of 35,000 (VTC fig. 15)",
       ablation(3, 256, 35'000)},
      {"vtc-13b-512", "likewise 512 + 512", ablation(1.5, 512, 35'000)},
      {"vtc-13b-768", "likewise 768 + 768", ablation(1, 768, 35'000)},
      {"vtc-13b-pool-65k", "likewise 512 + 512, pool of 65,000", ablation(2, 512, 65'000)},
      {"vtc-arena-like", "27 clients with the published shape of the Chatbot Arena run", arena_like},
      {"slora-s1-a10g", "S-LoRA S1: 7B, rank 8, A10G, 200 adapters, 2 requests/s (fig. 5)",
       slora("a10g-7b", s1, 200, 2, 300)},
      {"slora-s2-a10g", "S-LoRA S2: 7B, ranks 64/32/16/8, A10G, 200 adapters, 2 requests/s",
       slora("a10g-7b", s2, 200, 2, 300)},
      {"slora-s4-a100-40", "S-LoRA S4: 13B, ranks 64/32/16, A100 40 GB, 200 adapters, 2 requests/s",
       slora("a100-40-13b", s4, 200, 2, 300)},
      {"slora-s1-a100", "S-LoRA Table 3, S1: 7B, rank 8, A100 80 GB, 10 requests/s for 120 s",
       slora("a100-80-7b", s1, 100, 10, 120)},
      {"slora-s2-a100", "S-LoRA Table 3, S2: 7B, ranks 64/32/16/8, A100 80 GB, 10 requests/s for 120 s",
       slora("a100-80-7b", s2, 100, 10, 120)},
      {"merge-mixed", "merging modes: 8 adapters of rank 64, 7B, A100 80 GB, 256 + 128 tokens (after dLoRA fig. 10)",
       merge_modes(64, 256, 128, 20)},
      {"merge-prefill", "likewise 512 + 8 tokens", merge_modes(64, 512, 8, 24)},
      {"merge-decode", "likewise 32 + 256 tokens", merge_modes(64, 32, 256, 20)},
      {"slora-s4-a100", "S-LoRA S4: 13B, ranks 64/32/16, A100 80 GB, 400 adapters, 6 requests/s",
       slora("a100-80-13b", s4, 400, 6, 300)},
  };
}

}  // namespace

const std::vector<Suite>& suites() {
  static const std::vector<Suite> all = make_suites();
  return all;
}

Result<const Suite*> find_suite(const std::string& name) {
  std::vector<std::string> names;
  for (const Suite& suite : suites()) {
    if (suite.name == name) return &suite;
    names.push_back(suite.name);
  }
  return not_found("no suite \"{}\"; there are {}", name, fmt::join(names, ", "));
}

}  // namespace lk::sim
