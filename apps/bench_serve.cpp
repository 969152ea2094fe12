// SPDX-License-Identifier: Apache-2.0
// lorikeet bench serve URL: a load generator for any server with OpenAI's interface.
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <future>

#include <boost/json.hpp>

#include "commands.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/load/runner.h"
#include "lk/load/workload.h"

namespace lk::apps {
namespace {

namespace json = boost::json;
using namespace load;

struct ServeFlags {
  std::string url, endpoint = "chat", model, api_key, arrival = "poisson", input_tokens = "128", output_tokens = "64",
                   prompts, adapter_mix = "none", slo, json, extra_body, tls_ca;
  std::vector<std::string> adapters;
  int64_t num_requests = 0, concurrency = 0, max_concurrency = 0, shared_prefix = 0, vocab_size = 1000, warmup = 0;
  double duration = 0, rate = 0, cv = 1, zipf_alpha = 1, timeout = 600, temperature = 0;
  uint64_t seed = 1;
  int io_threads = 1;
  bool stream = true, ignore_eos = true, per_adapter = false, verify_tls = true;
};

// --- the server

struct HttpAnswer {
  int code = 0;
  std::string body;
  Status status;
};

HttpAnswer fetch(HttpClient& client, const std::string& url, const HttpHeaders& headers) {
  HttpAnswer answer;
  std::promise<void> done;
  client.send({.method = "GET", .url = url, .headers = headers, .timeout = std::chrono::seconds(30)},
              {.on_head = [&](int code, const HttpHeaders&) { answer.code = code; },
               .on_data =
                   [&](std::string_view bytes) {
                     if (answer.body.size() < size_t{64} << 20) answer.body += bytes;
                   },
               .on_done =
                   [&](Status status) {
                     answer.status = std::move(status);
                     done.set_value();
                   }});
  done.get_future().wait();
  return answer;
}

struct ServerModels {
  bool known = false;  // the server has a list
  std::vector<std::string> base, adapters;
  bool has(const std::string& name) const {
    return std::find(base.begin(), base.end(), name) != base.end() ||
           std::find(adapters.begin(), adapters.end(), name) != adapters.end();
  }
};

// For a query. What our servers list needs no escapes; others may list anything.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  return out;
}

// One page of GET /v1/models: a model with a parent is an adapter. Returns what the next page comes after, "" at the
// end.
Result<std::string> read_models(const std::string& body, const std::string& url, ServerModels& models) {
  boost::system::error_code error;
  const json::value list = json::parse(body, error);
  const json::value* data = !error && list.is_object() ? list.as_object().if_contains("data") : nullptr;
  if (!data || !data->is_array())
    return data_loss("{}/v1/models is no list of models: is this a server with OpenAI's interface?", url);
  models.known = true;
  for (const json::value& item : data->as_array()) {
    const json::value* id = item.is_object() ? item.as_object().if_contains("id") : nullptr;
    if (!id || !id->is_string()) continue;
    const json::value* parent = item.as_object().if_contains("parent");
    (parent && parent->is_string() ? models.adapters : models.base).emplace_back(id->as_string());
  }
  const json::value* more = list.as_object().if_contains("has_more");
  const json::value* last = list.as_object().if_contains("last_id");
  if (!more || !more->is_bool() || !more->as_bool() || !last || !last->is_string()) return std::string();
  return std::string(last->as_string());
}

Result<ServerModels> list_models(HttpClient& client, const std::string& url, const HttpHeaders& headers) {
  ServerModels models;
  std::string after;
  do {
    const std::string query = after.empty() ? "" : "?after=" + escaped(after);
    const HttpAnswer answer = fetch(client, url + "/v1/models" + query, headers);
    if (!answer.status.ok()) return unavailable("no server answers at {}: {}", url, answer.status.message());
    if (answer.code == 401 || answer.code == 403)
      return unauthenticated("the server at {} refuses the API key ({}): give --api-key or set OPENAI_API_KEY", url,
                             answer.code);
    if (answer.code != 200) return models;
    const std::string before = after;
    LK_ASSIGN_OR_RETURN(after, read_models(answer.body, url, models));
    if (after == before) break;  // a server that does not know pages
  } while (!after.empty());
  return models;
}

std::string names_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 10;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) out += (i > 0 ? ", " : "") + names[i];
  return names.size() > kShown ? fmt::format("{} and {} more", out, names.size() - kShown) : out.empty() ? "none" : out;
}

