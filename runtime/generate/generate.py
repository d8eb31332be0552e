"""The loop from prompt to tokens, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from dsconv.errors import InputError, UsageError
from dsconv.runtime.console import working
from dsconv.runtime.sessions.session import Session

from .sampling import Sampler

StopReason = Literal["eos", "length", "context", "stop", "interrupted"]


@dataclass(frozen=True)
class Generation:
    """A finished generation. Times hold the model and the sampler, not the reader of the tokens.

    `decode_steps` counts the tokens after the first, the one that ended the text included.
    """

    tokens: tuple[int, ...]
    stop_reason: StopReason
    prompt_tokens: int
    decode_steps: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        return _rate(self.prompt_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        return _rate(self.decode_steps, self.decode_seconds)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def generate(
    session: Session,
    tokens: Sequence[int],
    sampler: Sampler,
    stop_ids: Collection[int],
    max_tokens: int,
) -> Generator[int, StopReason | None, Generation]:
    """Append the prompt to the session and yield what follows; the return value tells the rest.

    Ends without yielding a stop id; at max_tokens; when the context is full; or for the reason that
    is sent back for a token. The session starts where it stands (reset it first for a new text). It
    has not seen the last token unless a stop id was the end.

    Raises:
        UsageError: an empty prompt, or max_tokens below 1.
        InputError: a prompt that does not fit, or a token that the model does not have.
    """
    _check_prompt(session, tokens)
    if max_tokens < 1:
        raise UsageError(f"max tokens is {max_tokens}, must be at least 1", "use a larger number")
    return _steps(session, tokens, sampler, stop_ids, max_tokens)


def complete(
    session: Session,
    tokens: Sequence[int],
    sampler: Sampler,
    stop_ids: Collection[int],
    max_tokens: int,
    on_token: Callable[[int], StopReason | None] = lambda token: None,
) -> Generation:
    """Run `generate` to its end, calling on_token with every token as it comes: it may say why the
    text ends there."""
    steps = generate(session, tokens, sampler, stop_ids, max_tokens)
    reason: StopReason | None = None
    while True:
        try:
            token = steps.send(reason)
        except StopIteration as end:
            generation: Generation = end.value
            return generation
        reason = on_token(token)


def _check_prompt(session: Session, tokens: Sequence[int]) -> None:
    if not tokens:
        raise UsageError("the prompt is empty", "use at least one word with --prompt")
    room = session.context_length - session.position
    if len(tokens) > room:
        used = f", {session.position} of them taken" if session.position else ""
        raise InputError(
            f"the prompt has {len(tokens)} tokens, the context {session.context_length}{used}",
            "shorten the prompt; the context is fixed in the model or artifact",
        )
    wrong = next((token for token in tokens if not 0 <= token < session.vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"the prompt holds token {wrong}, the model has {session.vocabulary}",
            "tokenizer.json belongs to another model",
        )


def _steps(
    session: Session,
    tokens: Sequence[int],
    sampler: Sampler,
    stop_ids: Collection[int],
    max_tokens: int,
) -> Generator[int, StopReason | None, Generation]:
    generated: list[int] = []
    decode_seconds, steps = 0.0, 0
    sampler.begin(tokens, stop_ids)
    start = time.perf_counter()
    with working("read the prompt"):
        logits = session.prefill(tokens)
    token = sampler.choose(logits)
    prefill_seconds = time.perf_counter() - start
    while True:
        if token in stop_ids:
            reason: StopReason = "eos"
            break
        generated.append(token)
        wanted = yield token
        if wanted is not None:
            reason = wanted
            break
        if len(generated) == max_tokens:
            reason = "length"
            break
        if session.position >= session.context_length:
            reason = "context"
            break
        start = time.perf_counter()
        token = sampler.choose(session.decode(token))
        decode_seconds += time.perf_counter() - start
        steps += 1
    return Generation(tuple(generated), reason, len(tokens), steps, prefill_seconds, decode_seconds)
