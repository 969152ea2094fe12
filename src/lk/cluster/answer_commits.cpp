// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/answer_commits.h"

#include <fmt/format.h>

#include <iterator>
#include <limits>

#include "lk/base/json_fields.h"

namespace lk {
namespace {

constexpr std::string_view kMark = ": lk ";
constexpr int64_t kMaxTokens = int64_t{1} << 20;  // of an answer

}  // namespace

std::string format_commit(const AnswerCommit& commit) {
  if (commit.end) return fmt::format("{}{{\"end\":true}}\n\n", kMark);
  std::string out = fmt::format("{}{{\"choice\":{},\"first\":{},\"tokens\":[{}]", kMark, commit.choice, commit.first,
                                fmt::join(commit.tokens, ","));
  if (commit.prompt)
    fmt::format_to(std::back_inserter(out), ",\"prompt_tokens\":{},\"cached_tokens\":{}", commit.prompt->tokens,
                   commit.prompt->cached);
  if (!commit.digest.empty()) fmt::format_to(std::back_inserter(out), ",\"digest\":\"{}\"", commit.digest);
  if (commit.done) out += ",\"done\":true";
  if (commit.events > 0) fmt::format_to(std::back_inserter(out), ",\"events\":{}", commit.events);
  return out + "}\n\n";
}

Result<AnswerCommit> parse_commit(std::string_view json) {
  Result<boost::json::object> object = parse_json_object(json, "a commit");
  if (!object.ok()) return data_loss("{}", object.status().message());
  AnswerCommit commit;
  JsonFields fields(*object, "a commit");
  fields.read_bool("end", commit.end);
  fields.read_int("choice", commit.choice, 0, 1 << 16);
  fields.read_int("first", commit.first, 0, kMaxTokens);
  fields.read_tokens("tokens", commit.tokens, std::numeric_limits<int32_t>::max(), static_cast<size_t>(kMaxTokens));
  fields.read_bool("done", commit.done);
  fields.read_int("events", commit.events, 0, std::numeric_limits<int64_t>::max());
  if (const auto tokens = fields.integer("prompt_tokens", 0, kMaxTokens)) {
    commit.prompt.emplace().tokens = *tokens;
    fields.read_int("cached_tokens", commit.prompt->cached, 0, kMaxTokens);
  }
  fields.read_string("digest", commit.digest, 0, 128);
  if (commit.digest.find_first_not_of("0123456789abcdef") != std::string::npos)
    return data_loss("a commit: the digest of the adapter is none");
  if (fields.failed()) return data_loss("{}", fields.status().message());
  return commit;
}

Status CommitReader::push(std::string_view bytes) {
  while (failed_.ok() && !bytes.empty()) {
    const size_t end = bytes.find('\n');
    line_ += bytes.substr(0, end);
    if (line_.size() + group_.size() > max_group_bytes_) {
      failed_ = data_loss("a replica sent more than {} bytes without saying which tokens they are", max_group_bytes_);
      break;
    }
    if (end == std::string_view::npos) break;
    bytes.remove_prefix(end + 1);
    failed_ = end_line();
    line_.clear();
  }
  return failed_;
}

Status CommitReader::end_line() {
  if (line_.ends_with('\r')) line_.pop_back();
  if (line_.starts_with(':')) {
    if (!std::string_view(line_).starts_with(kMark)) {
      if (on_ping_) on_ping_();
      return Status();
    }
    LK_ASSIGN_OR_RETURN(AnswerCommit commit, parse_commit(std::string_view(line_).substr(kMark.size())));
    const std::string group = std::move(group_);
    group_.clear();
    in_event_ = false;
    on_group_(group, std::move(commit));
    return Status();
  }
  if (line_.empty()) {
    if (in_event_) group_ += '\n';
    in_event_ = false;
    return Status();
  }
  in_event_ = true;
  group_ += line_;
  group_ += '\n';
  return Status();
}

}  // namespace lk
