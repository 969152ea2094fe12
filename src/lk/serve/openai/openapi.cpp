// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/openapi.h"

#include <cctype>
#include <limits>
#include <set>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/infer/request_fields.h"
#include "lk/serve/access/access_requests.h"
#include "lk/serve/http/embedded.h"
#include "lk/serve/openai/adapter_requests.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr FormDoc kRequestForms[] = {
    {kChatForm, "ChatRequest", "Unknown fields are ignored. JSON may be nested 64 deep."},
    {kCompletionForm, "CompletionRequest", "Unknown fields are ignored. JSON may be nested 64 deep."},
    {kEmbeddingForm, "EmbeddingRequest"},
    {kScoreForm, "ScoreRequest"},
    {kTokenizeForm, "TokenizeRequest", "Exactly one of prompt and messages.",
     R"({"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})"},
    {kDetokenizeForm, "DetokenizeRequest"},
    {kResponsesForm, "ResponsesRequest", "Unknown fields are ignored. JSON may be nested 64 deep."},
    {kItemForm, "InputItem"},
    {kItemPartForm, "ItemPart"},
    {kFlatToolForm, "FlatTool"},
    {kFlatChoiceForm, "FlatChoice"},
    {kFlatFormatForm, "FlatFormat"},
    {kTextConfigForm, "TextConfig"},
    {kTextFormatForm, "TextFormat"},
    {kReasoningForm, "ReasoningConfig"},
    {kMessagesForm, "MessagesRequest", "Unknown fields are ignored. JSON may be nested 64 deep."},
    {kCountTokensForm, "CountTokensRequest"},
    {kTurnForm, "Turn"},
    {kBlockForm, "Block"},
    {kInputToolForm, "InputTool"},
    {kWhichToolForm, "WhichTool"},
    {kThinkingForm, "ThinkingConfig"},
    {kRequesterForm, "Requester"},
    {kOutputConfigForm, "OutputConfig"},
    {kOutputFormatForm, "OutputFormat"},
    {kStreamOptionsForm, "StreamOptions"},
    {kResumeForm, "Resume"},
    {kResumedChoiceForm, "ResumedChoice"},
    {kStructuredOutputsForm, "StructuredOutputs", "Exactly one of these."},
    {kResponseFormatForm, "ResponseFormat"},
    {kJsonSchemaForm, "JsonSchemaFormat"},
    {kMessageForm, "Message"},
    {kPartForm, "TextPart"},
    {kCallForm, "ToolCall"},
    {kCalledFunctionForm, "CalledFunction"},
    {kToolForm, "Tool"},
    {kFunctionForm, "Function"},
    {kToolChoiceForm, "ToolChoice"},
    {kChosenFunctionForm, "ChosenFunction"},
    {kAllowedToolsForm, "AllowedTools"},
    {kCustomToolForm, "CustomTool"},
    {kCustomFormatForm, "CustomFormat"},
    {kCustomGrammarForm, "CustomGrammar"},
    {kCalledCustomForm, "CalledCustom"},
};
constexpr std::string_view kNoOthers = R"({"additionalProperties": false})";
constexpr FormDoc kAdapterForms[] = {
    {kAdapterCreateForm, "AdapterCreate", "", kNoOthers},
    {kAdapterPatchForm, "AdapterPatch", "At least one of these.",
     R"({"additionalProperties": false, "minProperties": 1})"},
    {kLoadLoraForm, "LoadLoraRequest"},
    {kUnloadLoraForm, "UnloadLoraRequest"},
};
constexpr FormDoc kAccessForms[] = {
    {kKeyCreateForm, "KeyCreate", "", kNoOthers},
    {kTenantCreateForm, "TenantCreate", "", kNoOthers},
    {kTenantPatchForm, "TenantPatch", "What is absent stays as it is.", kNoOthers},
};

json::object reference(std::string_view kind, std::string_view name) {
  return {{"$ref", fmt::format("#/components/{}/{}", kind, name)}};
}
json::object schema_reference(std::string_view name) { return reference("schemas", name); }

json::object text_schema(int64_t min, int64_t max) {
  json::object schema{{"type", "string"}};
  if (min > 0) schema["minLength"] = min;
  if (max < kAnyLength) schema["maxLength"] = max;
  return schema;
}
json::object list_schema(json::object items, int64_t min_count, int64_t max_count) {
  json::object schema{{"type", "array"}, {"items", std::move(items)}};
  if (min_count > 0) schema["minItems"] = min_count;
  if (max_count > 0) schema["maxItems"] = max_count;
  return schema;
}
json::object token_schema() { return {{"type", "integer"}, {"minimum", 0}}; }
// 100, not 1E2.
json::value plain(double number) {
  const auto whole = static_cast<int64_t>(number);
  return static_cast<double>(whole) == number ? json::value(whole) : json::value(number);
}
json::object typed(std::string_view type) { return {{"type", type}}; }

