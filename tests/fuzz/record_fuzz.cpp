// SPDX-License-Identifier: Apache-2.0
// A training record from arbitrary bytes, in every format, rendered with a template that looks at all of it.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lk/dataset/render.h"

namespace {

constexpr std::string_view kTokenizer = R"({"version": "1.0", "added_tokens": [{"id": 256, "content": "<end>",
  "single_word": false, "lstrip": false, "rstrip": true, "normalized": false, "special": true}],
  "normalizer": {"type": "NFC"}, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "BPE",
  "unk_token": "?", "vocab": VOCAB, "merges": []}})";
constexpr std::string_view kTemplate =
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content | trim }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}";

// "?" and the printable characters.
std::string tokenizer_json() {
  std::string vocab = "{";
  for (int k = 0; k < 256; ++k) {
    if (k > 0) vocab += ",";
    if (k > 0x20 && k < 0x7F && k != '"' && k != '\\')
      vocab += fmt::format("\"{}\":{}", static_cast<char>(k), k);
    else
      vocab += fmt::format("\"unused{}\":{}", k, k);
  }
  std::string json(kTokenizer);
  return json.replace(json.find("VOCAB"), 5, vocab + "}");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizer = lk::Tokenizer::parse(tokenizer_json(), "tokenizer");
  static const auto chat = lk::ChatTemplate::parse(kTemplate, "template");
  if (!tokenizer.ok() || !chat.ok()) std::abort();
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  (void)lk::detect_record_format(line, "fuzz:1");
  for (const auto format : {lk::RecordFormat::kMessages, lk::RecordFormat::kSharegpt, lk::RecordFormat::kAlpaca,
                            lk::RecordFormat::kCompletion, lk::RecordFormat::kText}) {
    const auto record = lk::parse_record(line, format, "fuzz:1");
    if (!record.ok()) continue;
    for (const bool train_on_prompt : {false, true}) {
      const lk::RenderOptions options{
          .max_length = 64, .long_samples = lk::LongSamples::kTruncate, .train_on_prompt = train_on_prompt};
      const lk::Renderer renderer(*tokenizer, lk::ChatTemplates::of(*chat), 256, options);
      (void)renderer.exercise(*record, "fuzz:1");
      const auto sample = renderer.render(*record, "fuzz:1");
      if (!sample.ok() || !sample->has_value()) continue;
      const lk::Sample& found = **sample;
      if (found.ids.size() != found.weights.size() || found.ids.size() > 64 || found.weights[0] != 0) std::abort();
    }
  }
  return 0;
}
