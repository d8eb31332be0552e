"""One text on its way, told by the engine's thread: pieces, log-probabilities, its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.generate.generate import StopReason
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.generate.written_text import WrittenText
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.text.thinking import Kind
from dsconv.runtime.text.tokenizer import TextTokenizer

from .texts.token_places import TokenPlaces
from .texts.token_texts import Log, log_of, logs_of


@dataclass(frozen=True)
class Step:
    """What a token brought: text that is certain by now, and how likely the tokens of complete
    characters were."""

    choice: int
    pieces: tuple[tuple[Kind, str], ...]
    logs: tuple[Log, ...] = ()


@dataclass(frozen=True)
class PromptLogs:
    """Of tokens of the prompt, from its second on."""

    choice: int
    logs: tuple[Log, ...]


@dataclass(frozen=True)
class End:
    """The last of a text. reused: tokens of the prompt that were known already."""

    choice: int
    reason: StopReason
    prompt_tokens: int
    generated: int
    reused: int


@dataclass(frozen=True)
class Failure:
    """Something went wrong; there will be no more of any text of the request."""

    error: Exception


Event = Step | PromptLogs | End | Failure


@dataclass(frozen=True)
class Plan:
    """What one text shall become.

    inside: the prompt has opened `<think>`. split: thoughts apart. logprobs: how many of the
    likeliest tokens are told beside each, None for no log-probabilities. of_prompt: also for the
    prompt.
    """

    tokens: Sequence[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    inside: bool = False
    split: bool = False
    logprobs: int | None = None
    of_prompt: bool = False


@dataclass
class Choice:
    """A plan being carried out; its methods are called by the engine's thread."""

    index: int
    plan: Plan
    tokenizer: TextTokenizer
    put: Callable[[Event], None]
    _pieces: list[tuple[Kind, str]] = field(default_factory=list)
    _logs: list[Log] = field(default_factory=list)  # of a character that is incomplete

    def __post_init__(self) -> None:
        plan = self.plan
        self._places = TokenPlaces(self.tokenizer, plan.tokens)
        self._text = WrittenText(
            self.tokenizer, plan.tokens, plan.stop, plan.inside, self._hear, plan.split
        )

    def request(self) -> Request:
        plan = self.plan
        told = plan.of_prompt and plan.logprobs is not None
        return Request(
            plan.tokens,
            plan.max_tokens,
            plan.sampling,
            plan.stop_ids,
            self.take,
            self.take_prompt if told else None,
            on_end=None if plan.logprobs is None or plan.split else self.take_end,
        )

    def take(self, token: int, logits: NDArray[np.float32]) -> StopReason | None:
        reason = self._text.take(token)
        if self.plan.logprobs is not None:
            self._logs.append(log_of(token, logits, self.plan.logprobs))
            self._say(self._places.place(token))
        else:
            self._say([])
        return reason

    def _say(self, places: list[int]) -> None:
        """places: of tokens whose log-probabilities have waited for them."""
        pieces, self._pieces = tuple(self._pieces), []
        logs = tuple(replace(log, place=p) for log, p in zip(self._logs, places, strict=False))
        del self._logs[: len(places)]
        if pieces or logs:
            self.put(Step(self.index, pieces, logs))

    def take_end(self, token: int, logits: NDArray[np.float32]) -> None:
        """The token that ends a text is no text, and was chosen like the others."""
        self._logs.append(log_of(token, logits, self.plan.logprobs or 0))
        self._say(self._places.place(token))

    def take_prompt(self, first: int, rows: NDArray[np.float32]) -> None:
        """The logits after a token say how likely the next one was."""
        following = self.plan.tokens[first + 1 : first + 1 + len(rows)]
        logs = tuple(logs_of(following, rows, self.plan.logprobs or 0))
        if logs:
            self.put(PromptLogs(self.index, logs))

    def done(self, outcome: Outcome) -> None:
        if outcome.generation is None:
            self.put(Failure(outcome.error or RuntimeError("no outcome")))
            return
        self._text.finish()
        self._say(self._places.rest())
        made = outcome.generation
        self.put(
            End(
                self.index,
                made.stop_reason,
                made.prompt_tokens,
                len(made.tokens),
                outcome.reused,
            )
        )

    def _hear(self, kind: Kind, text: str) -> None:
        self._pieces.append((kind, text))
