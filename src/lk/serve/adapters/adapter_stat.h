// SPDX-License-Identifier: Apache-2.0
// AdapterStat: what an adapter's directory looks like from outside, by its files' identities, sizes and times. Tells a
// directory that is gone from one that cannot be read now: the second says nothing about the adapter.
#pragma once

#include <cstdint>
#include <string>

#include "lk/infer/text_side.h"
#include "lk/lora/adapter_files.h"

namespace lk {

// What is read of an adapter's directory, beside the templates in its additional_chat_templates; but for the first two
// they need not be there: a text side of its own.
inline constexpr const char* kAdapterFiles[] = {kAdapterConfigFile,   kAdapterWeightsFile,  kTokenizerFile,
                                                kTokenizerConfigFile, kSpecialTokensFile,   kAddedTokensFile,
                                                kChatTemplateFile,    kGenerationConfigFile};
inline constexpr int kNumNeededAdapterFiles = 2;

struct AdapterStat {
  enum class State : uint8_t {
    kComplete,    // config and weights are there
    kIncomplete,  // the directory is, one of them is not: being written, or no adapter
    kGone,        // no such directory
    kUnreadable,  // the system refuses or fails: permissions, a network file system that is away
  };
  State state = State::kGone;
  uint64_t stamp = 0;  // of a complete one; another one means that a file may have changed
  int error = 0;       // errno of an unreadable one
  bool empty = true;   // none of an adapter's files is there, as far as could be seen

  bool complete() const { return state == State::kComplete; }
  friend bool operator==(const AdapterStat&, const AdapterStat&) = default;
};

// `directory` is relative to the open directory `root`, or absolute.
AdapterStat stat_adapter(int root, const std::string& directory);
AdapterStat stat_adapter(const std::string& directory);

}  // namespace lk
