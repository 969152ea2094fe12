// SPDX-License-Identifier: Apache-2.0
// What the environment says about the hub, by the names and rules of the Python client (huggingface_hub/constants.py).
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "lk/base/status.h"

namespace lk {

struct HubSettings {
  std::string endpoint = "https://huggingface.co";  // HF_ENDPOINT, without a slash at its end
  std::string cache;                                // HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, or HF_HOME/hub
  std::string token;         // HF_TOKEN, HUGGING_FACE_HUB_TOKEN, or the file that `hf auth login` wrote; empty: none
  std::string token_place;   // where it is from, for messages: "HF_TOKEN" or the file's path
  std::string offline_by;    // "HF_HUB_OFFLINE" or "TRANSFORMERS_OFFLINE", whichever forbids asking; empty: neither
  bool cached_only = false;  // nothing is asked, either: for whoever only looks at what is there
  bool progress = true;      // not HF_HUB_DISABLE_PROGRESS_BARS
  std::chrono::milliseconds metadata_timeout{10000};  // HF_HUB_ETAG_TIMEOUT: for an answer about a file
  std::chrono::milliseconds download_timeout{10000};  // HF_HUB_DOWNLOAD_TIMEOUT: without a byte of a file
  std::chrono::milliseconds first_wait{1000};         // before a second try; each further one doubles it, up to 8 s
  // Certificates of whom to trust instead of the system's: SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE;
  // SSL_CERT_DIR.
  std::string ca_file, ca_directory;
};

// kInvalidArgument names the variable. `variable` is ::getenv, or a test's.
Result<HubSettings> read_hub_settings(const std::function<const char*(const char*)>& variable);
Result<HubSettings> read_hub_settings();

}  // namespace lk
