// SPDX-License-Identifier: Apache-2.0
// AdapterRecord: one version of an adapter in the registry, under adapters/NAME/VERSION: which files it is made of, and
// what it comes to. Made once and never changed but to say that it is deleted: that a name is absent means nothing, so
// that a registry that lost its data takes no adapter away. Aliases likewise, under aliases/ALIAS.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "lk/registry/registry.h"

namespace lk {

inline constexpr std::string_view kAdapters = "adapters/", kAliases = "aliases/";

struct AdapterRecord {
  enum class State : uint8_t { kPending, kReady, kDeleted };  // pending: its number is taken, it is being proved
  struct File {
    std::string name;    // "adapter_config.json", "additional_chat_templates/rag.jinja"
    std::string sha256;  // hex
    int64_t bytes = 0;
    bool operator==(const File&) const = default;
  };
  std::string name;
  int64_t version = 0;
  State state = State::kReady;
  std::string digest;  // of all that it stands for, as replicas compute it when they load it
  std::vector<File> files;
  std::string tenant;     // whose it is; "" = nobody's
  std::string publisher;  // id of the replica that had it first
  int64_t created = 0;    // Unix seconds
  bool operator==(const AdapterRecord&) const = default;

  int64_t bytes() const;
  std::string content() const;  // SHA-256 of the list of files, hex: what has equal ones is the same
};

// Names may have characters that separate keys: they are encoded.
std::string versions_key(std::string_view name);  // what all versions of a name begin with
std::string alias_key(std::string_view alias);
std::string alias_in(std::string_view key);
std::string adapter_key(std::string_view name, int64_t version);
// The version that a key is of; 0: it is no version's key, as adapter_key() would write it.
int64_t version_in(std::string_view key);
inline constexpr int64_t kMaxAdapterVersion = std::numeric_limits<int32_t>::max();
std::string format_adapter(const AdapterRecord& record);
// `key` as in the registry. kUnsupported: of a form that is not known here; kDataLoss: it is none. File names have at
// most one folder, and every part of them is a plain name.
Result<AdapterRecord> parse_adapter(std::string_view key, std::string_view value);

// "" = deleted. `target` is "name" or "name@version".
std::string format_alias(std::string_view target);
Result<std::string> parse_alias(std::string_view key, std::string_view value);

// Whether there can be such a file: only the empty one has the SHA-256 of nothing.
bool is_possible(const AdapterRecord::File& file);
bool is_sha256(std::string_view text);  // 64 hexadecimal digits, in lower case

}  // namespace lk
