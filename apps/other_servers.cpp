// SPDX-License-Identifier: Apache-2.0
#include "other_servers.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

namespace lk::apps {
namespace {

enum class Means : uint8_t {
  kOption,   // `text` is Lorikeet's name for it; takes a value
  kSwitch,   // `text` is Lorikeet's name for it; takes none
  kModel,    // the value is the model's directory
  kNames,    // of the base model, one or more
  kLoras,    // NAME=DIR, one or more
  kOrigins,  // a JSON list, or one or more
  kKey,      // an API key
  kDtype,
  kContext,
  kStep,
  kValuesNothing,  // the same as kValueNothing, with all values that follow
  kOnly,           // only the values of `text`, separated by '|', and then nothing is to be done; else `why`
  kNothing,        // no value, no effect; `text` says what there is instead, none: it is so anyway
  kValueNothing,   // the same with a value
  kRefused,        // `text` says what to do instead
};

struct Flag {
  std::string_view names;  // without their dashes, separated by spaces
  Means means;
  std::string_view text;
  std::string_view why = {};
};

constexpr std::string_view kNoGpu = "this build computes on the CPU";

// vLLM 0.11, SGLang 0.5 and llama-server of 2025, as their --help lists them.
constexpr Flag kFlags[] = {
    // Models
    {"model-path model-id model m", Means::kModel, ""},
    {"dtype", Means::kDtype, ""},
    {"ctx-size c context-length max-model-len", Means::kContext, ""},
    {"max-total-tokens", Means::kValueNothing, "--memory says how many tokens there is room for"},
    {"alias a", Means::kOption, "--served-model-name"},
    {"served-model-name", Means::kNames, ""},
    {"chat-template chat-template-file", Means::kRefused, "put it beside the model as chat_template.jinja"},
    {"quantization q", Means::kRefused, "quantized checkpoints are not read: give one in bf16, f16 or f32"},
    {"load-format", Means::kOnly, "auto|safetensors", "weights are read from *.safetensors"},
    {"kv-cache-dtype", Means::kOnly, "auto|bfloat16|bf16", "keys and values are kept in the type of --dtype"},
    {"tokenizer tokenizer-path", Means::kRefused, "the tokenizer is the model directory's"},
    {"tokenizer-mode", Means::kOnly, "auto", "tokenizer.json says all"},
    {"revision", Means::kRefused, "write it behind the model's name: ORG/NAME@REVISION"},
    {"tokenizer-revision code-revision", Means::kRefused,
     "the tokenizer is that of the model's revision, ORG/NAME@REVISION"},
    {"hf-token", Means::kRefused, "set HF_TOKEN: whoever lists this machine's processes sees options"},
    {"hf hf-repo hfr hf-file hff", Means::kRefused,
     "GGUF files are not read: give the name of the model with safetensors, ORG/NAME, as the model"},
    {"trust-remote-code", Means::kNothing, "no code of a model directory is ever run"},
    {"download-dir", Means::kRefused, "set HF_HUB_CACHE, which transformers and vLLM know as well"},
    {"generation-config", Means::kOnly, "auto", "generation_config.json of the model directory is what counts"},
    {"override-generation-config", Means::kRefused, "put generation_config.json beside the model"},
    {"hf-overrides json-model-override-args", Means::kRefused, "change config.json of the model directory"},
    {"runner task", Means::kOnly, "auto|generate|embed|embedding|pooling", "models answer and embed, nothing else"},
    {"is-embedding embedding embeddings", Means::kNothing, "/v1/embeddings is always there"},
    {"speculative-config speculative-algorithm model-draft md", Means::kRefused, "there is no speculative decoding"},
    {"limit-mm-per-prompt", Means::kValueNothing, "models answer text only"},
    {"mmproj", Means::kRefused, "models answer text only"},
    // Adapters
    {"lora-paths", Means::kLoras, ""},
    {"max-loras-per-batch", Means::kOption, "--max-loras"},
    {"max-lora-rank", Means::kValueNothing, "adapters of every rank are served"},
    {"max-cpu-loras max-loaded-loras", Means::kValueNothing, "copies are bounded in bytes, by --host-memory"},
    {"lora-dtype", Means::kOnly, "auto", "adapters are computed in the type of --dtype"},
    {"lora-extra-vocab-size lora-backend lora-eviction-policy default-mm-loras", Means::kValueNothing,
     "adapters need no such setting"},
    {"lora-target-modules", Means::kValuesNothing, "each adapter's config names its modules"},
    {"lora-scaled", Means::kRefused, "--lora NAME=DIR, and a request for NAME*0.5 scales it"},
    {"fully-sharded-loras enable-lora-bias", Means::kNothing, "adapters need no such setting"},
    {"enable-lora", Means::kNothing, ""},
    // Machine
    {"device", Means::kOnly, "auto|cpu", kNoGpu},
    {"tp tp-size tensor-parallel-size num-shard", Means::kOption, "--tensor-parallel"},
    {"pipeline-parallel-size pp pp-size data-parallel-size dp dp-size nnodes api-server-count", Means::kOnly, "1",
     "one process with one set of weights; `lorikeet route` stands in front of several"},
    {"gpu-memory-utilization mem-fraction-static", Means::kValueNothing,
     "pages take what --memory says, by default three quarters of what the weights leave"},
    {"swap-space cpu-offload-gb block-size page-size max-seq-len-to-capture cuda-graph-max-bs attention-backend",
     Means::kValueNothing, "memory is what --memory and --host-memory say, and the kernels choose for themselves"},
    {"n-gpu-layers ngl gpu-layers", Means::kOnly, "0|auto", kNoGpu},
    {"flash-attn fa", Means::kValueNothing, "the kernels choose for themselves"},
    {"mlock no-mmap", Means::kNothing, "weights are copied into memory once, in the order of the kernels"},
    {"enforce-eager disable-custom-all-reduce disable-cuda-graph", Means::kNothing, ""},
    // Scheduling
    {"max-running-requests parallel np max-concurrent-requests", Means::kOption, "--max-running"},
    {"chunked-prefill-size batch-size b", Means::kStep, ""},
    {"max-prefill-tokens", Means::kValueNothing, "--step-tokens bounds a step"},
    {"no-enable-chunked-prefill", Means::kNothing, "prompts are computed in chunks of --step-tokens at most"},
    {"ubatch-size ub", Means::kValueNothing, "--step-tokens bounds a step"},
    {"enable-chunked-prefill cont-batching cb async-scheduling disable-overlap-schedule no-warmup", Means::kNothing,
     ""},
    {"enable-torch-compile O0 O1 O2 O3", Means::kNothing, ""},
    {"compilation-config distributed-executor-backend", Means::kValueNothing, "the kernels choose for themselves"},
    {"cuda-graph-bs", Means::kValuesNothing, kNoGpu},
    {"t", Means::kOption, "--threads"},
    {"threads-batch tb", Means::kValueNothing, "--threads is for prompts, too"},
    {"timeout to", Means::kOption, "--request-timeout"},
    {"enable-prefix-caching", Means::kNothing, ""},
    {"no-enable-prefix-caching disable-radix-cache", Means::kSwitch, "--no-prefix-cache"},
    {"schedule-policy", Means::kOnly, "fcfs|lpm", "--scheduling-policy has this server's"},
    {"schedule-conservativeness", Means::kValueNothing, "--admission says when a request finds memory"},
    {"seed random-seed s", Means::kValueNothing, "a request's seed makes its answer repeatable"},
    {"max-logprobs", Means::kValueNothing, "as many as the API allows"},
    // Answers
    {"enable-auto-tool-choice enable-reasoning jinja", Means::kNothing, ""},
    {"reasoning-format", Means::kValueNothing, "--reasoning-parser says how thoughts are told apart"},
    {"reasoning-budget", Means::kValueNothing, "a request's thinking_token_budget bounds its thoughts"},
    {"chat-template-kwargs default-chat-template-kwargs", Means::kRefused,
     "requests have chat_template_kwargs; for all of them change the template"},
    {"predict n-predict n", Means::kValueNothing, "a request's max_tokens bounds its answer"},
    {"temp top-k top-p min-p repeat-penalty", Means::kValueNothing,
     "a request or the model's generation_config.json says how tokens are drawn"},
    {"verbose v", Means::kNothing, "--log-level debug says more"},
    {"guided-decoding-backend grammar-backend structured-outputs-config", Means::kValueNothing,
     "there is one engine for structured output"},
    {"response-role chat-template-content-format", Means::kValueNothing, "the template decides"},
    {"enable-prompt-tokens-details enable-request-id-headers enable-cache-report", Means::kNothing, ""},
    // Batches
    {"i input-file", Means::kOption, "--input-file"},
    {"o output-file", Means::kOption, "--output-file"},
    {"output-tmp-dir", Means::kValueNothing, "results are gathered beside their file"},
    // Network and operation
    {"api-key", Means::kKey, ""},
    {"uds", Means::kOption, "--unix-socket"},
    {"ssl-keyfile ssl-key-file", Means::kOption, "--tls-key"},
    {"ssl-certfile ssl-cert-file", Means::kOption, "--tls-cert"},
    {"allowed-origins", Means::kOrigins, ""},
    {"root-path api-prefix", Means::kRefused, "let the proxy in front take the prefix away"},
    {"middleware", Means::kRefused, "no Python runs in this server: put a proxy in front"},
    {"uvicorn-log-level log-level-http", Means::kValueNothing, "--log-level says what is logged"},
    {"disable-log-requests no-enable-log-requests disable-log-stats disable-uvicorn-access-log", Means::kNothing,
     "--log-level warning leaves requests out of the log"},
    {"enable-log-requests log-requests enable-metrics metrics", Means::kNothing, ""},
    {"slots no-webui", Means::kNothing, "the console shows what runs; --admin moves it elsewhere"},
};

bool has_word(std::string_view words, std::string_view word, char separator) {
  for (size_t begin = 0; begin <= words.size();) {
    const size_t end = std::min(words.find(separator, begin), words.size());
    if (words.substr(begin, end - begin) == word) return true;
    begin = end + 1;
  }
  return false;
}

// "--name" or "-n", '_' for '-' as Python's servers allow; nothing for a value.
std::optional<std::string> name_of(std::string_view argument) {
  if (argument.size() < 2 || argument[0] != '-' || (argument[1] >= '0' && argument[1] <= '9')) return std::nullopt;
  std::string name(argument.substr(argument[1] == '-' ? 2 : 1));
  std::ranges::replace(name, '_', '-');
  return name;
}

const Flag* find_flag(std::string_view name) {
  const auto found = std::ranges::find_if(kFlags, [&](const Flag& flag) { return has_word(flag.names, name, ' '); });
  return found == std::end(kFlags) ? nullptr : found;
}

// Goes over the arguments once.
class Translator {
 public:
  explicit Translator(const std::vector<std::string>& given) : given_(given) {}