json::object words_of(const Field& field) {
  json::array words;
  for (const std::string_view word : split_words(field.detail)) words.emplace_back(word);
  return {{"enum", std::move(words)}};
}

// What the field may be when it is there; alternatives if there are several.
std::vector<json::object> schemas_of(const Field& field) {
  switch (field.kind) {
    case FieldKind::kFlag:
      return {typed("boolean")};
    case FieldKind::kInteger:
    case FieldKind::kCount: {
      json::object schema{{"type", "integer"}};
      if (field.min != std::numeric_limits<int64_t>::min()) schema["minimum"] = field.min;
      if (field.max != kNoMaximum) schema["maximum"] = field.max;
      if (field.kind == FieldKind::kCount) return {schema, typed("boolean")};
      return {schema};
    }
    case FieldKind::kNumber: {
      json::object schema{{"type", "number"}, {"maximum", plain(field.high)}};
      schema[field.above ? "exclusiveMinimum" : "minimum"] = plain(field.low);
      return {schema};
    }
    case FieldKind::kText:
      return {text_schema(field.min, field.max)};
    case FieldKind::kTexts:
      return {text_schema(field.min, field.max),
              list_schema(text_schema(field.min, field.max), field.min_count, field.max_count)};
    case FieldKind::kWord:
      return {words_of(field)};
    case FieldKind::kWords:
      return {list_schema(words_of(field), field.min_count, field.max_count)};
    case FieldKind::kTokens:
      return {list_schema(token_schema(), field.min_count, field.max_count)};
    case FieldKind::kObject:
      return {field.detail.empty() ? typed("object") : schema_reference(field.detail)};
    case FieldKind::kList:
      return {list_schema(field.detail.empty() ? typed("object") : schema_reference(field.detail), field.min_count,
                          field.max_count)};
    case FieldKind::kPrompts:
      return {text_schema(1, kAnyLength), list_schema(text_schema(1, kAnyLength), 1, field.max_count),
              list_schema(token_schema(), 1, 0), list_schema(list_schema(token_schema(), 1, 0), 1, field.max_count)};
    case FieldKind::kId:
      return {typed("string"), typed("integer")};
    case FieldKind::kBiases:
      return {json::object{{"type", "object"},
                           {"maxProperties", field.max_count},
                           {"propertyNames", {{"pattern", "^[0-9]+$"}}},
                           {"additionalProperties",
                            {{"type", "number"}, {"minimum", plain(field.low)}, {"maximum", plain(field.high)}}}}};
    case FieldKind::kSchema:
      return {typed("object"), text_schema(0, field.max)};
    case FieldKind::kContent:
      return {typed("string"), list_schema(schema_reference(field.part), 0, 0)};
    case FieldKind::kChoice:
      return {words_of(field), schema_reference(field.part)};
    case FieldKind::kPlain:
      return {json::object{{"type", "object"}, {"maxProperties", field.max_count}}};
    case FieldKind::kPattern:
      return {json::object{{"type", "string"}, {"pattern", field.detail}}};
    case FieldKind::kArgument:
      return {typed("string"), typed("object"), typed("array")};
    case FieldKind::kIgnored:
    case FieldKind::kRefused:
      return {};
  }
  return {};
}

// null counts as absent, so it may stand where nothing need stand.
json::object property_of(const Field& field) {
  std::vector<json::object> schemas = schemas_of(field);
  json::object property;
  if (schemas.size() == 1) {
    property = std::move(schemas[0]);
    if (!field.required) {
      if (json::value* type = property.if_contains("type")) {
        *type = json::array{json::value(*type), "null"};
      } else if (json::value* words = property.if_contains("enum")) {
        words->get_array().emplace_back(nullptr);
      } else {
        property = {{"oneOf", json::array{property, typed("null")}}};
      }
    }
  } else if (!schemas.empty()) {
    if (!field.required) schemas.push_back(typed("null"));
    json::array alternatives;
    for (json::object& schema : schemas) alternatives.emplace_back(std::move(schema));
    property["oneOf"] = std::move(alternatives);
  }
  const std::string_view about = field.kind == FieldKind::kIgnored ? "Ignored." : field.about;
  if (!about.empty()) property["description"] = about;
  if (!field.standard.empty()) property["default"] = json::parse(field.standard);
  return property;
}