Status choose_models(ServeFlags& flags, const ServerModels& models) {
  if (flags.model.empty()) {
    if (models.base.empty()) return invalid_argument("the server lists no model: give --model");
    flags.model = models.base.front();
  } else if (models.known && !models.has(flags.model)) {
    return not_found("the server has no model \"{}\"; it has {}", flags.model, names_of(models.base));
  }
  if (flags.adapter_mix == "none" || flags.adapter_mix == "file") return Status();
  if (flags.adapters.empty()) flags.adapters = models.adapters;
  if (flags.adapters.empty())
    return invalid_argument("--adapter-mix {} needs --adapters: the server lists none", flags.adapter_mix);
  for (const std::string& adapter : flags.adapters)
    if (models.known && !models.has(adapter))
      return not_found("the server has no adapter \"{}\"; it has {}", adapter, names_of(models.adapters));
  return Status();
}

std::string base_url(std::string url) {
  if (url.starts_with("unix:") && url.find(":/", 5) == std::string::npos) return url + ":";
  while (url.ends_with('/')) url.pop_back();
  if (url.ends_with("/v1")) url.resize(url.size() - 3);
  while (url.ends_with('/')) url.pop_back();
  return url;
}

// --- the load

Result<WorkloadOptions> make_workload(ServeFlags& flags) {
  WorkloadOptions workload{.chat = flags.endpoint == "chat",
                           .stream = flags.stream,
                           .ignore_eos = flags.ignore_eos,
                           .shared_prefix = flags.shared_prefix,
                           .vocab_size = flags.vocab_size,
                           .temperature = flags.temperature,
                           .seed = flags.seed};
  LK_ASSIGN_OR_RETURN(workload.input, parse_length_range(flags.input_tokens));
  LK_ASSIGN_OR_RETURN(workload.output, parse_length_range(flags.output_tokens));
  if (!flags.prompts.empty()) {
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(flags.prompts));
    Result<std::vector<PromptLine>> prompts = parse_prompts(text);
    if (!prompts.ok()) return prompts.status().with_context(flags.prompts);
    workload.prompts = std::move(*prompts);
    for (const PromptLine& line : workload.prompts)
      if (workload.chat ? !line.messages.is_array() && !line.prompt.is_string() : line.prompt.is_null())
        return invalid_argument("{}: --endpoint {} cannot send {}", flags.prompts, flags.endpoint,
                                workload.chat ? "token ids" : "messages");
  }
  if (!flags.extra_body.empty()) {
    boost::system::error_code error;
    const json::value extra = json::parse(flags.extra_body, error);
    if (error || !extra.is_object()) return invalid_argument("--extra-body wants a JSON object");
    workload.extra = extra.as_object();
  }
  return workload;
}

// Adapter of each line of the prompts file, as an index into flags.adapters (which it fills).
Result<std::vector<int>> adapters_of_lines(ServeFlags& flags, const WorkloadOptions& workload) {
  if (workload.prompts.empty()) return invalid_argument("--adapter-mix file needs --prompts");
  std::vector<int> indices;
  for (const PromptLine& line : workload.prompts) {
    if (!line.has_adapter)
      return invalid_argument("{}: --adapter-mix file needs \"adapter\" in every line (\"\" = the base model)",
                              flags.prompts);
    const auto found = std::find(flags.adapters.begin(), flags.adapters.end(), line.adapter);
    indices.push_back(line.adapter.empty() ? -1 : static_cast<int>(found - flags.adapters.begin()));
    if (!line.adapter.empty() && found == flags.adapters.end()) flags.adapters.push_back(line.adapter);
  }
  return indices;
}

