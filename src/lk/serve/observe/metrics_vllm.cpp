// SPDX-License-Identifier: Apache-2.0
// The names that vLLM's dashboards, the Gateway API inference extension, llm-d and benchmark tools read.
#include <cmath>
#include <set>

#include "lk/serve/observe/metrics_state.h"

namespace lk::metrics_detail {
namespace {

// Share of the pages KV may have without evicting an adapter that are read by running sequences: 1 means the next
// sequence waits or evicts. Pages that only cache prefixes count as free, as in vLLM.
double kv_usage(const ServerSnapshot& s) {
  const int64_t reachable =
      s.pages_kv + s.pages_cached + s.pages_free + s.pages_merged;  // merged weights go when room is needed
  if (reachable > 0) return static_cast<double>(s.pages_kv) / static_cast<double>(reachable);
  return s.pages > 0 ? 1 : 0;
}

// Adapters share the page pool with KV: there are no slots to count. As many as would fit the whole pool at their mean
// size; steady while the set of adapters is.
int64_t max_adapters(const ServerSnapshot& s) {
  int64_t bytes = 0, num_sized = 0;
  for (const AdapterSnapshot& adapter : s.adapters) {
    const int64_t size = adapter.device_bytes > 0 ? adapter.device_bytes : adapter.host_bytes;
    if (size > 0) bytes += size, ++num_sized;
  }
  if (num_sized == 0) return std::max<int64_t>(1, static_cast<int64_t>(s.adapters.size()));
  const double fit = static_cast<double>(s.pages) * static_cast<double>(s.page_bytes) /
                     (static_cast<double>(bytes) / static_cast<double>(num_sized));
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(fit, 1e9)));
}

// "a,b": adapters with requests in flight, at most `cap`; a name with a comma would read as two.
std::string in_flight_names(const ServerSnapshot& s, int64_t AdapterSnapshot::*field, int cap) {
  std::set<std::string> names;
  for (const AdapterSnapshot& adapter : s.adapters)
    if (adapter.*field > 0 && adapter.name.find(',') == std::string::npos)
      names.insert(clean_label_value(adapter.name));
  std::string text;
  for (const std::string& name : names) {
    if (cap-- <= 0) break;
    if (!text.empty()) text += ',';
    text += name;
  }
  return text;
}

int64_t count_tier(const ServerSnapshot& s, std::string_view tier) {
  return std::count_if(s.adapters.begin(), s.adapters.end(), [&](const AdapterSnapshot& a) { return a.tier == tier; });
}

void write_finish_reasons(const State& state, MetricFamilies& out) {
  // vLLM's words for ours.
  std::map<std::string, int64_t> reasons{{"stop", 0}, {"length", 0}, {"abort", 0}, {"error", 0}};
  for (const auto& [word, count] : state.finished) {
    const bool aborted = word == "cancelled" || word == "deadline";
    reasons[aborted                              ? "abort"
            : word == "tool_calls"               ? "stop"
            : word == "length" || word == "stop" ? word
                                                 : "error"] += count;
  }
  out.counter("vllm:request_success_total", "Finished requests by reason (abort: cancelled or past their deadline).");
  for (const auto& [reason, count] : reasons) out.add(static_cast<double>(count), {{"finished_reason", reason}});
}

void write_loaded_adapters(const ServerSnapshot& s, int cap, MetricFamilies& out) {
  // Device first: where the list is cut, routers still see what is resident. One sample a name, of its best tier.
  out.gauge(
      "vllm:lora_adapter_loaded",
      "1 for each loaded adapter; level gpu is the device tier, also where the device is a CPU; cpu is the host tier.");
  std::set<std::string> written;
  for (const std::string_view tier : {"device", "host"}) {
    for (const AdapterSnapshot& adapter : s.adapters) {
      if (adapter.tier != tier) continue;
      if (written.size() >= static_cast<size_t>(std::max(cap, 0))) return;
      const std::string name = clean_label_value(adapter.name), rank = std::to_string(adapter.rank);
      if (!written.insert(name).second) continue;
      out.add(1, {{"adapter_name", name},
                  {"level", tier == "device" ? "gpu" : "cpu"},
                  {"pinned", adapter.pinned ? "true" : "false"},
                  {"rank", rank}});
    }
  }
}

