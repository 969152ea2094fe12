// SPDX-License-Identifier: Apache-2.0
// The "post_processor" section of tokenizer.json: which special tokens surround an encoded text.
// Thread safety: immutable after parse.
#pragma once

#include <cstdint>
#include <vector>

#include "lk/text/json_view.h"

namespace lk {

class PostProcessor {
 public:
  // A null section, or one that only moves offsets (ByteLevel), changes nothing.
  static Result<PostProcessor> parse(const JsonView& json);

  // Appends to `out` the ids with the template around them; special tokens only if asked for.
  void apply(const std::vector<int32_t>& ids, bool add_special_tokens, std::vector<int32_t>& out) const;

  int32_t max_id() const;

 private:
  Status add_part(const JsonView& json);
  Status add_template(const JsonView& json);

  struct Piece {
    bool is_sequence;
    std::vector<int32_t> ids;  // of a special token
  };
  bool has_template_ = false;
  std::vector<Piece> pieces_;
};

}  // namespace lk
