// SPDX-License-Identifier: Apache-2.0
// The text on its way through the tokenizer: a string cut into pieces, some of which are already a
// token. The "origin" of a byte is the offset in the raw input of the character it came from; only
// Metaspace's prepend_scheme "first" looks at it, so it is tracked only then. It follows the
// alignments of the package's NormalizedString.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/text/regex.h"

namespace lk {

// A string that normalizers rewrite. With `track`, origins has one entry per byte.
struct NormalizedText {
  std::string text;
  std::vector<uint32_t> origins;
  bool track = false;

  // Appends to this, a text under construction.
  void add(std::string_view bytes, const uint32_t* from) {
    text += bytes;
    if (track) origins.insert(origins.end(), from, from + bytes.size());
  }
  void add(std::string_view bytes, uint32_t origin) {
    text += bytes;
    if (track) origins.insert(origins.end(), bytes.size(), origin);
  }
  uint32_t origin_at(size_t byte) const { return track && byte < origins.size() ? origins[byte] : 0; }
  const uint32_t* origins_at(size_t byte) const { return track ? origins.data() + byte : nullptr; }
};

struct Piece {
  size_t begin, end;   // bytes of PieceList::text
  uint32_t origin;     // offset in the raw input, fixed when the piece was cut
  int32_t token = -1;  // an added token: later stages leave it alone
};

struct PieceList {
  NormalizedText buffer;
  std::vector<Piece> pieces;  // none is empty, but for added tokens

  std::string_view text(const Piece& piece) const {
    return std::string_view(buffer.text).substr(piece.begin, piece.end - piece.begin);
  }
};

}  // namespace lk
