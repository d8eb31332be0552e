"""AWQ, as AutoAWQ stores it: 4 bits with zero points, eight codes to a word.

Version GEMM has tensors [inputs, outputs / 8]; the nibbles of a word are the outputs 0, 2, 4, 6, 1,
3, 5, 7 of eight. Version GEMV has [outputs, inputs / 8] in order, zero points and scales padded.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dsconv.convert.families.inventory import Role
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError
from dsconv.quant.schemes import Floats

from .config_keys import FROM_THE_ORIGINAL, group_size, is_listed, key_names, names, unknown_keys
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
    per_weight,
    unpack_words,
)

BITS, PER_WORD = 4, 8
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # output i of eight lies in this nibble
GEMM, GEMV = "gemm", "gemv"
SAME_AS_GEMM = (GEMM, "exllama", "exllama_v2", "exllamav2", "ipex")  # chosen when it is loaded
KNOWN = key_names(
    """
    quant_method bits w_bit group_size q_group_size zero_point version modules_to_not_convert
    do_fuse modules_to_fuse fuse_max_seq_len exllama_config backend desc_act sym format
    checkpoint_format pack_dtype lm_head meta
    """
)


@dataclass(frozen=True)
class AwqGemmLayout(Layout):
    group_size: int

    @property
    def description(self) -> str:
        return f"awq int4 {group_words(self.group_size)} asymmetric"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        groups, words = group_count(columns, self.group_size), -(-rows // PER_WORD)
        return [
            Wanted("qweight", ((columns, words),), ("I32",)),
            Wanted("qzeros", ((groups, words),), ("I32",)),
            Wanted("scales", ((groups, rows),), SCALES),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        codes = _codes(stored, "qweight", start, stop)  # [outputs, inputs]
        zeros = _codes(stored, "qzeros", start, stop)
        scales = stored.scales("scales", stored.columns("scales", start, stop)).T
        return _weights(stored, codes, zeros, scales, self.group_size)


def _codes(stored: StoredMatrix, kind: str, start: int, stop: int) -> Codes:
    first, last = start // PER_WORD, -(-stop // PER_WORD)
    words = stored.columns(kind, first, last)
    nibbles = unpack_words(words, BITS, words.shape[1] * PER_WORD)
    ordered = nibbles.reshape(len(words), -1, PER_WORD)[:, :, list(ORDER)].reshape(len(words), -1)
    return ordered[:, start - first * PER_WORD : stop - first * PER_WORD].T


def _weights(
    stored: StoredMatrix, codes: Codes, zeros: Codes, scales: Floats, group: int
) -> Floats:
    columns = codes.shape[1]
    zero = per_weight(zeros.astype(np.float32), columns, group)
    deviations = codes.astype(np.float32) - zero
    scale = per_weight(scales, columns, group)
    stored.refuse_lost("scales", scale, deviations)
    return np.asarray(deviations * scale, np.float32)


@dataclass(frozen=True)
class AwqGemvLayout(Layout):
    group_size: int

    @property
    def description(self) -> str:
        return f"awq-gemv int4 {group_words(self.group_size)} asymmetric"

    def _zero_words(self, columns: int) -> int:
        """Padded to what a block of the kernel reads: as `calculate_zeros_width` of AutoAWQ."""
        multiple = 1 if self.group_size >= 128 else 2 if self.group_size == 64 else 4
        words = -(-(columns // self.group_size) // PER_WORD)
        return -(-words // multiple) * multiple

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        words = self._zero_words(columns)
        return [
            Wanted("qweight", ((rows, -(-columns // PER_WORD)),), ("I32",)),
            Wanted("qzeros", ((rows, words),), ("I32",)),
            Wanted("scales", ((rows, words * PER_WORD),), SCALES),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        codes = unpack_words(stored.rows("qweight", start, stop), BITS, columns)
        groups = group_count(columns, self.group_size)
        zeros = unpack_words(stored.rows("qzeros", start, stop), BITS, groups)
        scales = stored.scales("scales", stored.rows("scales", start, stop)[:, :groups])
        return _weights(stored, codes, zeros, scales, self.group_size)


@dataclass(frozen=True)
class AwqRules(Rules):
    stored_as: Layout
    not_converted: tuple[str, ...]
    unknown: tuple[str, ...]

    name = "AWQ"
    markers = frozenset({"qweight", "qzeros"})

    @property
    def notes(self) -> tuple[str, ...]:
        return self.unknown

    def layout(self, module: str, role: Role, kinds: Collection[str]) -> Layout | None:
        return None if is_listed(module, self.not_converted) else self.stored_as


def read_awq(reader: ConfigReader) -> AwqRules:
    """Of `quantization_config`, or of a quant_config.json.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    bits = reader.integer("bits", reader.integer("w_bit", 0, low=0), low=0)
    version = reader.string("version", reader.string("format", GEMM)).lower()
    size = group_size(reader, "group_size", group_size(reader, "q_group_size", 128))
    if bits != BITS or not reader.boolean("zero_point", True):
        raise UnsupportedError(
            f"{reader.where}: AWQ of {bits} bits, zero_point {reader.data.get('zero_point')}",
            f"supported: 4 bits with zero points, all that AutoAWQ packs; or {FROM_THE_ORIGINAL}",
        )
    if version in SAME_AS_GEMM:
        layout: Layout = AwqGemmLayout(size)
    elif version == GEMV and size != WHOLE_ROW:
        layout = AwqGemvLayout(size)
    else:
        raise UnsupportedError(
            f"{reader.where}: AWQ of version {version!r} is not supported: its weights are packed "
            "for one kernel",
            f"supported: {GEMM}, {GEMV}; use the GEMM version, or {FROM_THE_ORIGINAL}",
        )
    listed = names(reader, "modules_to_not_convert")
    return AwqRules(layout, listed, unknown_keys(reader, KNOWN))
