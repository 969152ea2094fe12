// SPDX-License-Identifier: Apache-2.0
// Drives a Tokenizer for tools/compare_tokenizers.py: one request per record on stdin, one answer
// on stdout.
//   tokenizer_driver <tokenizer.json> [--bench]
// Records are a little-endian uint32 length and that many bytes, all answers uint32 counts and
// values:
//   'E' text  ->  encode with and without special tokens, decode of the first with and without
//   special tokens, and
//                 the first decoded incrementally: ids, ids, text, text, text
//   'D' int32 ids  ->  decode with and without special tokens: text, text
// With --bench the whole of stdin is encoded line by line, and the speed printed.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

#include "lk/base/file.h"
#include "lk/text/tokenizer.h"

namespace {

std::string buffer;

void put(const void* data, size_t bytes) { buffer.append(static_cast<const char*>(data), bytes); }
void put(const std::string& text) {
  const auto size = static_cast<uint32_t>(text.size());
  put(&size, 4);
  put(text.data(), text.size());
}
void put(const std::vector<int32_t>& ids) {
  const auto size = static_cast<uint32_t>(4 * ids.size());
  put(&size, 4);
  put(ids.data(), size);
}

int bench(const lk::Tokenizer& tokenizer) {
  const std::string text(std::istreambuf_iterator<char>(std::cin), {});
  for (const bool whole : {false, true}) {
    const auto start = std::chrono::steady_clock::now();
    size_t num_ids = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = whole ? text.size() : std::min(text.find('\n', begin), text.size() - 1) + 1;
      const auto ids = tokenizer.encode(std::string_view(text).substr(begin, end - begin), true);
      if (!ids.ok()) {
        std::cerr << ids.status().message() << "\n";
        return 1;
      }
      num_ids += ids->size();
      begin = end;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::cout << (whole ? "whole: " : "lines: ") << text.size() << " bytes, " << num_ids << " ids, " << seconds
              << " s, " << static_cast<double>(text.size()) / 1e6 / seconds << " MB/s\n";
  }
  return 0;
}

int answer(const std::shared_ptr<const lk::Tokenizer>& tokenizer, std::string_view record) {
  if (record[0] == 'E') {
    const auto with = tokenizer->encode(record.substr(1), true);
    const auto without = tokenizer->encode(record.substr(1), false);
    if (!with.ok() || !without.ok()) {
      std::cerr << (with.ok() ? without : with).status().message() << "\n";
      return 1;
    }
    put(*with);
    put(*without);
    put(tokenizer->decode(*with, true));
    put(tokenizer->decode(*with, false));
    lk::IncrementalDecoder decoder(tokenizer, true);
    std::string text;
    for (const int32_t id : *with) text += decoder.push(id);
    put(text + decoder.flush());
    return 0;
  }
  std::vector<int32_t> ids((record.size() - 1) / 4);
  std::memcpy(ids.data(), record.data() + 1, 4 * ids.size());
  put(tokenizer->decode(ids, true));
  put(tokenizer->decode(ids, false));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const auto json = lk::read_file(argv[1]);
  const auto tokenizer = json.ok() ? lk::Tokenizer::parse(*json, argv[1])
                                   : lk::Result<std::shared_ptr<const lk::Tokenizer>>(json.status());
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  if (argc > 2) return bench(**tokenizer);
  std::string record;
  uint32_t size = 0;
  while (std::fread(&size, 4, 1, stdin) == 1) {
    record.resize(size);
    if (size == 0 || std::fread(record.data(), 1, size, stdin) != size) return 2;
    if (const int failed = answer(*tokenizer, record); failed != 0) return failed;
    // The other side writes a batch and then reads: answers wait until the batch ends or the buffer
    // is large.
    if (buffer.size() > (1 << 20)) {
      std::fwrite(buffer.data(), 1, buffer.size(), stdout);
      buffer.clear();
    }
  }
  std::fwrite(buffer.data(), 1, buffer.size(), stdout);
  return 0;
}
