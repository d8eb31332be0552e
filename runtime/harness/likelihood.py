"""How likely texts are: sums of log-probabilities, many texts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError
from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.run_all import run_all

Score = tuple[float, bool]  # log-probability; is every token the likeliest?


@dataclass(frozen=True)
class Continuation:
    """Tokens whose probability after the context is asked for; both hold at least one."""

    context: Sequence[int]
    tokens: Sequence[int]

    def read(self, max_length: int) -> tuple[int, ...]:
        """What the model reads: all but the last token, cut from the left where it is too long."""
        return (*self.context, *self.tokens)[-(max_length + 1) :][:-1]


class _Asked:
    """Continuations after which the model reads the same; it reads it once."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.rows = 0  # of logits, from the end
        self.sums: dict[int, float] = {}
        self.greedy: dict[int, bool] = {}


def score(
    batch: Batch,
    asked: Sequence[Continuation],
    max_length: int,
    on_score: Callable[[int, Score], None] = lambda index, found: None,
) -> list[Score]:
    """The log-probability of each continuation, and whether greedy decoding writes it.

    Args:
        max_length: tokens that the model reads, at most.
        on_score: told of each as it is known: its index, and what was found.

    Raises:
        InputError: a continuation is longer than that, or the logits are not finite.
    """
    groups: dict[tuple[int, ...], _Asked] = {}
    for index, item in enumerate(asked):
        if len(item.tokens) > max_length:
            raise InputError(
                f"a continuation of {len(item.tokens)} tokens, the context has {max_length}",
                "use a task with shorter ones; the context is fixed in the model or artifact",
            )
        group = groups.setdefault(item.read(max_length), _Asked())
        group.indices.append(index)
        group.rows = max(group.rows, len(item.tokens))
    # Beginnings that are alike come one after the other: the next finds them in the cache.
    texts = sorted(groups)
    requests = [_request(text, groups[text], asked) for text in texts]

    def told(number: int, outcome: Outcome) -> None:
        group = groups[texts[number]]
        if outcome.error is None:
            for index in group.indices:
                on_score(index, (group.sums[index], group.greedy[index]))

    run_all(batch, requests, told)
    scores: list[Score] = [(0.0, True)] * len(asked)
    for group in groups.values():
        for index in group.indices:
            scores[index] = (group.sums[index], group.greedy[index])
    return scores


def _request(text: tuple[int, ...], group: _Asked, asked: Sequence[Continuation]) -> Request:
    for index in group.indices:
        group.sums[index], group.greedy[index] = 0.0, True

    def take(first: int, logits: NDArray[np.float32]) -> None:
        """Logits after the tokens of the text from `first` on."""
        best = logits.argmax(axis=-1)
        totals = _log_sums(logits)
        for index in group.indices:
            tokens = asked[index].tokens
            begin = len(text) - len(tokens)  # the row of its first token
            for row in range(max(first, begin), first + len(logits)):
                token, at = tokens[row - begin], row - first
                group.sums[index] += float(logits[at, token]) - totals[at]
                group.greedy[index] &= bool(best[at] == token)

    if group.rows == 1:  # the next token alone: as if it were to be written
        return Request(text, 1, on_token=lambda token, logits: take(len(text) - 1, logits[None]))
    return Request(text, 0, on_prompt=take, prompt_logits_from=len(text) - group.rows)


def _log_sums(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log(sum(exp(row))) of each row [tokens, vocabulary].

    Raises:
        InputError: NaN or infinity.
    """
    most = logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits - most).sum(axis=-1, dtype=np.float64)
    found: NDArray[np.float64] = most[:, 0].astype(np.float64) + np.log(sums)
    if not np.isfinite(found).all():
        raise InputError(
            "the model produced logits that are not finite",
            "the weights are damaged or overflow in fp16; verify the artifact, or run in fp32",
        )
    return found
