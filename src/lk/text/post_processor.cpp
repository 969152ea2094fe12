// SPDX-License-Identifier: Apache-2.0
#include "lk/text/post_processor.h"

#include <algorithm>

namespace lk {
namespace {

constexpr size_t kMaxSequences = 8;  // how often a template may repeat the text
constexpr size_t kMaxSpecialIds = 4096;
constexpr size_t kMaxPieces = kMaxSequences + kMaxSpecialIds;
constexpr size_t kMaxNameBytes = 1024;  // as of an added token

}  // namespace

Result<PostProcessor> PostProcessor::parse(const JsonView& json) {
  PostProcessor processor;
  if (!json.is_null()) LK_RETURN_IF_ERROR(processor.add_part(json));
  return processor;
}

Status PostProcessor::add_part(const JsonView& json) {
  LK_ASSIGN_OR_RETURN(const std::string_view type, json.string("type"));
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return add_template(json);
  if (type == "Sequence") {
    LK_ASSIGN_OR_RETURN(const std::vector<JsonView> parts, json.array("processors"));
    for (const JsonView& part : parts) LK_RETURN_IF_ERROR(add_part(part));
    return {};
  }
  return json.error(StatusCode::kUnsupported, "post-processor \"{}\" is not supported", type);
}

Status PostProcessor::add_template(const JsonView& json) {
  if (has_template_) return json.error(StatusCode::kUnsupported, "a second TemplateProcessing is not supported");
  has_template_ = true;
  LK_ASSIGN_OR_RETURN(const JsonView specials, json.field("special_tokens"));
  LK_RETURN_IF_ERROR(specials.expect_object());
  LK_ASSIGN_OR_RETURN(const std::vector<JsonView> single, json.array("single", kMaxPieces));
  size_t num_sequences = 0, num_ids = 0;
  // Counted before they are made: a small file may name one long token again and again.
  const auto count = [&](size_t& number, size_t more) -> Status {
    number += more;
    if (num_sequences <= kMaxSequences && num_ids <= kMaxSpecialIds) return {};
    return json.error(StatusCode::kUnsupported, "the template has more than {} sequences or {} special ids",
                      kMaxSequences, kMaxSpecialIds);
  };
  for (const JsonView& piece : single) {
    if (piece.has("Sequence")) {
      LK_ASSIGN_OR_RETURN(const JsonView sequence, piece.field("Sequence"));
      LK_ASSIGN_OR_RETURN(const std::string_view id, sequence.string("id"));
      if (id != "A") {
        return sequence.error(StatusCode::kDataLoss, "the template of a single text names sequence \"{}\", not \"A\"",
                              id);
      }
      LK_RETURN_IF_ERROR(count(num_sequences, 1));
      pieces_.push_back({true, {}});
      continue;
    }
    LK_ASSIGN_OR_RETURN(const JsonView special, piece.field("SpecialToken"));
    LK_ASSIGN_OR_RETURN(const std::string_view name, special.string("id"));
    if (name.size() > kMaxNameBytes)
      return special.error(StatusCode::kUnsupported, "the id has {} bytes, more than {}", name.size(), kMaxNameBytes);
    LK_ASSIGN_OR_RETURN(const JsonView entry, specials.field(name));
    LK_ASSIGN_OR_RETURN(const std::vector<JsonView> ids, entry.array("ids", kMaxSpecialIds));
    LK_RETURN_IF_ERROR(count(num_ids, ids.size()));
    Piece out{false, {}};
    for (const JsonView& id_json : ids) {
      LK_ASSIGN_OR_RETURN(const int64_t id, id_json.integer(0, INT32_MAX - 1));
      out.ids.push_back(static_cast<int32_t>(id));
    }
    pieces_.push_back(std::move(out));
  }
  return {};
}

void PostProcessor::apply(const std::vector<int32_t>& ids, bool add_special_tokens, std::vector<int32_t>& out) const {
  if (!has_template_) {
    out.insert(out.end(), ids.begin(), ids.end());
    return;
  }
  for (const Piece& piece : pieces_) {
    if (piece.is_sequence) {
      out.insert(out.end(), ids.begin(), ids.end());
    } else if (add_special_tokens) {
      out.insert(out.end(), piece.ids.begin(), piece.ids.end());
    }
  }
}

int32_t PostProcessor::max_id() const {
  int32_t max_id = -1;
  for (const Piece& piece : pieces_) {
    for (const int32_t id : piece.ids) max_id = std::max(max_id, id);
  }
  return max_id;
}

}  // namespace lk
