// SPDX-License-Identifier: Apache-2.0
// Tokenizers and templates of tests/text/fixtures, and samples as text.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "lk/base/file.h"
#include "lk/dataset/preview.h"
#include "lk/dataset/render.h"

namespace lk::testing {

inline std::shared_ptr<const Tokenizer> fixture_tokenizer(const std::string& name) {
  auto tokenizer = Tokenizer::load("tests/text/fixtures/" + name);
  LK_CHECK(tokenizer.ok(), "{}", tokenizer.status().message());
  return *tokenizer;
}

inline std::shared_ptr<const ChatTemplates> parse_template(const std::string& source) {
  auto parsed = ChatTemplate::parse(source, "template");
  LK_CHECK(parsed.ok(), "{}", parsed.status().message());
  return ChatTemplates::of(*parsed);
}
// With the values of the two variables that the fixtures' templates use.
inline std::shared_ptr<const ChatTemplates> fixture_template(const std::string& name) {
  auto source = read_file("tests/text/fixtures/templates/" + name + ".jinja");
  LK_CHECK(source.ok(), "{}", source.status().message());
  return parse_template("{%- set bos_token = '<s>' -%}{%- set eos_token = '</s>' -%}" + *source);
}

inline Record record_of(const std::string& line, RecordFormat format = RecordFormat::kMessages) {
  auto record = parse_record(line, format, "t.jsonl:1");
  LK_CHECK(record.ok(), "{}", record.status().message());
  return *record;
}

// "masked[[trained]]", an error's message, or "dropped".
inline std::string shown(const Renderer& renderer, const Record& record,
                         const std::shared_ptr<const Tokenizer>& tokenizer) {
  const auto sample = renderer.render(record, "t.jsonl:1");
  if (!sample.ok()) return sample.status().message();
  if (!sample->has_value()) return "dropped";
  std::string text = preview_sample(**sample, *tokenizer, false);
  text.pop_back();
  return text;
}

}  // namespace lk::testing
