// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/footprint.h"

#include <gtest/gtest.h>

#include "lk/engine/engine.h"
#include "lk/lora/compose.h"
#include "lk/model/decoder.h"
#include "lk/ops/cpu_backend.h"
#include "lora/adapter_maker.h"
#include "testing/golden.h"
#include "testing/late_backend.h"

namespace lk {
namespace {

using testing::kGoldenDir;

TEST(Footprint, IsWhatLoadingTakes) {
  for (const char* name : {"llama_mha", "llama_gqa_llama3", "qwen3", "mistral_window7"})
    for (const DType act : {DType::kBF16, DType::kF32}) {
      auto backend = make_cpu_backend({.num_threads = 1}).value();
      const auto weights = load_weights(kGoldenDir + "models/" + name, act, *backend).value();
      const ModelFootprint footprint = model_footprint(weights->config, act, 64);
      int64_t loaded = 0;
      for (const DeviceBuffer& buffer : weights->storage) loaded += buffer.size_bytes();
      EXPECT_GE(footprint.packed, loaded) << name;
      EXPECT_LE(footprint.packed, loaded + loaded / 50 + 4096) << name;
      EXPECT_EQ(footprint.embedding, weights->embedding.num_bytes()) << name;
      // A step reads no mapped file.
      EXPECT_NE(weights->embedding.row(0), weights->checkpoint->find("model.embed_tokens.weight")->row(0)) << name;
      EXPECT_EQ(footprint.page, Decoder(weights, *backend, 1, 1).page_bytes()) << name;
    }
}

TEST(Footprint, ActivationsAreWhatADecoderAllocates) {
  for (const DType act : {DType::kBF16, DType::kF32}) {
    testing::LateBackend backend(make_cpu_backend({.num_threads = 1}).value());
    const auto weights = load_weights(kGoldenDir + "models/llama_gqa_llama3", act, backend).value();
    for (const int64_t rows : {1, 63, 300, 1000}) {
      const int64_t before = backend.allocated_bytes();
      const Decoder decoder(weights, backend, rows, std::min(rows, kMaxLogitRows));
      EXPECT_EQ(model_footprint(weights->config, act, rows).activations, backend.allocated_bytes() - before) << rows;
    }
  }
}

// No adapter makes them grow: one that would is refused, where it used to end the program for want of memory.
TEST(Footprint, AdaptersOfTooManyRanksAreRefused) {
  auto backend = make_cpu_backend({.num_threads = 1}).value();
  const auto weights = load_weights(kGoldenDir + "models/llama_mha", DType::kF32, *backend).value();
  const int64_t page = Decoder(weights, *backend, 1, 1).page_bytes();
  const auto engine =
      Engine::create({.max_step_tokens = 1, .memory_bytes = 4096 * page}, weights, std::move(backend)).value();
  const auto adapter =
      load_adapter("r64", kGoldenDir + "adapters/llama_mha__r64_linear", weights->config, nullptr).value();
  const std::vector<WeightedAdapter> parts(Decoder::kMaxGroupRank / (3 * 64) + 1, {adapter, 1.0});
  const auto sum_of = [&](size_t count) {
    return engine->prepare_adapter(compose_adapters("sum", std::span(parts).first(count)).value());
  };
  EXPECT_TRUE(sum_of(parts.size() - 1).ok());
  EXPECT_EQ(sum_of(parts.size()).status().code(), StatusCode::kInvalidArgument);
}

// A vocabulary of an adapter's own has the memory that the base's logits had: fewer rows at a time, and all again when
// it is gone.
TEST(Footprint, LargerVocabulariesMakeFewerRowsNotMoreMemory) {
  testing::LateBackend backend(make_cpu_backend({.num_threads = 1}).value());
  const auto weights = load_weights("tests/golden/hub/models/tied", DType::kF32, backend).value();
  Decoder decoder(weights, backend, 100, 64);
  const int64_t before = backend.allocated_bytes(), stride = decoder.logits_stride();
  ASSERT_TRUE(decoder.fits_vocabulary(64 * stride));
  EXPECT_FALSE(decoder.fits_vocabulary(64 * stride + 1));
  for (const auto& [tokens, rows] : {std::pair(2 * stride, 32), {64 * stride, 1}, {5 * stride, 12}, {int64_t{5}, 64}}) {
    decoder.set_vocabulary(tokens);
    EXPECT_EQ(decoder.max_logit_rows(), rows);
    EXPECT_GE(decoder.logits_stride(), std::max(tokens, weights->shape.vocab_size));
  }
  EXPECT_EQ(decoder.logits_stride(), stride);
  EXPECT_EQ(backend.allocated_bytes(), before);
}

TEST(Footprint, VocabulariesWithoutRoomForARowAreRefused) {
  auto backend = make_cpu_backend({.num_threads = 1}).value();
  const auto weights = load_weights("tests/golden/hub/models/tied", DType::kF32, *backend).value();
  const int64_t page = Decoder(weights, *backend, 1, 1).page_bytes();
  const auto engine =
      Engine::create({.max_step_tokens = 2, .memory_bytes = 65536 * page}, weights, std::move(backend)).value();
  const auto prepared = [&](int64_t tokens) {
    testing::TempDir dir;
    dir.write("adapter_config.json", R"({"peft_type":"LORA","r":2,"lora_alpha":2,"target_modules":["q_proj"]})");
    testing::TensorBag bag;
    for (int layer = 0; layer < 2; ++layer) {
      const std::string path = fmt::format("base_model.model.model.layers.{}.self_attn.q_proj", layer);
      bag.add(path + ".lora_A.weight", {2, 16}).add(path + ".lora_B.weight", {16, 2});
    }
    bag.add("base_model.model.model.embed_tokens.weight", {tokens, 16});  // and, tied, the head's
    bag.write(dir.file("adapter_model.safetensors"));
    return engine->prepare_adapter(load_adapter("a", dir.path(), weights->config, weights->checkpoint.get()).value());
  };
  EXPECT_TRUE(prepared(49).ok());
  const Status refused = prepared(5000).status();
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("vocabulary of 5000 tokens"), std::string::npos) << refused.message();
  // What is registered counts until it is not.
  const AdapterId first = engine->register_adapter(prepared(150).value()),
                  second = engine->register_adapter(prepared(100).value());
  engine->unregister_adapter(first);
  engine->unregister_adapter(second);
}

}  // namespace
}  // namespace lk
