"""What every scheme offers: how a matrix may be quantized, and what comes of it.

A scheme is a file: `integer.py`, `scale_min.py`, `int8_rows.py`; `labels.py` lists them all. The
rest of dsconv asks a scheme for its facts and methods, not for its class. How its matrices lie in a
checkpoint stands in `convert/checkpoint/matrix_layout.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

Floats = NDArray[np.float32]
T = TypeVar("T")

WHOLE_ROW = -1


class Scheme(ABC):
    """Codes of 0 .. max_code, group by group along a row: w = scale * (code - zero) - minimum.

    group_size: WHOLE_ROW is one group per row; symmetric: `zero` and no minimum for every group.
    """

    bits: int
    group_size: int
    symmetric: bool

    has_minima: ClassVar[bool] = False
    rounds_inputs: ClassVar[bool] = False  # the activations that meet the weights are int8
    # Nothing but codes and scales (and zero points), inputs in float: the algebra that ONNX
    # operators, torch's kernels and `pack-quantized` readers share.
    is_plain: ClassVar[bool] = False
    # GPTQ searches a group's scale when it comes to the group; else `grid` is known before.
    by_group: ClassVar[bool] = False
    tunable: ClassVar[bool] = True  # `QuantizedMatrix.units` may be trained

    @property
    @abstractmethod
    def label(self) -> str:
        """A short word for manifests and recipes."""

    @classmethod
    @abstractmethod
    def parse(cls, label: str) -> Scheme | None:
        """Inverse of `label`; None where it is no word of this scheme."""

    @property
    @abstractmethod
    def description(self) -> str:
        """For the table of a checkpoint's tensors."""

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    @abstractmethod
    def zero(self) -> int:
        """The code that stands for 0 (before the minimum) where none is stored."""

    @property
    def has_zero_points(self) -> bool:
        return not self.symmetric and not self.has_minima

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` weights; the last one may be shorter."""
        return 1 if self.group_size == WHOLE_ROW else -(-columns // self.group_size)

    def group_length(self, columns: int) -> int:
        """Columns of a group."""
        return columns if self.group_size == WHOLE_ROW else self.group_size

    def undivided(self, columns: int) -> int:
        """Neighbouring columns that GPTQ must take together: those whose scale is found at once."""
        return self.group_length(columns)

    def for_columns(self, columns: int) -> Scheme:
        """The scheme to use for a row of `columns`: itself where every length fits."""
        return self

    @abstractmethod
    def plain_grid(self, weights: Floats) -> Grid:
        """The textbook's, by the largest weights of each group of rows [rows, columns]."""

    @abstractmethod
    def grid(self, weights: Floats, importance: Floats | None = None) -> Grid:
        """That of the smallest squared error; never worse than the textbook's.

        importance: weight of each column's squared error [columns]; None counts all alike.

        Raises:
            ScaleOverflow: a scale does not fit float16.
        """

    def round_to_nearest(self, weights: Floats) -> QuantizedMatrix:
        """Textbook rounding."""
        return self.plain_grid(weights).nearest(weights)

    def search(self, weights: Floats, importance: Floats | None = None) -> QuantizedMatrix:
        """The nearest codes on the grid of the smallest squared error."""
        return self.grid(weights, importance).nearest(weights)

    def received(self, inputs: Floats) -> Floats:
        """What the weights meet of inputs [positions, columns]: themselves, or rounded."""
        return inputs


class Grid(ABC):
    """The values that the codes of some rows stand for, without the codes."""

    @abstractmethod
    def values(self) -> tuple[Floats, Floats, Floats | None]:
        """-> (scales, zeros, minima or None), each [rows, groups]."""

    @abstractmethod
    def nearest(self, weights: Floats) -> QuantizedMatrix:
        """The nearest codes of rows [rows, columns]."""

    @abstractmethod
    def with_codes(self, codes: NDArray[Any]) -> QuantizedMatrix:
        """codes: [rows, columns], whole numbers of any type, 0 .. max_code."""


class QuantizedMatrix(ABC):
    """A quantized matrix (or a slice of its rows): dataclasses whose arrays begin with the rows."""

    codes: NDArray[Any]
    scheme: Scheme

    @abstractmethod
    def dequantize(self) -> Floats:
        """-> [rows, columns] float32."""

    def units(self) -> Units:
        """What tuning changes, and what stays."""
        raise TypeError(f"{self.scheme.label}: is not tuned")

    def with_units(self, units: Sequence[NDArray[np.float16]]) -> Self:
        """The same codes with other units, in the order of `Units.values`."""
        raise TypeError(f"{self.scheme.label}: is not tuned")

    @classmethod
    def of(cls, matrix: QuantizedMatrix) -> Self:
        """A matrix that must be of this class."""
        if not isinstance(matrix, cls):
            raise TypeError(f"{matrix.scheme.label}: {cls.__name__} expected")
        return matrix


@dataclass(frozen=True)
class Units:
    """A matrix as stored floats and what multiplies them.

    w = unit * step * (code - zero), less minimum unit * minimum step where there are minima.

    values: the units of the scales, and of the minima, [rows, units]; steps: of both
    [rows, groups]; zeros: [rows, groups], or None where they are 0; groups: that share a unit.
    """

    values: tuple[NDArray[np.float16], ...]
    steps: tuple[NDArray[Any], ...]
    zeros: NDArray[Any] | None
    groups: int


def joined(parts: Sequence[T], axis: int = 0) -> T:
    """Grids or matrices of consecutive rows (axis 0), grids of consecutive groups (axis 1)."""
    first: Any = parts[0]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts], axis)
        for name, value in vars(first).items()
        if isinstance(value, np.ndarray)
    }
    whole: T = replace(first, **arrays)
    return whole


METHODS: dict[str, Callable[[Floats, Scheme], QuantizedMatrix]] = {
    "search": lambda weights, scheme: scheme.search(weights),
    "rtn": lambda weights, scheme: scheme.round_to_nearest(weights),
}
