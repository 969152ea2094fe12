// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/service.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "lk/base/rng.h"

namespace lk {
namespace {

constexpr double kNewest = 0.2;

}  // namespace

MilliUnits ServiceCost::of(int64_t prompt_tokens, int64_t output_tokens) const {
  if (prompt_tokens == 0 && output_tokens == 0) return 0;
  const auto p = static_cast<double>(prompt_tokens), q = static_cast<double>(output_tokens);
  const double price = 1000 * (prompt * p + output * q + product * p * q + output_square * q * q + constant);
  return price < static_cast<double>(kMaxPrice) ? std::llround(price) : kMaxPrice;
}

Status ServiceCost::check() const {
  for (const double number : {prompt, output, product, output_square, constant})
    if (!std::isfinite(number) || number < 0) return invalid_argument("{} is not a number that is 0 or more", number);
  if (output == 0) return invalid_argument("output must cost something");
  constexpr int64_t kMany = 1 << 18;
  if (of(kMany, kMany) >= kMaxPrice)
    return invalid_argument(
        "{} tokens of prompt and as many of output would cost more than {} tokens at a price of 1; only "
        "ratios matter, give smaller numbers",
        kMany, kMaxPrice / 1000);
  return Status();
}

Result<ServiceCost> ServiceCost::parse(std::string_view text) {
  const size_t colon = text.find(':');
  ServiceCost cost;
  const auto read = [&](std::string_view part, double& number) {
    const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    return error == std::errc() && stop == part.data() + part.size();
  };
  if (colon == std::string_view::npos || !read(text.substr(0, colon), cost.prompt) ||
      !read(text.substr(colon + 1), cost.output))
    return invalid_argument("service cost \"{}\": want the prices of prompt and output tokens, such as 1:2", text);
  LK_RETURN_IF_ERROR(cost.check().with_context(fmt::format("service cost \"{}\"", text)));
  return cost;
}

uint64_t LengthPredictor::key(const Request& request) {
  return mix64(mix64(static_cast<uint64_t>(request.tenant)) +
               static_cast<uint64_t>(static_cast<int64_t>(request.adapter)));
}

int64_t LengthPredictor::predict(const Request& request) const {
  const uint64_t pair = key(request);
  if (const double* mean = means_.find(pair))
    return std::min(request.max_tokens, static_cast<int64_t>(std::llround(*mean)));
  const int64_t* longest = longest_.find(pair);
  return std::min(request.max_tokens, std::max(static_cast<int64_t>(std::llround(overall_)), longest ? *longest : 0));
}

int64_t LengthPredictor::outlived(const Request& request, int64_t output_tokens) {
  const int64_t forecast = std::min(request.max_tokens, 2 * output_tokens);
  const uint64_t pair = key(request);
  if (!means_.find(pair)) {
    int64_t& longest = longest_.at(pair);
    longest = std::max(longest, forecast);
  }
  return forecast;
}

void LengthPredictor::learn(const Request& request, int64_t output_tokens) {
  const auto length = static_cast<double>(output_tokens);
  overall_ = overall_ == 0 ? length : overall_ + kNewest * (length - overall_);
  const uint64_t pair = key(request);
  longest_.erase(pair);
  double& mean = means_.at(pair);
  mean = mean == 0 ? length : mean + kNewest * (length - mean);
}

}  // namespace lk
