"""How far a matrix of an artifact is from the original's, and what no rounding explains.

Rounding errors have a size, but no preference: every row, every head and the matrix as a whole stay
what they were. With w the original's weights and v the artifact's,

    <v, w> / <w, w>  ≤  1  ≤  <v, v> / <v, w>

holds for plain rounding (left: equality, the errors do not know w) and for scales of the smallest
squared error (right: equality, Lloyd's condition) and for all between. Scales that are some percent
off leave that interval. Calibration moves weights on purpose and may leave it too, by about the
power of the error at most and by an amount that changes slowly with depth: where there are enough
layers, it is the neighbours in depth that a matrix, and a layer as a whole, is compared with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.quant.schemes import Floats
from dsconv.quant.sqnr import decibels
from dsconv.runtime.verify.verdict import Finding

LAYER = re.compile(r"(.*\.\d+)\.(.*)")
Sums = NDArray[np.float64]

LOST = 0.5  # of a row's or head's power is error: it is not the original's any more
MAX_GAIN = 0.006  # beyond the interval above, where nothing moves weights on purpose
MAX_SHRINKAGE = 0.1
SCATTERS = 2.0  # as much as single rows move, all of a matrix may have been moved
MAX_GAIN_STEP = 0.012  # of a matrix from its neighbours in depth
MAX_LAYER_STEP = 0.0105  # the same of the median over a layer's matrices
SWAPPED_SHARE = 0.2  # of a head's power: less error in a matrix holds no lost head
NEIGHBOURS = 3  # on either side
MIN_NEIGHBOURS = 4
DEVIATIONS = 6.0  # robust standard deviations that chance may take
MAX_NAMED = 4  # rows of one matrix
CURE = "quantize and export again; if it comes back, the conversion of this tensor is wrong"


@dataclass(frozen=True)
class RowSums:
    """Per row of a matrix [rows]: <w, w>, <w, v>, <v, v>."""

    original: Sums
    cross: Sums
    artifact: Sums

    @classmethod
    def of(cls, original: Floats, artifact: Floats) -> RowSums:
        def dot(a: Floats, b: Floats) -> Sums:
            sums: Sums = np.einsum("ij,ij->i", a, b, dtype=np.float64)
            return sums

        return cls(dot(original, original), dot(original, artifact), dot(artifact, artifact))

    @classmethod
    def join(cls, parts: Sequence[RowSums]) -> RowSums:
        return cls(
            np.concatenate([part.original for part in parts]),
            np.concatenate([part.cross for part in parts]),
            np.concatenate([part.artifact for part in parts]),
        )

    def plus(self, other: RowSums) -> RowSums:
        """Of the same rows over more columns."""
        return RowSums(
            self.original + other.original, self.cross + other.cross, self.artifact + other.artifact
        )

    @property
    def errors(self) -> Sums:
        """Power of the error as a share of the row's; 0 where both are zero."""
        lost = np.maximum(self.original - 2 * self.cross + self.artifact, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.original > 0, lost / self.original, np.where(lost > 0, np.inf, 0))


@dataclass(frozen=True)
class MatrixError:
    """sqnr_db: None where the matrix is exact; gains: the two sides of the interval; rows: lost
    ones, with the share of their power that is error; heads: those that hold another's weights, as
    (head, the head whose weights they are), or zeros: (head, None); scatter: of the rows' gains."""

    name: str
    sqnr_db: float | None
    gains: tuple[float, float]
    rows: tuple[tuple[int, float], ...]
    heads: tuple[tuple[int, int | None], ...] = ()
    scatter: float = 0.0

    @property
    def noise(self) -> float:
        """Power of the error as a share of the matrix's."""
        return 0.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 10)

    @property
    def excess(self) -> float:
        """Logarithm of what the scales are too large (or small) by at least; 0 inside."""
        low, high = self.gains
        return math.log(low) if low > 1 else math.log(high) if high < 1 else 0.0