Result<RunOptions> make_run(const ServeFlags& flags) {
  RunOptions run{.open_loop = flags.rate != 0,
                 .rate = flags.rate,
                 .cv = flags.cv,
                 .num_requests = flags.num_requests,
                 .duration_s = flags.duration,
                 .stream = flags.stream,
                 .seed = flags.seed + 1,
                 .timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.timeout * 1e3))};
  if (flags.rate != 0 && flags.concurrency != 0)
    return invalid_argument(
        "--rate (open loop) and --concurrency (closed loop) exclude each other; --max-concurrency caps an open loop");
  if (flags.max_concurrency != 0 && flags.rate == 0)
    return invalid_argument("--max-concurrency caps an open loop: give --rate, or --concurrency for a closed loop");
  if (run.num_requests == 0 && run.duration_s == 0) run.num_requests = 100;
  if (run.num_requests == 0 && std::isinf(run.rate)) return invalid_argument("--rate inf needs --num-requests");
  run.arrival = flags.arrival == "gamma"      ? ArrivalKind::kGamma
                : flags.arrival == "constant" ? ArrivalKind::kConstant
                                              : ArrivalKind::kPoisson;
  run.max_in_flight = run.open_loop ? flags.max_concurrency : std::max<int64_t>(flags.concurrency, 1);
  return run;
}

void show_progress(const RunProgress& p) {
  fmt::print(stderr, "\r{:6.0f} s  {} sent, {} done, {} in flight, {} failed   ", p.elapsed_s, p.sent, p.finished,
             p.in_flight, p.failed);
  std::fflush(stderr);
}

// Every stream needs a descriptor.
void raise_descriptor_limit() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

Status warm_up(HttpClient& client, RunOptions run, int64_t count) {
  run.open_loop = false;
  run.max_in_flight = std::min<int64_t>(count, run.max_in_flight > 0 ? run.max_in_flight : 8);
  run.num_requests = count;
  run.duration_s = 0;
  run.on_progress = nullptr;
  // Prompts of the run are not seen before it.
  run.plan = [plan = run.plan](int64_t index) { return plan(index + (int64_t{1} << 40)); };
  const RunResult result = run_load(client, run);
  for (const RequestRecord& record : result.records)
    if (record.outcome == Outcome::kOk) return Status();
  if (result.was_interrupted) return Status();
  return failed_precondition("every warm-up request failed: {}",
                             result.records.empty() ? "" : result.records.front().error);
}

json::object settings_json(const ServeFlags& flags, const RunOptions& run) {
  return {{"url", flags.url},
          {"endpoint", flags.endpoint},
          {"model", flags.model},
          {"loop", run.open_loop ? "open" : "closed"},
          {"rate", std::isinf(flags.rate) ? json::value("inf") : json::value(flags.rate)},
          {"arrival", flags.arrival},
          {"cv", flags.cv},
          {"max_in_flight", run.max_in_flight},
          {"num_requests", run.num_requests},
          {"duration_s", run.duration_s},
          {"input_tokens", flags.input_tokens},
          {"output_tokens", flags.output_tokens},
          {"prompts", flags.prompts},
          {"shared_prefix", flags.shared_prefix},
          {"adapter_mix", flags.adapter_mix},
          {"adapters", flags.adapters.size()},
          {"zipf_alpha", flags.zipf_alpha},
          {"stream", flags.stream},
          {"ignore_eos", flags.ignore_eos},
          {"slo", flags.slo},
          {"seed", flags.seed},
          {"warmup", flags.warmup}};
}

