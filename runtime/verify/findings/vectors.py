"""Norms and biases of an artifact against the original's, and smoothing taken back.

Smoothing (`convert/quantize/calibration/smooth.py`) divides what gives an input and multiplies the
columns that read it: alone, both differ from the original's; their product does not. Calibration
may correct biases by what rounding costs on average, and by no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.families.base import Linear, Norm
from dsconv.convert.families.wiring import Wiring
from dsconv.quant.schemes import Floats
from dsconv.runtime.verify.verdict import Finding

from .artifact_weights import Weights

Tensors = Mapping[str, Floats]

TOLERANCE = 2.0**-8  # bfloat16's
CORRECTION = 4.0  # times the root mean square of a row's error: no mean is as large
COLUMN_TOLERANCE = 0.3  # calibration moves columns whose input is quiet
DEVIATIONS = 8.0
MAX_NAMED = 4
CURE = "export again; if it comes back, the conversion of this tensor is wrong"


def vector_findings(
    original: Tensors, artifact: Tensors, names: Sequence[str], inputs: Mapping[str, list[Floats]]
) -> list[Finding]:
    """Norms and biases that rounding does not explain.

    Args:
        original, artifact: tensors of a layer by name, matrices [rows, columns] among them.
        names: of the vectors.
        inputs: of every linear map, windows of [tokens, columns].
    """
    found = []
    for name in names:
        mine, theirs = artifact[name], original[name]
        allowed = TOLERANCE * np.abs(theirs) + 1e-6 * np.abs(theirs).max()
        difference = np.abs(mine - theirs)
        module, _, kind = name.rpartition(".")
        corrected = kind == "bias" and (difference == 0).mean() < 0.5
        if corrected and module in inputs:
            lost = original[f"{module}.weight"] - artifact[f"{module}.weight"]
            allowed += CORRECTION * _root_mean_square(inputs[module], lost)
        wrong = np.flatnonzero(~(difference <= allowed))
        if wrong.size:
            found.append(Finding(name, _text(wrong, mine, theirs), CURE))
    return found


def _root_mean_square(inputs: Sequence[Floats], matrix: Floats) -> Floats:
    """Of the outputs of `matrix` [rows]."""
    squares = sum(np.square(x @ matrix.T).sum(0, dtype=np.float64) for x in inputs)
    root: Floats = np.sqrt(squares / sum(map(len, inputs))).astype(np.float32)
    return root


def _text(wrong: NDArray[np.intp], mine: Floats, theirs: Floats) -> str:
    shown = ", ".join(f"{i}: {mine[i]:.5g} for {theirs[i]:.5g}" for i in wrong[:MAX_NAMED])
    return f"{wrong.size} of {theirs.size} values are not the original's ({shown})"


def undo_smoothing(
    original: Tensors, artifact: Tensors, weights: Weights, wiring: Wiring
) -> tuple[dict[str, Floats], list[Finding]]:
    """-> (the artifact's tensors of a layer as they were before smoothing, norms that do not fit).

    Only where activations are rounded to int8; elsewhere the tensors are returned as they are.
    """
    matched = dict(artifact)
    found = []
    size = weights.decoder.config.head_dim
    for group in wiring.groups:
        readers = [f"{linear.name}.weight" for linear in group.linears]
        if not all(map(weights.rounds_inputs, readers)):
            continue
        if isinstance(group.source, Norm):
            found += _undo_in_norm(original, matched, f"{group.source.name}.weight", readers)
        elif isinstance(group.source, Linear):
            for reader in readers:
                _undo_between(original, matched, group.source.name, reader, size)
    return matched, found


def _undo_in_norm(
    original: Tensors, matched: dict[str, Floats], gain: str, readers: Sequence[str]
) -> list[Finding]:
    """Scales between a norm and its readers are known twice: from its gain and their columns."""
    found = []
    divided = matched[gain]
    scales = np.ones_like(original[gain])
    np.divide(original[gain], divided, out=scales, where=divided != 0)
    estimated, deviations = _column_scales([(original[name], matched[name]) for name in readers])
    allowed = scales * COLUMN_TOLERANCE + DEVIATIONS * deviations
    off = np.flatnonzero(~(np.abs(estimated - scales) <= allowed))
    if off.size:
        text = _text(off, divided, original[gain] / estimated)
        found.append(Finding(gain, f"does not fit the columns that read it: {text}", CURE))
        scales[off] = estimated[off]
    for name in readers:
        matched[name] = matched[name] / scales
    matched[gain] = original[gain]
    return found


def _undo_between(
    original: Tensors, matched: dict[str, Floats], source: str, reader: str, head_dim: int
) -> None:
    """Scales between two linear maps are known from the reader's columns alone: an error in the
    size of one is seen as one of the other. Several query heads share the rows of a value head."""
    rows, columns = original[f"{source}.weight"].shape[0], original[reader].shape[1]
    size = rows if rows == columns else head_dim
    scales, _ = _column_scales([(original[reader], matched[reader])])
    heads = scales.reshape(-1, columns // rows, size)
    shared = heads.mean(1)
    matched[reader] = matched[reader] / np.broadcast_to(shared[:, None], heads.shape).reshape(-1)
    matched[f"{source}.weight"] = matched[f"{source}.weight"] * shared.reshape(-1, 1)
    if f"{source}.bias" in matched:
        matched[f"{source}.bias"] = matched[f"{source}.bias"] * shared.reshape(-1)


def _column_scales(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Least squares factor of each column over all matrices of one input, and its deviation.

    Columns that are zero, or that did not keep their sign, have factor 1 and an infinite deviation.
    """
    squares = sum(np.square(w).sum(0, dtype=np.float64) for w, _ in pairs)
    products = sum((w * v).sum(0, dtype=np.float64) for w, v in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = products / squares
        lost = sum(np.square(v - w * scales).sum(0, dtype=np.float64) for w, v in pairs)
        rows = sum(len(w) for w, _ in pairs)
        deviations = np.sqrt(lost / (rows * squares))
    usable = np.isfinite(scales) & (scales > 0)
    return (
        np.where(usable, scales, 1).astype(np.float32),
        np.where(usable, deviations, np.inf).astype(np.float32),
    )
