// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/service.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <vector>

#include "lk/base/rng.h"

namespace lk {
namespace {

constexpr double kNewest = 0.2;
constexpr size_t kMaxPairs = 1 << 16;  // bounds what tenants and adapters of the past may hold

}  // namespace

MilliUnits ServiceCost::of(int64_t prompt_tokens, int64_t output_tokens) const {
  if (prompt_tokens == 0 && output_tokens == 0) return 0;
  const auto p = static_cast<double>(prompt_tokens), q = static_cast<double>(output_tokens);
  return std::llround(1000 * (prompt * p + output * q + product * p * q + output_square * q * q + constant));
}

Result<ServiceCost> ServiceCost::parse(std::string_view text) {
  if (text == "profiled") return profiled();
  const char separator = text.find(':') != std::string_view::npos ? ':' : ',';
  std::vector<double> numbers;
  for (std::string_view rest = text;;) {
    const size_t end = rest.find(separator);
    const std::string_view part = rest.substr(0, end);
    double number = 0;
    const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (error != std::errc() || stop != part.data() + part.size() || !std::isfinite(number) || number < 0 ||
        number > 1e6)
      return invalid_argument("service cost \"{}\": \"{}\" is not a number in [0, 1000000]", text, part);
    numbers.push_back(number);
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  const size_t wanted = separator == ':' ? 2 : 5;
  if (numbers.size() != wanted || numbers[1] == 0)
    return invalid_argument(
        "service cost \"{}\": want prompt:output such as 1:2, \"profiled\", or five numbers a,b,c,d,e with b > 0",
        text);
  ServiceCost cost{.prompt = numbers[0], .output = numbers[1]};
  if (wanted == 5) cost.product = numbers[2], cost.output_square = numbers[3], cost.constant = numbers[4];
  return cost;
}

uint64_t LengthPredictor::key(const Request& request) {
  return mix64(mix64(static_cast<uint64_t>(request.tenant)) +
               static_cast<uint64_t>(static_cast<int64_t>(request.adapter)));
}

int64_t LengthPredictor::predict(const Request& request) const {
  if (const auto it = means_.find(key(request)); it != means_.end())
    return std::min(request.max_tokens, static_cast<int64_t>(std::llround(it->second)));
  const auto it = longest_.find(key(request));
  return std::min(request.max_tokens,
                  std::max(static_cast<int64_t>(std::llround(overall_)), it == longest_.end() ? 0 : it->second));
}

int64_t LengthPredictor::outlived(const Request& request, int64_t output_tokens) {
  const int64_t forecast = std::min(request.max_tokens, 2 * output_tokens);
  const uint64_t pair = key(request);
  if (!means_.contains(pair)) {
    if (longest_.size() >= kMaxPairs) longest_.clear();
    int64_t& longest = longest_[pair];
    longest = std::max(longest, forecast);
  }
  return forecast;
}

void LengthPredictor::learn(const Request& request, int64_t output_tokens) {
  const auto length = static_cast<double>(output_tokens);
  overall_ = overall_ == 0 ? length : overall_ + kNewest * (length - overall_);
  longest_.erase(key(request));
  if (means_.size() >= kMaxPairs) means_.clear();
  const auto [it, first] = means_.emplace(key(request), length);
  if (!first) it->second += kNewest * (length - it->second);
}

}  // namespace lk