  Result<ServeArguments> run() {
    while (next_ < given_.size()) {
      const std::string& argument = given_[next_++];
      const size_t equals = argument.find('=');
      const std::optional<std::string> name = name_of(argument.substr(0, equals));
      const bool is_long = argument.starts_with("--");
      const Flag* flag = name ? find_flag(*name) : nullptr;
      if (!flag) {
        // Lorikeet's own, by the other spelling.
        out_.arguments.push_back(
            name && is_long ? "--" + *name + (equals == argument.npos ? "" : argument.substr(equals)) : argument);
        continue;
      }
      shown_ = argument.substr(0, equals);
      inline_.reset();
      if (equals != argument.npos) inline_ = argument.substr(equals + 1);
      LK_RETURN_IF_ERROR(apply(*flag));
    }
    return std::move(out_);
  }

 private:
  Status apply(const Flag& flag) {
    if (inline_ && (flag.means == Means::kSwitch || flag.means == Means::kNothing))
      return invalid_argument("{}={}: takes no value here; leave it out for false", shown_, *inline_);
    switch (flag.means) {
      case Means::kOption: {
        LK_ASSIGN_OR_RETURN(std::string value, take());
        out_.arguments.push_back(fmt::format("{}={}", flag.text, value));
        return Status();
      }
      case Means::kSwitch:
        out_.arguments.emplace_back(flag.text);
        return Status();
      case Means::kModel: {
        LK_ASSIGN_OR_RETURN(std::string value, take());
        if (value.ends_with(".gguf"))
          return invalid_argument("{}: GGUF files are not read: give the model's directory as it is on the Hub",
                                  shown_);
        out_.arguments.push_back(std::move(value));
        return Status();
      }
      case Means::kNames:
        for (bool first = true; const std::string& value : take_all()) {
          // The model may follow.
          const bool model = !std::exchange(first, false) && std::filesystem::is_directory(value);
          out_.arguments.push_back(model ? value : "--served-model-name=" + value);
        }
        return Status();
      case Means::kLoras:
        for (const std::string& value : take_all()) {
          const bool named = value.starts_with('{') || value.find('=') != value.npos;
          out_.arguments.push_back(
              named ? "--lora=" + value
                    : fmt::format("--lora={}={}", std::filesystem::path(value).filename().string(), value));
        }
        return Status();
      case Means::kOrigins:
        return origins();
      case Means::kKey: {
        std::vector<std::string> keys = take_all();
        if (keys.size() != 1)
          return invalid_argument("{}: one key; `lorikeet keys create` makes as many as you like", shown_);
        if (keys[0].size() < 16)
          return invalid_argument("{}: a key has 16 to 200 characters; `openssl rand -hex 32` makes one", shown_);
        out_.api_key = std::move(keys[0]);
        out_.notes.push_back(fmt::format(
            "{}: whoever lists this machine's processes sees the key; LORIKEET_API_KEY or --api-key-file hide it",
            shown_));
        return Status();
      }
      case Means::kDtype:
        return dtype();
      case Means::kContext:
        return context();
      case Means::kStep: {
        LK_ASSIGN_OR_RETURN(const std::string value, take());
        if (value != "-1")
          out_.arguments.push_back("--step-tokens=" + value);
        else
          note("prompts are computed in chunks of --step-tokens at most");
        return Status();
      }
      case Means::kValuesNothing:
        (void)take_all();
        note(flag.text);
        return Status();
      case Means::kOnly: {
        LK_ASSIGN_OR_RETURN(const std::string value, take());
        if (has_word(flag.text, value, '|')) return Status();
        std::string allowed(flag.text);
        std::ranges::replace(allowed, '|', ' ');
        return invalid_argument("{} {}: here only {}; {}", shown_, value, allowed, flag.why);
      }
      case Means::kNothing:
        note(flag.text);
        return Status();
      case Means::kValueNothing:
        if (has_value()) LK_RETURN_IF_ERROR(take().status());  // not all that follow: the model may be among them
        note(flag.text);
        return Status();
      case Means::kRefused:
        return invalid_argument("{}: {}", shown_, flag.text);
    }
    return Status();
  }

