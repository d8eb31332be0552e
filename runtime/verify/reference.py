"""The model that an artifact is held against: what it predicts for windows of tokens.

A checkpoint is streamed layer by layer, so that it may be larger than memory; anything else that
runs (an exported artifact) is asked by its session. Either way logits are there in pieces only: the
artifact's are compared with them as they come, and what is kept of them is small
(`kept_logits.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.hashes import artifact_files
from dsconv.errors import ProviderError
from dsconv.progress import Advance
from dsconv.runtime.model_paths import open_model
from dsconv.runtime.sessions.load import (
    Loaded,
    is_native_file,
    is_onnx_artifact,
    load,
    refuse_unknown_dtype,
)
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.sessions.torch_device import import_torch

from .kept_logits import Condensed, compare_window, condense, join_condensed
from .metrics import TokenScores, compare, join, summarize
from .verdict import NoiseFloor

POSITIONS = 256  # logits at a time
NOISE_WINDOWS, NOISE_TOKENS = 2, 512  # enough to tell the order of magnitude of the noise
SEED = 0

Tokens = Sequence[Sequence[int]]  # windows of token ids
Pieces = Iterable[NDArray[np.float32]]  # logits after every token of a window, POSITIONS at a time


class Predictions(Protocol):
    """What the reference says about every window."""

    @property
    def noise(self) -> NoiseFloor | None: ...

    def compare(self, index: int, pieces: Pieces) -> TokenScores:
        """Compare the artifact's logits of a window."""
        ...


@dataclass(frozen=True)
class KeptPredictions:
    """As an earlier run left them."""

    tokens: Tokens
    windows: tuple[Condensed, ...]
    noise: NoiseFloor | None

    def compare(self, index: int, pieces: Pieces) -> TokenScores:
        return compare_window(self.windows[index], pieces, self.tokens[index])


@dataclass(frozen=True)
class LivePredictions:
    """As the reference computes them; condensed on the way, for later runs.

    logits: of the window of this number.
    """

    tokens: Tokens
    logits: Callable[[int], Pieces]
    noise: NoiseFloor | None
    _condensed: dict[int, Condensed] = field(default_factory=dict)

    def compare(self, index: int, pieces: Pieces) -> TokenScores:
        """Over the full vocabulary."""
        random = np.random.default_rng((SEED, index))
        scores, kept = [], []
        for expected, found, targets in _steps(self.logits(index), pieces, self.tokens[index]):
            scores.append(compare(expected, found, targets))
            kept.append(condense(expected, targets, random))
        self._condensed[index] = join_condensed(kept)
        return join(scores)

    def kept(self) -> KeptPredictions:
        """After every window has been compared."""
        order = range(len(self.tokens))
        return KeptPredictions(
            self.tokens, tuple(self._condensed[index] for index in order), self.noise
        )


def _steps(
    expected: Pieces, found: Pieces, window: Sequence[int]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], Sequence[int]]]:
    """Pieces of both, and the tokens that follow; the last position predicts nothing known."""
    start = 0
    for left, right in zip(expected, found, strict=True):
        targets = window[start + 1 : start + 1 + len(left)]
        start += len(left)
        if targets:
            yield left[: len(targets)], right[: len(targets)], targets


class Reference(Protocol):
    """What verify asks of a reference."""

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def config(self) -> Mapping[str, object]: ...

    @property
    def side_files(self) -> Mapping[str, bytes]: ...

    @property
    def files(self) -> Sequence[Path]:
        """What decides over the predictions, apart from the config."""
        ...

    @property
    def precision(self) -> str: ...

    def work(self, windows: Tokens) -> int:
        """What `advance` of `predict` adds up to."""
        ...

    def predict(self, windows: Tokens, advance: Advance) -> LivePredictions: ...


