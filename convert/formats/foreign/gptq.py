"""GPTQ, as AutoGPTQ and GPTQModel store it.

Codes are packed along the inputs, zero points along the outputs, lowest bits first, in words of
`pack_dtype`; tensors are [inputs, outputs]. `g_idx` tells the group of every input. Format `gptq`
(v1) stores zero point minus one, `gptq_v2` the zero point itself.

A zero point of 0 in v1 is stored as all ones. AutoGPTQ's kernels add one to each and keep the low
bits. GPTQModel subtracts one from whole words when it writes and adds it when it reads, so that a
borrow passes into the neighbour: of its files, the whole word is added to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.module_patterns import compiled_pattern
from dsconv.convert.families.inventory import Role
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError, UnsupportedError
from dsconv.quant.schemes import Floats

from .config_keys import FROM_THE_ORIGINAL, group_size, key_names, refuse_others, unknown_keys
from .layout import (
    SCALES,
    WHOLE_ROW,
    Codes,
    Layout,
    Rules,
    StoredMatrix,
    Wanted,
    group_count,
    group_words,
    unpack_words,
)

BITS = (2, 3, 4, 8)
WORDS: Mapping[str, tuple[str, int]] = {
    "int32": ("I32", 32),
    "int16": ("I16", 16),
    "int8": ("I8", 8),
    "int64": ("I64", 64),
}
V1, V2 = "gptq", "gptq_v2"
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "adapter": (),
    "rotation": (),
    "is_marlin_format": (False,),
    "planar": (False,),
}
KNOWN = key_names(
    """
    quant_method bits group_size sym desc_act checkpoint_format format pack_dtype dynamic
    lm_head modules_in_block_to_quantize meta static_groups damp_percent damp_auto_increment
    mse true_sequential model_name_or_path model_file_base_name dataset tokenizer batch_size
    block_name_to_quantize cache_block_outputs module_name_preceding_first_block pad_token_id
    use_cuda_fp16 model_seqlen use_exllama disable_exllama exllama_config max_input_length
    backend hf_device_map method act_group_aware hyb_act offload_to_disk gptaq v2 foem
    true_sequential quantize_config_file_base_name model_base_name version
    """
) | set(REFUSED)


@dataclass(frozen=True)
class GptqLayout(Layout):
    """is_symmetric: the config says so, and all zero points are the middle; is_v1: they lack one;
    borrows: from whole words (GPTQModel); is_ordered: g_idx must be there."""

    bits: int
    group_size: int
    is_symmetric: bool
    is_v1: bool
    is_ordered: bool
    pack_dtype: str = "int32"
    borrows: bool = False

    @property
    def description(self) -> str:
        kind = " symmetric" if self.is_symmetric else ""
        order = " act-order" if self.is_ordered else ""
        return f"gptq int{self.bits} {group_words(self.group_size)}{kind}{order}"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        dtype, width = WORDS[self.pack_dtype]
        groups = group_count(columns, self.group_size)
        return [
            Wanted("qweight", ((-(-columns * self.bits // width), rows),), (dtype,)),
            Wanted("qzeros", ((groups, -(-rows * self.bits // width)),), (dtype,)),
            Wanted("scales", ((groups, rows),), SCALES),
            Wanted("g_idx", ((columns,),), ("I32", "I64"), not self.is_ordered),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        words = stored.columns("qweight", start, stop).T
        codes = unpack_words(words, self.bits, columns)
        scales = stored.scales("scales", stored.columns("scales", start, stop))
        zeros = self._zero_points(stored, start, stop)
        group = self._groups(stored, columns)
        deviations = codes.astype(np.float32) - zeros.T[:, group].astype(np.float32)
        spread = scales.T[:, group]
        stored.refuse_lost("scales", spread, deviations)
        return np.asarray(deviations * spread, np.float32)

    def _zero_points(self, stored: StoredMatrix, start: int, stop: int) -> Codes:
        """-> [groups, stop - start]."""
        width = WORDS[self.pack_dtype][1]
        unit = width if width % self.bits else width // self.bits  # rows that share whole words
        first, words_first = start - start % unit, (start - start % unit) * self.bits // width
        words_last = -(-stop * self.bits // width)
        if width % self.bits:  # a code may straddle words: whole units
            words_last = min(-(-stop // unit) * self.bits, stored.shape("qzeros")[1])
        words = stored.columns("qzeros", words_first, words_last)
        if self.is_v1 and self.borrows:
            words = _plus_one_in_every_field(words, self.bits)
        zeros = unpack_words(words, self.bits, stop - first)[:, start - first :]
        if self.is_v1 and not self.borrows:
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << self.bits) - 1)
        middle = 1 << (self.bits - 1)
        if self.is_symmetric and np.any(zeros != middle):
            other = int(zeros[zeros != middle][0])
            raise stored.fail(
                "qzeros",
                f"a zero point of {other} where sym is true, which means {middle}; is "
                f"checkpoint_format really {V1 if self.is_v1 else V2}?",
            )
        return zeros

    def _groups(self, stored: StoredMatrix, columns: int) -> NDArray[np.int64]:
        count = group_count(columns, self.group_size)
        if not stored.has("g_idx"):
            size = columns if self.group_size == WHOLE_ROW else self.group_size
            return np.arange(columns, dtype=np.int64) // size
        group = stored.rows("g_idx").astype(np.int64)
        if group.min(initial=0) < 0 or group.max(initial=0) >= count:
            worst = int(group.max()) if group.max() >= count else int(group.min())
            raise stored.fail("g_idx", f"group {worst} is outside 0..{count - 1}")
        return group


def _plus_one_in_every_field(words: NDArray[Any], bits: int) -> NDArray[Any]:
    width = 8 * words.dtype.itemsize
    ones = sum(1 << place for place in range(0, width, bits))
    unsigned = np.dtype(f"u{words.dtype.itemsize}")
    with np.errstate(over="ignore"):
        return np.asarray(words.view(unsigned) + unsigned.type(ones))


@dataclass(frozen=True)
class GptqRules(Rules):
    """dynamic: pattern -> overrides (None: float), the first that matches counts."""

    base: GptqLayout
    dynamic: tuple[tuple[re.Pattern[str], Mapping[str, Any] | None], ...]
    unknown: tuple[str, ...]

    name = "GPTQ"
    markers = frozenset({"qweight", "qzeros"})

    @property
    def notes(self) -> tuple[str, ...]:
        return self.unknown

    def layout(self, module: str, role: Role, kinds: Collection[str]) -> GptqLayout | None:
        for pattern, overrides in self.dynamic:
            if pattern.match(module):
                if overrides is None:
                    return None
                where = f"dynamic: {pattern.pattern}"
                return _layout(ConfigReader(overrides, where), self.base)
        return self.base


def read_gptq(reader: ConfigReader) -> GptqRules:
    """Of `quantization_config`, or of a quantize_config.json.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    form = reader.string("checkpoint_format", reader.string("format", V1))
    if form not in (V1, V2):
        raise UnsupportedError(
            f"{reader.where}: checkpoint_format {form!r} is not supported: its weights are packed "
            "for one kernel",
            f"supported: {V1}, {V2}; convert it with GPTQModel, or {FROM_THE_ORIGINAL}",
        )
    refuse_others(reader, REFUSED)
    meta = reader.child("meta")
    makers = meta.data.get("quantizer", []) if meta else []
    makers = makers if isinstance(makers, list) else [makers]
    borrows = any(str(maker).lower().startswith("gptqmodel") for maker in makers)
    base = GptqLayout(4, 128, False, form == V1, False, "int32", borrows)
    return GptqRules(
        _layout(reader, base, needs_bits=True), _dynamic(reader), unknown_keys(reader, KNOWN)
    )


