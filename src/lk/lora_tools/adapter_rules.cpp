// SPDX-License-Identifier: Apache-2.0
#include "lk/lora_tools/adapter_rules.h"

namespace lk {

int64_t max_servable_rank() { return AdapterLoadOptions{}.max_rank; }

bool moves_base(AdapterInit init) { return init == AdapterInit::kPissa || init == AdapterInit::kOlora; }

Status check_kind(const AdapterTraits& t) {
  const bool multilora = t.num_modules != 0;
  if (t.num_modules < 0 || t.num_modules > kMaxLoraModules)
    return invalid_argument("num_modules: MultiLoRA takes 1 to {}, not {}", kMaxLoraModules, t.num_modules);
  if (multilora && t.dora) return unsupported("kind: MultiLoRA and DoRA exclude each other; choose one of them");
  if (multilora && t.bias) return unsupported("lora_bias: it is not for multilora");
  if (t.dora && t.bias) return unsupported("lora_bias: it is not for dora");
  if (multilora && t.init != AdapterInit::kDefault)
    return unsupported("init: multilora has an initialisation of its own; leave init out");
  if (t.dora && moves_base(t.init))
    return unsupported(
        "init: pissa and olora are for kind lora, whose result can be saved for the untouched base; {} with DoRA would "
        "need a magnitude over the changed one",
        to_string(t.init));
  if (t.dropout && moves_base(t.init))
    return unsupported(
        "dropout: with pissa and olora it would drop features of the part of the base that they move; leave it at 0");
  if (t.dropout && t.dora)
    return unsupported(
        "dropout: with DoRA, PEFT drops features of the base's input too, which no adapter of the step beside it could "
        "share; leave it at 0");
  return Status();
}

Status check_rank(const AdapterTraits& t, int64_t rank, const std::string& module) {
  const std::string of = module.empty() ? "" : " of " + module;
  const int64_t most = max_servable_rank();
  if (rank < 1 || rank > most) return invalid_argument("rank is {}{}, out of range: 1 to {}", rank, of, most);
  if (t.num_modules > 0 && rank * t.num_modules > most)
    return invalid_argument("rank times num_modules is {}{}, at most {}", rank * t.num_modules, of, most);
  if (moves_base(t.init) && 2 * rank > most)
    return invalid_argument("rank is {}{}: pissa and olora are saved with twice the rank, at most {}", rank, of, most);
  if (t.init == AdapterInit::kEva && 2 * rank > most)
    return invalid_argument("rank is {}{}: eva may give a module twice the rank, and at most {} can be served", rank,
                            of, most);
  if (t.init == AdapterInit::kOrthogonal && rank % 2 != 0)
    return invalid_argument("rank is {}{}: init orthogonal needs an even one", rank, of);
  return Status();
}

}  // namespace lk
