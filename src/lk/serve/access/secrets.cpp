// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/secrets.h"

#include <sys/random.h>

#include <array>
#include <cerrno>

#include "lk/base/check.h"

namespace lk {

void fill_random(std::span<uint8_t> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::getrandom(bytes.data() + done, bytes.size() - done, 0);
    if (got < 0 && errno == EINTR) continue;
    LK_CHECK(got > 0, "getrandom failed: errno {}", errno);
    done += static_cast<size_t>(got);
  }
}

std::string random_base62(size_t length) {
  constexpr char kAlphabet[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  constexpr uint8_t kLimit = 248;  // 4 * 62: bytes from here on would favour the first characters
  std::string text;
  std::array<uint8_t, 64> bytes;
  while (text.size() < length) {
    fill_random(bytes);
    for (const uint8_t byte : bytes)
      if (byte < kLimit && text.size() < length) text += kAlphabet[byte % 62];
  }
  return text;
}

}  // namespace lk
