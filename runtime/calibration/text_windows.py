"""Calibration text to windows of token ids.

A source is the model itself (`self_written.py`) or a file (`file_text.py`): plain text, or rows in
the forms of `runtime/text/row_forms.py`, told apart by the content.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.errors import UsageError
from dsconv.runtime.console import progress, say
from dsconv.runtime.text.row_rendering import RowRenderer
from dsconv.runtime.text.text_file import open_text
from dsconv.runtime.text.tokenizer import TextTokenizer

from .file_text import FileText, Reader

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
    with open_text(path) as file:
        return file.sha256()


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
    count = max(1, options.tokens // size)
    texts, given = _texts(checkpoint, sources, count, size)
    windows: list[list[int]] = []
    for text, share in zip(texts, given, strict=True):
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


def _texts(
    checkpoint: Checkpoint, sources: Sequence[CalibrationSource], count: int, size: int
) -> tuple[list[FileText | None], list[int]]:
    """What the files hold, and how many windows each source gives.

    A large file is read for its share; where it turns out to have less, the others are asked.
    """
    texts: list[FileText | None] = [None] * len(sources)
    paths = {index: source.path for index, source in enumerate(sources) if source.path}
    weights = [source.weight for source in sources]
    limits = [count] * len(sources)
    if not paths:
        return texts, shares(count, weights, limits)
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    renderer = RowRenderer.of_model(checkpoint.side_files, tokenizer)
    reader = Reader(tokenizer, renderer, checkpoint.decoder.config.vocab_size, size)
    asked = [0] * len(sources)
    while True:
        given = shares(count, weights, limits)
        wanting = [index for index in paths if asked[index] < given[index]]
        if not wanting:
            return texts, given
        for index in wanting:
            before = texts[index]
            if before is None or before.sampled:
                texts[index] = reader.read(paths[index], given[index])
            asked[index] = given[index]
            found = texts[index]
            whole = len(found.tokens) // size if found else count
            if found and (not found.sampled or whole < given[index]):
                asked[index] = count
                limits[index] = whole


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


def _spread(text: FileText, count: int, size: int) -> list[list[int]]:
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
