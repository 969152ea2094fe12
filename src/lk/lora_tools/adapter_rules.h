// SPDX-License-Identifier: Apache-2.0
// Which adapters can be trained: what does not go together, and which ranks could not be served. Asked of a job's
// settings before anything is read, when an adapter is made, and of one that was loaded to be trained on. Messages
// begin with the setting to change, as jobs files name it ("init: ...").
#pragma once

#include <cstdint>

#include "lk/base/status.h"
#include "lk/lora_tools/initial.h"

namespace lk {

// The largest rank that an adapter may have when it is saved, or it could not be served.
int64_t max_servable_rank();

inline constexpr int64_t kMaxLoraModules = 64;  // of MultiLoRA

struct AdapterTraits {
  int64_t num_modules = 0;  // of MultiLoRA, 0 = it is none
  bool dora = false, bias = false, dropout = false;
  AdapterInit init = AdapterInit::kDefault;  // kPissa or kOlora also for one that was loaded and began like that
};
bool moves_base(AdapterInit init);  // into the adapter: PiSSA, OLoRA

Status check_kind(const AdapterTraits& traits);
// `rank` as it is asked for: what is saved may be a multiple of it. `module` ("" = of any) is named in the message.
Status check_rank(const AdapterTraits& traits, int64_t rank, const std::string& module = "");

}  // namespace lk
