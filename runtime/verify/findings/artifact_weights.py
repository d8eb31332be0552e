"""The weights that an artifact really holds, behind one interface, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsconv.convert.checkpoint.checkpoint import CONFIG
from dsconv.convert.families import read_family
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import Parameter, parameters_of
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.safetensors import read_rows
from dsconv.convert.formats.native.file import NativeFile, open_native_file
from dsconv.convert.formats.native.linear_layout import BLOCK_ROWS, unpack_linear
from dsconv.convert.open import open_checkpoint
from dsconv.quant.schemes import Floats
from dsconv.runtime.model_paths import local_path
from dsconv.runtime.sessions.load import is_native_file


class Weights(Protocol):
    """A decoder and its parameters, read when they are asked for. A checkpoint is one."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def side_files(self) -> Mapping[str, bytes]: ...

    @property
    def parameters(self) -> Mapping[str, Parameter]: ...

    def rounds_inputs(self, name: str) -> bool:
        """Are the activations that meet this weight rounded to int8?"""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop) of a parameter, dequantized."""
        ...


@dataclass(frozen=True)
class NativeWeights:
    """Those of a `.dsq` file, taken out of the order of its kernels."""

    file: NativeFile

    @cached_property
    def decoder(self) -> Decoder:
        return read_family(ConfigReader(self.config, f"{self.file.path}: {CONFIG}"))

    @property
    def config(self) -> Mapping[str, Any]:
        return self.file.metadata.config

    @property
    def side_files(self) -> Mapping[str, bytes]:
        return self.file.side_files

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        return {parameter.name: parameter for parameter in parameters_of(self.decoder)}

    def rounds_inputs(self, name: str) -> bool:
        return False

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        info = self.file.tensors[name]
        layout = self.file.metadata.matrices.get(name)
        if layout is None:
            return read_rows(info, start, stop)
        stop = layout.rows if stop is None else stop
        first, last = start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)
        rows = min(layout.rows, last * BLOCK_ROWS) - first * BLOCK_ROWS
        matrix = unpack_linear(read_rows(info, first, last).reshape(-1), replace(layout, rows=rows))
        values = matrix if isinstance(matrix, np.ndarray) else matrix.dequantize()
        offset = first * BLOCK_ROWS
        return np.asarray(values[start - offset : stop - offset], np.float32)


def open_weights(path: str) -> Weights:
    """Open a `.dsq` file, or a folder: a quantized checkpoint, or an ONNX artifact, whose graph
    reads the safetensors files beside it (convert/formats/onnx/graph_check.py proves that).

    Raises:
        InputError, UnsupportedError: with the cure.
    """
    file = Path(path).expanduser()
    if is_native_file(file):
        return NativeWeights(open_native_file(file))
    return open_checkpoint(local_path(path))
