"""compressed-tensors of others: every format of the library that holds quantized weights.

What dsconv's own schemes hold exactly never comes here: it stays quantized
(`checkpoint/quantization_config.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dsconv.convert.checkpoint.module_patterns import ModulePatterns, read_patterns
from dsconv.convert.families.inventory import Role
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError

from .config_keys import (
    FROM_THE_ORIGINAL,
    group_size,
    key_names,
    names,
    refuse_others,
    unknown_keys,
)
from .four_bit_floats import MXFP4_GROUP, NVFP4_GROUP, MxFp4Layout, NvFp4Layout
from .layout import WHOLE_ROW, Layout, Rules
from .packed_integers import PackedIntegers
from .scaled import FP8, ROWS, WHOLE_TENSOR, Granularity, ScaledLayout

MAKER = "compressed-tensors"
PACKED, MIXED = "pack-quantized", "mixed-precision"
PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
NVFP4, MXFP4, MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"
FORMATS = (PACKED, *PLAIN, NVFP4, MXFP4, MXFP8)
UNREAD: Mapping[str, str] = {
    "dense": "weights that are rounded only as the model runs",
    "fakequant": "weights that are rounded only as the model runs",
    "sparse-bitmask": "sparse weights",
    "sparse-24-bitmask": "sparse weights",
    "marlin-24": "sparse weights in the order of a kernel",
    "mxfp6-pack-quantized": "floats of 6 bits",
}
KNOWN = key_names(
    """
    quant_method format config_groups ignore kv_cache_scheme quantization_status dequantize
    global_compression_ratio sparsity_config transform_config version run_compressed
    moe_sparsity_config
    """
)
GROUP_KNOWN = key_names("targets weights input_activations output_activations format")
WEIGHTS_KNOWN = key_names(
    """
    num_bits type symmetric strategy group_size block_structure dynamic actorder observer
    observer_kwargs scale_dtype zp_dtype is_mse
    """
)


@dataclass(frozen=True)
class Group:
    """weights: None where a group rounds activations only. form: "" is told by the tensors."""

    modules: ModulePatterns
    weights: ConfigReader | None
    form: str
    rounds_inputs: bool


@dataclass(frozen=True)
class CompressedRules(Rules):
    groups: tuple[Group, ...]
    ignore: ModulePatterns
    unknown: tuple[str, ...]

    name = MAKER
    markers = frozenset({"weight_packed", "weight_scale", "weight_zero_point"})
    beside = frozenset(
        {"input_scale", "input_zero_point", "input_global_scale", "output_scale"}
        | {"output_zero_point", "output_global_scale"}
    )

    @property
    def notes(self) -> tuple[str, ...]:
        if not any(group.rounds_inputs for group in self.groups):
            return self.unknown
        what = "this checkpoint's software rounds the inputs of its matrices as it runs"
        return (f"{what}; here they stay float", *self.unknown)

    def layout(self, module: str, role: Role, kinds: Collection[str]) -> Layout | None:
        kind = "Embedding" if role is Role.EMBEDDING else "Linear"
        if self.ignore.rank(module, kind):
            return None
        found = [
            (rank, index)
            for index, group in enumerate(self.groups)
            if (rank := group.modules.rank(module, kind))
        ]
        if not found:
            return None
        group = self.groups[min(found)[1]]
        return None if group.weights is None else _layout(group.weights, group.form, kinds)


def read_compressed_tensors(reader: ConfigReader) -> CompressedRules:
    """
    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    refuse_others(reader, {"transform_config": ({}, []), "moe_sparsity_config": ({},)})
    sparsity = reader.child("sparsity_config")
    if sparsity is not None and sparsity.string("format", "dense") != "dense":
        raise _unread(sparsity, sparsity.string("format"))
    groups = reader.child("config_groups")
    if groups is None:
        raise reader.fail("config_groups", "missing")
    if len(groups.data) > limits.PATTERNS:
        raise reader.fail("config_groups", f"{len(groups.data)} of them, limit {limits.PATTERNS}")
    default = reader.string("format", "")
    found, unknown = [], unknown_keys(reader, KNOWN)
    for key in groups.data:
        group = groups.child(key)
        if group is None:
            raise groups.fail(key, "missing")
        found.append(_group(group, default))
        unknown += unknown_keys(group, GROUP_KNOWN)
        unknown += unknown_keys(found[-1].weights or group, WEIGHTS_KNOWN | GROUP_KNOWN)
    ignore = read_patterns(names(reader, "ignore"), f"{reader.where}: ignore")
    return CompressedRules(tuple(found), ignore, tuple(dict.fromkeys(unknown)))


