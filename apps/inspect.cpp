// SPDX-License-Identifier: Apache-2.0
// lorikeet inspect: what a model directory holds and what it costs to run.
#include "commands.h"
#include "hub_names.h"
#include "lk/engine/footprint.h"
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

// What each rank of a divided model takes, in bf16, with steps of the usual 512 rows.
Status print_ranks(const ModelConfig& c, int num_ranks) {
  LK_RETURN_IF_ERROR(check_num_ranks(c.shape(), num_ranks));
  const ModelShape shape = rank_share(c.shape(), num_ranks);
  fmt::print("ranks          {} of {} shards: {} heads, {} KV heads and {} of the MLP each\n", num_ranks,
             c.shape().num_shards, shape.num_heads, shape.num_kv_heads, shape.intermediate_dim);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const ModelFootprint own = model_footprint(c, DType::kBF16, 512, {rank, num_ranks});
    fmt::print("  rank {}       {} of weights{}, {} of buffers, {} of KV cache per token\n", rank,
               format_bytes(own.packed), rank == 0 && c.has_lm_head ? " (with the head)" : "",
               format_bytes(own.activations), format_bytes(own.page / kPageTokens));
  }
  fmt::print("  all          {} of embedding, which ranks of one process share\n",
             format_bytes(model_footprint(c, DType::kBF16, 512).embedding));
  return Status();
}

int run(std::string directory, int num_ranks) {
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
  if (num_ranks > 1)
    if (const Status possible = print_ranks(c, num_ranks); !possible.ok()) return fail(possible);
  for (const std::string& warning : opened->warnings) fmt::print("warning        {}\n", warning);
  fmt::print("checkpoint     {} tensors, {}: complete\n", opened->files->tensors().size(),
             format_bytes(opened->files->size_bytes()));
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, int& exit_code) {
  auto directory = std::make_shared<std::string>();
  auto ranks = std::make_shared<int>(1);
  CLI::App* command =
      app.add_subcommand("inspect", "Show the shape, the cost and the completeness of a model directory");
  command->add_option("MODEL", *directory, "Hugging Face model directory, or its name on the hub")->required();
  command->add_option("--tensor-parallel", *ranks, "also what each of so many ranks would hold")
      ->check(CLI::Range(1, 64));
  command->callback([directory, ranks, &exit_code] { exit_code = run(*directory, *ranks); });
}

}  // namespace lk::apps
