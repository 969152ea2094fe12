// SPDX-License-Identifier: Apache-2.0
#include "lk/net/output_queue.h"

#include <utility>

namespace lk {
namespace {

constexpr size_t kPieceBytes = 64 << 10;   // a gathered piece that has so many is closed
constexpr size_t kKeptCapacity = 8 << 10;  // of the last piece, between sends

}  // namespace

std::string& OutputQueue::open_tail() {
  if (pieces_.empty() || pieces_.back().part || pieces_.back().bytes.size() >= kPieceBytes) pieces_.emplace_back();
  return pieces_.back().bytes;
}

void OutputQueue::append_part(std::string part) {
  if (part.empty()) return;
  if (bytes_ == 0) clear();
  bytes_ += part.size();
  pieces_.push_back({.bytes = std::move(part), .part = true});
}

std::string_view OutputQueue::front() const {
  return pieces_.empty() ? std::string_view() : std::string_view(pieces_.front().bytes).substr(front_sent_);
}

void OutputQueue::sent(size_t bytes) {
  Piece& piece = pieces_.front();
  bytes_ -= bytes;
  if (!piece.part) gathered_ -= bytes;
  front_sent_ += bytes;
  if (front_sent_ < piece.bytes.size()) return;
  front_sent_ = 0;
  if (pieces_.size() == 1 && !piece.part && piece.bytes.capacity() <= kKeptCapacity)
    piece.bytes.clear();
  else
    pieces_.pop_front();
}

void OutputQueue::clear() {
  pieces_.clear();
  front_sent_ = bytes_ = gathered_ = 0;
}

}  // namespace lk
