// SPDX-License-Identifier: Apache-2.0
#include "lk/train/foreign_names.h"

#include <algorithm>

#include <fmt/format.h>

namespace lk {
namespace {

struct Foreign {
  std::string_view name;
  std::string_view ours;       // our key or value; empty: there is none
  std::string_view note = {};  // what differs, or why there is none
};

constexpr std::string_view kWholeBatch = "all samples of an optimiser step, as blocks of any size go through the base";
constexpr std::string_view kNoSteps = "it has no counterpart: batch_samples counts the whole optimiser step";
constexpr std::string_view kPacked = "leave it out: samples share blocks and never see each other";
constexpr std::string_view kMasked = "leave it out: the prompt has no loss unless data.train_on_prompt is true";

constexpr Foreign kKeys[] = {
    {"learning_rate", "train.lr"},
    {"lr_scheduler_type", "train.schedule"},
    {"lr_scheduler", "train.schedule"},
    {"lr_schedule", "train.schedule"},
    {"num_train_epochs", "train.epochs"},
    {"num_epochs", "train.epochs"},
    {"n_epochs", "train.epochs"},
    {"max_steps", "train.steps"},
    {"iters", "train.steps"},
    {"per_device_train_batch_size", "train.batch_samples", kWholeBatch},
    {"per_device_eval_batch_size", "", "leave it out: evaluations fill blocks of block_tokens"},
    {"micro_batch_size", "train.batch_samples", kWholeBatch},
    {"batch_size", "train.batch_samples", kWholeBatch},
    {"gradient_accumulation_steps", "", kNoSteps},
    {"gradient_accumulation", "", kNoSteps},
    {"warmup", "train.warmup_steps"},
    {"num_warmup_steps", "train.warmup_steps"},
    {"max_grad_norm", "train.clip"},
    {"adam_beta1", "train.betas", "a list of two"},
    {"adam_beta2", "train.betas", "a list of two"},
    {"adam_epsilon", "train.eps"},
    {"optim", "", "leave it out: the optimiser is AdamW"},
    {"optimizer", "", "leave it out: the optimiser is AdamW"},
    {"loraplus_lr_ratio", "train.loraplus_ratio"},
    {"learning_rate_multiplier", "train.lr", "the rate itself"},
    {"data_seed", "train.seed"},
    {"neftune_noise_alpha", "", "noise on the embeddings is not offered"},
    {"label_smoothing_factor", "", "label smoothing is not offered"},
    {"r", "adapter.rank"},
    {"lora_r", "adapter.rank"},
    {"lora_rank", "adapter.rank"},
    {"lora_alpha", "adapter.alpha"},
    {"lora_dropout", "adapter.dropout"},
    {"lora_target_modules", "adapter.target_modules"},
    {"lora_target", "adapter.target_modules"},
    {"lora_target_linear", "adapter.target_modules", "all-linear, which is the default"},
    {"lora_modules_to_save", "adapter.modules_to_save"},
    {"lora_layers_to_transform", "adapter.layers_to_transform"},
    {"num_layers", "adapter.layers_to_transform", "the numbers of the layers"},
    {"layers_pattern", "", "leave it out: it follows from the model"},
    {"use_dora", "adapter.kind", "dora"},
    {"peft_use_dora", "adapter.kind", "dora"},
    {"peft_use_rslora", "adapter.use_rslora"},
    {"peft_type", "adapter.kind"},
    {"fine_tune_type", "adapter.kind"},
    {"init_lora_weights", "adapter.init"},
    {"peft_init_lora_weights", "adapter.init"},
    {"pissa_init", "adapter.init", "pissa"},
    {"trainable_token_indices", "adapter.trainable_tokens", "ids of embed_tokens"},
    {"bias", "", "leave it out: biases of the base stay; adapter.lora_bias trains the adapter's own"},
    {"task_type", "", "leave it out: every base is a causal language model"},
    {"fan_in_fan_out", "", "leave it out: no supported base has such layers"},
    {"loftq_config", "", "quantised bases are not trained on"},
    {"load_in_4bit", "", "quantised bases are not trained on"},
    {"load_in_8bit", "", "quantised bases are not trained on"},
    {"resume_adapter_file", "adapter.init_from"},
    {"lora_model_dir", "adapter.init_from"},
    {"adapter_name_or_path", "adapter.init_from"},
    {"resume_from_checkpoint", "", "leave it out: the same command goes on from the newest checkpoint"},
    {"dataset", "data.path", "a JSONL file"},
    {"datasets", "data.path", "a JSONL file"},
    {"dataset_path", "data.path", "a JSONL file"},
    {"train_file", "data.path", "a JSONL file"},
    {"training_file", "data.path", "a JSONL file"},
    {"validation_file", "data.eval_path"},
    {"eval_file", "data.eval_path"},
    {"test_datasets", "data.eval_path"},
    {"val_size", "data.eval_split", "a share"},
    {"val_set_size", "data.eval_split", "a share"},
    {"max_seq_length", "data.max_length"},
    {"sequence_len", "data.max_length"},
    {"cutoff_len", "data.max_length"},
    {"max_seq_len", "data.max_length"},
    {"packing", "", kPacked},
    {"sample_packing", "", kPacked},
    {"pad_to_sequence_len", "", kPacked},
    {"group_by_length", "", kPacked},
    {"train_on_inputs", "data.train_on_prompt"},
    {"assistant_only_loss", "", kMasked},
    {"completion_only_loss", "", kMasked},
    {"mask_prompt", "", kMasked},
    {"dataset_text_field", "", "leave it out: the field of a text record is \"text\""},
    {"type", "data.format"},
    {"formatting", "data.format"},
    {"chat_template", "", "the template is the base's: its chat_template.jinja or tokenizer_config.json"},
    {"template", "", "the template is the base's: its chat_template.jinja or tokenizer_config.json"},
    {"eval_steps", "eval.every"},
    {"steps_per_eval", "eval.every"},
    {"eval_strategy", "eval.every", "steps"},
    {"evaluation_strategy", "eval.every", "steps"},
    {"early_stopping_patience", "eval.patience"},
    {"load_best_model_at_end", "eval.keep_best"},
    {"save_steps", "save.every"},
    {"save_every", "save.every"},
    {"save_strategy", "save.every", "steps"},
    {"save_total_limit", "save.keep"},
    {"logging_steps", "", "leave it out: every step is a line of metrics"},
    {"steps_per_report", "", "leave it out: every step is a line of metrics"},
    {"report_to", "tensorboard", "a directory"},
    {"logging_dir", "tensorboard"},
    {"output_dir", "output"},
    {"adapter_path", "save.dir"},
    {"base_model", "base"},
    {"model", "base"},
    {"model_name_or_path", "base"},
    {"model_id", "base"},
    {"gradient_checkpointing", "checkpointing", "auto, none, selective or full"},
    {"grad_checkpoint", "checkpointing", "auto, none, selective or full"},
    {"bf16", "dtype", "bf16"},
    {"fp16", "dtype", "bf16 or f32"},
    {"torch_dtype", "dtype"},
};

constexpr Foreign kValues[] = {
    {"constant_with_warmup", "constant", "with warmup_steps or warmup_ratio"},
    {"cosine_with_min_lr", "cosine", "with min_ratio"},
    {"cosine_warmup_with_min_lr", "cosine", "with min_ratio"},
    {"cosine_decay", "cosine"},
    {"polynomial", "linear", "the polynomial of power 1"},
    {"float32", "f32"},
    {"fp32", "f32"},
    {"bfloat16", "bf16"},
    {"true", "default"},
    {"kaiming", "default"},
    {"loftq", "", "it belongs to a quantised base"},
    {"openai", "messages"},
    {"chatml", "messages"},
    {"chat_template", "messages"},
    {"input_output", "completion"},
    {"prompt_completion", "completion"},
};

std::string sentence(const Foreign& found) {
  if (found.ours.empty()) return std::string(found.note);
  return found.note.empty() ? fmt::format("use \"{}\"", found.ours)
                            : fmt::format("use \"{}\" ({})", found.ours, found.note);
}

}  // namespace

std::string instead_of_key(std::string_view key) {
  std::string name(key);
  std::ranges::replace(name, '-', '_');
  const auto* const found = std::ranges::find(kKeys, name, &Foreign::name);
  return found == std::end(kKeys) ? "" : sentence(*found);
}

std::string instead_of_value(std::string_view value) {
  if (value.starts_with("pissa_niter_")) return "use \"pissa\" (its decomposition is exact)";
  const auto* const found = std::ranges::find(kValues, value, &Foreign::name);
  return found == std::end(kValues) ? "" : sentence(*found);
}

}  // namespace lk