class CheckpointReference:
    """A checkpoint, streamed. `precision`: float32 or bfloat16."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, precision: str = "float32", threads: int = 0
    ) -> None:
        self.checkpoint = checkpoint
        self._threads = threads
        self.name = name
        self.precision = precision
        self.config = checkpoint.config
        self.side_files = checkpoint.side_files
        self.files = checkpoint.source.files()
        self.vocabulary = checkpoint.decoder.config.vocab_size
        self.context_length = checkpoint.decoder.config.max_position_embeddings

    def work(self, windows: Tokens) -> int:
        layers = self.checkpoint.decoder.config.num_hidden_layers
        return layers * sum(map(len, [*windows, *_noise_windows(windows)]))

    def predict(self, windows: Tokens, advance: Advance) -> LivePredictions:
        """Both precisions in one pass over the weights.

        Raises:
            ProviderError: there is no torch here.
        """
        torch = _import_torch()
        from dsconv.convert.forward.streamed_forward import StreamedForward, Window

        if self._threads:
            torch.set_num_threads(self._threads)
        other = "bfloat16" if self.precision == "float32" else "float32"
        noisy = _noise_windows(windows)
        planned = [
            *(Window(window, self.precision) for window in windows),
            *(Window(window, other) for window in noisy),
        ]
        forward = StreamedForward(self.checkpoint, planned, advance)

        def logits(index: int) -> Pieces:
            return forward.logits(index, POSITIONS)

        noise = [
            compare(expected, found, targets)
            for index, window in enumerate(noisy)
            for expected, found, targets in _steps(
                _first(logits(index), len(window)), logits(len(windows) + index), window
            )
        ]
        floor = NoiseFloor(f"{other} against {self.precision}", summarize(join(noise)))
        return LivePredictions(windows, logits, floor)


class SessionReference:
    """Something that runs; it has no other precision to tell the noise by."""

    def __init__(self, loaded: Loaded, name: str, files: Sequence[Path] = ()) -> None:
        self._session = loaded.session
        self.name = name
        self.files = files
        self.precision = loaded.runtime
        self.config = loaded.config
        self.side_files = loaded.side_files
        self.vocabulary = loaded.session.vocabulary
        self.context_length = loaded.session.context_length

    def work(self, windows: Tokens) -> int:
        return 0

    def predict(self, windows: Tokens, advance: Advance) -> LivePredictions:
        # A window at a time: the session may be the artifact's own.
        return LivePredictions(
            windows, lambda index: list(score_in_pieces(self._session, windows[index])), None
        )


def open_reference(path: str, precision: str = "float32", threads: int = 0) -> Reference:
    """Open a checkpoint (weights are not read yet) or an exported artifact.

    Raises:
        UsageError, InputError, UnsupportedError, DownloadError: with the cure.
    """
    refuse_unknown_dtype(precision)
    place = Path(path).expanduser()
    if is_native_file(place) or is_onnx_artifact(place):
        return SessionReference(load(path, "cpu", threads), path, artifact_files(place))
    return CheckpointReference(open_model(path), path, precision, threads)


def score_in_pieces(session: Session, window: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits [at most POSITIONS, vocabulary] after every token, from an empty cache."""
    session.reset()
    for start in range(0, len(window), POSITIONS):
        yield session.extend(window[start : start + POSITIONS])


def _import_torch() -> Any:
    try:
        return import_torch()
    except ProviderError as error:
        raise ProviderError(
            f"the reference has not been run before, and needs torch: {error.message}",
            f"{error.hint}; or run the same verify once where torch is, with the same "
            "--reference-cache: what the reference predicts is kept there",
        ) from error


def _noise_windows(windows: Tokens) -> list[Sequence[int]]:
    return [window[:NOISE_TOKENS] for window in windows[:NOISE_WINDOWS]]


def _first(pieces: Pieces, count: int) -> Iterator[NDArray[np.float32]]:
    """The first `count` positions."""
    for piece in pieces:
        if count <= 0:
            return
        yield piece[:count]
        count -= len(piece)
