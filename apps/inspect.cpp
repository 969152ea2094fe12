// SPDX-License-Identifier: Apache-2.0
// lorikeet inspect: what a model directory holds and what it costs to run.
#include "commands.h"
#include "hub_names.h"
#include "lk/io/checkpoint.h"
#include "lk/io/weights.h"

namespace lk::apps {
namespace {

const char* rope_name(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return "default";
    case RopeType::kLinear:
      return "linear";
    case RopeType::kDynamic:
      return "dynamic";
    case RopeType::kLlama3:
      return "llama3";
    case RopeType::kYarn:
      return "yarn";
    case RopeType::kLongrope:
      return "longrope";
  }
  return "?";
}

int run(std::string directory) {
  if (const Status found = find_model(directory); !found.ok()) return fail(found);
  const Result<Checkpoint> opened = open_checkpoint(directory);
  if (!opened.ok()) return fail(opened.status());
  const ModelConfig& c = opened->config;
  int64_t parameters = 0;
  for (const WeightSpec& spec : weight_manifest(c)) {
    int64_t n = 1;
    for (int64_t extent : spec.shape) n *= extent;
    parameters += n;
  }
  int64_t windowed = 0;
  for (int64_t window : c.layer_window) windowed += window > 0;
  fmt::print("architecture   {} ({} parameters, {} in the checkpoint)\n", c.architecture, parameters,
             to_string(c.dtype));
  fmt::print("shape          {} layers, hidden {}, intermediate {}, vocabulary {}{}\n", c.num_layers, c.hidden_dim,
             c.intermediate_dim, c.vocab_size,
             !c.has_lm_head          ? " (no head: embeddings only)"
             : c.tie_word_embeddings ? " (tied)"
                                     : "");
  fmt::print("attention      {} heads, {} KV heads, head size {}{}{}\n", c.num_heads, c.num_kv_heads, c.head_dim,
             c.qkv_bias ? ", qkv bias" : "", c.qk_norm ? ", qk norm" : "");
  if (windowed > 0) fmt::print("window         {} layers of {}\n", windowed, c.num_layers);
  fmt::print("positions      {} (rope {}, theta {})\n", c.context_limit(), rope_name(c.rope.type), c.rope.theta);
  fmt::print("KV cache       {} per token in bf16\n", format_bytes(c.num_layers * 2 * c.kv_dim() * 2));
  fmt::print("adapter, r=16  {} in bf16 on all seven projections\n", format_bytes([&] {
               int64_t width = 0;
               for (int p = 0; p < kNumProjs; ++p)
                 width += in_dim(static_cast<Proj>(p), c) + out_dim(static_cast<Proj>(p), c);
               return width * 16 * 2 * c.num_layers;
             }()));
  for (const std::string& warning : opened->warnings) fmt::print("warning        {}\n", warning);
  fmt::print("checkpoint     {} tensors, {}: complete\n", opened->files->tensors().size(),
             format_bytes(opened->files->size_bytes()));
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, int& exit_code) {
  auto directory = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show the shape, the cost and the completeness of a model directory");
  command->add_option("MODEL", *directory, "Hugging Face model directory, or its name on the hub")->required();
  command->callback([directory, &exit_code] { exit_code = run(*directory); });
}

}  // namespace lk::apps
