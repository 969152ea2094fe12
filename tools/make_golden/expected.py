# SPDX-License-Identifier: Apache-2.0
"""Expected values of one model: logits, prompt log-probabilities and greedy continuations."""
from __future__ import annotations

import dataclasses

import torch
from bases import EOS_TOKEN, Prompt, generator

MIN_GAP = 5e-3
MIN_DISTINCT = 5
MAX_TRIES = 400


@dataclasses.dataclass
class Expected:
    """What one prompt must give."""

    token_ids: list[int]
    logits: torch.Tensor
    prompt_logprobs: torch.Tensor | None
    greedy: list[int]
    greedy_logprobs: torch.Tensor | None
    min_gap: float | None


def _reset_rope(model: torch.nn.Module) -> None:
    """Puts a dynamic rope back to its initial frequencies, because it keeps state between calls."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq") and hasattr(module, "max_seq_len_cached"):
            module.inv_freq = module.original_inv_freq.clone()
            module.max_seq_len_cached = module.original_max_seq_len


@torch.no_grad()
def forward(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Logits [T, vocab] of a single forward pass without a cache."""
    _reset_rope(model)
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def _logprobs(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Log-probability of tokens[i] under logits[i]; the softmax runs in float64."""
    table = torch.log_softmax(logits.double(), dim=-1)
    return table.gather(1, torch.tensor(tokens)[:, None])[:, 0].float()


@torch.no_grad()
def greedy_cached(model: torch.nn.Module, tokens: list[int], count: int) -> torch.Tensor:
    """Logits [count, vocab] that chose each greedy token, computed with the key-value cache."""
    _reset_rope(model)
    rows = []
    out = model(input_ids=torch.tensor([tokens]), use_cache=True)
    while True:
        rows.append(out.logits[0, -1])
        if len(rows) == count:
            return torch.stack(rows)
        token = int(rows[-1].argmax())
        out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)


def _gap(rows: torch.Tensor) -> float:
    """The smallest distance between the best and the second logit."""
    best = rows.topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).min())


def recompute_matches(model: torch.nn.Module, tokens: list[int], rows: torch.Tensor) -> bool:
    """Whether one pass without a cache over prompt and continuation gives the same greedy choices."""
    greedy = rows.argmax(-1).tolist()
    full = forward(model, tokens + greedy[:-1])[len(tokens) - 1 :]
    close = (full - rows).abs().max() <= 1e-4 * rows.abs().max()
    return bool(close) and full.argmax(-1).tolist() == greedy


def _good(rows: torch.Tensor) -> bool:
    """Whether a continuation is robust (clear choices), varied and free of the end token."""
    greedy = rows.argmax(-1).tolist()
    varied = len(set(greedy)) >= min(MIN_DISTINCT, len(greedy))
    return varied and EOS_TOKEN not in greedy and _gap(rows) > MIN_GAP


def evaluate(model: torch.nn.Module, tokens: list[int], count: int) -> Expected | None:
    """Expected values for the given prompt, or None where its continuation would be a fragile golden value."""
    rows = greedy_cached(model, tokens, count) if count else None
    if rows is not None and not (_good(rows) and recompute_matches(model, tokens, rows)):
        return None
    logits = forward(model, tokens)
    greedy = rows.argmax(-1).tolist() if rows is not None else []
    return Expected(
        token_ids=tokens,
        logits=logits,
        prompt_logprobs=_logprobs(logits[:-1], tokens[1:]) if len(tokens) > 1 else None,
        greedy=greedy,
        greedy_logprobs=_logprobs(rows, greedy) if rows is not None else None,
        min_gap=_gap(rows) if rows is not None else None,
    )


def find_prompt(model: torch.nn.Module, vocab: int, prompt: Prompt, seed: str) -> Expected:
    """Draws prompts until one has a robust continuation; the end token never occurs in a prompt."""
    gen = generator(seed)
    for _ in range(MAX_TRIES):
        tokens = torch.randint(EOS_TOKEN + 1, vocab, (prompt.length,), generator=gen).tolist()
        found = evaluate(model, tokens, prompt.greedy)
        if found is not None:
            return found
    raise RuntimeError(f"no robust prompt for {seed}")