Result<int> run_serve(ServeFlags& flags) {
  flags.url = base_url(flags.url);
  LK_ASSIGN_OR_RETURN(RunOptions run, make_run(flags));
  LK_ASSIGN_OR_RETURN(const Slo slo, parse_slo(flags.slo));
  LK_ASSIGN_OR_RETURN(WorkloadOptions workload, make_workload(flags));
  LK_ASSIGN_OR_RETURN(
      const std::unique_ptr<HttpClient> client,
      HttpClient::create({.num_threads = flags.io_threads, .verify_tls = flags.verify_tls, .tls_ca = flags.tls_ca}));
  run.headers = {{"Content-Type", "application/json"}};
  for (const char* variable : {"LORIKEET_API_KEY", "OPENAI_API_KEY"})
    if (const char* key = std::getenv(variable); flags.api_key.empty() && key) flags.api_key = key;
  if (!flags.api_key.empty()) run.headers.emplace_back("Authorization", "Bearer " + flags.api_key);
  LK_ASSIGN_OR_RETURN(const ServerModels models, list_models(*client, flags.url, run.headers));
  LK_RETURN_IF_ERROR(choose_models(flags, models));

  const auto mix_kind = flags.adapter_mix == "same"       ? AdapterMixKind::kSame
                        : flags.adapter_mix == "distinct" ? AdapterMixKind::kDistinct
                        : flags.adapter_mix == "zipf"     ? AdapterMixKind::kZipf
                                                          : AdapterMixKind::kNone;
  std::vector<int> line_adapters;
  if (flags.adapter_mix == "file") {
    LK_ASSIGN_OR_RETURN(line_adapters, adapters_of_lines(flags, workload));
  }
  const AdapterMix mix(mix_kind, static_cast<int>(flags.adapters.size()), flags.zipf_alpha, flags.seed + 2);
  run.plan = [&](int64_t index) {
    const int adapter =
        line_adapters.empty() ? mix.pick(index) : line_adapters[static_cast<size_t>(index) % line_adapters.size()];
    GeneratedRequest request =
        make_request(workload, index, adapter < 0 ? flags.model : flags.adapters[static_cast<size_t>(adapter)]);
    return PlannedRequest{.url = flags.url + request.path,
                          .body = std::move(request.body),
                          .adapter = adapter,
                          .max_tokens = request.max_tokens};
  };
  raise_descriptor_limit();
  watch_interrupts();
  run.interrupted = [] { return interrupted != 0; };
  if (flags.warmup > 0) LK_RETURN_IF_ERROR(warm_up(*client, run, flags.warmup));
  if (stderr_is_terminal()) run.on_progress = show_progress;
  const RunResult result = run_load(*client, run);
  if (run.on_progress) fmt::print(stderr, "\r{:79}\r", "");

  const LoadReport report = make_report(result.records, result.facts, slo);
  fmt::print("{} {}, {}\n", flags.url, flags.model,
             run.open_loop ? fmt::format("open loop, {} req/s, {} arrivals{}", flags.rate, flags.arrival,
                                         flags.arrival == "gamma" ? fmt::format(" (cv {})", flags.cv) : "")
                           : fmt::format("closed loop of {}", run.max_in_flight));
  fmt::print("{}", format_report(report, flags.adapters, flags.per_adapter));
  if (!flags.json.empty()) {
    json::object out = report_json(report, flags.adapters);
    out["settings"] = settings_json(flags, run);
    LK_RETURN_IF_ERROR(write_file_atomic(flags.json, json_text(out) + "\n"));
  }
  if (result.was_interrupted) return 130;
  return report.ok > 0 ? 0 : 1;
}

}  // namespace

