// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_base.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "lk/base/sha256.h"

namespace lk {

Result<std::string> base_files_digest(const std::string& directory, const AskStop& stop) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    // What text becomes counts as well: the tokenizer, the template, the end token.
    if (!entry.is_regular_file(error)) continue;
    if (name.ends_with(".safetensors") || name.ends_with(".json") || name.ends_with(".jinja"))
      files.push_back(entry.path().string());
  }
  if (error) return io_error("{}: {}", directory, error.message());
  std::ranges::sort(files);
  Sha256 sha;
  std::vector<char> piece(1 << 20);  // read, not mapped: the weights are in memory already, packed
  for (const std::string& file : files) {
    std::ifstream in(file, std::ios::binary);
    while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0) {
      LK_RETURN_IF_ERROR(check_stop(stop));
      sha.update(piece.data(), static_cast<size_t>(in.gcount()));
    }
    if (in.bad() || !in.eof()) return io_error("{} cannot be read", file);
  }
  return to_hex(sha.finish());
}

}  // namespace lk