def _layout(reader: ConfigReader, base: GptqLayout, needs_bits: bool = False) -> GptqLayout:
    bits = reader.integer("bits", None if needs_bits else base.bits)
    words = reader.string("pack_dtype", base.pack_dtype).removeprefix("torch.")
    if bits not in BITS or words not in WORDS or (bits == 3 and words != "int32"):
        raise UnsupportedError(
            f"{reader.where}: {bits} bits in words of {words} are not supported",
            f"supported: {', '.join(map(str, BITS))} bits, int32; or {FROM_THE_ORIGINAL}",
        )
    return GptqLayout(
        bits,
        group_size(reader, "group_size", base.group_size),
        reader.boolean("sym", base.is_symmetric),
        base.is_v1,
        reader.boolean("desc_act", base.is_ordered),
        words,
        base.borrows and bits != 3,
    )


def _dynamic(
    reader: ConfigReader,
) -> tuple[tuple[re.Pattern[str], Mapping[str, Any] | None], ...]:
    """GPTQModel's rules per module: `-:pattern` is float, `+:pattern` or `pattern` overrides."""
    rules = reader.child("dynamic")
    if rules is None:
        return ()
    if len(rules.data) > limits.PATTERNS:
        raise reader.fail("dynamic", f"{len(rules.data)} patterns, limit {limits.PATTERNS}")
    found: list[tuple[re.Pattern[str], Mapping[str, Any] | None]] = []
    for text, overrides in rules.data.items():
        pattern = compiled_pattern(text.removeprefix("-:").removeprefix("+:"), rules.where)
        if text.startswith("-:"):
            found.append((pattern, None))
            continue
        if not isinstance(overrides, dict):
            raise InputError(
                f"{rules.where}: {text}: not an object", "compare with the original file"
            )
        refuse_others(ConfigReader(overrides, f"{rules.where}: {text}"), REFUSED)
        found.append((pattern, overrides))
    return tuple(found)
