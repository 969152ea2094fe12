# SPDX-License-Identifier: Apache-2.0
"""Scores by label tokens against what completions say of the same tokens."""
import math

from harness import ServerTest

LABELS = [5, 300, 17, 5]
QUERY, ITEMS = "Which customers live in ", ["Riga?", "Athens, the city?", "x"]


class Score(ServerTest):
    def ask(self, **fields):
        return self.good(self.server.post("/v1/score", {"query": QUERY, "items": ITEMS, "label_token_ids": LABELS, **fields}))

    def expected(self, prompt, model: str, label: int) -> float:
        """Its probability as the next token: of the model's own distribution, whatever else is allowed."""
        drawn = self.good(self.server.complete(prompt, model, max_tokens=1, logprobs=0, allowed_token_ids=[label], ignore_eos=True))
        return math.exp(drawn["choices"][0]["logprobs"]["token_logprobs"][0])

    def test_are_the_probabilities_of_the_next_token(self):
        for model in ("base", "sql", "sql*0.5+json*0.5"):
            for item_first in (False, True):
                answer = self.ask(model=model, item_first=item_first)
                self.assertEqual((answer["object"], len(answer["scores"])), ("scoring", len(ITEMS)))
                for item, scores in zip(ITEMS, answer["scores"]):
                    prompt = item + QUERY if item_first else QUERY + item
                    for label, score in zip(LABELS, scores, strict=True):
                        self.assertAlmostEqual(score, self.expected(prompt, model, label), delta=1e-6)
        again = self.ask(model="sql", items=ITEMS[0])
        self.assertEqual(again["scores"], self.ask(model="sql")["scores"][:1])

    def test_softmax_is_among_the_labels(self):
        plain, shared = self.ask(), self.ask(apply_softmax=True)
        for all_tokens, labels in zip(plain["scores"], shared["scores"]):
            self.assertAlmostEqual(sum(labels), 1, delta=1e-9)
            for one, other in zip(all_tokens, labels):
                self.assertAlmostEqual(one / sum(all_tokens), other, delta=1e-6)

    def test_token_ids_and_usage(self):
        tokens = lambda text: self.good(self.server.post("/tokenize", {"model": "base", "prompt": text, "add_special_tokens": False}))["tokens"]  # noqa: E731
        query, items = tokens(QUERY), [tokens(item) for item in ITEMS]
        answer = self.ask(query=query, items=items)
        for item, scores in zip(items, answer["scores"]):
            self.assertAlmostEqual(scores[0], self.expected(query + item, "base", LABELS[0]), delta=1e-6)
        usage = answer["usage"]
        self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"]), (sum(len(query) + len(item) for item in items), len(items)))
        self.assertEqual(self.ask(query=query, items=items[1])["scores"], answer["scores"][1:2])

    def test_refusals(self):
        body = {"query": QUERY, "items": ITEMS, "label_token_ids": LABELS}
        for fields, param in (({"query": None}, "query"), ({"items": []}, "items"), ({"label_token_ids": []}, "label_token_ids"), ({"label_token_ids": [1 << 20]}, "label_token_ids"),
                              ({"items": [[1, 2]]}, "items[0]"), ({"items": ["a", 3]}, "items[1]"), ({"items": ["a"] * 129}, "items"), ({"query": "word " * 1000}, "items"),
                              ({"text_1": "a", "text_2": "b"}, "text_1"), ({"temperature": 0.5}, "temperature")):
            self.refused(self.server.post("/v1/score", {**body, **fields}), 400, param=param)
        self.refused(self.server.post("/v1/score", {**body, "model": "nobody"}), 404, code="model_not_found")
