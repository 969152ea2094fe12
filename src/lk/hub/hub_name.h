// SPDX-License-Identifier: Apache-2.0
// Names of repositories on the Hugging Face hub, and what else comes from outside and becomes a path in the cache.
#pragma once

#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

struct HubName {
  std::string repo;       // "Qwen/Qwen3-0.6B", or "gpt2" of the hub's first days
  std::string subfolder;  // of the repository: "checkpoints/100"; empty: all of it
  std::string revision = "main";

  std::string text() const;  // as it is written; without "@main"
};

// ORG/NAME[/SUBFOLDER][@REVISION], also behind "hf://". A revision is a branch, a tag, a commit or refs/pr/N.
// kInvalidArgument says which part is wrong.
Result<HubName> parse_hub_name(std::string_view written);

// Whether a text that names no directory is meant as a name: "hf://..." or ORG/NAME in letters that the hub allows.
// Not "./x", "/x", "../x", "x" or "x/": those are paths.
bool looks_like_hub_name(std::string_view written);

// 40 hexadecimal digits: a commit, whose files never change.
bool is_commit(std::string_view text);

// A path within a repository or a revision: parts between single slashes, none empty or beginning with a dot; printable
// ASCII without backslashes.
bool is_plain_relative_path(std::string_view path);

// An ETag that may be a file's name in blobs/: letters, digits, "._+=-", at most 200, no leading dot, and not the name
// of a file on its way there.
bool is_blob_name(std::string_view etag);

// "models--Qwen--Qwen3-0.6B"
std::string repo_directory_name(std::string_view repo);

// Every byte but letters, digits and "-._~" as %XX; slashes, too, unless keep_slashes.
std::string url_quote(std::string_view text, bool keep_slashes);

}  // namespace lk