def lost_rows(original: Floats, artifact: Floats, inputs: Floats) -> list[int]:
    """Rows that are lost by their numbers and by what they give for `inputs` [tokens, columns].

    Both, since calibration may move weights far where the inputs do not show it.
    """
    rows = np.flatnonzero(RowSums.of(original, artifact).errors > LOST)
    outputs = RowSums.of(original[rows] @ inputs.T, artifact[rows] @ inputs.T)
    return [int(row) for row in rows[outputs.errors > LOST]]


def matrix_error(
    name: str,
    sums: RowSums,
    heads: tuple[tuple[int, int | None], ...] = (),
    lost: Sequence[int] | None = None,
) -> MatrixError:
    """lost: the rows to name; None takes all that are lost by their numbers."""
    original, cross, artifact = (
        float(part.sum()) for part in (sums.original, sums.cross, sums.artifact)
    )
    errors = sums.errors
    rows = [int(row) for row in np.flatnonzero(errors > LOST)] if lost is None else lost
    error = max(original - 2 * cross + artifact, 0.0)
    # The difference of large sums is noise below 1e-12 of them.
    exact = error <= 1e-12 * original
    positive = original > 0 and cross > 0
    return MatrixError(
        name,
        None if exact else decibels(original, error),
        (cross / original, artifact / cross) if positive else (1.0, 1.0),
        tuple((row, float(errors[row])) for row in rows),
        heads,
        _scatter(sums),
    )


def _scatter(sums: RowSums) -> float:
    """Robust standard deviation of <v, w> / <w, w> over the rows: wrong scales move all alike,
    calibration moves each on its own."""
    rows = sums.original > 0
    if not rows.any():
        return 0.0
    gains = sums.cross[rows] / sums.original[rows]
    return _spread(gains - np.median(gains))


def head_swaps(
    original: Floats, artifact: Floats, heads: int
) -> tuple[tuple[int, int | None], ...]:
    """Heads (equal blocks of rows) that hold another's weights, or zeros (None).

    Others with much error are not named: little calibration text leaves columns free to move.
    """
    if float(np.square(original - artifact).sum(dtype=np.float64)) * heads < SWAPPED_SHARE * float(
        np.square(original).sum(dtype=np.float64)
    ):
        return ()
    mine = artifact.reshape(heads, -1)
    theirs = original.reshape(heads, -1)
    power = np.maximum(np.einsum("ij,ij->i", theirs, theirs, dtype=np.float64), 1e-30)
    lost = np.flatnonzero(RowSums.of(theirs, mine).errors > LOST)
    found: list[tuple[int, int | None]] = []
    for head in map(int, lost):
        distance = np.square(theirs - mine[head]).sum(1, dtype=np.float64) / power
        nearest = int(distance.argmin())
        if distance[nearest] < LOST:
            found.append((head, nearest))
        elif not mine[head].any():
            found.append((head, None))
    return tuple(found)


def matrix_findings(errors: Mapping[str, MatrixError]) -> tuple[Finding, ...]:
    """What no rounding explains in the matrices of a model, in the order of the network."""
    found = []
    gains = _wrong_gains(errors)
    for name, error in errors.items():
        if error.heads:
            found += [Finding(name, _head_text(*swap), CURE) for swap in error.heads]
        elif error.rows:
            found.append(Finding(name, _row_text(error.rows), CURE))
    for place, gain in gains.items():
        text = f"its weights as a whole are {100 * math.expm1(gain):+.1f} % off in size"
        found.append(Finding(place, text, CURE))
    return tuple(found)


def _head_text(head: int, other: int | None) -> str:
    whose = f"those of head {other}" if other is not None else "all zero"
    return f"the weights of head {head} are {whose}"


def _row_text(rows: Sequence[tuple[int, float]]) -> str:
    shown = ", ".join(f"{row} ({share:.0%})" for row, share in rows[:MAX_NAMED])
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return f"not the original's rows (share of their power that is error): {shown}{more}"


def _layer_and_kind(name: str) -> tuple[str, str]:
    """`a.layers.3.b.c.weight` -> (`a.layers.3`, `b.c.weight`); what lies in no layer is one by
    itself."""
    match = LAYER.match(name)
    return (match[1], match[2]) if match else (name, name)


