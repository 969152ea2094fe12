// SPDX-License-Identifier: Apache-2.0
#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/io/json_fields.h"
#include "lk/serve/openai/json_reader.h"
#include "lk/serve/openai/parse.h"

namespace lk::openai {
namespace {

namespace json = boost::json;
using Kind = GrammarSpec::Kind;

// A schema: an object, or a string that holds one.
void read_schema(ApiFields& fields, std::string_view key, GenerateRequest& request) {
  const json::value* schema = fields.find(key);
  if (schema == nullptr) return;
  if (schema->is_object()) return set_grammar(fields, key, {Kind::kJsonSchema, json_text(*schema), {}}, request);
  if (!schema->is_string()) return fields.wrong_kind(key, "a JSON schema", *schema);
  const Result<json::value> parsed = read_json(schema->get_string());
  if (!parsed.ok()) return fields.fail(key, "is not a JSON schema: {}", parsed.status().message());
  if (!parsed->is_object()) return fields.wrong_kind(key, "a JSON schema", *parsed);
  set_grammar(fields, key, {Kind::kJsonSchema, std::string(schema->get_string()), {}}, request);
}

void read_source(ApiFields& fields, std::string_view key, Kind kind, GenerateRequest& request) {
  std::string source;
  fields.read_string(key, source, 1, kMaxSourceBytes);
  if (!source.empty()) set_grammar(fields, key, {kind, std::move(source), {}}, request);
}

void read_choices(ApiFields& fields, std::string_view key, GenerateRequest& request) {
  if (!fields.has(key)) return fields.ignore(key);
  std::vector<std::string> choices;
  fields.read_strings(key, choices, 4096, 1, kMaxSourceBytes);
  if (choices.empty()) return fields.fail(key, "must be a list of strings, not empty");
  set_grammar(fields, key, {Kind::kChoice, "", std::move(choices)}, request);
}

// Each key with a prefix: guided_json, or json inside structured_outputs.
void read_constraints(ApiFields& fields, const std::string& prefix, GenerateRequest& request) {
  read_schema(fields, prefix + "json", request);
  read_source(fields, prefix + "regex", Kind::kRegex, request);
  read_choices(fields, prefix + "choice", request);
  read_source(fields, prefix + "grammar", Kind::kEbnf, request);
  bool object = false;
  fields.read_bool(prefix + "json_object", object);
  if (object) set_grammar(fields, prefix + "json_object", {Kind::kJsonObject, "", {}}, request);
  fields.refuse(prefix + "structural_tag", "use a schema or a grammar");
  fields.refuse(prefix + "whitespace_pattern", "white space follows the grammar");
}

void read_response_format(ApiFields& fields, GenerateRequest& request) {
  const json::object* format = fields.object("response_format");
  if (format == nullptr) return;
  ApiFields inner(*format, "response_format", fields.error());
  std::string type;
  inner.read_choice("type", type, {"text", "json_object", "json_schema"});
  if (type.empty()) return inner.fail("type", "is missing");
  if (type == "json_object") return set_grammar(inner, "type", {Kind::kJsonObject, "", {}}, request);
  if (type == "text") return;
  const json::object* wrapper = inner.object("json_schema");
  if (wrapper == nullptr) return inner.fail("json_schema", "is missing");
  ApiFields schema(*wrapper, "response_format.json_schema", fields.error());
  std::string name, description;
  bool strict = true;  // schemas are always enforced
  schema.read_string("name", name, 0, kMaxNameBytes);
  schema.read_string("description", description, 0, kMaxSourceBytes);
  schema.read_bool("strict", strict);
  if (!schema.has("schema")) return schema.fail("schema", "is missing");
  read_schema(schema, "schema", request);
}

}  // namespace

void set_grammar(ApiFields& fields, std::string_view key, GrammarSpec spec, GenerateRequest& request) {
  size_t bytes = spec.text.size();
  for (const std::string& choice : spec.choices) bytes += choice.size();
  if (bytes > kMaxSourceBytes) return fields.fail(key, "has {} bytes, at most {} are allowed", bytes, kMaxSourceBytes);
  if (request.grammar) return fields.fail(key, "is a second constraint on the output; give one");
  request.grammar = std::move(spec);
  request.grammar_field = fields.path(key);
}

void read_output_format(ApiFields& fields, GenerateRequest& request) {
  read_response_format(fields, request);
  read_constraints(fields, "guided_", request);
  if (const json::object* outputs = fields.object("structured_outputs")) {
    ApiFields inner(*outputs, "structured_outputs", fields.error());
    read_constraints(inner, "", request);
    inner.unknown(request.ignored_fields);
  }
}

}  // namespace lk::openai
