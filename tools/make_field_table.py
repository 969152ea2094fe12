#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/guide/request_fields.md from the program's own tables of fields. Usage: make_field_table.py API_DRIVER [--check]
(API_DRIVER: bin/api_driver of a build; --check: fails if the page is not what would be written)."""
import json
import pathlib
import subprocess
import sys

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/guide/request_fields.md"
APIS = {"ChatRequest": "chat", "CompletionRequest": "completions", "EmbeddingRequest": "embeddings", "TokenizeRequest": "tokenize",
        "DetokenizeRequest": "detokenize", "ResponsesRequest": "responses", "MessagesRequest": "messages", "CountTokensRequest": "count_tokens", "ScoreRequest": "score", "BatchLine": "lines", "GenerationConfig": "model"}
HEAD = """# Fields of requests

<!-- Made by tools/make_field_table.py from the tables that the parsers read by; a test holds it against them. -->

What stands here is what is checked: other types, values beyond a range and longer texts or lists are refused (400) with the field's path.
`null` counts as absent. Limits of texts count bytes of UTF-8. *Where*: chat and completions, responses, messages and their count_tokens, score, embeddings, tokenize and detokenize are the HTTP routes
([server.md](server.md)); *lines* are those of `lorikeet generate --input`, where options of the command line are the defaults and an unknown field is an error; *model* is
`generation_config.json` of the model, whose values count where a request has none. All of `GET /openapi.json` is made of the same tables.
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(header: list, rows: list) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]) + "\n"


def where(row: dict) -> str:
    return ", ".join(APIS.get(form, form) for form in row["forms"])


def about(row: dict) -> str:
    return (("Required. " if row["use"] == "required" else "") + row["about"]).strip()


def page(rows: list) -> str:
    used = [row for row in rows if row["use"] not in ("ignored", "refused")]
    top = [row for row in used if set(row["forms"]) & set(APIS)]
    values = lambda row: [f"`{row['name']}`", row["values"], f"`{row['default']}`" if row["default"] else ""]
    parts = [HEAD, "## Requests for text\n", table(["Field", "Values", "Default", "Where", "From", ""],
                                                    [values(row) + [where(row), row["from"], about(row)] for row in top])]
    parts += ["## Objects in them, and bodies about adapters, keys and tenants\n",
              table(["In", "Field", "Values", "Default", ""], [[where(row)] + values(row) + [about(row)] for row in used if row not in top])]
    parts += ["## Refused\n", "Ignoring these would change what is meant. Empty, `false`, 0, `null`, and values that mean \"off\" to those who made the field, are let pass.\n",
              table(["Field", "Where", "Why"], [[f"`{row['name']}`", where(row), row["about"]] for row in rows if row["use"] == "refused"])]
    ignored = ", ".join(sorted({f"`{row['name']}`" for row in rows if row["use"] == "ignored"}))
    parts += ["## Ignored\n", f"Known, and without meaning here: {ignored}. Unknown fields of requests are ignored,\n"
              "too. The log names each once (`fields_ignored`), `lorikeet_request_fields_ignored_total` counts them all; lines of a batch and bodies about adapters, keys and tenants may have none.\n"]
    return "\n".join(parts)


def main() -> int:
    described = json.loads(subprocess.run([sys.argv[1]], capture_output=True, text=True, check=True).stdout)
    text = page(described["fields"])
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE} is not up to date: run tools/make_field_table.py {sys.argv[1]}")
        return 1
    print(f"{len(described['fields'])} fields, {len(described['openapi']['paths'])} paths")
    return 0


if __name__ == "__main__":
    sys.exit(main())
