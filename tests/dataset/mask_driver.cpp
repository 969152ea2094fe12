// SPDX-License-Identifier: Apache-2.0
// Our side of tools/compare_masks.py: a tokenizer's directory, a template and a file of messages; writes a line of
// "id:weight" per record, or the error.
#include <fmt/format.h>

#include "lk/base/file.h"
#include "lk/dataset/dataset.h"

namespace lk {
namespace {

Status run(const std::string& directory, const std::string& template_path, const std::string& data_path) {
  LK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::load(directory));
  LK_ASSIGN_OR_RETURN(const std::string source, read_file(template_path));
  LK_ASSIGN_OR_RETURN(const auto chat, ChatTemplate::parse(source, template_path));
  LK_ASSIGN_OR_RETURN(const auto file, JsonlFile::open(data_path));
  const Renderer renderer(tokenizer, ChatTemplates::of(chat), {}, {});
  for (int64_t k = 0; k < file->num_records(); ++k) {
    LK_ASSIGN_OR_RETURN(const Record record, file->read(k));
    const auto sample = renderer.render(record, file->where(k));
    if (!sample.ok()) {
      fmt::print("{}\n", sample.status().message());
      continue;
    }
    for (size_t token = 0; token < (**sample).ids.size(); ++token)
      fmt::print("{}:{} ", (**sample).ids[token], (**sample).weights[token]);
    fmt::print("\n");
  }
  return Status();
}

}  // namespace
}  // namespace lk

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const lk::Status status = lk::run(argv[1], argv[2], argv[3]);
  if (!status.ok()) fmt::print(stderr, "{}\n", status.message());
  return status.ok() ? 0 : 1;
}
