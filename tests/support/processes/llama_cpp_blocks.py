"""llama.cpp's own functions on blocks, from the package xllamacpp."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.convert.formats.gguf.block_types import TYPES


@cache
def _library() -> Any:
    module = pytest.importorskip("xllamacpp", reason="the package xllamacpp is not installed")
    binary = next(Path(module.__file__).parent.glob("xllamacpp*.so"))
    library = ctypes.CDLL(str(binary))
    if not hasattr(library, "dequantize_row_q4_0"):
        pytest.skip("this xllamacpp does not export llama.cpp's functions")
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def known_types() -> dict[int, tuple[str, int, int]]:
    """number -> (name, elements, bytes) of every type that llama.cpp has; elements 0: dropped."""
    library, found = _library(), {}
    for number in range(_count()):
        name = library.ggml_type_name(number).decode()
        found[number] = (name, library.ggml_blck_size(number), library.ggml_type_size(number))
    return found


def _count() -> int:
    import xllamacpp

    return int(xllamacpp.ggml_type.GGML_TYPE_COUNT.value)


def llama_cpp_weights(kind: int, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[rows, bytes] -> [rows, weights], by `dequantize_row_*`."""
    library = _library()
    _, elements, size = TYPES[kind]
    decode = getattr(library, f"dequantize_row_{library.ggml_type_name(kind).decode()}")
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    blocks = np.ascontiguousarray(blocks)
    result = np.empty((len(blocks), blocks.shape[1] // size * elements), np.float32)
    decode(blocks.ctypes.data, result.ctypes.data, result.size)
    return result


def llama_cpp_blocks(kind: int, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[rows, weights] -> [rows, bytes], by llama.cpp's quantizer; every weight counts alike."""
    library = _library()
    _, elements, size = TYPES[kind]
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    result = np.empty((rows, columns // elements * size), np.uint8)
    importance = np.ones(columns, np.float32)
    library.ggml_quantize_init(kind)
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    written = library.ggml_quantize_chunk(
        ctypes.c_int(kind),
        pointer(values.ctypes.data),
        pointer(result.ctypes.data),
        *(long(0), long(rows), long(columns)),
        pointer(importance.ctypes.data),
    )
    assert written == result.nbytes
    return result
