// SPDX-License-Identifier: Apache-2.0
// One file of the hub becomes a blob of the cache: under its lock, going on where an earlier try ended, checked against
// the digest that its ETag is.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "lk/hub/hub_cache.h"
#include "lk/hub/hub_client.h"

namespace lk {

struct BlobWatcher {
  std::function<void(int64_t)> on_bytes;            // more, or fewer when some are thrown away
  std::function<void(const std::string&)> on_note;  // what somebody who waits would like to know
  std::function<bool()> stopped;                    // asked for each piece; true ends it as kCancelled
};

// Whether an ETag is a digest of the file: SHA-256 of its bytes, or the SHA-1 of a Git blob.
enum class BlobDigest : uint8_t { kNone, kGitSha1, kSha256 };
BlobDigest digest_of_etag(std::string_view etag);

// The bytes that are still to come; those of an earlier try are kept.
int64_t missing_bytes(const RepoCache& cache, const HubFile& file);

// kDataLoss: what came has another digest, twice. kResourceExhausted: no room. kUnavailable: six tries without a byte
// between them; what came before stays for the next time.
Status fetch_blob(const RepoCache& cache, HubClient& client, const HubName& name, const std::string& commit,
                  const HubFile& file, const BlobWatcher& watcher);

}  // namespace lk