void write_adapters(const ServerSnapshot& s, const State& state, int cap, double unix_time, MetricFamilies& out) {
  const std::string running = in_flight_names(s, &AdapterSnapshot::running, cap),
                    waiting = in_flight_names(s, &AdapterSnapshot::waiting, cap);
  const std::string max_lora = std::to_string(max_adapters(s));
  out.gauge("vllm:lora_requests_info", "Adapters with requests in flight; the value is the Unix time of the scrape.")
      .add(unix_time, {{"max_lora", max_lora}, {"running_lora_adapters", running}, {"waiting_lora_adapters", waiting}});
  write_loaded_adapters(s, cap, out);
  out.gauge("vllm:num_gpu_loaded_lora_adapters", "Adapters in the device tier, also where the device is a CPU.")
      .add(static_cast<double>(count_tier(s, "device")));
  out.gauge("vllm:num_cpu_loaded_lora_adapters", "Adapters that are in the host tier only.")
      .add(static_cast<double>(count_tier(s, "host")));
  out.gauge("vllm:max_gpu_lora_adapters", "Adapters of mean size that would fit the whole page pool.")
      .add(static_cast<double>(max_adapters(s)));
  out.histogram("vllm:lora_adapter_load_seconds", "Time to load an adapter.").add(state.load_seconds);
}

}  // namespace

void Exposition::write_vllm(MetricFamilies& out) const {
  const ServerSnapshot& s = snapshot;
  out.set_common({{"model_name", options.model_name}, {"engine", "0"}});
  const auto gauge = [&](const char* name, const char* help, double value) { out.gauge(name, help).add(value); };
  const auto total = [&](const char* name, const char* help, const char* mirrored) {
    out.counter(name, help).add(state.mirrored.at(mirrored));
  };
  const auto histogram = [&](const char* name, const char* help, const Histogram& h) {
    out.histogram(name, help).add(h);
  };

  gauge("vllm:num_requests_running", "Requests that are being computed.", static_cast<double>(s.num_running));
  gauge("vllm:num_requests_waiting", "Requests that wait for their first step.", static_cast<double>(s.num_waiting));
  gauge("vllm:kv_cache_usage_perc", "Pages read by running sequences, of those not held by adapters; 1 is full.",
        kv_usage(s));
  gauge("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc.", kv_usage(s));
  total("vllm:prompt_tokens_total", "Prompt tokens.", "prompt_tokens");
  total("vllm:generation_tokens_total", "Output tokens.", "generation_tokens");
  total("vllm:num_preemptions_total", "Sequences that lost their pages and were computed again.", "preemptions");
  total("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", "prefix_queries");
  total("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", "prefix_hits");
  write_finish_reasons(state, out);

  histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", state.first_token);
  histogram("vllm:inter_token_latency_seconds", "Time between two tokens of a sequence.", token_gap);
  histogram("vllm:time_per_output_token_seconds", "Older name of vllm:inter_token_latency_seconds.", token_gap);
  histogram("vllm:e2e_request_latency_seconds", "Arrival to the end.", state.e2e);
  histogram("vllm:request_queue_time_seconds", "Arrival to the first step.", state.queue);
  histogram("vllm:request_prefill_time_seconds", "First step to first token.", state.prefill);
  histogram("vllm:request_decode_time_seconds", "First token to the end.", state.decode);
  histogram("vllm:request_inference_time_seconds", "First step to the end.", state.inference);
  histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", state.prompt_tokens);
  histogram("vllm:request_generation_tokens", "Output tokens of a request.", state.output_tokens);
  histogram("vllm:request_max_num_generation_tokens", "Output tokens that a request might have had.", state.max_tokens);
  histogram("vllm:request_params_max_tokens", "max_tokens of a request.", state.max_tokens);
  histogram("vllm:request_params_n", "Choices asked for.", state.choices);
  histogram("vllm:iteration_tokens_total", "Tokens computed in one step.", state.step_tokens);

  const std::string block_size = std::to_string(s.page_tokens), num_blocks = std::to_string(s.pages);
  out.gauge("vllm:cache_config_info", "The page pool.")
      .add(1, {{"block_size", block_size}, {"num_gpu_blocks", num_blocks}, {"enable_prefix_caching", "True"}});
  write_adapters(s, state, options.max_label_values, unix_time, out);
  out.set_common({});
}

}  // namespace lk::metrics_detail
