"""bitsandbytes: int8 rows (LLM.int8), and blocks of 4-bit codes that stand for NF4 or FP4 values.

int8: `M.weight` holds codes, `M.SCB` the largest magnitude of each row: w = code · SCB / 127.

4 bits: `M.weight` holds the codes of the whole matrix, row after row, two to a byte, the high half
first; `quant_map` their values, `absmax` the scale of each block. With double quantization absmax
holds codes too: absmax = nested_quant_map[code] · nested_absmax + offset. What the block sizes and
the offset are stands in a tensor of JSON, `weight.quant_state.bitsandbytes__nf4`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dsconv.convert.families.inventory import Role
from dsconv.convert.files.json_file import ConfigReader, parse_json
from dsconv.errors import InputError, UnsupportedError
from dsconv.quant.schemes import Floats

from .config_keys import FROM_THE_ORIGINAL, is_listed, key_names, names, unknown_keys
from .layout import Layout, Rules, StoredMatrix, Wanted

STATE = "weight.quant_state.bitsandbytes__"
STATE_BYTES = 65_536
TYPES = ("nf4", "fp4")
LARGEST_CODE = 127.0
CODE_VALUES, NESTED_VALUES = 16, 256
# 4-bit codes may be stored in tensors that claim to hold wider numbers (bnb_4bit_quant_storage).
STORED_IN = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
KNOWN = key_names(
    """
    quant_method load_in_4bit load_in_8bit _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype
    bnb_4bit_quant_storage bnb_4bit_quant_type bnb_4bit_use_double_quant llm_int8_skip_modules
    llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight llm_int8_threshold
    target_parameters
    """
)


@dataclass(frozen=True)
class Int8Layout(Layout):
    description = "bitsandbytes int8 row symmetric"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        return [
            Wanted("weight", ((rows, columns),), ("I8",)),
            Wanted("SCB", ((rows,), (rows, 1)), ("F32", "F16", "BF16")),
            Wanted("weight_format", ((), (1,)), ("U8",), True),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        if stored.has("weight_format") and stored.rows("weight_format").any():
            raise stored.fail("weight_format", "rows in the order of a kernel; only 0 is read")
        scales = stored.scales("SCB", stored.rows("SCB", start, stop)).reshape(-1, 1)
        codes = stored.rows("weight", start, stop).astype(np.float32)
        return np.asarray(codes * (scales / np.float32(LARGEST_CODE)), np.float32)


@dataclass(frozen=True)
class BlockState:
    """quant_state of one matrix."""

    block: int
    nested_block: int | None
    offset: float


@dataclass(frozen=True)
class FourBitLayout(Layout):
    """kind: nf4 or fp4; is_nested: double quantization; block: of the first matrix, for people."""

    kind: str
    is_nested: bool
    state: BlockState
    storage: str

    @property
    def description(self) -> str:
        nested = " double" if self.is_nested else ""
        return f"bitsandbytes {self.kind} g{self.state.block}{nested}"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        size = rows * columns
        blocks = -(-size // self.state.block)
        items = -(-size // (2 * STORED_IN[self.storage]))
        wanted = [
            Wanted("weight", ((items, 1), (1, items), (items,)), (self.storage,)),
            Wanted("weight.quant_map", ((CODE_VALUES,),), ("F32",)),
            Wanted("weight.absmax", ((blocks,),), ("U8",) if self.is_nested else ("F32",)),
            Wanted(f"{STATE}{self.kind}", (), ("U8",)),
        ]
        if self.is_nested and self.state.nested_block:
            nested = -(-blocks // self.state.nested_block)
            wanted += [
                Wanted("weight.nested_absmax", ((nested,),), ("F32",)),
                Wanted("weight.nested_quant_map", ((NESTED_VALUES,),), ("F32",)),
            ]
        return wanted

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        first, last = start * columns, stop * columns
        values = stored.scales("weight.quant_map", stored.rows("weight.quant_map"))
        codes = self._codes(stored, first, last)
        block = self.state.block
        first_block, last_block = first // block, -(-last // block)
        scales = self._scales(stored, first_block, last_block)
        spread = np.repeat(scales, block)[first - first_block * block :][: last - first]
        return np.asarray(values[codes] * spread, np.float32).reshape(-1, columns)

    def _codes(self, stored: StoredMatrix, first: int, last: int) -> np.ndarray:
        per_item = 2 * STORED_IN[self.storage]
        begin, end = first // per_item, -(-last // per_item)
        if stored.shape("weight")[0] == 1 and len(stored.shape("weight")) == 2:
            items = stored.columns("weight", begin, end)
        else:
            items = stored.rows("weight", begin, end)
        packed = np.ascontiguousarray(items).reshape(-1).view(np.uint8)
        codes = np.empty(2 * packed.size, np.uint8)
        codes[0::2], codes[1::2] = packed >> 4, packed & 15
        return codes[first - begin * per_item : last - begin * per_item]

    def _scales(self, stored: StoredMatrix, first: int, last: int) -> Floats:
        absmax = stored.rows("weight.absmax", first, last)
        nested = self.state.nested_block
        if nested is None:
            return stored.scales("weight.absmax", absmax)
        kind = "weight.nested_absmax"
        begin = first // nested
        outer = stored.scales(kind, stored.rows(kind, begin, -(-last // nested)))
        spread = np.repeat(outer, nested)[first - begin * nested :][: last - first]
        kind = "weight.nested_quant_map"
        values = stored.scales(kind, stored.rows(kind))
        return stored.scales(
            "weight.absmax", values[absmax] * spread + np.float32(self.state.offset)
        )


def _read_state(stored: StoredMatrix, kind: str, shape: tuple[int, int]) -> BlockState:
    """The JSON of a matrix, compared with what config.json says of its shape."""
    name = f"{STATE}{kind}"
    size = math.prod(stored.shape(name))
    if size > STATE_BYTES or stored.dtype(name) != "U8":
        raise stored.fail(name, f"{size} bytes of {stored.dtype(name)}, limit {STATE_BYTES} of U8")
    text = stored.rows(name).tobytes()
    data = parse_json(text, f"{stored.module}.{name}")
    if not isinstance(data, dict):
        raise stored.fail(name, "not a JSON object")
    reader = ConfigReader(data, f"{stored.module}.{name}")
    if reader.string("quant_type") != kind:
        raise stored.fail(name, f"quant_type {data['quant_type']!r}, its name says {kind}")
    found = data.get("shape")
    if found != list(shape):
        raise stored.fail(name, f"shape {found!r}, config.json gives {list(shape)}")
    nested = reader.integer("nested_blocksize") if reader.has("nested_blocksize") else None
    offset = reader.number("nested_offset", 0.0, low=-1e6, high=1e6)
    return BlockState(reader.integer("blocksize"), nested, offset)


@dataclass(frozen=True)
class BitsAndBytesRules(Rules):
    four_bits: bool
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]

    name = "bitsandbytes"
    markers = frozenset(
        {"SCB", "weight.quant_map", "weight.absmax", *(STATE + kind for kind in TYPES)}
    )

    @property
    def notes(self) -> tuple[str, ...]:
        if self.four_bits:
            return self.unknown
        return (
            "bitsandbytes rounds the inputs of int8 matrices to 8 bits as it runs; "
            "here they stay float",
            *self.unknown,
        )

    def layout(self, module: str, role: Role, kinds: Collection[str]) -> Layout | None:
        if is_listed(module, self.skipped):
            return None
        return UnreadFourBits() if self.four_bits else Int8Layout()


@dataclass(frozen=True)
class UnreadFourBits(Layout):
    """Its sizes stand in a tensor of the matrix."""

    description = "bitsandbytes 4 bits"

    def settled(self, stored: StoredMatrix, rows: int, columns: int) -> Layout:
        kind = next((kind for kind in TYPES if stored.has(STATE + kind)), None)
        if kind is None or not stored.has("weight") or stored.dtype("weight") not in STORED_IN:
            missing = f"{STATE}nf4" if kind is None else "weight"
            raise InputError(
                f"{stored.source.files()[0].parent}: tensor '{stored.module}.{missing}' is missing "
                "or no codes of 4 bits",
                "download the checkpoint again",
            )
        state = _read_state(stored, kind, (rows, columns))
        return FourBitLayout(kind, state.nested_block is not None, state, stored.dtype("weight"))

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        raise RuntimeError("settled first")

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        raise RuntimeError("settled first")


def read_bitsandbytes(reader: ConfigReader) -> BitsAndBytesRules:
    """
    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    four = reader.boolean("load_in_4bit", reader.boolean("_load_in_4bit", False))
    eight = reader.boolean("load_in_8bit", reader.boolean("_load_in_8bit", False))
    kind = reader.string("bnb_4bit_quant_type", TYPES[0])
    if four and kind not in TYPES:
        raise UnsupportedError(
            f"{reader.where}: bnb_4bit_quant_type {kind!r} is not supported",
            f"supported: {', '.join(TYPES)}; or {FROM_THE_ORIGINAL}",
        )
    if four == eight:
        raise reader.fail("load_in_4bit", "neither 4 bits nor 8, or both")
    listed = names(reader, "llm_int8_skip_modules")
    return BitsAndBytesRules(four, listed, unknown_keys(reader, KNOWN))