void add_bench_serve(CLI::App& bench, int& exit_code) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command =
      bench.add_subcommand("serve", "Drive a server with OpenAI's interface; latency, throughput, goodput");
  command->add_option("URL", flags->url, "http://HOST:PORT, https://HOST:PORT or unix:/PATH")->required();
  const auto option = [&](const char* group, const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)->group(group);
  };
  option("Requests", "--endpoint", flags->endpoint, "what to ask for")
      ->check(CLI::IsMember({"chat", "completions"}))
      ->capture_default_str();
  option("Requests", "--model", flags->model, "base model (default: the first that the server lists)");
  option("Requests", "--api-key", flags->api_key, "else LORIKEET_API_KEY, else OPENAI_API_KEY");
  option("Requests", "--input-tokens", flags->input_tokens,
         "prompt length N, or uniform in MIN:MAX: random token ids; for chat, words")
      ->capture_default_str();
  option("Requests", "--output-tokens", flags->output_tokens, "max_tokens N, or uniform in MIN:MAX")
      ->capture_default_str();
  option("Requests", "--prompts", flags->prompts,
         "JSON lines with prompt or messages, and optionally max_tokens and adapter, used in turn");
  option("Requests", "--shared-prefix", flags->shared_prefix,
         "so many first tokens (chat: words) are the same in all prompts")
      ->check(CLI::NonNegativeNumber);
  option("Requests", "--vocab-size", flags->vocab_size, "random token ids are below this")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  option("Requests", "--temperature", flags->temperature, "of sampling")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  option("Requests", "--extra-body", flags->extra_body, "JSON object added to every request");
  command->add_flag("--stream,!--no-stream", flags->stream, "streamed answers (default)")->group("Requests");
  command->add_flag("--ignore-eos,!--no-ignore-eos", flags->ignore_eos, "answers have full length (default)")
      ->group("Requests");
  option("Load", "--num-requests", flags->num_requests, "how many (default 100 without --duration)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32));
  option("Load", "--duration", flags->duration, "seconds in which requests are sent")->check(CLI::PositiveNumber);
  option("Load", "--rate", flags->rate, "open loop: requests per second, or inf")->check(CLI::PositiveNumber);
  option("Load", "--arrival", flags->arrival, "gaps of the open loop")
      ->check(CLI::IsMember({"poisson", "gamma", "constant"}))
      ->capture_default_str();
  option("Load", "--cv", flags->cv, "coefficient of variation of gamma gaps")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  option("Load", "--concurrency", flags->concurrency, "closed loop: so many at once (default 1 without --rate)")
      ->check(CLI::PositiveNumber);
  option("Load", "--max-concurrency", flags->max_concurrency, "open loop: no more than this at once")
      ->check(CLI::PositiveNumber);
  option("Load", "--warmup", flags->warmup, "requests before the run, not counted")->check(CLI::NonNegativeNumber);
  option("Load", "--timeout", flags->timeout, "seconds for one request")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str();
  option("Load", "--seed", flags->seed, "of prompts, lengths, arrivals and adapters")->capture_default_str();
  option("Load", "--io-threads", flags->io_threads, "threads that read answers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  option("Adapters", "--adapter-mix", flags->adapter_mix, "whom requests ask; file = the adapter field of --prompts")
      ->check(CLI::IsMember({"none", "same", "distinct", "zipf", "file"}))
      ->capture_default_str();
  option("Adapters", "--adapters", flags->adapters, "names (default: all that the server lists)")->delimiter(',');
  option("Adapters", "--zipf-alpha", flags->zipf_alpha, "popularity of the i-th is i^-ALPHA")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_flag("--per-adapter", flags->per_adapter, "also a row for each adapter")->group("Adapters");
  option("Report", "--slo", flags->slo, "objectives in ms, for goodput: ttft=500,tpot=30,e2e=5000");
  option("Report", "--json", flags->json, "also write the figures to this file");
  option("TLS", "--tls-ca", flags->tls_ca, "PEM file of authorities to trust instead of the system's");
  command->add_flag("--tls-verify,!--no-tls-verify", flags->verify_tls, "check the server's certificate (default)")
      ->group("TLS");
  command->callback([flags, &exit_code] {
    const Result<int> result = run_serve(*flags);
    exit_code = result.ok() ? *result : fail(result.status());
  });
}

}  // namespace lk::apps
