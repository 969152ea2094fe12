// SPDX-License-Identifier: Apache-2.0
// The sections of a job in a jobs file, for other files that have the same ones: read, and as JSON with all defaults.
#pragma once

#include <boost/json/object.hpp>

#include "lk/train/job_config.h"
#include "lk/train/yaml_fields.h"

namespace lk {

void read_section(YamlFields& fields, AdapterSpec& spec);
void read_section(YamlFields& fields, DataSpec& spec);
void read_section(YamlFields& fields, TrainSpec& spec);
void read_dtype(YamlFields& fields, const char* key, TrainDtype& dtype);

boost::json::object section_json(AdapterSpec spec);
boost::json::object section_json(DataSpec spec);
boost::json::object section_json(TrainSpec spec);

// AdamW's dials, but for the rate.
AdamwStep dials_of(const TrainSpec& spec);

}  // namespace lk