json::object form_schema(const FormTable& table, const FormDoc& form) {
  json::object properties;
  json::array required;
  for (const Field& field : table.fields) {
    if (!(field.forms & form.form) || field.kind == FieldKind::kRefused) continue;
    properties[field.name] = property_of(field);
    if (field.required) required.emplace_back(field.name);
  }
  json::object schema{{"type", "object"}, {"properties", std::move(properties)}};
  if (!required.empty()) schema["required"] = std::move(required);
  if (!form.about.empty()) schema["description"] = form.about;
  const json::value more = json::parse(form.more.empty() ? "{}" : form.more);
  for (const auto& [key, value] : more.get_object()) schema[key] = value;
  return schema;
}

bool streams(std::string_view body) {
  for (const FormTable& table : form_tables())
    for (const FormDoc& form : table.forms)
      for (const Field& field : table.fields)
        if (form.name == body && (field.forms & form.form) && field.name == "stream") return true;
  return false;
}

json::object content(std::string_view type, json::object schema) { return {{type, {{"schema", std::move(schema)}}}}; }

struct Refusal {
  std::string_view status, name, about;
  bool retry = false;
};
constexpr Refusal kRefusals[] = {
    {"400", "BadRequest", "A field is missing, mistyped or out of range; param names it."},
    {"401", "Unauthorized", "No API key, or one that is not valid."},
    {"403", "Forbidden", "The key lacks the scope, or its tenant may not do this."},
    {"404", "NotFound", "No such model, adapter or route."},
    {"408", "Timeout", "The request came too slowly, or its deadline (X-Request-Timeout) passed."},
    {"409", "Conflict", "It exists already, is in use, or the server keeps no state."},
    {"413", "TooLarge", "The body is larger than the server accepts."},
    {"415", "NotJson", "The body is said to be something else than JSON."},
    {"429", "TooManyRequests", "A limit of the tenant: requests in flight or tokens a minute.", true},
    {"500", "Failed", "A fault of the server; the message says no more than the request id."},
    {"503", "Unavailable", "The server is overloaded, starting or shutting down.", true},
};

json::object refusal_responses() {
  json::object responses;
  for (const Refusal& refusal : kRefusals) {
    json::object response{{"description", refusal.about},
                          {"content", content("application/json", schema_reference("Error"))}};
    if (refusal.retry)
      response["headers"] = {
          {"Retry-After", {{"description", "Seconds."}, {"schema", {{"type", "integer"}, {"minimum", 1}}}}}};
    responses[refusal.name] = std::move(response);
  }
  return responses;
}

json::object responses_of(const DocumentedRoute& route) {
  const RouteDoc& doc = route.doc;
  json::object success{{"description", doc.answer.empty() ? "Nothing else." : "OK"}};
  if (doc.answer == "events") {
    success["content"] = content("text/event-stream", {{"type", "string"}});
  } else if (doc.answer == "bytes") {
    success["content"] = content("application/octet-stream", {{"type", "string"}, {"format", "binary"}});
  } else if (doc.answer == "text") {
    success["content"] = content("text/plain", {{"type", "string"}});
  } else if (!doc.answer.empty()) {
    success["content"] = content("application/json", schema_reference(doc.answer));
  }
  if (streams(doc.body)) {
    success["description"] = "The answer; with stream, server-sent events whose last is data: [DONE].";
    success["content"].as_object()["text/event-stream"] = {{"schema", {{"type", "string"}}}};
  }
  json::object responses{{std::to_string(doc.status), std::move(success)}};
  std::set<std::string_view> statuses;
  for (const std::string_view status : split_words(doc.refusals)) statuses.insert(status);
  if (!doc.body.empty()) statuses.insert({"400", "408", "413", "415"});
  if (!route.open) statuses.insert({"401", "403", "429", "500", "503"});
  if (!route.open && (!doc.body.empty() || route.path.find('{') != std::string_view::npos)) statuses.insert("404");
  for (const Refusal& refusal : kRefusals)
    if (statuses.contains(refusal.status)) responses[refusal.status] = reference("responses", refusal.name);
  return responses;
}

