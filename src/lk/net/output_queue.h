// SPDX-License-Identifier: Apache-2.0
// OutputQueue: what waits to be sent on one connection, in order. Small writes are gathered into pieces that leave in
// one send; the parts of a large answer stay as they came, and each is freed once it was sent.
#pragma once

#include <cstddef>
#include <list>
#include <string>
#include <string_view>

namespace lk {

class OutputQueue {
 public:
  bool empty() const { return bytes_ == 0; }
  size_t bytes() const { return bytes_; }
  // Of these, without the parts of large answers: what a slow reader lets pile up, one small write after the other.
  size_t gathered_bytes() const { return gathered_; }

  // `write` appends to the string it is given a pointer to.
  template <class Write>
  void gather(Write write) {
    std::string& tail = open_tail();
    const size_t before = tail.size();
    write(&tail);
    bytes_ += tail.size() - before;
    gathered_ += tail.size() - before;
  }
  void append(std::string_view bytes) {
    gather([&](std::string* tail) { tail->append(bytes); });
  }
  void append_part(std::string part);

  // The next bytes to send: until they are sent the same ones, and possibly more behind them.
  std::string_view front() const;
  void sent(size_t bytes);
  void clear();

 private:
  struct Piece {
    std::string bytes;
    bool part = false;  // of a large answer
  };
  std::string& open_tail();

  std::list<Piece> pieces_;  // none of an idle connection that never sent much
  size_t front_sent_ = 0;    // of the first piece
  size_t bytes_ = 0, gathered_ = 0;
};

}  // namespace lk