def _wrong_gains(errors: Mapping[str, MatrixError]) -> dict[str, float]:
    """Layer or matrix -> logarithm of a gain that is off."""
    healthy = {n: e for n, e in errors.items() if not e.rows and not e.heads}
    series: dict[str, list[MatrixError]] = {}
    for name, error in healthy.items():
        series.setdefault(_layer_and_kind(name)[1], []).append(error)
    off: dict[str, float] = {}
    steps: dict[str, float] = {}
    for members in series.values():
        if len(members) > MIN_NEIGHBOURS:
            steps.update(_steps(members))
            off.update(_outliers(members, steps))
        else:
            off.update({e.name: e.excess for e in members if abs(e.excess) > _alone(e)})
    return _by_layer(healthy, off, _layer_steps(steps))


def _limit(error: MatrixError, least: float) -> float:
    return max(least, error.noise)


def _alone(error: MatrixError) -> float:
    """The limit where no neighbours in depth tell what calibration does: it shrinks weights whose
    inputs carry noise from the layers before, as least squares does with noisy regressors."""
    limit = max(_limit(error, MAX_GAIN), SCATTERS * error.scatter)
    return max(limit, MAX_SHRINKAGE) if error.excess < 0 else limit


def _steps(members: Sequence[MatrixError]) -> dict[str, float]:
    """How far each matrix of a kind is from its neighbours in depth.

    Other bits move one side of the interval only, other scales both: the smaller step counts.
    """
    sides = np.log(np.array([member.gains for member in members]))
    near = np.array([np.median(_around(sides, i), axis=0) for i in range(len(sides))])
    smaller = np.abs(sides - near).argmin(axis=1)
    chosen = (sides - near)[np.arange(len(sides)), smaller]
    return {member.name: float(step) for member, step in zip(members, chosen, strict=True)}


def _around(values: Sums, index: int) -> Sums:
    near = [*range(max(0, index - NEIGHBOURS), index), *range(index + 1, index + NEIGHBOURS + 1)]
    return values[[i for i in near if i < len(values)]]


def _spread(values: Sequence[float] | Sums) -> float:
    """A standard deviation that a few wild values do not move."""
    return 1.4826 * float(np.median(np.abs(values)))


def _outliers(members: Sequence[MatrixError], steps: Mapping[str, float]) -> dict[str, float]:
    least = max(MAX_GAIN_STEP, DEVIATIONS * _spread([steps[m.name] for m in members]))
    found = {}
    for index, member in enumerate(members):
        at_end = index in (0, len(members) - 1)  # the first and last layers are like no other
        limit = _limit(member, 2 * least if at_end else least)
        if abs(steps[member.name]) > limit:
            found[member.name] = steps[member.name]
    return found


def _layer_steps(steps: Mapping[str, float]) -> dict[str, float]:
    """Layers whose matrices have all grown or shrunk, by the median of their steps."""
    members: dict[str, list[float]] = {}
    for name, step in steps.items():
        members.setdefault(_layer_and_kind(name)[0], []).append(step)
    medians = {layer: float(np.median(values)) for layer, values in members.items()}
    if not medians:
        return {}
    limit = max(MAX_LAYER_STEP, DEVIATIONS * _spread(list(medians.values())))
    return {layer: median for layer, median in medians.items() if abs(median) > limit}


def _by_layer(
    errors: Mapping[str, MatrixError], off: Mapping[str, float], layers: Mapping[str, float]
) -> dict[str, float]:
    """Matrices that are off; the layer in their place where it is most of its matrices."""
    found = dict(layers)
    members: dict[str, list[str]] = {}
    for name in errors:
        members.setdefault(_layer_and_kind(name)[0], []).append(name)
    for layer, names in members.items():
        wrong = [name for name in names if name in off]
        if layer in found:
            continue
        if len(wrong) > 1 and 2 * len(wrong) > len(names):
            found[layer] = float(np.median([off[name] for name in wrong]))
        else:
            found.update({name: off[name] for name in wrong})
    return found
