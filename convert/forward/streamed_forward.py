"""A checkpoint's forward over many windows, with one layer's weights in memory at a time.

The original may be larger than memory: the weights of a layer are read once, used for all windows
and dropped; the head passes by in blocks of rows. What is kept are the hidden states, beyond a
limit in a file. A window has a precision of its own: one reading of the weights serves several.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Linear, Table
from dsconv.progress import Advance

from .activation_store import ActivationStore, StoredWindows
from .torch_ops import CHUNK_WEIGHTS, DTYPES, KeyValueCache, TorchOps, load_parameter

STATE_BYTES = 512 << 20  # of hidden states in memory
POSITIONS = 256  # logits at a time: 256 * 152k * 4 bytes = 156 MB


@dataclass(frozen=True)
class Window:
    """Token ids, seen from an empty cache, and the precision to compute in."""

    tokens: Sequence[int]
    dtype: str = "float32"


class StreamedForward:
    """The hidden states of all windows after the last layer, and their logits on request.

    advance: gets the positions done, of layers times all positions.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        advance: Advance = lambda positions: None,
    ) -> None:
        self._checkpoint = checkpoint
        self._windows = windows
        self._states = _hidden_states(checkpoint, windows, advance)
        self._weights = _Weights(checkpoint)

    def logits(self, index: int, positions: int = POSITIONS) -> Iterator[NDArray[np.float32]]:
        """Of one window, in pieces [at most `positions`, vocabulary]."""
        state = self._states.get(index)
        for start in range(0, state.shape[1], positions):
            yield self._head(self._windows[index], state[:, start : start + positions])

    @torch.inference_mode()
    def _head(self, window: Window, state: torch.Tensor) -> NDArray[np.float32]:
        ops = _ops(self._checkpoint, self._weights, window)
        return np.asarray(self._checkpoint.decoder.head(ops, state)[0].numpy(), np.float32)


@torch.inference_mode()
def _hidden_states(
    checkpoint: Checkpoint, windows: Sequence[Window], advance: Advance
) -> StoredWindows:
    """-> [1, length, hidden] of every window after the last layer."""
    store = ActivationStore(Path(tempfile.gettempdir()), STATE_BYTES)
    states = _embedded(checkpoint, windows, store)
    for layer in range(checkpoint.decoder.config.num_hidden_layers):
        weights, after = _Weights(checkpoint), store.new(len(windows))
        for index, window in enumerate(windows):
            ops = _ops(checkpoint, weights, window)
            value = checkpoint.decoder.layer(ops, layer, states.get(index))
            states.drop(index)
            after.put(index, value)
            advance(value.shape[1])
        states = after
    return states


def _embedded(
    checkpoint: Checkpoint, windows: Sequence[Window], store: ActivationStore
) -> StoredWindows:
    """Only the rows of tokens that occur are read: a table may be larger than a layer."""
    name = f"{checkpoint.decoder.table.name}.weight"
    tokens = sorted({token for window in windows for token in window.tokens})
    rows = np.concatenate([checkpoint.rows(name, token, token + 1) for token in tokens])
    states = store.new(len(windows))
    for index, window in enumerate(windows):
        places = np.searchsorted(tokens, window.tokens)
        states.put(index, torch.from_numpy(rows[places])[None].to(DTYPES[window.dtype]))
    return states


def _ops(checkpoint: Checkpoint, weights: _Weights, window: Window) -> _BlockwiseHead:
    tokens = torch.tensor(list(window.tokens), dtype=torch.int64)
    dtype = DTYPES[window.dtype]
    return _BlockwiseHead(checkpoint, lambda name: weights(name, dtype), tokens)


class _BlockwiseHead(TorchOps):
    """A head that never holds its matrix."""

    def __init__(
        self, checkpoint: Checkpoint, weights: Callable[[str], torch.Tensor], tokens: torch.Tensor
    ) -> None:
        super().__init__(weights, tokens, KeyValueCache(), checkpoint.rounds_inputs)
        self._checkpoint = checkpoint

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        """-> float32 logits [1, positions, vocabulary]."""
        name = f"{linear.name if tied_to is None else tied_to.name}.weight"
        step = max(1, CHUNK_WEIGHTS // linear.inputs)
        logits = torch.empty(1, x.shape[1], linear.outputs)
        for start in range(0, linear.outputs, step):
            rows = self._checkpoint.rows(name, start, min(start + step, linear.outputs))
            block = torch.from_numpy(rows).to(x.dtype)
            logits[..., start : start + step] = torch.nn.functional.linear(x, block)
        return logits


class _Weights:
    """Parameters by name and dtype, read at first use."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._values: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def __call__(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        if (name, dtype) not in self._values:
            same = [value for (other, _), value in self._values.items() if other == name]
            read = same[0].to(dtype) if same else load_parameter(self._checkpoint, name, dtype)
            self._values[name, dtype] = read
        return self._values[name, dtype]
