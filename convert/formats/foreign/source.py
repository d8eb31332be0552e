"""A quantized checkpoint of somebody else as a source of float tensors, read row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.tensors import HashedSource, SafetensorsSource
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import Parameter, Role, parameters_of
from dsconv.errors import InputError
from dsconv.quant.schemes import Floats

from .config_keys import key_names
from .layout import LARGEST_WEIGHT, Layout, Rules, StoredMatrix

WEIGHT = ".weight"
FLOATS = ("BF16", "F16", "F32", "F64")
BLOCK_WEIGHTS = 1 << 22  # dequantized at a time: what is needed on the way stays small
BLOCK_ROWS = 32  # zero points of 32 rows fill whole words, whatever their bits
STORED_AS = "F16"  # of copies without quantization, as of GGUF's
DEPTH = 3  # parts of a name behind its module: weight.quant_state.bitsandbytes__nf4
# Kinds of tensors that only quantized matrices have.
QUANTIZED = key_names(
    """
    qweight qzeros weight_packed weight_scale weight_scale_inv scales SCB q_weight trellis
    weight.quant_map weight.absmax codes W_q
    """
)


@dataclass(frozen=True)
class QuantizedMatrix:
    """One parameter, how it lies in the file, and where."""

    parameter: Parameter
    layout: Layout
    stored: StoredMatrix
    kinds: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        infos = self.stored.source.infos
        return sum(infos[f"{self.stored.module}.{kind}"].nbytes for kind in self.kinds)


class DequantizingSource:
    """Matrices under the family's names, dequantized as they are read; the rest as it is."""

    def __init__(
        self,
        inner: SafetensorsSource,
        matrices: Mapping[str, QuantizedMatrix],
        hidden: frozenset[str],
    ) -> None:
        self._inner, self._matrices = inner, matrices
        self._shown = [name for name in inner.names() if name not in hidden]

    def names(self) -> Iterable[str]:
        return [*self._matrices, *self._shown]

    def shape(self, name: str) -> tuple[int, ...]:
        matrix = self._matrices.get(name)
        return matrix.parameter.shape if matrix else self._inner.shape(name)

    def dtype(self, name: str) -> str:
        return STORED_AS if name in self._matrices else self._inner.dtype(name)

    def storage(self, name: str) -> str:
        matrix = self._matrices.get(name)
        return matrix.layout.description if matrix else self._inner.storage(name)

    def nbytes(self, name: str) -> int:
        matrix = self._matrices.get(name)
        return matrix.nbytes if matrix else self._inner.nbytes(name)

    def files(self) -> list[Path]:
        return self._inner.files()

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._inner.rows(name, start, stop)
        rows, columns = matrix.parameter.shape
        stop = rows if stop is None else stop
        values: Floats = np.empty((stop - start, columns), np.float32)
        step = max(BLOCK_ROWS, BLOCK_WEIGHTS // columns // BLOCK_ROWS * BLOCK_ROWS)
        for first in range(start - start % BLOCK_ROWS, stop, step):
            part = max(first, start), min(first + step, stop)
            with np.errstate(all="ignore"):  # what is no number is refused below
                block = matrix.layout.read(matrix.stored, columns, *part)
            largest = float(np.abs(block).max(initial=0.0))
            if not largest <= LARGEST_WEIGHT:
                raise matrix.stored.fail(matrix.kinds[0], f"a weight of {largest:g}")
            values[part[0] - start : part[1] - start] = block
        return values


class HashedDequantizingSource(DequantizingSource):
    """Of files that need not be here."""

    def sha256(self) -> Mapping[str, str]:
        assert isinstance(self._inner, HashedSource)
        return self._inner.sha256()


def dequantizing(
    folder: Path, source: SafetensorsSource, decoder: Decoder, rules: Rules
) -> DequantizingSource | None:
    """Find the tensors of every matrix and compare them with what the settings promise.

    None where no matrix is quantized: the settings are left over from another model.

    Raises:
        InputError, UnsupportedError: a tensor is missing, or is not what the settings say.
    """
    matrices = _matrices(decoder)
    kinds = _kinds(source, {p.name.removesuffix(WEIGHT) for p in matrices})
    found: dict[str, QuantizedMatrix] = {}
    hidden: set[str] = set()
    for parameter in matrices:
        module = parameter.name.removesuffix(WEIGHT)
        here = kinds.get(module, frozenset())
        if not here & rules.markers:
            continue
        layout = rules.layout(module, parameter.role, here)
        if layout is None:
            kind = min(here & rules.markers)
            raise InputError(
                f"{folder}: tensor '{module}.{kind}' is there, but the quantization settings keep "
                f"{module} in float",
                "config.json belongs to another checkpoint; download both again",
            )
        stored = StoredMatrix(source, module)
        layout = layout.settled(stored, *parameter.shape)
        present = _checked(folder, parameter, layout, stored)
        found[parameter.name] = QuantizedMatrix(parameter, layout, stored, present)
        hidden.update(f"{module}.{kind}" for kind in (*present, *(here & rules.beside)))
    if not found:
        return None
    _refuse_others(folder, set(source.names()) - hidden, decoder)
    if isinstance(source, HashedSource):
        return HashedDequantizingSource(source, found, frozenset(hidden))
    return DequantizingSource(source, found, frozenset(hidden))


def _matrices(decoder: Decoder) -> list[Parameter]:
    """With the head, even where config.json says that it is the embedding: a file may have both."""
    found = [p for p in parameters_of(decoder) if p.role is not Role.VECTOR]
    head = decoder.head_linear
    if decoder.config.tie_word_embeddings:
        shape = (head.outputs, head.inputs)
        found.append(Parameter(f"{head.name}{WEIGHT}", shape, Role.HEAD, len(found)))
    return found


def _refuse_others(folder: Path, names: set[str], decoder: Decoder) -> None:
    for name in sorted(names):
        if name.rpartition(".")[2] in QUANTIZED:
            raise InputError(
                f"{folder}: tensor {name!r} is of a quantized matrix that is not part of "
                f"{decoder.architecture}",
                "config.json belongs to another model, or it needs a setting that enables it",
            )


def _kinds(source: SafetensorsSource, modules: set[str]) -> dict[str, frozenset[str]]:
    """Module -> what stands behind its name in the names of its tensors."""
    found: dict[str, set[str]] = {}
    for name in source.names():
        module = name
        for _ in range(DEPTH):
            module = module.rpartition(".")[0]
            if module in modules:
                found.setdefault(module, set()).add(name[len(module) + 1 :])
                break
    return {module: frozenset(kinds) for module, kinds in found.items()}


def _checked(
    folder: Path, parameter: Parameter, layout: Layout, stored: StoredMatrix
) -> tuple[str, ...]:
    """-> the kinds of tensors that are there."""
    rows, columns = parameter.shape
    present = []
    for wanted in layout.wanted(rows, columns):
        name = f"{stored.module}.{wanted.kind}"
        if not stored.has(wanted.kind):
            if wanted.is_optional:
                continue
            raise InputError(
                f"{folder}: tensor {name!r} is missing ({layout.description})",
                "the download is incomplete, or the quantization settings belong to another model",
            )
        shape, dtype = stored.shape(wanted.kind), stored.dtype(wanted.kind)
        if wanted.shapes and shape not in wanted.shapes:
            raise InputError(
                f"{folder}: tensor {name!r} has shape {list(shape)}, {layout.description} of "
                f"{rows} x {columns} has {' or '.join(str(list(s)) for s in wanted.shapes)}",
                "the quantization settings belong to another model",
            )
        if dtype not in wanted.dtypes:
            raise InputError(
                f"{folder}: tensor {name!r} is stored as {dtype}, {layout.description} has "
                f"{' or '.join(wanted.dtypes)}",
                "the quantization settings belong to another model",
            )
        present.append(wanted.kind)
    return tuple(present)
