// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <boost/json.hpp>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/page.h"

namespace lk::sim {
namespace {

namespace json = boost::json;

using Kind = CostField::Kind;

constexpr std::array kFields{
    CostField{"weight_bytes", &CostModel::weight_bytes, Kind::kSize},
    CostField{"head_bytes", &CostModel::head_bytes, Kind::kSize},
    CostField{"flops_per_token", &CostModel::flops_per_token, Kind::kSize},
    CostField{"head_flops_per_token", &CostModel::head_flops_per_token, Kind::kSize},
    CostField{"memory_bytes_s", &CostModel::memory_bytes_s, Kind::kRate},
    CostField{"flops_s", &CostModel::flops_s, Kind::kRate},
    CostField{"step_us", &CostModel::step_us, Kind::kTime},
    CostField{"token_us", &CostModel::token_us, Kind::kTime},
    CostField{"sequence_us", &CostModel::sequence_us, Kind::kTime},
    CostField{"kv_bytes_per_token", &CostModel::kv_bytes_per_token, Kind::kCount},
    CostField{"attention_bytes_s", &CostModel::attention_bytes_s, Kind::kRate},
    CostField{"attention_flops_per_pair", &CostModel::attention_flops_per_pair, Kind::kSize},
    CostField{"adapter_bytes_per_rank", &CostModel::adapter_bytes_per_rank, Kind::kCount},
    CostField{"adapter_flops_per_rank", &CostModel::adapter_flops_per_rank, Kind::kSize},
    CostField{"adapter_flops_s", &CostModel::adapter_flops_s, Kind::kRate},
    CostField{"adapter_step_us", &CostModel::adapter_step_us, Kind::kTime},
    CostField{"segment_us", &CostModel::segment_us, Kind::kTime},
    CostField{"merged_bytes", &CostModel::merged_bytes, Kind::kSize, true},
    CostField{"load_us", &CostModel::load_us, Kind::kTime},
    CostField{"load_bytes_s", &CostModel::load_bytes_s, Kind::kRate},
    CostField{"disk_bytes_s", &CostModel::disk_bytes_s, Kind::kRate},
    CostField{"pool_bytes", &CostModel::pool_bytes, Kind::kCount},
    CostField{"max_step_tokens", &CostModel::max_step_tokens, Kind::kCount},
    CostField{"max_running", &CostModel::max_running, Kind::kCount},
};

}  // namespace

std::span<const CostField> cost_fields() { return kFields; }

void StepShape::clear() {
  num_tokens = num_samples = 0;
  sequences.clear();
  segments.clear();
  merged_rows = 0;
}

double CostModel::step_us_of(const StepShape& shape) const {
  const auto tokens = static_cast<double>(shape.num_tokens), samples = static_cast<double>(shape.num_samples);
  const auto product_s = [&](double rows) {
    return std::max(weight_bytes / memory_bytes_s, rows * flops_per_token / flops_s);
  };
  double seconds = product_s(tokens);
  if (shape.merged_rows > 0 && shape.merged_rows < shape.num_tokens) {
    const auto merged = static_cast<double>(shape.merged_rows);
    seconds += merged_share() * (product_s(merged) + product_s(tokens - merged) - seconds);
  }
  if (shape.num_samples > 0) seconds += std::max(head_bytes / memory_bytes_s, samples * head_flops_per_token / flops_s);
  const double read_s = kv_bytes_per_token / attention_bytes_s, pair_s = attention_flops_per_pair / flops_s;
  for (const StepShape::Attention& sequence : shape.sequences) {
    const auto rows = static_cast<double>(sequence.rows), context = static_cast<double>(sequence.context);
    // Row i of the last `rows` sees context - rows + i + 1 positions.
    seconds += std::max(context * read_s, rows * (context - (rows - 1) / 2) * pair_s);
  }
  double us = step_us + tokens * token_us + static_cast<double>(shape.sequences.size()) * sequence_us;
  bool any_adapter = false;
  for (const StepShape::Segment& segment : shape.segments) {
    if (segment.rank == 0) continue;
    any_adapter = true;
    us += segment_us;
    const auto rank = static_cast<double>(segment.rank), rows = static_cast<double>(segment.rows);
    seconds +=
        rank * std::max(adapter_bytes_per_rank / memory_bytes_s, rows * adapter_flops_per_rank / adapter_flops_s);
  }
  return us + (any_adapter ? adapter_step_us : 0) + seconds * 1e6;
}

double CostModel::adapter_us_of(const StepShape& shape) const {
  double us = 0;
  for (const StepShape::Segment& segment : shape.segments) {
    if (segment.rank == 0) continue;
    if (us == 0) us = adapter_step_us;
    const auto rank = static_cast<double>(segment.rank), rows = static_cast<double>(segment.rows);
    us +=
        segment_us +
        1e6 * rank * std::max(adapter_bytes_per_rank / memory_bytes_s, rows * adapter_flops_per_rank / adapter_flops_s);
  }
  return us;
}

double CostModel::merge_us_of(int64_t rank) const {
  return merged_share() * (2 * weight_bytes / memory_bytes_s + static_cast<double>(rank) * flops_per_token / flops_s) *
         1e6;
}

double CostModel::load_us_of(double bytes) const { return load_us + bytes / load_bytes_s * 1e6; }
double CostModel::read_us_of(double bytes) const { return bytes / disk_bytes_s * 1e6; }

double CostModel::page_bytes() const { return static_cast<double>(kPageTokens) * kv_bytes_per_token; }
int64_t CostModel::pages_of_adapter(int64_t rank) const {
  return static_cast<int64_t>(std::ceil(adapter_bytes(rank) / page_bytes()));
}
int64_t CostModel::num_pages() const { return static_cast<int64_t>(pool_bytes / page_bytes()); }

Status validate(const CostModel& model) {
  for (const CostField& field : kFields) {
    const double value = model.*field.member;
    const bool positive = field.kind == Kind::kRate || field.kind == Kind::kCount;
    if (!std::isfinite(value) || value < 0 || (positive && value <= 0))
      return invalid_argument("cost model \"{}\": {} must be {} and finite, got {}", model.name, field.name,
                              positive ? "positive" : "at least 0", value);
  }
  if (model.merged_bytes > model.weight_bytes)
    return invalid_argument("cost model \"{}\": merged_bytes is a part of weight_bytes, got {} of {}", model.name,
                            model.merged_bytes, model.weight_bytes);
  return Status();
}

Result<CostModel> parse_cost_model(const std::string& text) {
  LK_ASSIGN_OR_RETURN(const json::object object, parse_json_object(text, "cost model"));
  JsonFields fields(object, "cost model");
  CostModel model;
  fields.read_string("name", model.name);
  fields.read_string("description", model.description);
  fields.mark_known("calibration");  // what the calibration measured, for the reader
  for (const CostField& field : kFields) fields.read_double(field.name, model.*field.member);
  fields.refuse_unknown();  // before what is missing: a misspelt field is both
  for (const CostField& field : kFields)
    if (!field.optional && !fields.has(field.name)) fields.fail(field.name, "is missing");
  LK_RETURN_IF_ERROR(fields.status());
  LK_RETURN_IF_ERROR(validate(model));
  return model;
}

std::string to_json(const CostModel& model) {
  std::string out = fmt::format("{{\n  \"name\": {},\n  \"description\": {}", json_text(json::value(model.name)),
                                json_text(json::value(model.description)));
  for (const CostField& field : kFields) out += fmt::format(",\n  \"{}\": {:.8g}", field.name, model.*field.member);
  return out + "\n}\n";
}

}  // namespace lk::sim
