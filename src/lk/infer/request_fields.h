// SPDX-License-Identifier: Apache-2.0
// Every field of a request for text, wherever it comes from: bodies of the HTTP API, lines of `lorikeet generate
// --input`, a model's generation_config.json. This is the one place that knows their names, ranges and limits.
#pragma once

#include "lk/base/json_form.h"

namespace lk {

enum RequestForm : uint32_t {
  kChatForm = 1 << 0,
  kCompletionForm = 1 << 1,
  kEmbeddingForm = 1 << 2,
  kTokenizeForm = 1 << 3,
  kDetokenizeForm = 1 << 4,
  kBatchForm = 1 << 5,             // a line of generate --input
  kGenerationConfigForm = 1 << 6,  // generation_config.json
  kStreamOptionsForm = 1 << 7,
  kStructuredOutputsForm = 1 << 8,
  kResponseFormatForm = 1 << 9,
  kJsonSchemaForm = 1 << 10,
  kMessageForm = 1 << 11,
  kPartForm = 1 << 12,
  kCallForm = 1 << 13,
  kCalledFunctionForm = 1 << 14,
  kToolForm = 1 << 15,
  kFunctionForm = 1 << 16,
  kToolChoiceForm = 1 << 17,
  kChosenFunctionForm = 1 << 18,
  kResumeForm = 1 << 19,
  kResumedChoiceForm = 1 << 20,
};

inline constexpr int64_t kMaxNameBytes = 256;         // of a model, a function, a message's author
inline constexpr int64_t kMaxSourceBytes = 64 << 10;  // of a schema or grammar
inline constexpr int64_t kMaxBodyTokens = 1 << 20;    // a body holds no more values

namespace rows {

inline constexpr uint32_t kText = kChatForm | kCompletionForm;
inline constexpr uint32_t kSampled = kText | kBatchForm;
inline constexpr uint32_t kDefaulted = kSampled | kGenerationConfigForm;
inline constexpr uint32_t kTemplated = kChatForm | kTokenizeForm;

}  // namespace rows

inline constexpr Field kRequestFields[] = {
    // --- What is asked
    rows::text(
        "model", rows::kText | kEmbeddingForm | kTokenizeForm | kDetokenizeForm, rows::kOpenAi, 0, kMaxNameBytes,
        "An adapter: name, name@version, base:name or an alias; a weighted sum of adapters: a*0.7+b*0.3; the base "
        "model: its name, \"base\" or nothing."),
    rows::text("adapter", kBatchForm, rows::kOurs, 0, kMaxNameBytes, "Its name; \"\" is the base model."),
    {.name = "id", .forms = kBatchForm, .kind = FieldKind::kId, .about = "Stands in the result."},
    rows::required(rows::list("messages", kChatForm, rows::kOpenAi, 1, 65'536, "Message")),
    rows::list("messages", kTokenizeForm, rows::kVllm, 1, 65'536, "Message", "Instead of prompt."),
    rows::list("messages", kBatchForm, rows::kOpenAi, 1, 65'536, "Message", "Instead of prompt."),
    {.name = "prompt",
     .forms = kCompletionForm,
     .kind = FieldKind::kPrompts,
     .origin = rows::kOpenAi,
     .about = "Text, token ids, or a list of either; n times their number at most --max-choices (128).",
     .required = true},
    rows::text("prompt", kTokenizeForm, rows::kVllm, 0, kAnyLength, "Or messages."),
    rows::text("prompt", kBatchForm, rows::kOpenAi, 0, kAnyLength, "Or messages, or token_ids."),
    rows::tokens("token_ids", kBatchForm, rows::kOurs, 0, kMaxBodyTokens, "Instead of prompt."),
    {.name = "input",
     .forms = kEmbeddingForm,
     .kind = FieldKind::kPrompts,
     .origin = rows::kOpenAi,
     .about = "Text, token ids, or a list of at most --max-choices (128) of either.",
     .required = true},
    rows::required(rows::tokens("tokens", kDetokenizeForm, rows::kVllm, 0, kMaxBodyTokens)),
    rows::text("expected", kBatchForm, rows::kOurs, 0, kAnyLength,
               "The right answer: the result says whether it matched."),

    // --- How long
    rows::integer("max_tokens", kChatForm, rows::kOpenAi, 1, kNoMaximum, "",
                  "Older name of max_completion_tokens. More than fits the context means: until it is full."),
    rows::integer("max_tokens", kCompletionForm, rows::kOpenAi, 0, kNoMaximum, "16",
                  "0 only with echo or prompt_logprobs."),
    rows::integer("max_tokens", kBatchForm, rows::kOpenAi, 0, kNoMaximum, "128", "0 scores the prompt."),
    rows::integer("max_completion_tokens", kChatForm, rows::kOpenAi, 1, kNoMaximum, "",
                  "Without it an answer may fill the context."),
    rows::integer("min_tokens", rows::kText, rows::kVllm, 0, kNoMaximum, "0", "No end before so many tokens."),
    rows::texts("stop", rows::kSampled, rows::kOpenAi, 0, 16, 1, 256,
                "Texts that end the answer; they are not part of it."),
    rows::tokens("stop_token_ids", rows::kSampled, rows::kVllm, 0, 1024, "Tokens that end the answer."),
    rows::flag("include_stop_str_in_output", rows::kText, rows::kVllm, "false"),
    rows::flag("ignore_eos", rows::kSampled, rows::kVllm, "false", "Go on after an end-of-sequence token."),
    rows::integer("truncate_prompt_tokens", rows::kText | kEmbeddingForm, rows::kVllm, 1, kNoMaximum, "",
                  "Keep the last so many tokens of the prompt."),
    rows::integer("thinking_token_budget", kChatForm, rows::kVllm, 0, kNoMaximum, "",
                  "Thoughts end after so many tokens. Of a model whose thoughts are told from its answers."),
    rows::tokens("output_so_far", kBatchForm, rows::kOurs, 0, kMaxBodyTokens,
                 "Tokens of the answer that were made elsewhere: it goes on after them, exactly. Needs the seed unless "
                 "temperature is 0."),
    rows::object("lorikeet_resume", rows::kText, rows::kOurs, "Resume",
                 "For routers with a key of scope fleet: which answer this is, and what its client has of it."),

    // --- What only generation_config.json calls so
    rows::flag("do_sample", kGenerationConfigForm, rows::kOurs, "true"),
    rows::integer("max_new_tokens", kGenerationConfigForm, rows::kOurs, 1, kNoMaximum, ""),
    rows::integer("min_new_tokens", kGenerationConfigForm, rows::kOurs, 0, kNoMaximum, ""),
    rows::texts("stop_strings", kGenerationConfigForm, rows::kOurs, 0, 16, 1, 256),

    // --- How tokens are drawn
    rows::number("temperature", rows::kDefaulted, rows::kOpenAi, 0, 100, "1", "0 takes the most likely token."),
    {.name = "top_p",
     .forms = rows::kDefaulted,
     .kind = FieldKind::kNumber,
     .origin = rows::kOpenAi,
     .high = 1,
     .above = true,
     .standard = "1"},
    rows::integer("top_k", rows::kDefaulted, rows::kVllm, -1, kNoMaximum, "0", "-1 or 0: all tokens."),
    rows::number("min_p", rows::kDefaulted, rows::kVllm, 0, 1, "0"),
    rows::number("repetition_penalty", rows::kDefaulted, rows::kVllm, 0.01, 100, "1", "1 is off."),
    rows::number("presence_penalty", rows::kDefaulted, rows::kOpenAi, -2, 2, "0"),
    rows::number("frequency_penalty", rows::kDefaulted, rows::kOpenAi, -2, 2, "0"),
    {.name = "logit_bias",
     .forms = rows::kSampled,
     .kind = FieldKind::kBiases,
     .origin = rows::kOpenAi,
     .low = -100,
     .high = 100,
     .max_count = 1024,
     .about = "Token id to what is added to its logit."},
    // 256 prompts may each hold them.
    rows::tokens("allowed_token_ids", rows::kText, rows::kVllm, 1, 16'384, "All others are forbidden."),
    rows::integer("seed", rows::kText, rows::kOpenAi, std::numeric_limits<int64_t>::min(), kNoMaximum, "",
                  "Makes the answer exactly repeatable; without it each request draws its own."),
    {.name = "seed",
     .forms = kBatchForm,
     .kind = FieldKind::kInteger,
     .origin = rows::kOpenAi,
     .max = kNoMaximum,
     .standard = "0",
     .about = "Up to 2^64 - 1."},
    rows::integer("n", rows::kText, rows::kOpenAi, 1, 16, "1", "Choices per prompt."),
    rows::integer("best_of", rows::kText, rows::kOpenAi, 1, 16, "", "Must be equal to n."),

    // --- What the answer shows
    rows::flag("stream", rows::kText, rows::kOpenAi, "false", "Answer as server-sent events."),
    rows::object("stream_options", rows::kText, rows::kOpenAi, "StreamOptions", "Only with stream."),
    rows::flag("logprobs", kChatForm, rows::kOpenAi, "false"),
    rows::integer("logprobs", kCompletionForm, rows::kOpenAi, 0, 20, "", "And the so many most likely tokens."),
    {.name = "logprobs",
     .forms = kBatchForm,
     .kind = FieldKind::kCount,
     .origin = rows::kOpenAi,
     .max = 20,
     .about = "And the so many most likely tokens."},
    rows::integer("top_logprobs", kChatForm, rows::kOpenAi, 0, 20, "0", "Needs logprobs."),
    rows::integer("prompt_logprobs", rows::kText, rows::kVllm, 0, 20, "", "Not with stream."),
    {.name = "prompt_logprobs", .forms = kBatchForm, .kind = FieldKind::kCount, .origin = rows::kVllm, .max = 20},
    rows::flag("echo", rows::kText, rows::kOpenAi, "false",
               "Return the prompt before the answer, with its logprobs when asked for."),
    rows::flag("return_token_ids", rows::kText, rows::kVllm, "false"),
    rows::flag("return_tokens_as_token_ids", rows::kText, rows::kVllm, "false",
               "Log-probabilities name tokens \"token_id:123\"."),
    rows::flag("return_token_strs", kTokenizeForm, rows::kVllm, "false"),
    rows::flag("skip_special_tokens", rows::kSampled, rows::kVllm, "true"),
    rows::word("encoding_format", kEmbeddingForm, rows::kOpenAi, "float|base64", "\"float\""),
    rows::integer("dimensions", kEmbeddingForm, rows::kOpenAi, 1, 1 << 20, "",
                  "The first so many numbers, normalised again."),
    {.name = "modalities",
     .forms = kChatForm,
     .kind = FieldKind::kWords,
     .origin = rows::kOpenAi,
     .max_count = 8,
     .detail = "text"},

    rows::flag("include_reasoning", kChatForm, rows::kVllm, "true", "Show what the model thought before its answer."),
    rows::flag("separate_reasoning", kChatForm, rows::kSglang, "true",
               "false: thoughts and their marks stay in the text, as the model wrote them."),

    // --- Whose it is
    rows::text("user", rows::kText, rows::kOpenAi, 0, 4 * kMaxNameBytes,
               "Shares are fair between a tenant's users, too."),
    rows::text("cache_salt", rows::kText, rows::kVllm, 1, 128,
               "Separates the prefix cache further, within the tenant."),

    // --- What it must match (docs/guide/structured_output.md)
    rows::object("response_format", rows::kText, rows::kOpenAi, "ResponseFormat"),
    rows::object("structured_outputs", rows::kText, rows::kVllm, "StructuredOutputs"),
    {.name = "guided_json",
     .forms = rows::kText,
     .kind = FieldKind::kSchema,
     .origin = rows::kVllm,
     .max = kMaxSourceBytes},
    rows::text("guided_regex", rows::kText, rows::kVllm, 1, kMaxSourceBytes),
    rows::texts("guided_choice", rows::kText, rows::kVllm, 1, 4096, 1, kMaxSourceBytes),
    rows::text("guided_grammar", rows::kText, rows::kVllm, 1, kMaxSourceBytes, "EBNF."),
    rows::flag("guided_json_object", rows::kText, rows::kVllm, "false"),
    rows::refused("guided_structural_tag", rows::kText, rows::kVllm, "use a schema or a grammar"),
    rows::refused("guided_whitespace_pattern", rows::kText, rows::kVllm, "white space follows the grammar"),

    // --- Templates and tools
    rows::flag("add_special_tokens", kChatForm, rows::kVllm, "false", "The template brings its own."),
    rows::flag("add_special_tokens", kCompletionForm | kEmbeddingForm | kTokenizeForm | kBatchForm, rows::kVllm,
               "true"),
    rows::flag("add_generation_prompt", rows::kTemplated, rows::kVllm, "true"),
    rows::flag("continue_final_message", rows::kTemplated, rows::kVllm, "false", "Excludes add_generation_prompt."),
    rows::text("chat_template", rows::kTemplated, rows::kVllm, 1, kMaxSourceBytes,
               "Which of the model's own templates, by its name. Requests may not bring templates."),
    {.name = "chat_template_kwargs",
     .forms = rows::kTemplated,
     .kind = FieldKind::kPlain,
     .origin = rows::kVllm,
     .max_count = 64,
     .about = "Variables for the chat template."},
    rows::list("documents", rows::kTemplated, rows::kVllm, 0, 4096, "", "Objects for the chat template."),
    rows::text("reasoning_effort", rows::kTemplated, rows::kOpenAi, 1, 32, "A variable for the chat template."),
    rows::list("tools", rows::kTemplated, rows::kOpenAi, 0, 128, "Tool"),
    {.name = "tool_choice",
     .forms = kChatForm,
     .kind = FieldKind::kChoice,
     .origin = rows::kOpenAi,
     .detail = "none|auto|required",
     .about = "Or {\"type\": \"function\", \"function\": {\"name\"}}."},
    rows::flag("parallel_tool_calls", kChatForm, rows::kOpenAi, "true"),

    // --- Known, without meaning here
    rows::ignored("user", kEmbeddingForm, rows::kOpenAi),
    rows::ignored("store", rows::kText, rows::kOpenAi),
    rows::ignored("metadata", rows::kText, rows::kOpenAi),
    rows::ignored("service_tier", rows::kText, rows::kOpenAi),
    rows::ignored("safety_identifier", rows::kText, rows::kOpenAi),
    rows::ignored("prompt_cache_key", rows::kText, rows::kOpenAi),
    rows::ignored("request_id", rows::kText, rows::kVllm),
    rows::ignored("session_id", rows::kText, rows::kVllm),
    rows::ignored("guided_decoding_backend", rows::kText, rows::kVllm),
    rows::ignored("spaces_between_special_tokens", rows::kText, rows::kVllm),
    rows::ignored("detokenize", rows::kText, rows::kVllm),
    rows::ignored("stream_reasoning", kChatForm, rows::kSglang),

    // --- Refused, because ignoring them would change the meaning
    rows::refused("lora_path", rows::kText, rows::kVllm, "name the adapter in \"model\""),
    rows::refused("lora_request", rows::kText, rows::kVllm, "name the adapter in \"model\""),
    rows::refused("lora", rows::kText, rows::kVllm, "name the adapter in \"model\""),
    rows::refused("adapter_id", rows::kText, rows::kVllm, "name the adapter in \"model\""),
    rows::refused("adapter_source", rows::kText, rows::kVllm, "name the adapter in \"model\""),
    rows::refused("adapters", rows::kText, rows::kVllm, "name the adapter in \"model\""),
    rows::refused("chat_template", kCompletionForm, rows::kVllm,
                  "requests may not bring templates, and a prompt needs none"),
    rows::refused("suffix", rows::kText, rows::kOpenAi, "text is only continued, not filled in"),
    rows::refused("functions", rows::kText, rows::kOpenAi, "it is deprecated; use \"tools\""),
    rows::refused("function_call", rows::kText, rows::kOpenAi, "it is deprecated; use \"tool_choice\""),
    rows::refused("function_call", kMessageForm, rows::kOpenAi, "it is deprecated; use \"tool_calls\""),
    rows::refused("use_beam_search", rows::kText, rows::kVllm, "only sampling is done"),
    rows::refused("bad_words", rows::kText, rows::kVllm, "use \"logit_bias\""),
    rows::refused("thinking_token_budget", kCompletionForm, rows::kVllm, "only chat tells thoughts from the answer"),
    rows::refused("logits_processors", rows::kText, rows::kVllm, "requests may not bring code"),
    rows::refused("audio", rows::kText, rows::kOpenAi, "the model takes and makes text only"),
    rows::refused("audio", kMessageForm, rows::kOpenAi, "the model takes text only"),
    rows::refused("prompt_embeds", rows::kText, rows::kVllm, "give text or token ids"),
    rows::refused("priority", rows::kText, rows::kVllm, "all requests of a tenant are equal"),

    // --- Parts of the above: StreamOptions
    rows::flag("include_usage", kStreamOptionsForm, rows::kOpenAi, "false", "A last event with the usage."),
    rows::flag("continuous_usage_stats", kStreamOptionsForm, rows::kVllm, "false", "The usage in every event."),
    // Resume and its choices
    rows::required(rows::text("id", kResumeForm, rows::kOurs, 1, 128, "Of the answer.")),
    rows::required(rows::integer("created", kResumeForm, rows::kOurs, 0, kNoMaximum, "", "Unix seconds.")),
    rows::required(
        rows::integer("seed", kResumeForm, rows::kOurs, 0, kNoMaximum, "", "Of requests that do not bring their own.")),
    rows::text("digest", kResumeForm, rows::kOurs, 0, 128, "Of the adapter that made the first part."),
    rows::list("choices", kResumeForm, rows::kOurs, 0, 65'536, "ResumedChoice"),
    rows::required(rows::tokens("tokens", kResumedChoiceForm, rows::kOurs, 0, kMaxBodyTokens)),
    rows::flag("done", kResumedChoiceForm, rows::kOurs, "false", "The choice is complete."),
    rows::integer("prompt_tokens", kResumedChoiceForm, rows::kOurs, 0, kNoMaximum, "0"),
    rows::integer("cached_tokens", kResumedChoiceForm, rows::kOurs, 0, kNoMaximum, "0"),
    // StructuredOutputs
    {.name = "json",
     .forms = kStructuredOutputsForm,
     .kind = FieldKind::kSchema,
     .origin = rows::kVllm,
     .max = kMaxSourceBytes},
    rows::text("regex", kStructuredOutputsForm, rows::kVllm, 1, kMaxSourceBytes),
    rows::texts("choice", kStructuredOutputsForm, rows::kVllm, 1, 4096, 1, kMaxSourceBytes),
    rows::text("grammar", kStructuredOutputsForm, rows::kVllm, 1, kMaxSourceBytes, "EBNF."),
    rows::flag("json_object", kStructuredOutputsForm, rows::kVllm, "false"),
    rows::refused("structural_tag", kStructuredOutputsForm, rows::kVllm, "use a schema or a grammar"),
    rows::refused("whitespace_pattern", kStructuredOutputsForm, rows::kVllm, "white space follows the grammar"),
    // ResponseFormat and its json_schema
    rows::required(rows::word("type", kResponseFormatForm, rows::kOpenAi, "text|json_object|json_schema", "")),
    rows::required(rows::word("type", kToolForm | kToolChoiceForm, rows::kOpenAi, "function", "")),
    rows::word("type", kCallForm, rows::kOpenAi, "function", "\"function\""),
    rows::required(rows::word("type", kPartForm, rows::kOpenAi, "text|refusal", "")),
    rows::object("json_schema", kResponseFormatForm, rows::kOpenAi, "JsonSchemaFormat", "With type json_schema."),
    {.name = "schema",
     .forms = kJsonSchemaForm,
     .kind = FieldKind::kSchema,
     .origin = rows::kOpenAi,
     .max = kMaxSourceBytes,
     .required = true},
    rows::flag("strict", kJsonSchemaForm | kFunctionForm, rows::kOpenAi, "false", "Schemas are always followed."),
    rows::text("description", kJsonSchemaForm | kFunctionForm, rows::kOpenAi, 0, kMaxSourceBytes),
    rows::text("name", kJsonSchemaForm | kMessageForm, rows::kOpenAi, 0, kMaxNameBytes),
    rows::required(rows::text("name", kCalledFunctionForm, rows::kOpenAi, 1, kAnyLength)),
    rows::required(rows::pattern("name", kFunctionForm, rows::kOpenAi, 1, 64, "^[A-Za-z0-9_.-]{1,64}$")),
    rows::required(rows::text("name", kChosenFunctionForm, rows::kOpenAi, 1, 64)),
    // Message
    rows::required(rows::text("role", kMessageForm, rows::kOpenAi, 1, 64,
                              "system, developer, user, assistant, tool, or what the chat template knows.")),
    {.name = "content", .forms = kMessageForm, .kind = FieldKind::kContent, .origin = rows::kOpenAi},
    rows::text("tool_call_id", kMessageForm, rows::kOpenAi, 0, kMaxNameBytes),
    rows::text("reasoning_content", kMessageForm, rows::kVllm, 0, kAnyLength),
    rows::text("reasoning", kMessageForm, rows::kVllm, 0, kAnyLength, "The same."),
    rows::text("thinking", kMessageForm, rows::kVllm, 0, kAnyLength, "The same."),
    rows::text("refusal", kMessageForm | kPartForm, rows::kOpenAi, 0, kAnyLength),
    rows::list("tool_calls", kMessageForm, rows::kOpenAi, 0, 65'536, "ToolCall"),
    rows::text("text", kPartForm, rows::kOpenAi, 0, kAnyLength),
    // ToolCall, Tool, ToolChoice
    rows::text("id", kCallForm, rows::kOpenAi, 0, kMaxNameBytes),
    rows::required(rows::object("function", kCallForm, rows::kOpenAi, "CalledFunction")),
    rows::required(rows::object("function", kToolForm, rows::kOpenAi, "Function")),
    rows::required(rows::object("function", kToolChoiceForm, rows::kOpenAi, "ChosenFunction")),
    {.name = "arguments", .forms = kCalledFunctionForm, .kind = FieldKind::kArgument, .origin = rows::kOpenAi},
    rows::object("parameters", kFunctionForm, rows::kOpenAi, "", "A JSON schema of at most 64 KiB."),
};

using RequestFields = FormFields<kRequestFields>;

// The row of a field of text requests, for those who check values that came without JSON.
inline const Field& sampling_field(FieldName<kRequestFields> name) { return name.in(kBatchForm); }

}  // namespace lk
