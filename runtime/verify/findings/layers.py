"""Layer by layer: an artifact's own weights against the original's, on the same inputs.

The original's activations of all windows go through the network once, one layer in memory at a
time. Every layer gets them twice, with the original's weights and with the artifact's; what the
layer adds to its input is compared, and so are the weights. So an error stays where it arises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.families.base import Linear, Table
from dsconv.convert.families.inventory import Role
from dsconv.convert.families.wiring import Wiring, wiring_of
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps
from dsconv.errors import InputError
from dsconv.progress import Advance
from dsconv.quant.schemes import Floats
from dsconv.quant.sqnr import decibels
from dsconv.runtime.verify.verdict import Finding, LayerError

from .artifact_weights import Weights, open_weights
from .matrices import (
    LAYER,
    MatrixError,
    RowSums,
    head_swaps,
    lost_rows,
    matrix_error,
    matrix_findings,
)
from .structure import structure_findings
from .vectors import undo_smoothing, vector_findings

SAMPLED_TOKENS = 512
CHUNK_WEIGHTS = 1 << 22  # of embedding and head, compared at a time


@dataclass(frozen=True)
class LayerView:
    """layers: the embedding first, as layer -1, and the head last."""

    layers: tuple[LayerError, ...]
    findings: tuple[Finding, ...]


def view_layers(
    artifact: str,
    reference: Weights,
    windows: Sequence[Sequence[int]],
    advance: Advance = lambda layers: None,
) -> LayerView:
    """Compare an artifact (quantized folder, ONNX folder, `.dsq` file) with its original.

    Args:
        windows: token ids; some hundreds of tokens are enough.
        advance: told how many layers are done.

    Raises:
        InputError: the two are not of one shape, or the artifact cannot be read.
    """
    weights = open_weights(artifact)
    found = list(structure_findings(Path(artifact).expanduser(), weights, reference.decoder))
    _refuse_other_shapes(weights, reference)
    comparison = _Comparison(weights, reference, windows)
    layers = tuple(comparison.run(advance))
    return LayerView(layers, (*found, *comparison.findings()))


def _refuse_other_shapes(artifact: Weights, reference: Weights) -> None:
    for name, parameter in artifact.parameters.items():
        other = reference.parameters.get(_reference_name(name, artifact, reference))
        if other is None or other.shape != parameter.shape:
            shape = "absent" if other is None else list(other.shape)
            raise InputError(
                f"{name} is {list(parameter.shape)}, in the reference {shape}",
                "use the checkpoint that the artifact was made from as --reference",
            )


def _reference_name(name: str, artifact: Weights, reference: Weights) -> str:
    """A head that the artifact has untied is the embedding in the reference."""
    is_head = name == f"{artifact.decoder.head_linear.name}.weight"
    if is_head and name not in reference.parameters:
        return f"{artifact.decoder.table.name}.weight"
    return name


class _RecordingOps(TorchOps):
    """Keeps the inputs of every linear map, of the first SAMPLED_TOKENS."""

    inputs: dict[str, list[Floats]]

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        values = x[0].float().numpy()
        for linear in group:
            windows = self.inputs.setdefault(linear.name, [])
            room = SAMPLED_TOKENS - sum(map(len, windows))
            if room > 0:
                windows.append(values[:room])
        return super().linears(x, group)


class _HeadInputs(TorchOps):
    """Stops in front of the head."""

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        return x[0]


@dataclass
class _Ratio:
    """Errors as shares of each token's power, so that no loud token outweighs the others."""

    lost: list[NDArray[np.float64]] = field(default_factory=list)
    cosines: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, original: torch.Tensor, artifact: torch.Tensor) -> None:
        """Both [tokens, features]."""
        self.add_sums(RowSums.of(original.float().numpy(), artifact.float().numpy()))

    def add_sums(self, sums: RowSums) -> None:
        norms = np.sqrt(sums.original * sums.artifact)
        self.lost.append(sums.errors)
        both_zero = (sums.original == 0) & (sums.artifact == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where(norms > 0, sums.cross / norms, np.where(both_zero, 1.0, 0.0))
        self.cosines.append(cosine)

    def error(self, layer: int, name: str, matrices: Mapping[str, float | None]) -> LayerError:
        lost = float(np.concatenate(self.lost).mean())
        cosine = float(np.concatenate(self.cosines).mean())
        return LayerError(layer, name, decibels(1.0, lost), cosine, matrices)


class _Comparison:
    """One pass; collects what the findings are made of."""

    def __init__(
        self, artifact: Weights, reference: Weights, windows: Sequence[Sequence[int]]
    ) -> None:
        self._artifact, self._reference = artifact, reference
        self._tokens = [torch.tensor(list(window), dtype=torch.int64) for window in windows]
        self._errors: dict[str, MatrixError] = {}
        self._vector_findings: list[Finding] = []

    def findings(self) -> tuple[Finding, ...]:
        return (*matrix_findings(self._errors), *self._vector_findings)

    @torch.inference_mode()
    def run(self, advance: Advance) -> Iterator[LayerError]:
        hidden, error = self._embed()
        yield error
        for index in range(self._reference.decoder.config.num_hidden_layers):
            yield self._layer(index, hidden)
            advance(1)
        yield self._head(hidden)
        advance(1)

    @property
    def _both(self) -> tuple[Weights, Weights]:
        return self._reference, self._artifact

    def _embed(self) -> tuple[list[torch.Tensor], LayerError]:
        table = self._reference.decoder.table
        name = f"{table.name}.weight"
        ratio = _Ratio()
        found = []
        for tokens in self._tokens:
            theirs, mine = (_rows_of(weights, name, tokens) for weights in self._both)
            ratio.add(theirs, mine)
            found.append(theirs[None])
        return found, ratio.error(-1, table.name, {name: self._compare_in_blocks(name)})

    def _layer(self, index: int, hidden: list[torch.Tensor]) -> LayerError:
        """Compare a layer, and take the original's activations through it, in place."""
        name = self._reference.decoder.layer_name(index)
        original, mine = (_load(weights, f"{name}.") for weights in self._both)
        inputs: dict[str, list[Floats]] = {}
        ratio = _Ratio()
        for window, (tokens, x) in enumerate(zip(self._tokens, hidden, strict=True)):
            ops = _RecordingOps(_tensor_of(original), tokens, KeyValueCache())
            ops.inputs = inputs
            expected = self._reference.decoder.layer(ops, index, x)
            rounds = self._artifact.rounds_inputs
            other = TorchOps(_tensor_of(mine), tokens, KeyValueCache(), rounds)
            received = self._artifact.decoder.layer(other, index, x)
            ratio.add((expected - x)[0], (received - x)[0])
            hidden[window] = expected
        matrices = self._compare_layer(index, original, mine, inputs)
        return ratio.error(index, name, matrices)

    def _head(self, hidden: Sequence[torch.Tensor]) -> LayerError:
        """Logits, in blocks of the vocabulary."""
        decoder = self._artifact.decoder
        is_tied = decoder.config.tie_word_embeddings
        name = f"{(decoder.table if is_tied else decoder.head_linear).name}.weight"
        vectors = [n for n in self._vectors() if not LAYER.match(n)]
        gains = [{n: weights.rows(n) for n in vectors} for weights in self._both]
        self._vector_findings += vector_findings(gains[0], gains[1], vectors, {})
        normed = []
        for weights, gain in zip(self._both, gains, strict=True):
            ops = _HeadInputs(_tensor_of(gain), self._tokens[0], KeyValueCache())
            normed.append(torch.cat([weights.decoder.head(ops, x) for x in hidden]).numpy())
        sums = None
        for theirs, mine in self._blocks(name):
            part = RowSums.of(normed[0] @ theirs.T, normed[1] @ mine.T)
            sums = part if sums is None else sums.plus(part)
        if sums is None:
            raise InputError(f"{name}: a vocabulary of nothing", "the checkpoint is damaged")
        ratio = _Ratio()
        ratio.add_sums(sums)
        error = self._errors[name].sqnr_db if is_tied else self._compare_in_blocks(name)
        layers = decoder.config.num_hidden_layers
        return ratio.error(layers, decoder.head_linear.name, {name: error})

    # --- weights ------------------------------------------------------------------------------

    def _vectors(self) -> list[str]:
        parameters = self._artifact.parameters
        return [name for name in parameters if parameters[name].role is Role.VECTOR]

    def _blocks(self, name: str) -> Iterator[tuple[Floats, Floats]]:
        """Rows of a large matrix, of both, a block at a time."""
        rows, columns = self._artifact.parameters[name].shape
        step = max(1, CHUNK_WEIGHTS // columns)
        other = _reference_name(name, self._artifact, self._reference)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            yield self._reference.rows(other, start, stop), self._artifact.rows(name, start, stop)

    def _compare_in_blocks(self, name: str) -> float | None:
        sums = RowSums.join([RowSums.of(*pair) for pair in self._blocks(name)])
        self._errors[name] = matrix_error(name, sums)
        return self._errors[name].sqnr_db

    def _compare_layer(
        self,
        index: int,
        original: Mapping[str, Floats],
        mine: Mapping[str, Floats],
        inputs: Mapping[str, list[Floats]],
    ) -> dict[str, float | None]:
        """SQNR of each matrix, what smoothing has moved put back."""
        wiring = wiring_of(self._artifact.decoder, index)
        matched, found = undo_smoothing(original, mine, self._artifact, wiring)
        vectors = [name for name in self._vectors() if name in mine]
        self._vector_findings += found
        self._vector_findings += vector_findings(original, matched, vectors, inputs)
        sqnr = {}
        for name in (name for name in mine if name not in vectors):
            module = name.removesuffix(".weight")
            swaps = _swapped_heads(wiring, module, original[name], matched[name])
            samples = np.concatenate(inputs[module])
            lost = lost_rows(original[name], matched[name], samples)
            error = matrix_error(name, RowSums.of(original[name], matched[name]), swaps, lost)
            self._errors[name] = error
            sqnr[name] = error.sqnr_db
        return sqnr


def _swapped_heads(
    wiring: Wiring, module: str, original: Floats, artifact: Floats
) -> tuple[tuple[int, int | None], ...]:
    if module in wiring.row_heads:
        return head_swaps(original, artifact, wiring.row_heads[module])
    if module in wiring.column_heads:
        return head_swaps(original.T, artifact.T, wiring.column_heads[module])
    return ()


def _load(weights: Weights, prefix: str) -> dict[str, Floats]:
    return {name: weights.rows(name) for name in weights.parameters if name.startswith(prefix)}


def _tensor_of(tensors: Mapping[str, Floats]) -> Callable[[str], torch.Tensor]:
    return lambda name: torch.from_numpy(np.require(tensors[name], requirements="W"))


def _rows_of(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    """-> embeddings [tokens, hidden], read one by one."""
    rows = {token: weights.rows(name, token, token + 1) for token in set(tokens.tolist())}
    return torch.from_numpy(np.concatenate([rows[token] for token in tokens.tolist()]))
