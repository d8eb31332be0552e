"""Texts after prompts, many at once, until they end as their task says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UsageError
from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.generate.generate import Generation, StopReason
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.text.tokenizer import TextTokenizer

from .settings import WritingSettings

SPARE_TOKENS = 2  # a text may lie in more tokens than the tokenizer would give it


@dataclass(frozen=True)
class Task:
    """A prompt, and how what comes after it shall be written."""

    tokens: Sequence[int]
    settings: WritingSettings

    def read(self, max_length: int) -> Sequence[int]:
        """The prompt, cut from the left so that there is room for the longest text.

        Raises:
            UsageError: there is no room for any prompt.
        """
        room = max_length - self.settings.max_tokens
        if room <= 0:
            raise UsageError(
                f"{self.settings.max_tokens} tokens to write, the context has {max_length}",
                "set max_gen_toks below that",
            )
        return self.tokens[-room:]

    def most_written(self, prompt: Sequence[int]) -> int:
        if self.settings.max_length is None:
            return self.settings.max_tokens
        return max(0, self.settings.max_length - len(prompt))


def write(
    batch: Batch,
    tokenizer: TextTokenizer,
    tasks: Sequence[Task],
    max_length: int,
    on_text: Callable[[int, tuple[int, ...]], None] = lambda index, tokens: None,
) -> list[tuple[int, ...]]:
    """The tokens written for each task, without the one that ended the text.

    Args:
        max_length: of prompt and text together.
        on_text: told of each as it ends: its index and its tokens.
    """
    prompts = [task.read(max_length) for task in tasks]
    # Beginnings that are alike come one after the other: the next finds them in the cache.
    order = sorted(range(len(tasks)), key=lambda index: tuple(prompts[index]))
    requests = [_request(tokenizer, tasks[i], prompts[i], i) for i in order]

    def told(number: int, outcome: Outcome) -> None:
        if outcome.generation is not None:
            on_text(order[number], outcome.generation.tokens)

    found: dict[int, Generation] = dict(zip(order, run_all(batch, requests, told), strict=True))
    return [found[index].tokens for index in range(len(tasks))]


def _request(tokenizer: TextTokenizer, task: Task, prompt: Sequence[int], number: int) -> Request:
    watch = _StopWatch(tokenizer, task.settings.until)
    return Request(
        prompt,
        task.most_written(prompt),
        task.settings.with_seed(number),
        tokenizer.stop_ids,
        watch.on_token,
    )


class _StopWatch:
    """Ends a text once one of `until` stands at its end, marks among them."""

    def __init__(self, tokenizer: TextTokenizer, until: Sequence[str]) -> None:
        self._tokenizer, self._until = tokenizer, until
        longest = max((len(tokenizer.encode(text)) for text in until), default=0)
        self._most = longest + SPARE_TOKENS
        self._last: list[int] = []

    def on_token(self, token: int, logits: NDArray[np.float32]) -> StopReason | None:
        if not self._until:
            return None
        self._last = [*self._last[1 - self._most :], token]
        end = self._tokenizer.decode(self._last, skip_special=False)
        return "stop" if any(text in end for text in self._until) else None


def cut(text: str, until: Sequence[str], think_end: str | None) -> str:
    """What is judged: after the thoughts, in front of what ends the text."""
    if think_end:
        text = text.rpartition(think_end)[2].lstrip()
    return min((text.partition(stop)[0] for stop in until), key=len, default=text)
