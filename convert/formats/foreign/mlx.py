"""MLX, as mlx-lm stores it: codes in words of 32 bits, a scale and a bias per group.

config.json has `quantization` {group_size, bits}, and under a module's path false, or settings of
its own; a module is quantized where its file has `scales` for it. w = scale · code + bias. Mode
`mxfp4` has codes of four-bit floats, and powers of two for scales.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from dsconv.convert.families.inventory import Role
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError
from dsconv.quant.schemes import Floats

from .config_keys import FROM_THE_ORIGINAL, key_names, unknown_keys
from .four_bit_floats import MXFP4_GROUP, MxFp4Layout
from .layout import SCALES, Layout, Rules, StoredMatrix, Wanted, per_weight, unpack_words

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (16, 32, 64, 128)
AFFINE, MXFP4 = "affine", "mxfp4"
KNOWN = key_names("group_size bits mode quant_method linear_class quantization_mode")


@dataclass(frozen=True)
class MlxLayout(Layout):
    bits: int
    group_size: int

    @property
    def description(self) -> str:
        return f"mlx int{self.bits} g{self.group_size}"

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        groups = -(-columns // self.group_size)
        return [
            Wanted("weight", ((rows, -(-columns * self.bits // 32)),), ("U32",)),
            Wanted("scales", ((rows, groups),), SCALES),
            Wanted("biases", ((rows, groups),), SCALES),
        ]

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        codes = unpack_words(stored.rows("weight", start, stop), self.bits, columns)
        scales = stored.scales("scales", stored.rows("scales", start, stop))
        biases = stored.scales("biases", stored.rows("biases", start, stop))
        spread = per_weight(scales, columns, self.group_size)
        offset = per_weight(biases, columns, self.group_size)
        return np.asarray(codes.astype(np.float32) * spread + offset, np.float32)


@dataclass(frozen=True)
class MlxRules(Rules):
    base: Layout
    modules: Mapping[str, Layout | None]
    unknown: tuple[str, ...]

    name = "MLX"
    markers = frozenset({"scales", "biases"})

    @property
    def notes(self) -> tuple[str, ...]:
        return self.unknown

    def layout(self, module: str, role: Role, kinds: Collection[str]) -> Layout | None:
        return self.modules.get(module, self.base)


def read_mlx(reader: ConfigReader) -> MlxRules:
    """Of `quantization`, or of a `quantization_config` without a method.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    modules: dict[str, Layout | None] = {}
    settings = {}
    for key, value in reader.data.items():
        if isinstance(value, dict):
            modules[key] = _layout(ConfigReader(value, f"{reader.where}: {key}"))
        elif isinstance(value, bool):
            modules[key] = _layout(reader) if value else None
        else:
            settings[key] = value
    unknown = unknown_keys(ConfigReader(settings, reader.where), KNOWN)
    return MlxRules(_layout(reader), modules, unknown)


def _layout(reader: ConfigReader) -> Layout:
    mode = reader.string("mode", AFFINE)
    bits, group = reader.integer("bits", 4), reader.integer("group_size", 64)
    if mode == MXFP4 and (bits, group) == (4, MXFP4_GROUP):
        return MxFp4Layout("mlx", "weight", "U32", "scales")
    if mode != AFFINE or bits not in BITS or group not in GROUPS:
        raise UnsupportedError(
            f"{reader.where}: mode {mode}, {bits} bits, groups of {group} are not supported",
            f"supported: {AFFINE} with {', '.join(map(str, BITS))} bits and groups of "
            f"{', '.join(map(str, GROUPS))}; {MXFP4}; or {FROM_THE_ORIGINAL}",
        )
    return MlxLayout(bits, group)
