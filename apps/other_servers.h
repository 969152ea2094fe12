// SPDX-License-Identifier: Apache-2.0
// Command lines of other servers: `lorikeet serve` starts with what people have in their scripts for `vllm serve`,
// SGLang's launch_server and llama-server, or says what to write instead; `lorikeet batch` likewise with `vllm
// run-batch`.
#pragma once

#include <string>
#include <vector>

#include "lk/base/status.h"

namespace lk::apps {

struct ServeArguments {
  std::vector<std::string> arguments;  // with Lorikeet's options only, as far as the others' are known
  std::vector<std::string> notes;      // of what has no effect here and what has it instead, one line each
  std::string api_key;                 // given on the command line; empty: none
};

// `arguments`: what follows `serve` or `batch`. What is not known is left as it is: the parser refuses it by name.
// kInvalidArgument: an option that would change answers or machines and cannot be followed, with what to do instead.
Result<ServeArguments> translate_serve_arguments(const std::vector<std::string>& arguments);

}  // namespace lk::apps
