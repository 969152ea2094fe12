// SPDX-License-Identifier: Apache-2.0
#include <boost/json.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_reader.h"
#include "lk/base/json_text.h"
#include "lk/serve/openai/parse.h"

namespace lk::openai {
namespace {

namespace json = boost::json;
using Kind = GrammarSpec::Kind;

using Name = RequestFields::Name;

// A schema: an object, or a string that holds one.
void read_schema(RequestFields& fields, Name name, GenerateRequest& request) {
  const std::string_view key = fields.row(name).name;
  const json::value* schema = fields.find(name);
  if (schema == nullptr) return;
  if (schema->is_object()) return set_grammar(fields, key, {Kind::kJsonSchema, json_text(*schema), {}}, request);
  if (!schema->is_string()) return fields.wrong_kind(key, "a JSON schema", *schema);
  const Result<json::value> parsed = read_json(schema->get_string());
  if (!parsed.ok()) return fields.fail(key, "is not a JSON schema: {}", parsed.status().message());
  if (!parsed->is_object()) return fields.wrong_kind(key, "a JSON schema", *parsed);
  set_grammar(fields, key, {Kind::kJsonSchema, std::string(schema->get_string()), {}}, request);
}

void read_source(RequestFields& fields, Name name, Kind kind, GenerateRequest& request) {
  std::string source;
  fields.read(name, source);
  if (!source.empty()) set_grammar(fields, fields.row(name).name, {kind, std::move(source), {}}, request);
}

void read_choices(RequestFields& fields, Name name, GenerateRequest& request) {
  const std::string_view key = fields.row(name).name;
  if (fields.find(name) == nullptr) return;
  std::vector<std::string> choices;
  fields.read(name, choices);
  if (choices.empty()) return fields.fail(key, "must be a list of strings, not empty");
  set_grammar(fields, key, {Kind::kChoice, "", std::move(choices)}, request);
}

// The same five in a request, and inside structured_outputs.
struct ConstraintNames {
  Name json, regex, choice, grammar, json_object;
};

void read_constraints(RequestFields& fields, const ConstraintNames& names, GenerateRequest& request) {
  read_schema(fields, names.json, request);
  read_source(fields, names.regex, Kind::kRegex, request);
  read_choices(fields, names.choice, request);
  read_source(fields, names.grammar, Kind::kEbnf, request);
  bool object = false;
  fields.read(names.json_object, object);
  if (object) set_grammar(fields, fields.row(names.json_object).name, {Kind::kJsonObject, "", {}}, request);
}

void read_format(RequestFields& inner, GenerateRequest& request) {
  std::string type;
  inner.read("type", type);
  if (type.empty()) return inner.fail("type", "is missing");
  if (type == "text") {
    if (inner.has("schema") || inner.has("json_schema"))
      inner.fail(inner.has("schema") ? "schema" : "json_schema", "says nothing of type \"text\"");
    return;
  }
  if (inner.has("schema")) {
    if (inner.has("json_schema")) return inner.fail("schema", "is a second schema");
    return read_schema(inner, "schema", request);
  }
  if (type == "json_object") {
    if (inner.has("json_schema")) return inner.fail("json_schema", "needs type \"json_schema\"");
    return set_grammar(inner, "type", {Kind::kJsonObject, "", {}}, request);
  }
  const json::object* wrapper = inner.object("json_schema");
  if (wrapper == nullptr) return inner.fail("json_schema", "is missing");
  RequestFields schema(*wrapper, kJsonSchemaForm, "response_format.json_schema", inner.errors());
  std::string name, description;
  bool strict = true;  // schemas are always enforced
  schema.read("name", name);
  schema.read("description", description);
  schema.read("strict", strict);
  if (!schema.has("schema")) return schema.fail("schema", "is missing");
  read_schema(schema, "schema", request);
  add_ignored(schema, request.ignored_fields);
}

void read_response_format(RequestFields& fields, GenerateRequest& request) {
  const json::object* format = fields.object("response_format");
  if (format == nullptr) return;
  RequestFields inner(*format, kResponseFormatForm, "response_format", fields.errors());
  read_format(inner, request);
  add_ignored(inner, request.ignored_fields);
}

}  // namespace

void set_grammar(JsonFields& fields, std::string_view key, GrammarSpec spec, GenerateRequest& request) {
  size_t bytes = spec.text.size();
  for (const std::string& choice : spec.choices) bytes += choice.size();
  if (bytes > static_cast<size_t>(kMaxSourceBytes))
    return fields.fail(key, "has {} bytes, at most {} are allowed", bytes, kMaxSourceBytes);
  if (request.grammar) return fields.fail(key, "is a second constraint on the output; give one");
  request.grammar = std::move(spec);
  request.grammar_field = fields.path(key);
}

void read_output_format(RequestFields& fields, GenerateRequest& request) {
  read_response_format(fields, request);
  read_constraints(fields, {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object"},
                   request);
  // SGLang's and llama.cpp's names.
  read_schema(fields, "json_schema", request);
  read_source(fields, "regex", Kind::kRegex, request);
  read_source(fields, "ebnf", Kind::kEbnf, request);
  read_source(fields, "grammar", Kind::kEbnf, request);
  if (const json::object* outputs = fields.object("structured_outputs")) {
    RequestFields inner(*outputs, kStructuredOutputsForm, "structured_outputs", fields.errors());
    read_constraints(inner, {"json", "regex", "choice", "grammar", "json_object"}, request);
    inner.refuse_others();
    add_ignored(inner, request.ignored_fields);
  }
}

}  // namespace lk::openai
