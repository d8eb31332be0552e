"""What an artifact writes by itself, beside what the original writes: greedy, same prompts.

Teacher-forced figures do not see where an error leads to: other words, loops, thoughts without end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from dsconv.progress import Advance
from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.generate.answer import UserPrompt, prepare
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.scheduling.request import Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.thinking import CLOSE
from dsconv.runtime.text.tokenizer import TextTokenizer

from .verdict import FreeRunning

PROMPTS = "calibration_prompts.jsonl"
MAX_PERIOD = 64  # tokens of the longest block that may be repeated
MIN_REPEATS = 3
MIN_LOOP = 24  # tokens: "ha ha ha" is no loop


@dataclass(frozen=True)
class Text:
    """A greedy text. thinks: the prompt or the text has opened `<think>`; closed: it was left."""

    tokens: tuple[int, ...]
    thinks: bool
    closed: bool


def built_in_prompts(count: int) -> tuple[str, ...]:
    """Questions of every kind: maths, code, prose in two languages."""
    lines = (
        resources.files("dsconv.runtime.calibration")
        .joinpath(PROMPTS)
        .read_text("utf-8")
        .splitlines()
    )
    conversations = [json.loads(line)["turns"] for line in lines]
    return tuple(turns[0] for turns in conversations if len(turns) == 1)[:count]


def write_texts(
    loaded: Loaded,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    advance: Advance = lambda texts: None,
) -> tuple[Text, ...]:
    """One text per prompt, to an end token or `max_tokens`.

    Args:
        tokenizer: of the original for both models, so that tokens can be compared.

    Raises:
        InputError: the model gives NaN, or a prompt does not fit its context.
    """
    prepared = [prepare(tokenizer, loaded, UserPrompt(prompt)) for prompt in prompts]
    requests = [
        Request(tokens, max_tokens, Sampling(), tokenizer.stop_ids) for tokens, _ in prepared
    ]
    found = []
    written = run_all(open_batch(loaded), requests, lambda index, outcome: advance(1))
    for (_, inside), generation in zip(prepared, written, strict=True):
        text = tokenizer.decode(generation.tokens)
        closed = CLOSE in text
        found.append(Text(generation.tokens, inside or closed or "<think>" in text, closed))
    return tuple(found)


def compare_texts(
    artifact: Sequence[Text], reference: Sequence[Text], max_tokens: int
) -> FreeRunning:
    """Both wrote, in this order, on the same prompts (at least one)."""
    pairs = list(zip(artifact, reference, strict=True))
    lengths = [sum(len(text.tokens) for text in texts) for texts in (artifact, reference)]
    return FreeRunning(
        prompts=len(pairs),
        tokens_per_prompt=max_tokens,
        first_divergence=tuple(
            first_divergence(mine.tokens, theirs.tokens, max_tokens) for mine, theirs in pairs
        ),
        length_ratio=lengths[0] / max(1, lengths[1]),
        reference_loop_rate=_share([ends_in_loop(text.tokens) for text in reference]),
        artifact_loop_rate=_share([ends_in_loop(text.tokens) for text in artifact]),
        reference_closed_rate=_closed_rate(reference),
        artifact_closed_rate=_closed_rate(artifact),
    )


def first_divergence(mine: Sequence[int], theirs: Sequence[int], same: int) -> int:
    """Index of the first token that differs; the end of the shorter text is a difference too.

    same: what to say of equal texts.
    """
    if list(mine) == list(theirs):
        return same
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """The rule: the text ends in one block of at most 64 tokens, written three times or more, and
    these repetitions are at least 24 tokens."""
    for period in range(1, MAX_PERIOD + 1):
        span = max(MIN_REPEATS * period, MIN_LOOP)
        tail = tokens[-span:]
        if len(tail) == span and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _closed_rate(texts: Sequence[Text]) -> float | None:
    """Of the texts that think; None where none does."""
    thinking = [text for text in texts if text.thinks]
    return _share([text.closed for text in thinking]) if thinking else None