  Status dtype() {
    LK_ASSIGN_OR_RETURN(const std::string value, take());
    if (value == "half" || value == "float16")
      return invalid_argument("{} {}: weights of any type are computed with in bf16, or in f32 for comparisons", shown_,
                              value);
    const bool bf16 = value == "auto" || value == "bfloat16", f32 = value == "float" || value == "float32";
    out_.arguments.push_back("--dtype=" + (bf16 ? "bf16" : f32 ? "f32" : value));
    return Status();
  }

  // vLLM reads 8k as 8000 and 8K as 8192.
  Status context() {
    LK_ASSIGN_OR_RETURN(std::string value, take());
    if (value == "auto" || value == "-1") value = "0";
    const char unit = value.empty() ? '\0' : value.back();
    if (unit == 'k' || unit == 'K') {
      int64_t count = 0;
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size() - 1, count);
      if (error == std::errc() && end == value.data() + value.size() - 1 && count > 0 && count < (1 << 20))
        value = fmt::format("{}", count * (unit == 'k' ? 1000 : 1024));
    }
    out_.arguments.push_back("--context=" + value);
    return Status();
  }

  Status origins() {
    for (const std::string& value : take_all()) {
      boost::system::error_code error;
      const boost::json::value list = boost::json::parse(value, error);
      const bool is_list = !error && list.is_array();
      if (!is_list) {
        out_.arguments.push_back("--allow-origin=" + value);
        continue;
      }
      for (const boost::json::value& origin : list.get_array()) {
        if (!origin.is_string()) return invalid_argument("{}: a list of strings, got {}", shown_, value);
        out_.arguments.push_back("--allow-origin=" + std::string(origin.get_string()));
      }
    }
    return Status();
  }

  bool has_value() const { return inline_ || (next_ < given_.size() && !name_of(given_[next_])); }
  Result<std::string> take() {
    if (inline_) return std::move(*inline_);
    if (!has_value()) return invalid_argument("{} wants a value", shown_);
    return given_[next_++];
  }
  std::vector<std::string> take_all() {
    if (inline_) return {std::move(*inline_)};
    std::vector<std::string> values;
    while (has_value()) values.push_back(given_[next_++]);
    return values;
  }
  void note(std::string_view text) {
    if (text.empty()) return;
    out_.notes.push_back(fmt::format("{} has no effect here: {}", shown_, text));
  }

  const std::vector<std::string>& given_;
  size_t next_ = 0;
  std::string shown_;                  // the option at hand, as it was written
  std::optional<std::string> inline_;  // its value, after '='
  ServeArguments out_;
};

}  // namespace

Result<ServeArguments> translate_serve_arguments(const std::vector<std::string>& arguments) {
  return Translator(arguments).run();
}

}  // namespace lk::apps
