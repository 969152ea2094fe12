// SPDX-License-Identifier: Apache-2.0
// What a router must know of a request's body, found without making values of the rest: bodies have megabytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lk {

struct RequestFacts {
  std::string model;
  bool stream = false;
  int64_t n = 1;
  int64_t prompts = 1;      // texts or lists of tokens in "prompt" or "input"
  int64_t query_bytes = 0;  // of "query", as it is written
  std::optional<int64_t> max_tokens, max_completion_tokens, max_output_tokens, n_predict;
  bool resumes = false;     // says how an answer began ("lorikeet_resume")
  size_t fields_at = 0;     // byte behind the '{'
  bool has_fields = false;  // the object is not empty
  // Answers that a request to this route asks for.
  int64_t num_answers(std::string_view path) const;
  // Bytes of the prompts that a replica makes of a body of `body_bytes`: a query to score stands in each.
  int64_t prompt_bytes(std::string_view path, int64_t body_bytes) const;
  // Tokens that an answer of this route may have at most, as a replica reads it; nothing where only the context ends
  // it.
  std::optional<int64_t> output_limit(std::string_view path) const;
};

// Of the top level of one JSON object. Of equal keys the first counts, and of those that say how much is asked for the
// largest: whichever a replica goes by, no more than that is charged for. Nothing when it is not even that: a replica
// says what is wrong with it. What it finds is not validated further.
std::optional<RequestFacts> read_request_facts(std::string_view body);

// The body with one more field, in front. Requires: facts of this body.
std::string with_field(std::string_view body, const RequestFacts& facts, std::string_view name, std::string_view json);

}  // namespace lk
