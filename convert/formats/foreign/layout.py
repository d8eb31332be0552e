"""What every reader of somebody else's weights has: tensors of one matrix -> rows in float32.

Codes times scales are computed in float32. A float16 or bfloat16 scale times an integer is exact
there, so that what is read is what the file means, before any runtime's own rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.families.inventory import Role
from dsconv.errors import InputError
from dsconv.quant.packing import unpack_bits
from dsconv.quant.schemes import Floats

Codes = NDArray[np.uint8]
SCALES = ("F16", "BF16", "F32")
# Weights of networks in use lie below 100; float16, in which copies are stored, ends at 65,504.
LARGEST_WEIGHT = 65_504.0
WHOLE_ROW = -1


@dataclass(frozen=True)
class Wanted:
    """A tensor of a matrix: what stands behind the module's name, allowed shapes and dtypes."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    is_optional: bool = False


@dataclass(frozen=True)
class StoredMatrix:
    """The stored tensors of one module."""

    source: SafetensorsSource
    module: str

    def has(self, kind: str) -> bool:
        return f"{self.module}.{kind}" in self.source.infos

    def rows(self, kind: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        return self.source.rows(f"{self.module}.{kind}", start, stop)

    def columns(self, kind: str, start: int, stop: int) -> NDArray[Any]:
        return self.source.columns(f"{self.module}.{kind}", start, stop)

    def shape(self, kind: str) -> tuple[int, ...]:
        return self.source.infos[f"{self.module}.{kind}"].shape

    def dtype(self, kind: str) -> str:
        return self.source.infos[f"{self.module}.{kind}"].dtype

    def fail(self, kind: str, problem: str) -> InputError:
        path = self.source.infos[f"{self.module}.{kind}"].path
        return InputError(
            f"{path}: tensor '{self.module}.{kind}': {problem}",
            "the file is damaged, or config.json belongs to another one; download both again",
        )

    def scales(self, kind: str, values: NDArray[Any]) -> Floats:
        """-> float32. Raises InputError: one is no number, or makes no weight of a network."""
        with np.errstate(all="ignore"):
            scales = values.astype(np.float32)
        largest = float(np.abs(scales).max(initial=0.0))
        if not largest <= LARGEST_WEIGHT:  # NaN is not
            raise self.fail(kind, f"a scale of {largest:g}")
        return scales

    def refuse_lost(self, kind: str, scales: Floats, deviations: NDArray[Any]) -> None:
        """A scale of zero makes zeros of whatever the codes say: only zeros may have it."""
        if not scales.all() and np.any((scales == 0) & (deviations != 0)):
            raise self.fail(kind, "a scale of 0 for weights that are not all zero")


class Layout(ABC):
    """How one matrix [rows, columns] lies in its tensors."""

    @property
    @abstractmethod
    def description(self) -> str:
        """For people: format, bits, group."""

    def settled(self, stored: StoredMatrix, rows: int, columns: int) -> Layout:
        """Where the config leaves something open that the tensors tell.

        Raises:
            InputError, UnsupportedError: they do not.
        """
        return self

    @abstractmethod
    def wanted(self, rows: int, columns: int) -> list[Wanted]: ...

    @abstractmethod
    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        """Rows [start, stop) as float32 [stop - start, columns]."""


class Rules(ABC):
    """What a quantization_config says of all modules.

    markers: kinds of tensors that only a quantized module has; beside: kinds that may lie beside a
    quantized matrix and say nothing of its weights (scales of activations).
    """

    name: ClassVar[str]
    markers: ClassVar[frozenset[str]]
    beside: ClassVar[frozenset[str]] = frozenset()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the maker's runtime does otherwise than it is done here."""
        return ()

    @abstractmethod
    def layout(self, module: str, role: Role, kinds: Collection[str]) -> Layout | None:
        """Of a module with these kinds of tensors; None where the config says it is float.

        Raises:
            InputError, UnsupportedError: none that is known.
        """


def group_count(columns: int, group_size: int) -> int:
    return 1 if group_size == WHOLE_ROW else -(-columns // group_size)


def per_weight(values: NDArray[Any], columns: int, group_size: int) -> NDArray[Any]:
    """[rows, groups] -> [rows, columns]; the last group may be shorter."""
    if group_size == WHOLE_ROW or values.shape[1] == 1:
        return np.broadcast_to(values[:, :1], (len(values), columns))
    return np.repeat(values, group_size, axis=1)[:, :columns]


def group_words(group_size: int) -> str:
    return "row" if group_size == WHOLE_ROW else f"g{group_size}"


def unpack_words(words: NDArray[Any], bits: int, count: int) -> Codes:
    """Rows of integers of any width -> the first `count` codes of each row, lowest bits first."""
    packed = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    return unpack_bits(packed, bits, count)
