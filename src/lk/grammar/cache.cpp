// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/grammar.h"

namespace lk {

// No grammar can be compiled yet, so none of these is reached.
struct GrammarState::Impl {};
GrammarState::GrammarState(std::shared_ptr<const Grammar>) { LK_CHECK(false); }
GrammarState::~GrammarState() = default;
void GrammarState::allowed(std::span<uint64_t>) const { LK_CHECK(false); }
bool GrammarState::accept(int32_t) { LK_CHECK(false); return false; }

}  // namespace lk
