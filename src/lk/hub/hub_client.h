// SPDX-License-Identifier: Apache-2.0
// The hub's interface as far as a download needs it: which commit and files a revision has, what a file is, its bytes.
// Sources: huggingface_hub's hf_api.py (model_info), file_download.py (get_hf_file_metadata), utils/_http.py (errors);
// https://huggingface.co/docs/hub/api.
//
// Redirects are followed here, not by libcurl: within http and https, never from https to http, and the token goes to
// the endpoint and to the hub itself only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lk/hub/hub_connection.h"
#include "lk/hub/hub_name.h"

namespace lk {

struct HubListing {
  std::string commit;
  std::vector<std::string> files;  // paths in the repository, each is_plain_relative_path; others are left out
};

struct HubFile {
  std::string path;   // in the repository
  std::string etag;   // SHA-256 of a large file, Git's SHA-1 of a small one; is_blob_name
  int64_t size = -1;  // -1: the hub does not say
};

// Not thread safe: one per thread.
class HubClient {
 public:
  // Hears of waits before further tries: "429 Too Many Requests; another try in 4 s".
  using Note = std::function<void(const std::string&)>;

  // `stop` is asked during whatever takes long, be it a wait: kCancelled then.
  static Result<std::unique_ptr<HubClient>> open(const HubSettings& settings, Note note, AskStop stop);

  // kNotFound: no such repository; kInvalidArgument: no such revision of it. kPermissionDenied: gated.
  // kUnauthenticated: the token is no good. kUnavailable: the hub cannot be reached, or is not well. `tries`: in all,
  // while it is kUnavailable.
  Result<HubListing> list(const HubName& name, int tries);

  // kNotFound: no such file at this commit.
  Result<HubFile> look_up(const HubName& name, const std::string& commit, const std::string& path);

  // Bytes of the file from `begin` on, in pieces. on_begin says at which byte they really begin (`begin` or 0) and how
  // many the whole file has (-1: unknown). One try: whoever keeps the bytes knows where to go on. Two more codes than
  // above: kDataLoss, an answer that contradicts itself; and whatever on_begin and on_body return.
  using OnBegin = std::function<Status(int64_t begin, int64_t total)>;
  Status download(const HubName& name, const std::string& commit, const std::string& path, int64_t begin,
                  const OnBegin& on_begin, const HubConnection::OnBody& on_body);

  // Waits before try number `attempt` (1: the second), as long as the last answer asked for; `why` itself when that is
  // more than a minute.
  Status wait(int attempt, const Status& why);
  static constexpr int kTries = 6;

 private:
  HubClient(const HubSettings& settings, Note note, AskStop stop)
      : settings_(settings), note_(std::move(note)), stop_(std::move(stop)) {}
  struct Asked {
    HubUrl url;
    bool head = false, small = true;
    int64_t begin = 0;
  };
  // Follows redirects. With `metadata`, stops at one that leaves the hub: its headers are what was asked for.
  Result<HubReply> ask(Asked asked, bool metadata, const HubConnection::OnHead& on_head,
                       const HubConnection::OnBody& on_body);
  bool is_hub(const HubUrl& url) const;
  Result<HubUrl> resolve_url(const HubName& name, const std::string& commit, const std::string& path) const;
  // The failure that an answer stands for; OK below 300.
  Status failure_of(const HubReply& reply, const HubName& name, const std::string& what, std::string_view body) const;

  const HubSettings settings_;
  const Note note_;
  const AskStop stop_;
  std::unique_ptr<HubConnection> connection_;
  HubUrl endpoint_;
  // Of the last answer: who gave it, and how long it asks to wait.
  std::string last_origin_;
  int64_t asked_to_wait_s_ = 0;
};

}  // namespace lk
