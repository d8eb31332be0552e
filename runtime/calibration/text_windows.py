"""Calibration text to windows of token ids.

A source is the model itself (`self_written.py`) or a file. A `.jsonl` file holds one document
per line, an object with `text`; or with `messages` (a conversation, rendered by the model's chat
template); or with `question` and `answer` (rendered as one). Any other file is one document of
plain text.
"""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.json_file import parse_json
from dsconv.errors import InputError, UsageError
from dsconv.runtime.console import progress, say
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.text_file import read_text_file
from dsconv.runtime.text.tokenizer import TextTokenizer

SELF = "self"


@dataclass(frozen=True)
class CalibrationSource:
    """A file, or the model itself where `path` is None; shares are in proportion to the weights.

    Raises:
        UsageError: a weight that is not positive and finite.
    """

    path: Path | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UsageError(
                f"calibration weight {self.weight:g} is not positive", "use one such as FILE=3"
            )

    @classmethod
    def parse(cls, text: str) -> CalibrationSource:
        """`self`, `FILE`, `self=WEIGHT` or `FILE=WEIGHT`; a file that exists is taken by its name.

        Raises:
            UsageError: the weight is not a positive number.
        """
        name, sign, weight = text.rpartition("=")
        if not sign or os.path.exists(text):
            return cls(None if text == SELF else Path(text))
        try:
            value = float(weight)
        except ValueError as error:
            raise UsageError(
                f"calibration {text!r}: weight {weight!r} is not a number, and no such file exists",
                "use FILE or FILE=WEIGHT, such as traces.jsonl=3",
            ) from error
        return cls(None if name == SELF else Path(name), value)


@dataclass(frozen=True)
class CalibrationOptions:
    """Where the text comes from (no sources: from the model itself), and how much of it is used."""

    sources: tuple[CalibrationSource, ...] = ()
    tokens: int = 32768
    window: int = 512

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.window < 2:
            raise UsageError("calibration tokens and window must be positive", "use larger numbers")

    def purpose(self) -> dict[str, Any]:
        """What the windows depend on besides the model; files by their content."""
        sources = self.sources or (CalibrationSource(),)
        return {
            "sources": [
                {
                    "name": source.path.name if source.path else SELF,
                    "sha256": _hash(source.path) if source.path else None,
                    "weight": source.weight,
                }
                for source in sources
            ],
            "tokens": self.tokens,
            "window": self.window,
        }


def _hash(path: Path) -> str:
    return hashlib.sha256(read_text_file(path).encode()).hexdigest()


@dataclass(frozen=True)
class _Text:
    """The tokens of a file, and where its documents begin."""

    tokens: list[int]
    borders: list[int]


def calibration_windows(
    checkpoint: Checkpoint, options: CalibrationOptions, threads: int = 2
) -> list[list[int]]:
    """Windows of `options.window` tokens (at most the model's context), source after source.

    A file with more text than its share gives windows spread evenly over it, which begin with a
    document where that is possible; what a short file lacks, the other sources give. Documents
    follow each other with the model's BOS between them, where it has one.

    Raises:
        InputError: a file cannot be read, or holds too little text for one window; or the model
            cannot write text.
    """
    sources = options.sources or (CalibrationSource(),)
    size = min(options.window, checkpoint.decoder.config.max_position_embeddings)
    texts = [_read(source.path, checkpoint, size) if source.path else None for source in sources]
    count = max(1, options.tokens // size)
    limits = [len(text.tokens) // size if text else count for text in texts]
    windows: list[list[int]] = []
    for text, share in zip(
        texts, shares(count, [source.weight for source in sources], limits), strict=True
    ):
        windows += _spread(text, share, size) if text else _own(checkpoint, share, size, threads)
    if len(sources) == 1 and sources[0].path is not None:
        say(
            "warning: one calibration file may make the model worse at what the file lacks; "
            f"add --calibration {SELF}"
        )
    return windows


def shares(count: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Divide `count` windows in proportion to the weights, at least one for each source.

    What exceeds the limit of a source goes to the others; less than `count` if all are exhausted.
    """
    given = [1] * len(weights)
    while sum(given) < count:
        open_ones = [index for index, limit in enumerate(limits) if given[index] < limit]
        if not open_ones:
            break
        # The highest averages method of Sainte-Laguë.
        given[max(open_ones, key=lambda index: weights[index] / (2 * given[index] + 1))] += 1
    return given


def _own(checkpoint: Checkpoint, count: int, size: int, threads: int) -> list[list[int]]:
    from .self_written import self_windows

    with progress("calibration text", count * size, "tokens") as advance:
        windows = self_windows(checkpoint, count, size, threads, advance)
    if len(windows) < count:
        say(
            f"note: the model is too large to write text here; calibrating on "
            f"{sum(map(len, windows))} built-in tokens; --calibration FILE gives more"
        )
    return windows


def _spread(text: _Text, count: int, size: int) -> list[list[int]]:
    """`count` windows that do not overlap, at document borders as far as the text allows."""
    whole, end = len(text.tokens) // size, 0
    windows = []
    for index in range(count):
        even = max(end, index * whole // count * size)
        latest = min(
            (index + 1) * whole // count * size,  # not into the part of the next window
            len(text.tokens) - (count - index) * size,
        )
        border = bisect_left(text.borders, even)
        begins = border < len(text.borders) and text.borders[border] <= latest
        start = text.borders[border] if begins else even
        end = start + size
        windows.append(text.tokens[start:end])
    return windows


def _read(path: Path, checkpoint: Checkpoint, size: int) -> _Text:
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    tokens: list[int] = []
    borders = []
    for document in _documents(path, checkpoint):
        borders.append(len(tokens))
        tokens += tokenizer.encode_chat(document)
    if len(tokens) < size:
        raise InputError(
            f"{path}: {len(tokens)} tokens, at least {size} are needed",
            "use more calibration text",
        )
    return _Text(tokens, borders)


def _documents(path: Path, checkpoint: Checkpoint) -> Iterator[str]:
    content = read_text_file(path)
    if path.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _document(parse_json(line, where), where, checkpoint)


def _document(entry: Any, where: str, checkpoint: Checkpoint) -> str:
    if isinstance(entry, dict):
        if isinstance(entry.get("text"), str):
            return str(entry["text"])
        messages = entry.get("messages")
        if messages is None and "question" in entry and "answer" in entry:
            messages = [
                {"role": "user", "content": entry["question"]},
                {"role": "assistant", "content": entry["answer"]},
            ]
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return _render([Message(m["role"], m["content"]) for m in messages], checkpoint)
    raise InputError(
        f"{where}: neither text, messages, nor question and answer",
        'write one object per line, such as {"text": "..."}',
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _render(messages: Sequence[Message], checkpoint: Checkpoint) -> str:
    template = chat_template(checkpoint.side_files)
    if template is None:
        return "\n".join(message.content for message in messages) + "\n"
    special = TextTokenizer(checkpoint.side_files, checkpoint.config).special_tokens
    return render_chat(template, messages, special, add_generation_prompt=False)
