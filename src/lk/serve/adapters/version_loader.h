// SPDX-License-Identifier: Apache-2.0
// VersionLoader: makes a version of a directory: reads and checks it, registers it with the engine, and proves it on a
// probe prompt. What it is called and who may ask for it is the registry's.
#pragma once

#include <memory>
#include <mutex>
#include <semaphore>
#include <span>
#include <string>
#include <vector>

#include "lk/serve/adapters/adapter_version.h"

namespace lk {

class VersionLoader {
 public:
  struct Options {
    std::vector<std::string> roots;
    int num_readers = 2;         // at once; the rest of a load needs no processor
    int64_t max_host_bytes = 0;  // of one adapter
    std::string conversion_cache;
  };
  // Where it lies, and what that allows.
  struct Place {
    enum Kind : uint8_t {
      kTrusted,  // `path` was given by the operator: anywhere
      kRoots,    // `path` was given by a client: beneath the roots of `tenant`, or all of them for ""
      kListed,   // DIRECTORY/`name`, listed in a directory that the operator gave: there, or beneath a root
    };
    Kind kind = kRoots;
    std::string name, path, tenant;
  };

  // `checkpoint` is the base model's file (for DoRA), or null.
  VersionLoader(EngineService& service, Options options, std::shared_ptr<const TensorStore> checkpoint,
                std::shared_ptr<HostTier> host);

  // Without a version number, and not proved. Its digest is of all that it stands for: config, weights and the template
  // its prompts are written with. kIoError and kPermissionDenied when the system does not give the files now.
  Result<AdapterLease> read(const Place& place);
  // Runs a few tokens through the engine before everything that waits. kDataLoss when they are not finite;
  // kResourceExhausted when there is no room for it, or not in time.
  Status prove(AdapterVersion& version);

 private:
  Result<std::string> find(const Place& place) const;
  Result<std::vector<TokenLogprob>> run_probe(AdapterId adapter, std::span<const int32_t> beginning = {},
                                              const TextSide* side = nullptr);

  EngineService& service_;
  const Options options_;
  const std::shared_ptr<const TensorStore> checkpoint_;
  const std::shared_ptr<HostTier> host_;
  std::counting_semaphore<> readers_;
  std::mutex probe_mutex_;
  std::vector<TokenLogprob> base_probe_;  // set once, by the first load
};

}  // namespace lk