// Parameters of queries and headers, by name. Those of paths are texts.
struct Parameter {
  std::string_view name, in, about, schema;
};
constexpr Parameter kParameters[] = {
    {"wait", "query", "0: answer at once, not when the memory is free.", R"({"enum": ["0", "1"]})"},
    {"limit", "query", "Entries of a page.", R"({"type": "integer", "minimum": 1, "maximum": 10000, "default": 1000})"},
    {"after", "query", "The id that the page before ended with: the page begins behind it.",
     R"({"type": "string", "maxLength": 300})"},
    {"X-Request-Timeout", "header", "Deadline of the request in seconds.",
     R"({"type": "number", "exclusiveMinimum": 0})"},
    {"X-Request-Id", "header", "Returned in the answer and written to the log.",
     R"({"type": "string", "maxLength": 128})"},
};

json::array parameters_of(const DocumentedRoute& route) {
  json::array parameters;
  if (const size_t brace = route.path.find('{'); brace != std::string_view::npos)
    parameters.push_back({{"name", route.path.substr(brace + 1, route.path.size() - brace - 2)},
                          {"in", "path"},
                          {"required", true},
                          {"schema", {{"type", "string"}}}});
  std::vector<std::string_view> names = split_words(route.doc.query);
  if (route.tag == "inference" && !route.doc.body.empty())
    names.insert(names.end(), {"X-Request-Timeout", "X-Request-Id"});
  for (const std::string_view name : names)
    for (const Parameter& p : kParameters)
      if (p.name == name)
        parameters.push_back(
            {{"name", p.name}, {"in", p.in}, {"description", p.about}, {"schema", json::parse(p.schema)}});
  return parameters;
}

json::object operation_of(const DocumentedRoute& route) {
  json::object operation{{"operationId", route.doc.id}, {"summary", route.doc.summary}, {"tags", {route.tag}}};
  if (json::array parameters = parameters_of(route); !parameters.empty())
    operation["parameters"] = std::move(parameters);
  if (!route.doc.body.empty())
    operation["requestBody"] = {{"required", true},
                                {"content", content("application/json", schema_reference(route.doc.body))}};
  operation["responses"] = responses_of(route);
  if (route.open) operation["security"] = json::array();
  return operation;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace

std::span<const FormTable> form_tables() {
  static constexpr FormTable kTables[] = {
      {kRequestFields, kRequestForms}, {kAdapterFields, kAdapterForms}, {kAccessFields, kAccessForms}};
  return kTables;
}

std::string openapi_page(std::span<const DocumentedRoute> routes, std::string_view version) {
  json::object schemas;
  for (const FormTable& table : form_tables())
    for (const FormDoc& form : table.forms) schemas[form.name] = form_schema(table, form);
  const embedded::File& answers = embedded::answer_schemas_json;
  const json::value described = json::parse({reinterpret_cast<const char*>(answers.bytes), answers.size});
  for (const auto& [name, schema] : described.get_object()) schemas[name] = schema;
  json::object paths;
  for (const DocumentedRoute& route : routes) {
    if (route.doc.id.empty()) continue;
    json::value& item = paths[route.path];
    if (!item.is_object()) item = json::object();
    item.get_object()[lower(route.method)] = operation_of(route);
  }
  return json_text(json::object{
      {"openapi", "3.1.0"},
      {"info",
       {{"title", "Lorikeet"},
        {"version", version},
        {"description",
         "Thousands of LoRA adapters over one base model, behind the API of OpenAI and the extensions of vLLM. Limits "
         "stand in the schemas; a body beyond them is refused with 400 and the name of the field. String limits count "
         "bytes of UTF-8."},
        {"license", {{"name", "Apache-2.0"}, {"identifier", "Apache-2.0"}}}}},
      {"servers", {{{"url", "/"}}}},
      {"security", {{{"bearer", json::array()}}}},
      {"tags",
       {{{"name", "inference"}, {"description", "Scope infer."}},
        {{"name", "adapters"}, {"description", "Scope adapters."}},
        {{"name", "access"}, {"description", "Scope admin."}},
        {{"name", "operations"},
         {"description", "Health needs no key; status and metrics scope metrics or admin, usage any key."}}}},
      {"paths", std::move(paths)},
      {"components",
       {{"schemas", std::move(schemas)},
        {"responses", refusal_responses()},
        {"securitySchemes",
         {{"bearer",
           {{"type", "http"},
            {"scheme", "bearer"},
            {"description",
             "An API key: lk-ID-SECRET. Without keys the server is open and listens on loopback only."}}}}}}}});
}

}  // namespace lk
