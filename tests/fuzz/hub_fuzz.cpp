// SPDX-License-Identifier: Apache-2.0
// Names on the hub and the paths in its listings: whatever is taken for one stays below the directory that it is joined
// to, and means the same when it is written again.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "lk/base/check.h"
#include "lk/hub/hub_name.h"

namespace {

void check_beneath(const std::string& path) {
  const std::filesystem::path joined = std::filesystem::path("/cache/here") / path;
  LK_CHECK(joined.lexically_normal() == joined && joined.string().starts_with("/cache/here/"), "{}", path);
  LK_CHECK(path.find('\0') == path.npos && path.back() != '/', "{}", path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (lk::is_plain_relative_path(text)) check_beneath(text);
  if (lk::is_blob_name(text)) {
    check_beneath(text);
    LK_CHECK(text.find('/') == text.npos, "{}", text);
  }
  const lk::Result<lk::HubName> name = lk::parse_hub_name(text);
  if (!name.ok()) return 0;
  check_beneath(lk::repo_directory_name(name->repo));
  LK_CHECK(lk::repo_directory_name(name->repo).find('/') == std::string::npos, "{}", text);
  check_beneath(name->revision);
  if (!name->subfolder.empty()) check_beneath(name->subfolder);
  const lk::Result<lk::HubName> again = lk::parse_hub_name(name->text());
  LK_CHECK(again.ok() && again->repo == name->repo && again->subfolder == name->subfolder &&
               again->revision == name->revision,
           "{}", text);
  return 0;
}
