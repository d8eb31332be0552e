"""Export a checkpoint as a GGUF file for llama.cpp, codes and scales carried over as they are.

The header is written by the package gguf, the data here, rows at a time: memory does not grow with
the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv import __version__
from dsconv.atomic import output_file, output_folder, require_space
from dsconv.convert.checkpoint.checkpoint import Checkpoint, generation_config
from dsconv.convert.checkpoint.manifest import (
    Provenance,
    announced_provenance,
    provenance_of,
    write_manifest,
)
from dsconv.convert.families.inventory import Parameter, Role
from dsconv.errors import UnsupportedError
from dsconv.progress import Advance

from .block_types import TYPES
from .blocks import BlockType, Packed, block_type, pack
from .metadata import (
    architecture_keys,
    gguf_name,
    is_interleaved,
    rope_divisors,
    source_rows,
)
from .sampling import sampling_keys
from .seal import KEY, HashedFile, provenance_text, seal
from .source import ROPE_DIVISORS, GgufSource
from .write_tokenizer import TextSettings, tokenizer_keys

SUFFIX = ".gguf"
FILE_NAME = f"model{SUFFIX}"  # in an output folder
ALIGNMENT = 32
BLOCK_LAYOUT_VERSION = 2  # general.quantization_version
CHUNK_WEIGHTS = 1 << 22
FLOATS: Mapping[str, str] = {"F32": "<f4", "F16": "<f2"}  # bfloat16 stays as it comes
TYPE_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
# What llama.cpp calls a file after the type of most weights (enum llama_ftype).
FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_1": 9, "Q8_0": 7},
    **{"Q4_K": 14, "Q5_K": 16},
}


@dataclass(frozen=True)
class Planned:
    """A tensor of the file and the parameter it holds."""

    name: str
    parameter: Parameter
    blocks: BlockType

    @property
    def nbytes(self) -> int:
        _, elements, size = TYPES[TYPE_NUMBERS[self.blocks.name]]
        return self.parameter.size // elements * size


@dataclass(frozen=True)
class GgufResult:
    """`types`: block type -> tensors; `notes`: where a type is not the one of the bits, and why.

    `bits_per_weight` counts every byte of the tensors.
    """

    bytes_written: int
    bits_per_weight: float
    types: Mapping[str, int]
    notes: tuple[str, ...]


def is_single_file(output: Path) -> bool:
    """Whether `output` names a file (`.gguf`) and not a folder to hold one."""
    return output.suffix == SUFFIX


def export_gguf(
    checkpoint: Checkpoint,
    settings: TextSettings,
    output: Path,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
) -> GgufResult:
    """Write `output`: the file itself if its name ends in .gguf, else a folder with a manifest.

    Args:
        advance: told the number of weights written.

    Raises:
        OutputError: `output` exists, or the disk refuses.
        UnsupportedError: llama.cpp has no such tokenizer, scaling or number.
        InputError: tokenizer.json is missing or damaged.
    """
    if isinstance(checkpoint.source, GgufSource):
        raise UnsupportedError(
            f"{checkpoint.origin}: is a GGUF file already", "start from the original checkpoint"
        )
    file = _GgufFile(checkpoint, settings)
    require_space(output, sum(tensor.nbytes for tensor in file.planned))
    with ThreadPoolExecutor(1) as hasher:
        source = hasher.submit(provenance_of, checkpoint)
        if is_single_file(output):
            with output_file(output, overwrite) as path:
                return file.write(path, source, advance)
        with output_folder(output, overwrite) as folder:
            result = file.write(folder / FILE_NAME, source, advance)
            facts = {"parameters": checkpoint.parameter_count, "types": dict(result.types)}
            write_manifest(folder, "gguf", source.result(), {}, facts)
            return result


class _GgufFile:
    """All that is decided before the first byte is written: keys, tensors, their order."""

    def __init__(self, checkpoint: Checkpoint, settings: TextSettings) -> None:
        self.checkpoint = checkpoint
        self.decoder = checkpoint.decoder
        self.planned = [
            Planned(gguf_name(name), parameter, _blocks_of(checkpoint, parameter))
            for name, parameter in checkpoint.parameters.items()
        ]
        self.divisors = rope_divisors(self.decoder)
        rows = self.decoder.config.vocab_size
        self.keys = {
            **self._general_keys(),
            **architecture_keys(self.decoder),
            **tokenizer_keys(checkpoint.side_files, rows, settings),
            **sampling_keys(generation_config(checkpoint.side_files, checkpoint.config)),
            KEY: provenance_text(announced_provenance(checkpoint)),
        }

    def _general_keys(self) -> dict[str, Any]:
        weights: Counter[str] = Counter()
        for tensor in self.planned:
            weights[tensor.blocks.name] += tensor.parameter.size
        keys = {
            "general.type": "model",
            "general.name": self.checkpoint.origin.resolve().name,
            "general.file_type": FILE_TYPES[weights.most_common(1)[0][0]],
            "general.quantization_version": BLOCK_LAYOUT_VERSION,
        }
        if self.checkpoint.quantization is not None:
            keys["general.quantized_by"] = f"dsconv {__version__}"
        return keys

    def write(self, path: Path, source: Future[Provenance], advance: Advance) -> GgufResult:
        self._write_header(path)
        notes = _Notes()
        with path.open("ab") as stream:
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            file = HashedFile(stream)
            if self.divisors is not None:
                file.write(self.divisors.astype("<f4").tobytes())
                file.pad(ALIGNMENT)
            for tensor in self.planned:
                for packed, count in self._chunks(tensor):
                    file.write(packed.blocks.data)
                    notes.add(tensor, packed.error)
                    advance(count)
                file.pad(ALIGNMENT)
        seal(path, file.start, file.digest, source.result(), str(self.keys[KEY]))
        stored = sum(tensor.nbytes for tensor in self.planned)
        return GgufResult(
            path.stat().st_size,
            8 * stored / self.checkpoint.parameter_count,
            Counter(tensor.blocks.name for tensor in self.planned),
            notes.texts(),
        )

    def _write_header(self, path: Path) -> None:
        from gguf import GGMLQuantizationType, GGUFWriter

        writer = GGUFWriter(path, self.decoder.model_type)
        for key, value in self.keys.items():
            _add_key(writer, key, value)
        described = [
            (t.name, t.parameter.shape, t.nbytes, TYPE_NUMBERS[t.blocks.name]) for t in self.planned
        ]
        if self.divisors is not None:
            size = self.divisors.nbytes
            described.insert(0, (ROPE_DIVISORS, self.divisors.shape, size, TYPE_NUMBERS["F32"]))
        for name, shape, size, number in described:
            kind = GGMLQuantizationType(number)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()

    def _chunks(self, tensor: Planned) -> Iterator[tuple[Packed, int]]:
        """The blocks of some rows and the number of weights in them, in the file's order."""
        rows, *rest = tensor.parameter.shape
        width = int(np.prod(rest, dtype=np.int64))
        name, head_dim = tensor.parameter.name, self.decoder.config.head_dim
        step = max(1, CHUNK_WEIGHTS // width // head_dim) * head_dim  # rows move within a head
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            packed = self._packed(name, tensor.blocks.name, start, stop)
            if is_interleaved(self.decoder, name):
                blocks = packed.blocks.reshape(stop - start, -1)
                order = source_rows(start, stop, head_dim) - start
                packed = Packed(np.ascontiguousarray(blocks[order]), packed.error)
            yield packed, (stop - start) * width

    def _packed(self, name: str, kind: str, start: int, stop: int) -> Packed:
        if self.checkpoint.scheme(name) is not None:
            return pack(self.checkpoint.quantized_rows(name, start, stop))
        values: NDArray[Any] = self.checkpoint.source.rows(name, start, stop)
        if kind in FLOATS:
            values = values.astype(FLOATS[kind])
        return Packed(np.ascontiguousarray(values).view(np.uint8), 0.0)


def _blocks_of(checkpoint: Checkpoint, parameter: Parameter) -> BlockType:
    scheme = checkpoint.scheme(parameter.name)
    if scheme is not None:
        return block_type(scheme, parameter.shape[1])
    dtype = checkpoint.float_dtype(parameter.name)
    # llama.cpp adds and multiplies vectors in float32 only
    keeps = parameter.role is not Role.VECTOR and dtype in TYPE_NUMBERS
    return BlockType(dtype if keeps else "F32")


class _Notes:
    """Counts tensors whose type is not the one of their bits, and those that changed."""

    def __init__(self) -> None:
        self._errors: dict[Planned, float] = {}

    def add(self, tensor: Planned, error: float) -> None:
        self._errors[tensor] = max(error, self._errors.get(tensor, 0.0))

    def texts(self) -> tuple[str, ...]:
        """One sentence per block type and reason."""
        found: dict[BlockType, list[float]] = {}
        for tensor, error in self._errors.items():
            if tensor.blocks.reason or error:
                found.setdefault(tensor.blocks, []).append(error)
        return tuple(_note(blocks, errors) for blocks, errors in found.items())


def _note(blocks: BlockType, errors: list[float]) -> str:
    parts = [blocks.reason] if blocks.reason else []
    if max(errors):
        parts.append(f"float16 changes a weight by at most {max(errors):.1e}")
    noun = "tensor" if len(errors) == 1 else "tensors"
    return f"{len(errors)} {noun} as {blocks.name}: {'; '.join(parts)}"


def _add_key(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif value < 0:
        writer.add_int32(key, value)
    else:
        writer.add_uint32(key, value)
