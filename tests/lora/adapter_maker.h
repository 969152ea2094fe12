// SPDX-License-Identifier: Apache-2.0
// Small models and adapter directories, written by the tests themselves.
#pragma once

#include <gtest/gtest.h>

#include <list>
#include <map>
#include <string>
#include <vector>

#include "lk/base/rng.h"
#include "lk/io/safetensors.h"
#include "lk/io/weights.h"
#include "lk/lora/adapter.h"
#include "testing/temp_dir.h"

namespace lk::testing {

// Llama: hidden 16, 2 layers, 2 heads of 8, 1 KV head, FFN 24, vocabulary 40. `fields` adds to
// config.json.
inline std::string tiny_config_json(const std::string& fields = "") {
  return fmt::format(
      R"({{"architectures":["LlamaForCausalLM"],"hidden_size":16,"intermediate_size":24,"num_hidden_layers":2,)"
      R"("num_attention_heads":2,"num_key_value_heads":1,"vocab_size":40{}{}}})",
      fields.empty() ? "" : ",", fields);
}
inline ModelConfig tiny_config(const std::string& fields = "") {
  auto config = parse_model_config(tiny_config_json(fields), "tiny");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return *config;
}

// Tensors with owned random values, to be written to a file.
class TensorBag {
 public:
  TensorBag& add(const std::string& name, const std::vector<int64_t>& shape, DType dtype = DType::kF32,
                 float scale = 0.3f) {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = scale * static_cast<float>(rng_.normal());
    return set(name, shape, values, dtype);
  }
  TensorBag& set(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values,
                 DType dtype = DType::kF32) {
    Buffer& buffer = buffers_.emplace_back(std::max<int64_t>(64, std::ssize(values) * 4));
    convert(values.data(), DType::kF32, buffer.data(), dtype, std::ssize(values));
    tensors_[name] = TensorView(buffer.data(), dtype, std::span<const int64_t>(shape));
    return *this;
  }
  TensorBag& erase(const std::string& name) {
    tensors_.erase(name);
    return *this;
  }
  void write(const std::string& path) const {
    std::vector<TensorEntry> entries;
    for (const auto& [name, view] : tensors_) entries.push_back({name, view});
    const Status status = write_safetensors(path, entries);
    ASSERT_TRUE(status.ok()) << status.message();
  }

 private:
  Rng rng_{42};
  std::list<Buffer> buffers_;
  std::map<std::string, TensorView> tensors_;
};

inline void write_base(const TempDir& dir, const ModelConfig& config, const std::string& config_json,
                       DType dtype = DType::kF32) {
  TensorBag bag;
  for (const WeightSpec& spec : weight_manifest(config)) bag.add(spec.name, spec.shape, dtype);
  bag.write(dir.file("model.safetensors"));
  dir.write("config.json", config_json);
}

inline std::vector<float> to_floats(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  view.copy_to(values.data());
  return values;
}

}  // namespace lk::testing