def _unread(reader: ConfigReader, form: str) -> UnsupportedError:
    why = UNREAD.get(form, "not known here")
    return UnsupportedError(
        f"{reader.where}: format {form!r} is not supported: {why}",
        f"supported: {', '.join(FORMATS)}; or {FROM_THE_ORIGINAL}",
    )


def _group(group: ConfigReader, default: str) -> Group:
    form = group.string("format", default)
    form = "" if form == MIXED else form
    weights = group.child("weights")
    if weights is not None:
        if form not in ("", *FORMATS):
            raise _unread(group, form)
        _layout(weights, form, ())  # what cannot be read is refused here, for all modules at once
    modules = read_patterns(names(group, "targets"), f"{group.where}: targets")
    return Group(modules, weights, form, group.has("input_activations"))


def _layout(weights: ConfigReader, form: str, kinds: Collection[str]) -> Layout:
    kind, bits = weights.string("type", "int").lower(), weights.integer("num_bits", 8)
    symmetric = weights.boolean("symmetric", True)
    granularity = _granularity(weights)
    form = form or _told_by(kind, bits, granularity, kinds)
    zeros = "" if symmetric else "weight_zero_point"
    floats = {
        (NVFP4, 4, NVFP4_GROUP): NvFp4Layout(MAKER),
        (MXFP4, 4, MXFP4_GROUP): MxFp4Layout(MAKER),
        (MXFP8, 8, 32): ScaledLayout(MAKER, FP8[:1], granularity, is_exponent=True),
    }
    found: Layout | None = None
    if kind == "int" and form == PACKED and bits <= 8 and granularity.rows <= 1:
        order = weights.data.get("actorder")
        is_ordered = order in ("group", "dynamic", True)
        found = PackedIntegers(bits, granularity, symmetric, is_ordered)
    elif kind == "int" and form in PLAIN and bits <= 8:
        found = ScaledLayout(MAKER, ("I8",), granularity, zero_point=zeros)
    elif kind == "float" and form in PLAIN and bits == 8 and symmetric:
        found = ScaledLayout(MAKER, FP8, granularity)
    elif kind == "float" and symmetric:
        found = floats.get((form, bits, granularity.columns))
    if found is None:
        raise UnsupportedError(
            f"{weights.where}: {kind} of {bits} bits, {granularity.words}, "
            f"{'symmetric' if symmetric else 'asymmetric'}, in format {form!r} is not supported",
            f"supported: what compressed-tensors writes in {', '.join(FORMATS)}; "
            f"or {FROM_THE_ORIGINAL}",
        )
    return found


def _told_by(kind: str, bits: int, granularity: Granularity, kinds: Collection[str]) -> str:
    """As the library infers it where no format is given."""
    if kind == "float" and bits == 4:
        return MXFP4 if granularity.columns == MXFP4_GROUP else NVFP4
    return PACKED if kind == "int" and "weight_packed" in kinds else PLAIN[-1]


def _granularity(weights: ConfigReader) -> Granularity:
    size = group_size(weights, "group_size", WHOLE_ROW)
    strategy = weights.string("strategy", _default_strategy(weights, size)).lower()
    block: Any = weights.data.get("block_structure")
    if strategy == "block":
        block = block.split("x") if isinstance(block, str) else block
        items = block[:3] if isinstance(block, list) else []
        sizes = [int(str(item)) for item in items if str(item).isascii() and str(item).isdecimal()]
        if len(sizes) != 2 or not all(0 < item < 2**31 for item in sizes):
            raise weights.fail("block_structure", f"{block!r} is not a pair of sizes")
        return Granularity(sizes[0], sizes[1])
    if strategy in ("group", "tensor_group") and size != WHOLE_ROW:
        return Granularity(1, size)
    known = {"tensor": WHOLE_TENSOR, "channel": ROWS, "group": ROWS}
    if strategy not in known:
        raise UnsupportedError(
            f"{weights.where}: strategy {strategy!r} is not supported",
            f"supported: tensor, channel, group, block; or {FROM_THE_ORIGINAL}",
        )
    return known[strategy]


def _default_strategy(weights: ConfigReader, size: int) -> str:
    if not weights.has("group_size"):
        return "tensor"
    return "channel" if size == WHOLE_ROW else "group"
