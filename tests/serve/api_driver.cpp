// SPDX-License-Identifier: Apache-2.0
// Our side of tools/make_field_table.py: the rows of the tables of fields, and the page about the API, as JSON.
#include <cstdio>

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/infer/request_fields.h"
#include "lk/serve/http/routes.h"

namespace {

namespace json = boost::json;
using namespace lk;

constexpr FormDoc kElsewhere[] = {{kBatchForm, "BatchLine"}, {kGenerationConfigForm, "GenerationConfig"}};

const char* origin_of(const Field& field) {
  switch (field.origin) {
    case FieldOrigin::kOpenAi:
      return "OpenAI";
    case FieldOrigin::kAnthropic:
      return "Anthropic";
    case FieldOrigin::kSglang:
      return "SGLang";
    case FieldOrigin::kLlamaCpp:
      return "llama.cpp";
    case FieldOrigin::kVllm:
      return "vLLM";
    case FieldOrigin::kOurs:
      return "Lorikeet";
  }
  return "";
}

const char* use_of(const Field& field) {
  if (field.kind == FieldKind::kIgnored) return "ignored";
  if (field.kind == FieldKind::kRefused) return "refused";
  return field.required ? "required" : "";
}

json::object row(const Field& field, const FormTable& table) {
  json::array forms;
  for (const FormDoc& form : table.forms)
    if (field.forms & form.form) forms.emplace_back(form.name);
  if (table.fields.data() == kRequestFields)
    for (const FormDoc& form : kElsewhere)
      if (field.forms & form.form) forms.emplace_back(form.name);
  return {{"name", field.name},
          {"forms", std::move(forms)},
          {"values", describe_values(field)},
          {"default", field.standard},
          {"from", origin_of(field)},
          {"use", use_of(field)},
          {"about", field.kind == FieldKind::kRefused ? field.detail : field.about}};
}

}  // namespace

int main() {
  json::array rows;
  for (const FormTable& table : form_tables())
    for (const Field& field : table.fields) rows.emplace_back(row(field, table));
  const json::object all{{"fields", std::move(rows)}, {"openapi", json::parse(openapi_json("0"))}};
  std::puts(json_text(all).c_str());
}
